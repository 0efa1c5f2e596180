"""Churn: the table against Karras et al.'s Algorithm 2 in float64, and what it promises."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import k_truth
import numpy as np
import pytest
from recordings import relative_error
from samplers import NOISE, x64

import kdiff_jax as kd

SIGMAS = np.array([14.0, 9.0, 5.0, 2.5, 1.0, 0.4, 0.1])
CAP = math.sqrt(2) - 1


def gammas(
    sigmas: np.ndarray, s_churn: Any, s_tmin: float = 0.0, s_tmax: float = math.inf
) -> np.ndarray:
    """By how much every level is raised, level by level as the paper writes it."""
    per_step = np.broadcast_to(s_churn, len(sigmas)) / len(sigmas)
    raised = [
        min(c, CAP) if s_tmin <= s <= s_tmax else 0.0 for s, c in zip(sigmas, per_step, strict=True)
    ]
    return np.array(raised)


CONTROLS: list[dict[str, Any]] = [
    {"s_churn": 1.4},
    {"s_churn": 50.0},
    {"s_churn": 1.4, "s_tmin": 1.0, "s_tmax": 5.0},  # both ends are levels of the grid
    {"s_churn": 2.0, "s_tmax": 13.9, "s_noise": 1.05},
    {"s_churn": np.array([0, 1, 2, 0, 50, 0, 1.0]), "s_noise": np.linspace(0.8, 1.2, 7)},
]


@pytest.mark.parametrize("controls", CONTROLS)
def test_the_table_is_that_of_algorithm_2(controls: dict[str, Any]) -> None:
    with x64():
        schedule = kd.dpm2_schedule(NOISE, sigmas=SIGMAS, **controls)
    s_noise = np.broadcast_to(controls.get("s_noise", 1.0), 7)
    raised = SIGMAS * (1 + gammas(SIGMAS, **{k: v for k, v in controls.items() if k != "s_noise"}))
    added = s_noise * np.sqrt(raised**2 - SIGMAS**2)
    rows = jax.tree.map(np.asarray, schedule.rows)
    np.testing.assert_allclose(schedule.sigmas, [*SIGMAS, 0], rtol=1e-15)
    np.testing.assert_allclose(rows.sigma[::2], raised, rtol=1e-14)
    middle = np.exp((np.log(raised[:-1]) + np.log(SIGMAS[1:])) / 2)
    np.testing.assert_allclose(rows.sigma[1::2], middle, rtol=1e-14)
    np.testing.assert_allclose(rows.epsilon_weight[:-1:2], middle, rtol=1e-14)
    np.testing.assert_allclose(rows.epsilon_weight[1::2], SIGMAS[1:] - raised[:-1], rtol=1e-14)
    # A step's churn is added by the row before it; the first step's is in the initial sample.
    np.testing.assert_allclose(rows.noise_weight[1::2], added[1:], rtol=1e-12)
    np.testing.assert_array_equal(rows.noise_weight[::2], 0)
    np.testing.assert_allclose(rows.input_scale, 1 / np.sqrt(1 + rows.sigma**2), rtol=1e-15)
    start = math.hypot(SIGMAS[0], added[0])
    assert schedule.init_noise_sigma == pytest.approx(start, rel=1e-14)
    # The network is told the raised level, up to the end of what it was trained on.
    levels = np.minimum(rows.sigma, NOISE.sigmas[-1])
    np.testing.assert_allclose(rows.timestep, NOISE.timestep_at(levels), rtol=1e-6, atol=1e-6)
    assert (schedule.deterministic, schedule.alternating, schedule.unit_alpha) == (0, 1, 1)


def test_the_initial_sample_has_the_raised_level() -> None:
    churn = kd.dpm2_schedule(NOISE, sigmas=SIGMAS, s_churn=1.4)
    assert churn.init_noise_sigma == churn[0].sigma == pytest.approx(14 * 1.2, rel=2e-7)
    # "leading" counts unit data as well, and the noise of the churn comes on top of both.
    leading = kd.dpm2_schedule(NOISE, 5, timestep_spacing="leading", s_churn=0.5, s_noise=0.9)
    sigma = float(leading.sigmas[0])
    expected = math.sqrt(sigma**2 + 1 + 0.9**2 * sigma**2 * (1.1**2 - 1))
    assert leading.init_noise_sigma == pytest.approx(expected, rel=2e-7)
    outside = kd.dpm2_schedule(NOISE, sigmas=SIGMAS, s_churn=1.4, s_tmax=10.0)
    assert outside.init_noise_sigma == 14


@pytest.mark.parametrize("seed", range(8))
def test_a_run_is_algorithm_2_at_every_evaluation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 13))
    sigmas = np.append(np.sort(np.exp(rng.uniform(-3, 2.5, count)))[::-1], 0)
    controls: dict[str, Any] = {
        "s_churn": rng.uniform(0, 0.6) * count,
        "s_noise": rng.uniform(0.8, 1.1),
    }
    if seed % 2:
        controls |= {"s_tmin": 0.2, "s_tmax": 6.0}
    x = sigmas[0] * rng.standard_normal((2, 6))
    noise = rng.standard_normal((count, 2, 6))
    expected: list[np.ndarray] = []

    def network(x: Any, np_: Any = np) -> Any:
        return 0.4 * np_.tanh(x) + 0.2 * np_.roll(x, 1, axis=1)

    def denoised(x: np.ndarray, sigma: float) -> np.ndarray:
        return x - sigma * network(x / math.sqrt(1 + sigma**2))

    k_truth.k_sample_dpm_2(denoised, x, sigmas, noise=noise, trace=expected, **controls)

    schedule = kd.dpm2_schedule(NOISE, sigmas=sigmas, **controls)
    denoise = kd.denoiser(lambda params, x, timestep: network(x, jnp))
    with x64():
        exact = kd.dpm2_schedule(NOISE, sigmas=sigmas, **controls)
        added = float(jnp.sqrt(exact.init_noise_sigma**2 - sigmas[0] ** 2))
    state = kd.init(schedule, jnp.asarray(x + added * noise[0], jnp.float32))
    found = []
    for row, after in zip(schedule, expected, strict=True):
        prediction = denoise(None, state.sample, row)
        z = noise[min(int(row.step) + 1, count - 1)]
        state = kd.step(state, row, prediction, noise=jnp.asarray(z, jnp.float32))
        # The truth adds a step's churn at its start, the table at the end of the step before.
        found.append(np.asarray(state.sample) - float(row.noise_weight) * z)
        assert relative_error(found[-1][None], after[None]) < 2e-6


def test_no_churn_is_bitwise_plain_dpm2_whatever_says_so() -> None:
    grids: list[dict[str, Any]] = [{}, {"timestep_spacing": "leading"}, {"grid": "karras"}]
    for arguments in grids:
        plain: Any = kd.dpm2_schedule(NOISE, 9, **arguments)
        assert plain.deterministic
        quiet: list[Any] = [{"s_churn": np.zeros(9)}, {"s_churn": 2.0, "s_tmin": 1e3}]
        for controls in quiet:
            same = kd.dpm2_schedule(NOISE, 9, **arguments, **controls)
            assert not same.deterministic
            jax.tree.map(np.testing.assert_array_equal, same.rows, plain.rows)
            assert same.init_noise_sigma == plain.init_noise_sigma
        same = kd.dpm2_ancestral_schedule(NOISE, 9, eta=0.0, **arguments)
        jax.tree.map(np.testing.assert_array_equal, same.rows, plain.rows)
        assert kd.dpm2_schedule(NOISE, 9, s_noise=1.1, s_tmax=5.0, **arguments).deterministic


def test_a_traced_table_is_the_table_and_has_gradients_without_churn_too() -> None:
    def table(s_churn: Any, s_noise: Any) -> Any:
        schedule = kd.dpm2_schedule(NOISE, sigmas=SIGMAS, s_churn=s_churn, s_noise=s_noise)
        assert not schedule.deterministic
        return schedule

    with x64():
        for s_churn in (0.0, 1.4, 50.0):
            point = jnp.float64(s_churn), jnp.float64(0.9)
            traced = jax.jit(table)(*point)
            near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)  # noqa: E731
            expected = kd.dpm2_schedule(NOISE, sigmas=SIGMAS, s_churn=s_churn, s_noise=0.9)
            jax.tree.map(near, traced.rows, expected.rows)
            near(traced.init_noise_sigma, expected.init_noise_sigma)
            for leaf in jax.tree.leaves(
                jax.jacobian(lambda *a: table(*a).rows.noise_weight)(*point)
            ):
                assert np.all(np.isfinite(leaf))
        # d added / d s_churn = s_noise * sigma * (1 + gamma) / sqrt(gamma (2 + gamma)) / N
        slope = jax.jacobian(lambda c: table(c, 0.9).rows.noise_weight[1::2])(jnp.float64(1.4))
        exact = 0.9 * SIGMAS[1:] * 1.2 / math.sqrt(0.2 * 2.2) / 7
        np.testing.assert_allclose(slope, exact, rtol=1e-12)


def test_tables_of_a_sweep_stack_and_share_a_program() -> None:
    traces: list[None] = []

    def model_fn(params: Any, x: jax.Array, timestep: jax.Array) -> jax.Array:
        traces.append(None)
        return 0.1 * x

    denoise, key = kd.denoiser(model_fn), jax.random.key(0)
    for s_churn in (np.zeros(6), 1.0, 3.0, np.linspace(0, 5, 6)):
        schedule = kd.dpm2_schedule(NOISE, 6, s_churn=s_churn)
        kd.sample(denoise, None, schedule, kd.initial_sample(schedule, key, (2, 4)), key)
    assert len(traces) == 1


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"s_churn": -1.0}, "s_churn = -1.0"),
    ({"s_churn": np.ones(3)}, r"s_churn has shape \(3,\).*\[5\]"),
    ({"s_churn": math.inf}, "s_churn = inf"),
    ({"s_churn": 1.0, "s_noise": -1.0}, "s_noise = -1.0"),
    ({"s_churn": 1.0, "s_tmin": -1.0}, "s_tmin = -1.0"),
    ({"s_churn": 1.0, "s_tmax": "5"}, "s_tmax = '5'"),
    ({"s_churn": 1.0, "s_tmin": 5.0, "s_tmax": 1.0}, "s_tmin = 5.0 is above s_tmax = 1.0"),
]


@pytest.mark.parametrize(("controls", "message"), REFUSED)
def test_refused(controls: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kd.dpm2_schedule(NOISE, 5, **controls)


# --- LCM -------------------------------------------------------------------------------------

LCM_ARGUMENTS: list[tuple[dict[str, Any], list[float]]] = [
    ({}, [1, 1, 1]),
    ({"s_noise": 0.7}, [0.7, 0.7, 0.7]),
    ({"s_noise": [1.0, 0.5, 0.0, 9.0]}, [1, 0.5, 0]),
    ({"s_noise": 1.0, "s_noise_end": 0.4}, [1, 0.8, 0.6]),
]


@pytest.mark.parametrize(("arguments", "factors"), LCM_ARGUMENTS)
def test_lcm_noise_is_scaled_step_by_step(arguments: dict[str, Any], factors: list[float]) -> None:
    schedule = kd.lcm_schedule(NOISE, 4, **arguments)
    plain = kd.lcm_schedule(NOISE, 4)
    level = np.sqrt(1 - NOISE.alphas_cumprod[[759, 499, 259]])
    np.testing.assert_allclose(schedule.rows.noise_weight, [*(level * factors), 0], rtol=2e-7)
    for name in ("denoised_weight", "alpha", "sigma", "timestep"):
        np.testing.assert_array_equal(getattr(schedule.rows, name), getattr(plain.rows, name))
    assert not schedule.deterministic


def test_lcm_factors_may_be_traced_and_are_checked() -> None:
    with x64():
        slope = jax.jacobian(
            lambda end: kd.lcm_schedule(NOISE, 4, s_noise_end=end).rows.noise_weight
        )(jnp.float64(0.4))
    level = np.sqrt(1 - NOISE.alphas_cumprod[[759, 499, 259]])
    np.testing.assert_allclose(slope, [*(level * [0, 1 / 3, 2 / 3]), 0], rtol=1e-12)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"s_noise": -0.5}, "s_noise = -0.5"),
        ({"s_noise": np.ones(3)}, r"s_noise has shape \(3,\).*\[4\]"),
        ({"s_noise_end": -0.5}, "s_noise_end = -0.5"),
        ({"s_noise": np.ones(4), "s_noise_end": 0.5}, r"s_noise has shape \(4,\).*two numbers"),
    ]
    for arguments, message in refused:
        with pytest.raises(ValueError, match=message):
            kd.lcm_schedule(NOISE, 4, **arguments)
