"""Spacings, given levels and starts: which noise levels a run visits, for every N."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from samplers import NOISE
from scipy.special import betainc

import kdiff_jax as kd

LOW, HIGH = NOISE.sigmas[[0, -1]]
SPACINGS = ["linspace", "leading", "trailing"]
GRIDS: dict[str, Any] = {
    "karras": lambda n, low, high: kd.karras_sigmas(n, low, high, 7.0),
    "exponential": kd.exponential_sigmas,
    "beta": kd.beta_sigmas,
}
# 61 and 103 are where rounding makes the reference's trailing grid one step too long.
STEP_COUNTS = [1, 2, 3, 25, 61, 103, 999, 1000]


def spaced(noise: kd.NoiseSchedule, num_steps: int, spacing: Any, offset: int = 0) -> np.ndarray:
    """The N timesteps of a spacing."""
    levels = kd.levels(noise, num_steps, timestep_spacing=spacing, steps_offset=offset)
    return np.asarray(levels.timesteps)


# --- timestep spacings: Lin et al. 2023, table 2 ---------------------------------------------


@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_step_count_gives_exactly_that_many_descending_timesteps(spacing: str) -> None:
    for num_steps in range(1, 1001):
        timesteps = spaced(NOISE, num_steps, spacing)
        assert timesteps.shape == (num_steps,)
        assert np.all(np.diff(timesteps) < 0)
        assert timesteps[0] <= 999
        assert timesteps[-1] >= 0
        assert np.all(np.diff(NOISE.sigma_at(timesteps)) < 0)


@pytest.mark.parametrize("count", [1000, 77])
def test_spacings_follow_their_definitions(count: int) -> None:
    noise = kd.noise_schedule(num_train_timesteps=count)
    for num_steps in range(2, count + 1):
        i = np.arange(num_steps)[::-1]
        linspace = spaced(noise, num_steps, "linspace")
        np.testing.assert_allclose(linspace, i * (count - 1) / (num_steps - 1), atol=1e-12)
        leading = spaced(noise, num_steps, "leading")
        np.testing.assert_array_equal(leading, i * (count // num_steps))
        trailing = spaced(noise, num_steps, "trailing")
        # round(T - k T / N) - 1 in integers; either side where float error may decide a tie.
        off = (trailing + 1) * num_steps - count * (num_steps - np.arange(num_steps))
        assert np.all(2 * np.abs(off) <= num_steps)


def test_an_offset_shifts_leading_timesteps_only() -> None:
    np.testing.assert_array_equal(spaced(NOISE, 4, "leading", 1), [751, 501, 251, 1])
    for spacing in ("linspace", "trailing"):
        shifted = spaced(NOISE, 4, spacing, 3)
        np.testing.assert_array_equal(shifted, spaced(NOISE, 4, spacing))


@pytest.mark.parametrize(("num_steps", "offset"), [(1, 999), (3, 333), (10, 99)])
def test_an_offset_may_reach_the_last_training_timestep(num_steps: int, offset: int) -> None:
    assert spaced(NOISE, num_steps, "leading", offset)[0] == 999


# --- sigma grids -----------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS)
def test_grids_descend_between_their_ends_for_every_step_count(grid: str) -> None:
    for num_steps in range(1, 1001):
        sigmas = GRIDS[grid](num_steps, LOW, HIGH)
        assert sigmas.shape == (num_steps,)
        # Also as a user sees them, in float32.
        assert np.all(np.diff(sigmas.astype(np.float32)) < 0)
        assert sigmas[0] == pytest.approx(HIGH, rel=1e-13)
        if num_steps > 1:
            assert sigmas[-1] == pytest.approx(LOW, rel=1e-11)


def test_grids_are_even_in_their_own_spacing() -> None:
    ramp = np.linspace(1, 0, 41)
    # Karras et al. 2022, equation 5: sigma^(1/rho) is an even grid.
    for rho in (1.0, 3.0, 7.0):
        root = kd.karras_sigmas(41, LOW, HIGH, rho) ** (1 / rho)
        np.testing.assert_allclose((root - root[-1]) / (root[0] - root[-1]), ramp, atol=1e-13)
    logs = np.log(kd.exponential_sigmas(41, LOW, HIGH))
    np.testing.assert_allclose((logs - logs[-1]) / (logs[0] - logs[-1]), ramp, atol=1e-13)
    # Lee et al. 2024: the distribution function of Beta(0.6, 0.6) makes it even.
    share = (kd.beta_sigmas(41, LOW, HIGH) - LOW) / (HIGH - LOW)
    np.testing.assert_allclose(betainc(0.6, 0.6, np.clip(share, 0, 1)), ramp, atol=1e-12)


@pytest.mark.parametrize("num_steps", STEP_COUNTS)
@pytest.mark.parametrize("grid", [None, *GRIDS])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_levels_and_tables_have_the_grid_and_its_closing_zero(
    spacing: Any, grid: Any, num_steps: int
) -> None:
    levels = kd.levels(NOISE, num_steps, timestep_spacing=spacing, grid=grid)
    timesteps = spaced(NOISE, num_steps, spacing)
    sigmas = np.asarray(NOISE.sigma_at(timesteps))
    if grid is not None:
        sigmas = GRIDS[grid](num_steps, sigmas[-1], sigmas[0])
        timesteps = np.asarray(NOISE.timestep_at(sigmas))
    np.testing.assert_array_equal(levels.sigmas, np.append(sigmas, 0))
    np.testing.assert_array_equal(levels.timesteps, timesteps)
    schedule = kd.dpm2(levels)
    assert levels.num_steps == schedule.num_steps == num_steps
    assert schedule.num_rows == 2 * num_steps - 1
    np.testing.assert_array_equal(schedule.sigmas, np.append(sigmas, 0).astype(np.float32))
    assert np.all(np.diff(schedule.sigmas) < 0)
    of_rows = np.asarray(schedule.rows.timestep)
    assert np.all((of_rows >= 0) & (of_rows <= 999))
    np.testing.assert_allclose(of_rows[::2], timesteps, rtol=1e-7)


def test_given_ends_replace_those_of_the_timesteps() -> None:
    ends: list[dict[str, Any]] = [
        {"sigma_min": 0.2, "sigma_max": 5.0},
        {"sigma_min": 0.2},
        {"sigma_max": 5.0},
    ]
    for grid in GRIDS:
        for given_ends in ends:
            levels = kd.levels(NOISE, 9, grid=grid, **given_ends)  # type: ignore[arg-type]
            expected = [given_ends.get("sigma_max", HIGH), given_ends.get("sigma_min", LOW)]
            np.testing.assert_allclose(levels.sigmas[[0, 8]], expected, rtol=1e-11)


# --- levels given by the user ----------------------------------------------------------------


def test_given_timesteps_are_used_verbatim() -> None:
    timesteps = np.array([999, 500.5, 3])
    levels = kd.levels(NOISE, timesteps=timesteps)
    np.testing.assert_array_equal(levels.timesteps, timesteps)
    np.testing.assert_array_equal(levels.sigmas, np.append(NOISE.sigma_at(timesteps), 0))
    rows = kd.dpm2(levels).rows
    np.testing.assert_array_equal(rows.timestep[::2], timesteps.astype(np.float32))


@pytest.mark.parametrize("closing", [[], [0.0]])
def test_given_sigmas_are_used_verbatim_with_or_without_their_closing_zero(
    closing: list[float],
) -> None:
    sigmas = [20.0, 3.3, 0.7, 0.01]  # beyond both ends of the training range
    levels = kd.levels(NOISE, 4, sigmas=[*sigmas, *closing])
    np.testing.assert_array_equal(levels.sigmas, [*sigmas, 0])
    np.testing.assert_array_equal(kd.dpm2(levels).sigmas, np.array([*sigmas, 0], np.float32))
    assert levels.timesteps[0] == 999
    assert levels.timesteps[-1] == 0
    np.testing.assert_allclose(NOISE.sigma_at(levels.timesteps[1:3]), sigmas[1:3], rtol=1e-4)


def test_round_timesteps_rounds_grid_points_and_neither_midpoints_nor_sigmas() -> None:
    plain = kd.dpm2(kd.levels(NOISE, 10, grid="karras"))
    rounded = kd.dpm2(kd.levels(NOISE, 10, grid="karras", round_timesteps=True))
    found, expected = np.asarray(rounded.rows.timestep), np.array(plain.rows.timestep)
    expected[::2] = np.round(expected[::2])
    np.testing.assert_array_equal(found, expected)
    assert np.any(found % 1)
    np.testing.assert_array_equal(rounded.sigmas, plain.sigmas)
    np.testing.assert_array_equal(rounded.rows.sigma, plain.rows.sigma)


# --- init_noise_sigma ------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [None, *GRIDS])
def test_init_noise_sigma_follows_the_spacing_until_steps_are_dropped(grid: Any) -> None:
    for spacing in ("linspace", "leading", "trailing"):
        levels = kd.levels(NOISE, 8, timestep_spacing=spacing, grid=grid)
        sigmas = levels.sigmas
        expected = math.hypot(sigmas[0], 1) if spacing == "leading" else sigmas[0]
        assert levels.init_noise_sigma == pytest.approx(expected, rel=1e-15)
        assert levels.start_at(0) is levels
        for sampler in (kd.euler, kd.dpm2, kd.dpm2_ancestral):
            whole, rest = sampler(levels), sampler(levels.start_at(3))
            assert whole.init_noise_sigma == pytest.approx(expected, rel=2e-7)
            assert rest.init_noise_sigma == pytest.approx(math.hypot(1, sigmas[3]), rel=2e-7)


# --- traced values ---------------------------------------------------------------------------

ENDS = {"sigma_min": 0.05, "sigma_max": 12.0, "rho": 5.0}


def tables(ends: dict[str, Any]) -> dict[str, Any]:
    """Every grid of GRIDS by Euler and by ancestral DPM2, the floating columns."""
    found = {}
    for grid in GRIDS:
        options = ends if grid == "karras" else {k: v for k, v in ends.items() if k != "rho"}
        levels = kd.levels(
            NOISE,
            6,
            grid=grid,  # type: ignore[arg-type]
            timestep_spacing="leading",
            **options,
        )
        for sampler in (kd.euler, kd.dpm2_ancestral):
            found[f"{grid} {sampler.__name__}"] = floats_of(sampler(levels))
    return found


def floats_of(schedule: kd.Schedule) -> dict[str, jax.Array]:
    leaves = {**vars(schedule.rows), "sigmas": schedule.sigmas, "init": schedule.init_noise_sigma}
    return {
        name: leaf
        for name, leaf in leaves.items()
        if leaf is not None and jnp.issubdtype(leaf.dtype, jnp.floating)
    }


def assert_tables_close(found: Any, expected: Any, rtol: float, atol: dict[str, float]) -> None:
    for table, columns in expected.items():
        assert columns.keys() == found[table].keys()
        for name, column in columns.items():
            near = atol.get(name, atol["others"])
            where = f"{table}: {name}"
            np.testing.assert_allclose(found[table][name], column, rtol, near, err_msg=where)


def test_traced_ends_give_the_host_table_in_float64() -> None:
    with sp.x64():  # the formulas, without the rounding
        found = jax.jit(tables)(ENDS)
        assert_tables_close(found, tables(ENDS), 1e-11, {"timestep": 1e-6, "others": 1e-12})


def test_traced_ends_sweep_in_float32_with_finite_gradients() -> None:
    batch = {name: jnp.float32(value) * jnp.array([1, 1.3, 0.9]) for name, value in ENDS.items()}

    def total(ends: dict[str, Any]) -> Any:
        # One entry that is not finite makes the sum of all of them not finite.
        return sum(jnp.sum(column) for column in jax.tree.leaves(tables(ends)))

    def first_levels(ends: dict[str, Any]) -> Any:
        return [columns["sigmas"][0] for columns in tables(ends).values()]

    @jax.jit
    @jax.vmap
    def with_slopes(ends: dict[str, Any]) -> Any:
        return tables(ends), jax.grad(total)(ends), jax.jacfwd(first_levels)(ends)

    found, slopes, of_first = with_slopes(batch)
    assert all(np.all(np.isfinite(slope) & (slope != 0)) for slope in slopes.values())
    for slope in of_first:
        np.testing.assert_allclose(slope["sigma_max"], 1, rtol=1e-5)
    for i in range(3):
        host = tables({name: float(value[i]) for name, value in batch.items()})
        each = jax.tree.map(lambda leaf, i=i: leaf[i], found)
        assert_tables_close(each, host, 2e-5, {"timestep": 5e-3, "others": 2e-6})


def test_given_levels_may_be_traced() -> None:
    def total(given_levels: dict[str, Any]) -> Any:
        columns = floats_of(kd.dpm2(kd.levels(NOISE, **given_levels)))
        return sum(jnp.sum(column) for column in columns.values())

    for name, values in (("sigmas", [10.0, 3.0, 0.5]), ("timesteps", [900.0, 400.5, 30.0])):
        value, gradient = jax.jit(jax.value_and_grad(total))({name: jnp.array(values)})
        assert value == pytest.approx(float(total({name: np.array(values)})), rel=1e-5)
        assert np.all(np.isfinite(gradient[name]))


# --- any configuration -----------------------------------------------------------------------


@st.composite
def configurations(draw: st.DrawFn) -> tuple[Any, ...]:
    count = draw(st.sampled_from([2, 3, 17, 100, 1000, 1500]), "T")
    first = draw(st.floats(1e-5, 2e-2), "beta_start")
    training = {
        "beta_schedule": draw(st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"])),
        "num_train_timesteps": count,
        "beta_start": first,
        "beta_end": first + draw(st.floats(1e-4, 2e-2), "beta_end - beta_start"),
    }
    spacing = draw(st.sampled_from(SPACINGS))
    num_steps = draw(st.integers(1, 12 if spacing == "linspace" else min(count, 12)), "N")
    sampler = draw(st.sampled_from(["euler", "dpm2", "dpm2_ancestral", "lcm"]))
    if sampler == "lcm":
        return training, sampler, num_steps, {"original_steps": min(count, 50)}, {}
    of_levels: dict[str, Any] = {
        "timestep_spacing": spacing,
        "grid": draw(st.sampled_from([None, *GRIDS])),
    }
    if spacing == "leading":
        of_levels["steps_offset"] = draw(st.integers(0, count - 1 - (num_steps - 1) * count // 12))
    of_sampler = {}
    if sampler != "dpm2":
        of_sampler = {"eta": draw(st.floats(0, 1)), "s_noise": draw(st.floats(0, 1.1))}
    return training, sampler, num_steps, of_levels, of_sampler


@settings(deadline=None, derandomize=True, max_examples=100, database=None)
@given(configurations())
def test_every_configuration_gives_a_finite_descending_table(configuration: tuple) -> None:
    training, sampler, num_steps, of_levels, of_sampler = configuration
    count = training["num_train_timesteps"]
    offset = of_levels.get("steps_offset", 0)
    assume(offset + (num_steps - 1) * (count // num_steps) < count)
    noise = kd.noise_schedule(**training)
    assume(sampler != "lcm" or num_steps <= min(count, 50))
    levels = (kd.lcm_levels if sampler == "lcm" else kd.levels)(noise, num_steps, **of_levels)
    schedule = jax.tree.map(np.asarray, getattr(kd, sampler)(levels, **of_sampler))
    for leaf in jax.tree.leaves((schedule, levels)):
        assert np.all(np.isfinite(np.asarray(leaf, np.float64)))
    assert levels.num_steps == schedule.num_steps == num_steps
    assert np.all(np.diff(levels.sigmas) < 0)
    # In variance-preserving units sigma = sqrt(1 - abar) rounds to 1 at several high levels.
    falls = np.diff(schedule.sigmas)
    assert np.all(falls <= 0 if sampler == "lcm" else falls < 0)
    assert schedule.sigmas[-1] == 0
    rows = schedule.rows
    starts = np.append(True, np.diff(rows.step) > 0)
    assert np.all(np.diff(rows.timestep[starts]) < 0)
    # Between whole timesteps a grid's sigma is linear in t and a midpoint's t is linear in
    # log sigma, as in diffusers: they part by less than a timestep of training.
    assert np.all(np.diff(rows.timestep) < 1)
    assert np.all((rows.timestep >= 0) & (rows.timestep <= count - 1))
    assert np.all(rows.sigma > 0)
    assert (rows.noise_weight is None) == (sampler == "dpm2")
    assert rows.noise_weight is None or np.all(rows.noise_weight >= 0)
    assert schedule.init_noise_sigma > 0
