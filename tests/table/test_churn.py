"""Churn: levels and tables against Karras et al.'s Algorithm 2 in float64, and what is refused."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import k_truth
import numpy as np
import pytest
from programs import compilations
from recordings import relative_error
from samplers import NOISE, draws, x64

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


def test_without_bounds_every_level_has_churn() -> None:
    raised = kd.levels(None, sigmas=[1e4, 1.0, 1e-6]).churned(50.0).raised
    assert raised is not None
    np.testing.assert_allclose(raised, math.sqrt(2) * np.array([1e4, 1.0, 1e-6]), rtol=1e-15)


@pytest.mark.parametrize("controls", CONTROLS)
def test_levels_and_tables_are_those_of_algorithm_2(controls: dict[str, Any]) -> None:
    levels = kd.levels(NOISE, sigmas=SIGMAS).churned(**controls)
    s_noise = np.broadcast_to(controls.get("s_noise", 1.0), 7)
    raised = SIGMAS * (1 + gammas(SIGMAS, **{k: v for k, v in controls.items() if k != "s_noise"}))
    added = s_noise * np.sqrt(raised**2 - SIGMAS**2)
    assert levels.raised is not None
    assert levels.added is not None
    np.testing.assert_allclose(levels.raised, raised, rtol=1e-15)
    np.testing.assert_allclose(levels.added, [*added, 0], rtol=1e-12)
    np.testing.assert_array_equal(levels.sigmas, [*SIGMAS, 0])
    # The network's timestep is that of the raised level, up to the end of its training.
    of_levels = NOISE.timestep_at(np.minimum(raised, NOISE.sigmas[-1]))
    np.testing.assert_allclose(levels.timesteps, of_levels, rtol=1e-12, atol=1e-9)
    with x64():
        schedule = kd.dpm2(levels)
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
    of_rows = NOISE.timestep_at(np.minimum(rows.sigma, NOISE.sigmas[-1]))
    np.testing.assert_allclose(rows.timestep, of_rows, rtol=1e-6, atol=1e-6)


def test_euler_steps_from_the_raised_level_too() -> None:
    """Algorithm 2 without its correction: `x + (s1 - raised) * slope`, then the next noise."""
    levels = kd.levels(NOISE, sigmas=SIGMAS).churned(1.4)
    rows: Any = kd.euler(levels).rows
    np.testing.assert_allclose(rows.sigma, SIGMAS * 1.2, rtol=2e-7)
    np.testing.assert_allclose(rows.epsilon_weight, [*SIGMAS[1:], 0], rtol=2e-7)
    added = SIGMAS[1:] * math.sqrt(1.2**2 - 1)
    np.testing.assert_allclose(rows.noise_weight, [*added, 0], rtol=2e-7)


def test_the_initial_sample_has_the_raised_level() -> None:
    levels = kd.levels(NOISE, sigmas=SIGMAS)
    churn = kd.dpm2(levels.churned(1.4))
    assert churn.init_noise_sigma == churn[0].sigma == pytest.approx(14 * 1.2, rel=2e-7)
    # "leading" counts unit data as well, and the noise of the churn comes on top of both.
    leading = kd.dpm2(kd.levels(NOISE, 5, timestep_spacing="leading").churned(0.5, s_noise=0.9))
    sigma = float(leading.sigmas[0])
    expected = math.sqrt(sigma**2 + 1 + 0.9**2 * sigma**2 * (1.1**2 - 1))
    assert leading.init_noise_sigma == pytest.approx(expected, rel=2e-7)
    assert kd.dpm2(levels.churned(1.4, s_tmax=10.0)).init_noise_sigma == 14


def network(x: Any, np_: Any = np) -> Any:
    return 0.4 * np_.tanh(x) + 0.2 * np_.roll(x, 1, axis=1)


denoise = kd.denoiser(lambda params, x, timestep: network(x, jnp))


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

    def denoised(x: np.ndarray, sigma: float) -> np.ndarray:
        return x - sigma * network(x / math.sqrt(1 + sigma**2))

    k_truth.k_sample_dpm_2(denoised, x, sigmas, noise=noise, trace=expected, **controls)

    levels = kd.levels(NOISE, sigmas=sigmas).churned(**controls)
    # One shape, so that a row is taken by one program for all seeds.
    schedule = kd.dpm2(levels).pad(25)
    added = float(np.sqrt(levels.starts[0] ** 2 - sigmas[0] ** 2)) * controls["s_noise"]
    state = kd.init(schedule, jnp.asarray(x + added * noise[0], jnp.float32))
    found = []
    for row, after in zip(schedule, expected, strict=True):
        weight: Any = row.noise_weight
        prediction = denoise(None, state.sample, row)
        z = noise[min(int(row.step) + 1, count - 1)]
        state = kd.step(state, row, prediction, noise=jnp.asarray(z, jnp.float32))
        # The truth adds a step's churn at its start, the table at the end of the step before.
        found.append(np.asarray(state.sample) - float(weight) * z)
        assert relative_error(found[-1][None], after[None]) < 2e-6


def test_no_churn_is_bitwise_plain_dpm2() -> None:
    grids: list[dict[str, Any]] = [{}, {"timestep_spacing": "leading"}, {"grid": "karras"}]
    for arguments in grids:
        levels = kd.levels(NOISE, 9, **arguments)
        plain = kd.dpm2(levels)
        assert not draws(plain)
        quiet: list[Any] = [{"s_churn": np.zeros(9)}, {"s_churn": 2.0, "s_tmin": 1e3}]
        others = [kd.dpm2(levels.churned(**controls)) for controls in quiet]
        for same in (*others, kd.dpm2_ancestral(levels, eta=0.0)):
            assert not np.any(same.rows.noise_weight)
            for name, column in vars(plain.rows).items():
                if name != "noise_weight":
                    np.testing.assert_array_equal(getattr(same.rows, name), column)
            assert same.init_noise_sigma == plain.init_noise_sigma


def test_a_traced_table_is_the_table_and_has_gradients_without_churn_too() -> None:
    def table(s_churn: Any, s_noise: Any) -> kd.Schedule:
        return kd.dpm2(kd.levels(NOISE, sigmas=SIGMAS).churned(s_churn, s_noise=s_noise))

    def weights(s_churn: Any, s_noise: Any) -> Any:
        return table(s_churn, s_noise).rows.noise_weight

    with x64():
        traced, slopes = jax.jit(table), jax.jit(jax.jacobian(weights, (0, 1)))
        for s_churn in (0.0, 1.4, 50.0):
            found, expected = traced(s_churn, 0.9), table(s_churn, 0.9)
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
            assert all(np.all(np.isfinite(leaf)) for leaf in slopes(s_churn, 0.9))
        # d added / d s_churn = s_noise * sigma * (1 + gamma) / sqrt(gamma (2 + gamma)) / N
        slope = slopes(1.4, 0.9)[0][1::2]
        exact = 0.9 * SIGMAS[1:] * 1.2 / math.sqrt(0.2 * 2.2) / 7
        np.testing.assert_allclose(slope, exact, rtol=1e-12)


def test_tables_of_a_sweep_share_a_program(caplog: pytest.LogCaptureFixture) -> None:
    levels, key = kd.levels(NOISE, 6), jax.random.key(0)
    count = 0
    for s_churn in (np.zeros(6), 1.0, 3.0, np.linspace(0, 5, 6)):
        schedule = kd.dpm2(levels.churned(s_churn))
        x = kd.initial_sample(schedule, key, (2, 4))
        run = denoise, None, schedule, x, key
        count += len(compilations(caplog, lambda run=run: kd.sample(*run)))
    assert count == 1


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
def test_controls_out_of_range_are_refused(controls: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kd.levels(NOISE, 5).churned(**controls)


WITH_OTHER_NOISE: list[Any] = [
    (lambda levels: kd.dpm2_ancestral(levels), "eta = 1.0 adds noise of its own"),
    (lambda levels: kd.dpm2_ancestral(levels, eta=0.0), "eta = 0.0 adds noise of its own"),
    (lambda levels: kd.euler(levels, eta=0.5), "eta = 0.5 adds noise of its own"),
    (lambda levels: kd.lcm(levels), "lcm adds noise of its own"),
    (lambda levels: levels.churned(1.0), "have churn already"),
    (lambda levels: levels.reversed(), "have churn, whose noise no way back can find"),
]


@pytest.mark.parametrize(("call", "message"), WITH_OTHER_NOISE)
def test_churn_with_noise_of_another_kind_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(kd.levels(NOISE, 5).churned(0.0))


def test_churn_is_for_a_run_down() -> None:
    with pytest.raises(ValueError, match=r"ascend \(inversion\).*leave churned"):
        kd.levels(NOISE, 5).reversed().churned(1.0)
