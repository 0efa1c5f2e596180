"""Rectified flow: its levels, grids and shifts, its training data, and what is refused.

The levels of a grid are checked against ComfyUI's formulas and NumPy's.
"""

from typing import Any

import grid_truth
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flows import FLOW, SAMPLERS, SD3

import kdiff_jax as kd

LOW = 0.02


# --- shifts and grids ------------------------------------------------------------------------


def test_shifts_are_their_formulas() -> None:
    t = np.linspace(1, 0.01, 30)
    for shift in (0.4, 1.0, 3.0):
        expected = shift * t / (1 + (shift - 1) * t)
        np.testing.assert_allclose(kd.flow_schedule(shift).shifted(t), expected, rtol=1e-14)
        odds = expected / (1 - expected + 1e-300)
        np.testing.assert_allclose(odds[1:], shift * t[1:] / (1 - t[1:]), rtol=1e-12)
    flux = kd.flow_schedule(image_seq_len=4096)
    np.testing.assert_allclose(flux.shifted(t), np.exp(1.15) / (np.exp(1.15) + 1 / t - 1))
    stretched = kd.flow_schedule(2.0, shift_terminal=0.1).shifted(t)
    plain = kd.flow_schedule(2.0).shifted(t)
    assert (stretched[0], stretched[-1]) == (1, pytest.approx(0.1))
    np.testing.assert_allclose((1 - stretched) * (1 - plain[-1]), (1 - plain) * 0.9, atol=1e-15)
    assert kd.flow_schedule(2.0, shift_terminal=0.1).shifted(np.ones(1)).tolist() == [1.0]


def test_levels_and_timesteps_are_taken_verbatim() -> None:
    sigmas = [0.95, 0.6, 0.25, 0.1]
    for given in (sigmas, [*sigmas, 0]):
        levels = kd.levels(SD3, sigmas=given)
        np.testing.assert_array_equal(levels.sigmas, [*sigmas, 0])
        np.testing.assert_allclose(levels.timesteps, [950, 600, 250, 100], rtol=1e-15)
    levels = kd.levels(SD3, timesteps=[950, 600.5, 250, 100])
    np.testing.assert_allclose(levels.sigmas, [0.95, 0.6005, 0.25, 0.1, 0], rtol=1e-15)
    np.testing.assert_allclose(levels.timesteps, [950, 600.5, 250, 100], rtol=1e-15)


def karras(n: int, low: float, high: float, rho: float = 7.0) -> np.ndarray:
    first, last = high ** (1 / rho), low ** (1 / rho)
    return np.linspace(first, last, n) ** rho


def polyexponential(n: int, low: float, high: float) -> np.ndarray:
    return np.exp(np.linspace(1, 0, n) ** 2 * np.log(high / low) + np.log(low))


GRIDS: list[Any] = [
    ({"grid": "karras"}, lambda n, high: karras(n, LOW, high)),
    ({"grid": "exponential"}, lambda n, high: np.geomspace(high, LOW, n)),
    ({"grid": "polyexponential", "rho": 2.0}, lambda n, high: polyexponential(n, LOW, high)),
    ({"grid": "kl_optimal"}, lambda n, high: grid_truth.kl_optimal(n, LOW, high)),
]


@pytest.mark.parametrize("high", [None, 0.9])
@pytest.mark.parametrize(("given", "truth"), GRIDS, ids=lambda value: str(value)[:24])
def test_grids_between_two_levels_are_their_formulas(given: Any, truth: Any, high: Any) -> None:
    levels = kd.levels(SD3, 6, sigma_min=LOW, sigma_max=high, **given)
    expected = truth(6, 1.0 if high is None else high)
    np.testing.assert_allclose(levels.sigmas, [*expected, 0], rtol=1e-12)
    np.testing.assert_allclose(levels.timesteps, 1000 * levels.sigmas[:-1], rtol=1e-15)


def test_the_other_grids_and_their_ends() -> None:
    beta = kd.levels(FLOW, 5, grid="beta", sigma_min=LOW).sigmas
    assert beta[0] == 1
    np.testing.assert_allclose(beta[2] - LOW, 1 - beta[2], rtol=1e-12)  # symmetric about the middle
    np.testing.assert_allclose(beta[4], LOW, rtol=1e-12)
    found = kd.levels(FLOW, 6, grid="linear_quadratic").sigmas
    expected = grid_truth.linear_quadratic(6, 1.0, 0.025, 3)
    np.testing.assert_allclose(found, [*expected, 0], rtol=1e-10)
    # Without ends: from 1 to the last level of the spacing, shifted once; linspace shifts twice.
    for spacing, last in (("linspace", 1 / 1000), ("trailing", 1 / 5)):
        end = 3 * last / (1 + 2 * last)
        options: Any = {"timestep_spacing": spacing, "grid": "exponential"}
        for flow in (SD3, kd.flow_schedule(mu=np.log(3.0))):
            found = kd.levels(flow, 5, **options).sigmas
            np.testing.assert_allclose(found[:-1], np.geomspace(1, end, 5), rtol=1e-12)
    stretched = kd.levels(kd.flow_schedule(3.0, shift_terminal=0.1), 5, grid="karras").sigmas
    np.testing.assert_allclose(stretched[-2], 0.1, rtol=1e-12)
    takes_sigma = kd.flow_schedule(num_train_timesteps=1)
    levels = kd.levels(takes_sigma, 5, grid="karras", sigma_min=LOW)
    np.testing.assert_array_equal(levels.timesteps, levels.sigmas[:-1])


@pytest.mark.parametrize("shift", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("num_steps", [1, 2, 7, 20, 61, 200, 999])
def test_grids_of_timesteps_are_those_of_comfyui(num_steps: int, shift: float) -> None:
    def shifted(t: Any) -> Any:
        return shift * t / (1 + (shift - 1) * t)

    def levels_of(grid: Any) -> np.ndarray:
        levels = kd.levels(kd.flow_schedule(shift), num_steps, grid=grid)
        np.testing.assert_allclose(levels.timesteps, 1000 * levels.sigmas[:-1], rtol=1e-15)
        assert levels.init_noise_sigma == levels.sigmas[0]
        return np.asarray(levels.sigmas[:-1])

    table = shifted(np.arange(1, 1001) / 1000)
    expected = {
        "simple": grid_truth.simple(table, num_steps),
        # Their timesteps are levels times 1000, and a level of a timestep is shifted.
        "normal": shifted(np.linspace(table[-1], table[0], num_steps)),
        "sgm_uniform": shifted(np.linspace(table[-1], table[0], num_steps + 1)[:-1]),
    }
    for grid, levels in expected.items():
        np.testing.assert_allclose(levels_of(grid), levels, rtol=1e-12, err_msg=grid)
    beta = [table[t] for t in grid_truth.beta_timesteps(1000, num_steps)]
    if len(beta) == num_steps:  # or it dropped some, and runs fewer steps
        np.testing.assert_allclose(levels_of("beta_timesteps"), beta, rtol=1e-12)
    ddim = grid_truth.ddim_uniform(table, num_steps)[-num_steps:]
    if num_steps > 1:  # one step of theirs starts at the second level
        np.testing.assert_allclose(levels_of("ddim_uniform"), ddim, rtol=1e-12)


def test_a_grid_of_timesteps_on_a_dynamic_a_stretched_and_a_traced_flow() -> None:
    dynamic = kd.levels(kd.flow_schedule(mu=np.log(3.0)), 5, grid="normal")
    np.testing.assert_allclose(dynamic.sigmas, kd.levels(SD3, 5, grid="normal").sigmas, rtol=1e-12)
    # With a fixed shift both shift the end twice.
    np.testing.assert_allclose(dynamic.sigmas, kd.levels(SD3, 5).sigmas, rtol=1e-12)
    assert dynamic.sigmas[-2] == pytest.approx(0.0089, abs=5e-5)
    assert kd.levels(FLOW, 20, grid="ddim_uniform").sigmas[0] == pytest.approx(0.952)
    assert kd.levels(FLOW, 1, grid="ddim_uniform").sigmas[0] == 1
    # ComfyUI counts 10,000 levels for Flux.
    flux = kd.levels(kd.flow_schedule(mu=1.15, num_train_timesteps=10_000), 4, grid="simple")
    t = np.array([1, 0.75, 0.5, 0.25])
    np.testing.assert_allclose(
        flux.sigmas[:-1], np.exp(1.15) / (np.exp(1.15) + 1 / t - 1), rtol=1e-12
    )
    stretched = kd.flow_schedule(3.0, shift_terminal=0.1)
    for grid in ("normal", "simple"):
        sigmas = kd.levels(stretched, 5, grid=grid).sigmas
        plain = kd.levels(SD3, 5, grid=grid).sigmas[:-1]
        expected = 1 - (1 - plain) * 0.9 / (1 - plain[-1])
        np.testing.assert_allclose(sigmas[:-1], expected, rtol=1e-12)

        def total(shift: Any, grid: Any = grid) -> jax.Array:
            return jnp.sum(kd.levels(kd.flow_schedule(shift), 5, grid=grid).sigmas)

        value, slope = jax.jit(jax.value_and_grad(total))(3.0)
        assert value == pytest.approx(kd.levels(SD3, 5, grid=grid).sigmas.sum(), rel=1e-6)
        assert slope > 0


def test_without_its_penultimate_level_a_grid_has_n_of_n_plus_1() -> None:
    for given in ({}, {"grid": "karras", "sigma_min": LOW}):
        longer = kd.levels(SD3, 7, **given)  # type: ignore[arg-type]
        levels = kd.levels(SD3, 6, discard_penultimate=True, **given)  # type: ignore[arg-type]
        np.testing.assert_array_equal(levels.sigmas, [*longer.sigmas[:6], 0])


def test_a_strength_begins_on_the_line() -> None:
    whole = kd.levels(SD3, 10)
    levels = kd.levels(SD3, 5, strength=0.5)
    np.testing.assert_array_equal(levels.sigmas, whole.sigmas[5:])
    x0, eps = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    level = whole.sigmas[5]
    for name, sampler in SAMPLERS.items():
        schedule = sampler(levels)
        noised = kd.add_noise(schedule[0], x0, eps)
        expected = (1 - level) * x0 + level * eps
        np.testing.assert_allclose(noised, expected, atol=1e-6, err_msg=name)
        start = float(schedule.init_noise_sigma)
        assert start == pytest.approx(np.hypot(1 - level, level), rel=2e-7)


def test_traced_ends_have_finite_gradients() -> None:
    def weights(low: Any, high: Any) -> Any:
        rows: Any
        rows = kd.dpm2(kd.levels(FLOW, 5, grid="karras", sigma_min=low, sigma_max=high)).rows
        return jnp.stack([rows.denoised_weight, rows.epsilon_weight])

    found = jax.jit(jax.jacfwd(weights, argnums=(0, 1)))(0.02, 0.98)
    assert all(np.all(np.isfinite(slope)) and np.any(slope != 0) for slope in found)
    # Backwards, one entry that is not finite makes the sum of all of them not finite.
    found = jax.jit(jax.grad(lambda *ends: weights(*ends).sum(), argnums=(0, 1)))(0.02, 0.98)
    assert np.all(np.isfinite(found))


# --- training --------------------------------------------------------------------------------


def test_training_data_and_its_velocity() -> None:
    x0, eps = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    t = jnp.array([0.0, 250.0, 1000.0])
    noised = FLOW.add_noise(x0, eps, t)
    share = np.array([0, 0.25, 1])[:, None]
    np.testing.assert_allclose(noised, (1 - share) * x0 + share * eps, atol=1e-6)
    np.testing.assert_allclose(FLOW.velocity(x0, eps, t), eps - x0, atol=1e-6)
    # The network with this output gives x0 and eps back, at every level.
    denoise = kd.denoiser(lambda params, x, timestep: params, "flow_prediction")
    for row in kd.dpm2(kd.levels(SD3, 3)):
        prediction = denoise(FLOW.velocity(x0, eps), kd.add_noise(row, x0, eps), row)
        np.testing.assert_allclose(prediction.denoised, x0, atol=2e-6)
        np.testing.assert_allclose(prediction.epsilon, eps, atol=2e-6)


# --- refusals --------------------------------------------------------------------------------

VP = kd.noise_schedule()
BAD: Any = 2.5
REFUSED: list[Any] = [
    (lambda: kd.flow_schedule(0.0), "shift = 0.0"),
    (lambda: kd.flow_schedule(2.0, mu=1.0), "shift and mu were given"),
    (lambda: kd.flow_schedule(mu=1.0, image_seq_len=9), "mu and image_seq_len were given"),
    (lambda: kd.flow_schedule(image_seq_len=BAD), "image_seq_len = 2.5"),
    (lambda: kd.flow_schedule(image_seq_len=9, max_image_seq_len=256), "two lengths"),
    (lambda: kd.flow_schedule(shift_terminal=1.0), "shift_terminal = 1.0"),
    (lambda: kd.flow_schedule(num_train_timesteps=0), "num_train_timesteps = 0"),
    (lambda: kd.levels(FLOW, 5, timestep_spacing="leading"), "'leading'"),
    (lambda: kd.levels(FLOW, 5, steps_offset=1), "steps_offset = 1"),
    (lambda: kd.levels(FLOW, 5, grid="karras", sigma_max=2.0), "sigma_max = 2.0"),
    (lambda: kd.levels(FLOW, sigmas=[1.2, 0.5]), "begin at 1.2"),
    (lambda: kd.levels(FLOW, timesteps=[1001, 5]), "begin at 1.001"),
    (lambda: kd.levels(kd.flow_schedule(num_train_timesteps=1), 5), "'trailing'"),
    (lambda: kd.dpm2_ancestral(kd.levels(FLOW, sigmas=[1, 0.5]), eta=2.0), "eta below 2"),
    (lambda: kd.lcm_levels(FLOW, 4), "rectified flow.*no distillation grid.*kd.levels"),  # type: ignore[arg-type]
    (lambda: FLOW.add_noise(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.ones(3)), "one a sample"),
    (lambda: FLOW.velocity(jnp.ones((2, 3)), jnp.ones((3, 2))), "differ"),
    (lambda: kd.stack([kd.dpm2(kd.levels(noise, 3)) for noise in (FLOW, VP)]), "stack them apart"),
    (lambda: kd.levels(FLOW, 1001, grid="simple"), "num_steps = 1001 is more than the 1000"),
    (
        lambda: kd.levels(kd.flow_schedule(num_train_timesteps=1), 5, grid="normal"),
        "grid = 'normal' runs down to 1 / num_train_timesteps, which is 1 here",
    ),
    (lambda: kd.levels(FLOW, 5, grid="vp"), "'vp' is laid out for noise over signal"),
    (lambda: kd.levels(FLOW, 5, grid="laplace"), "'laplace' is laid out"),
    (lambda: kd.levels(FLOW, 5, round_timesteps=True), "round_timesteps=True"),
    (lambda: kd.levels(FLOW, 5).churned(0.5), r"s_churn = 0\.5.*alpha \+ sigma = 1"),
    (lambda: kd.levels(FLOW, 5).churned(np.zeros(5)), r"s_churn = \[0\."),
    (lambda: jax.jit(lambda s: kd.levels(FLOW, 5).churned(s).added)(0.5), "s_churn = "),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_a_flow_does_not_have_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
