"""Every control of the library on a rectified flow: grids, noise, inversion, inpainting, refusals.

The levels of a grid are checked against ComfyUI's formulas and NumPy's, inversion and inpainting
around the exact denoiser of Gaussian data.
"""

from typing import Any

import grid_truth
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
from flows import BUILDERS, FLOW, SD3, every_builder
from samplers import relative_error
from test_inpaint import MASK, exact_denoise
from test_inversion import (
    gaussian_denoise,
    gaussian_solution,
    levels,
    orders,
    without_closing_step,
)

import kdiff_jax as kd

network = kd.denoiser(
    lambda params, x, timestep: jnp.sin(1.7 * x) - 0.6 * x + params, "flow_prediction"
)
of_the_whole_grid = pytest.mark.parametrize("name", [name for name in BUILDERS if name != "lcm"])


# --- grids -----------------------------------------------------------------------------------


def karras(n, low, high, rho=7.0):
    first, last = high ** (1 / rho), low ** (1 / rho)
    return np.linspace(first, last, n) ** rho


def polyexponential(n, low, high):
    return np.exp(np.linspace(1, 0, n) ** 2 * np.log(high / low) + np.log(low))


LOW = 0.02
GRIDS: list[Any] = [
    ({"grid": "karras"}, lambda n, high: karras(n, LOW, high)),
    ({"grid": "exponential"}, lambda n, high: np.geomspace(high, LOW, n)),
    ({"grid": "polyexponential", "rho": 2.0}, lambda n, high: polyexponential(n, LOW, high)),
    ({"grid": "kl_optimal"}, lambda n, high: grid_truth.kl_optimal(n, LOW, high)),
]


@pytest.mark.parametrize("high", [None, 0.9])
@pytest.mark.parametrize(("given", "truth"), GRIDS, ids=lambda value: str(value)[:24])
@of_the_whole_grid
def test_grids_between_two_levels_are_their_formulas(name, given, truth, high):
    schedule = BUILDERS[name](SD3, 6, sigma_min=LOW, sigma_max=high, **given)
    expected = truth(6, 1.0 if high is None else high)[:6]
    np.testing.assert_allclose(schedule.sigmas, [*expected, 0], rtol=2e-6)
    np.testing.assert_allclose(schedule.rows.timestep, 1000 * schedule.rows.sigma, rtol=1e-6)
    np.testing.assert_allclose(schedule.rows.alpha + schedule.rows.sigma, 1, atol=1e-7)


def test_the_other_grids_and_their_ends():
    beta = kd.dpm2_schedule(FLOW, 5, grid="beta", sigma_min=LOW).sigmas
    assert beta[0] == 1
    np.testing.assert_allclose(beta[2] - LOW, 1 - beta[2], rtol=1e-6)  # symmetric about the middle
    np.testing.assert_allclose(beta[4], LOW, rtol=1e-6)
    found = kd.euler_schedule(FLOW, 6, grid="linear_quadratic").sigmas
    expected = grid_truth.linear_quadratic(6, 1.0, 0.025, 3)
    np.testing.assert_allclose(found, [*expected, 0], rtol=1e-6)
    # Without ends: from 1 to the last level of the flow's own spacing.
    for spacing in ("linspace", "trailing"):
        own = kd.dpm2_schedule(SD3, 5, timestep_spacing=spacing).sigmas
        found = kd.dpm2_schedule(SD3, 5, timestep_spacing=spacing, grid="exponential").sigmas
        np.testing.assert_allclose(found[:-1], np.geomspace(1, own[-2], 5), rtol=2e-6)
    told_sigma = kd.flow_schedule(num_train_timesteps=1)
    schedule = kd.dpm2_schedule(told_sigma, 5, grid="karras", sigma_min=LOW)
    np.testing.assert_allclose(schedule.rows.timestep, schedule.rows.sigma, rtol=1e-7)


@of_the_whole_grid
def test_without_its_penultimate_level_a_grid_has_n_of_n_plus_1(name):
    for given in ({}, {"grid": "karras", "sigma_min": LOW}):
        longer = BUILDERS[name](SD3, 7, **given)
        schedule = BUILDERS[name](SD3, 6, discard_penultimate=True, **given)
        np.testing.assert_array_equal(schedule.sigmas, [*longer.sigmas[:6], 0])


def test_traced_ends_have_finite_gradients():
    def table(low, high):
        schedule = kd.dpm2_schedule(FLOW, 5, grid="karras", sigma_min=low, sigma_max=high)
        return jnp.stack([schedule.rows.denoised_weight, schedule.rows.epsilon_weight])

    found = jax.jit(jax.jacrev(table, argnums=(0, 1)))(0.02, 0.98)
    assert all(np.all(np.isfinite(slope)) and np.any(slope != 0) for slope in found)


# --- noise -----------------------------------------------------------------------------------


def test_the_noise_of_lcm_is_multiplied_step_by_step():
    given = [1.0, 0.6, 0.25, 0.1]
    plain = kd.lcm_schedule(SD3, sigmas=given)
    np.testing.assert_allclose(plain.rows.noise_weight, [0.6, 0.25, 0.1, 0], rtol=1e-6)
    np.testing.assert_allclose(plain.rows.denoised_weight, [0.4, 0.75, 0.9, 1], rtol=1e-6)
    each = kd.lcm_schedule(SD3, sigmas=given, s_noise=[1, 0.5, 2, 1]).rows.noise_weight
    np.testing.assert_allclose(each, [0.6, 0.125, 0.2, 0], rtol=1e-6)
    ramp = kd.lcm_schedule(SD3, sigmas=given, s_noise=1.0, s_noise_end=0.4).rows.noise_weight
    np.testing.assert_allclose(ramp, [0.6, 0.2, 0.06, 0], rtol=1e-6)


@every_builder
def test_rows_leave_and_reach_the_levels_of_the_flow(name):
    schedule = BUILDERS[name](SD3, 5)
    step = np.asarray(schedule.rows.step)
    np.testing.assert_array_equal(schedule.rows.sigma_left, schedule.sigmas[step])
    np.testing.assert_array_equal(schedule.rows.sigma_reached, schedule.sigmas[step + 1])


@pytest.mark.parametrize("name", ["ancestral", "euler_ancestral", "lcm"])
def test_noise_from_a_function_or_from_an_array(name):
    schedule, key, shape = BUILDERS[name](SD3, 5), jax.random.key(3), (2, 8)
    x = kd.initial_sample(schedule, key, shape)

    def run(**how):
        return kd.sample(network, jnp.float32(0.1), schedule, x, **how)

    landing = [row for row in schedule if bool(row.advances)]
    brownian = kd.brownian_noise(float(schedule.sigmas[-2]) / 2, 1.0)
    for noise_fn, expected in (
        (kd.row_noise, run(key=key)),
        (brownian, run(key=key, noise_fn=brownian)),
    ):
        drawn = jnp.stack([noise_fn(key, row, shape) for row in landing])
        assert relative_error(run(noise_fn=kd.given_noise(drawn)), expected) < 1e-5


# --- inversion, image to image, inpainting ---------------------------------------------------


def test_the_table_of_an_inversion_is_its_formula():
    """sigma from 1/32 to 1/8 to 1/2: midpoints 1/16 and 1/4, alpha = 1 - sigma; all exact."""
    up = kd.inversion_schedule(kd.dpm2_schedule(FLOW, sigmas=[1 / 2, 1 / 8, 1 / 32]))
    sigma = np.array([1 / 32, 1 / 16, 1 / 8, 1 / 4])
    step = np.array([1 / 8 - 1 / 32, 1 / 2 - 1 / 8])
    np.testing.assert_array_equal(up.rows.sigma, sigma)
    np.testing.assert_array_equal(up.rows.alpha, 1 - sigma)
    np.testing.assert_array_equal(up.rows.anchor_weight, [0, 1, 0, 1])
    weights = [1 - 1 / 16, -step[0], 1 - 1 / 4, -step[1]], [1 / 16, step[0], 1 / 4, step[1]]
    np.testing.assert_array_equal(up.rows.denoised_weight, weights[0])
    np.testing.assert_array_equal(up.rows.epsilon_weight, weights[1])
    assert (up.flow, up.unit_alpha, up.alternating, up.deterministic) == (True, False, False, True)
    with pytest.raises(ValueError, match="rectified flow"):
        kd.sample(kd.denoiser(lambda params, x, timestep: x), None, up, jnp.ones((1, 2)))


@pytest.mark.parametrize(("build", "way_up", "back"), [("dpm2", 1.95, 2.9), ("euler", 0.95, 0.92)])
def test_there_and_back_converges_as_without_a_flow(build, way_up, back):
    counts, errors, returns = [20, 40, 80], [], []
    with sp.x64():
        x = jnp.linspace(-2, 2, 5)[:, None]
        for n in counts:
            down = BUILDERS[build](FLOW, n, grid="exponential", sigma_min=0.02)
            noise = kd.sample(gaussian_denoise, None, kd.inversion_schedule(down), x)
            errors.append(relative_error(noise, gaussian_solution(np.asarray(x), *levels(down))))
            again = kd.sample(gaussian_denoise, None, without_closing_step(down), noise)
            returns.append(relative_error(again, x))
    assert all(order > way_up for order in orders(counts, errors)), orders(counts, errors)
    assert all(order > back for order in orders(counts, returns)), orders(counts, returns)


@pytest.mark.parametrize("renoised", [False, True], ids=["projected", "renoised"])
@every_builder
def test_inpainting_holds_what_is_known_at_the_level_of_every_row(name, renoised):
    schedule, key = BUILDERS[name](FLOW, 4), jax.random.key(0)
    known, eps, other = np.random.default_rng(3).normal(size=(3, 3, 4)).astype(np.float32)
    x = kd.add_noise(schedule[0], known, eps)
    seen = []

    def watched(params, x, row, cond=None):
        seen.append(x)
        return exact_denoise(params, x, row, cond)

    denoise = kd.inpainted(exact_denoise, known, MASK, other if renoised else None)
    x0 = kd.sample(denoise, None, schedule, x, key)
    np.testing.assert_array_equal(x0[:, MASK == 0], known[:, MASK == 0])
    for row in schedule:
        said = denoise(None, x, row)
        parts = row.alpha * said.denoised + row.sigma * said.epsilon
        np.testing.assert_allclose(parts, x, atol=2e-6)
    watching = kd.inpainted(watched, known, MASK, other if renoised else None)
    sp.run_by_hand(watching, None, schedule, x, key)
    if not renoised and not schedule.deterministic:
        return  # the known part then has the noise of the run
    for row, got in zip(schedule, seen, strict=True):
        expected = float(row.alpha) * known + float(row.sigma) * (other if renoised else eps)
        np.testing.assert_allclose(got[:, MASK == 0], expected[:, MASK == 0], atol=3e-6)


def test_image_to_image_begins_on_the_line():
    whole = kd.dpm2_schedule(SD3, 10)
    schedule = kd.img2img_schedule(lambda n: kd.dpm2_schedule(SD3, n), 5, strength=0.5)
    np.testing.assert_array_equal(schedule.sigmas, whole.sigmas[5:])
    x0, eps = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    level = float(whole.sigmas[5])
    noised = kd.add_noise(schedule[0], x0, eps)
    np.testing.assert_allclose(noised, (1 - level) * x0 + level * eps, atol=1e-6)


# --- refusals --------------------------------------------------------------------------------

REFUSED: list[Any] = [
    *(
        (lambda grid=grid: kd.dpm2_schedule(FLOW, 5, grid=grid), f"'{grid}' counts along")
        for grid in ("normal", "simple", "sgm_uniform", "ddim_uniform", "beta_timesteps")
    ),
    (lambda: kd.euler_schedule(FLOW, 5, grid="vp"), "'vp' is laid out for noise over signal"),
    (lambda: kd.euler_schedule(FLOW, 5, grid="laplace"), "'laplace' is laid out"),
    (lambda: kd.dpm2_schedule(FLOW, 5, round_timesteps=True), "round_timesteps=True"),
    (lambda: kd.dpm2_schedule(FLOW, 5, s_churn=0.5), r"s_churn = 0\.5.*alpha \+ sigma = 1"),
    (lambda: kd.dpm2_schedule(FLOW, 5, s_churn=np.zeros(5)), r"s_churn = \[0\."),
    (lambda: jax.jit(lambda s: kd.dpm2_schedule(FLOW, 5, s_churn=s).sigmas)(0.5), "s_churn = "),
    (lambda: kd.lcm_schedule(FLOW, sigmas=[1.5, 0.5]), "begin at 1.5"),
    (lambda: kd.lcm_schedule(FLOW, 2, sigmas=[0.9, 0.5], strength=0.5), "strength with"),
    (lambda: kd.inversion_schedule(kd.dpm2_ancestral_schedule(FLOW, 5)), "draws noise"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_a_flow_does_not_have_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
