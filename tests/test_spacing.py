"""Inference grids: which noise levels a run visits, for every N, and traced as on the host."""

import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import betainc

import kdiff_jax as kd
from kdiff_jax._grids import beta_sigmas, exponential_sigmas, karras_sigmas
from kdiff_jax._spacing import spaced_timesteps
from kdiff_jax._timestep_grids import lcm_timesteps

X64: Any = jax if hasattr(jax, "enable_x64") else jax.experimental  # before JAX 0.8

NOISE = kd.noise_schedule("scaled_linear")
LOW, HIGH = NOISE.sigmas[[0, -1]]
SPACINGS = ["linspace", "leading", "trailing"]
GRIDS: dict[str, Any] = {
    "karras": lambda n, low, high: karras_sigmas(n, low, high, 7.0),
    "exponential": exponential_sigmas,
    "beta": beta_sigmas,
}
# 61 and 103 are where rounding makes the reference's trailing grid one step too long.
STEP_COUNTS = [1, 2, 3, 25, 61, 103, 999, 1000]


# --- timestep spacings: Lin et al. 2023, table 2 ---------------------------------------------


@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_step_count_gives_exactly_that_many_descending_timesteps(spacing: str) -> None:
    for num_steps in range(1, 1001):
        timesteps = spaced_timesteps(1000, num_steps, spacing, 0)
        assert timesteps.shape == (num_steps,)
        assert np.all(np.diff(timesteps) < 0)
        assert timesteps[0] <= 999
        assert timesteps[-1] >= 0
        assert np.all(np.diff(NOISE.sigma_at(timesteps)) < 0)


@pytest.mark.parametrize("count", [1000, 77])
def test_spacings_follow_their_definitions(count: int) -> None:
    for num_steps in range(2, count + 1):
        i = np.arange(num_steps)[::-1]
        linspace = spaced_timesteps(count, num_steps, "linspace", 0)
        np.testing.assert_allclose(linspace, i * (count - 1) / (num_steps - 1), atol=1e-12)
        leading = spaced_timesteps(count, num_steps, "leading", 0)
        np.testing.assert_array_equal(leading, i * (count // num_steps))
        trailing = spaced_timesteps(count, num_steps, "trailing", 0)
        # round(T - k T / N) - 1 in integers; either side where float error may decide a tie.
        off = (trailing + 1) * num_steps - count * (num_steps - np.arange(num_steps))
        assert np.all(2 * np.abs(off) <= num_steps)


def test_an_offset_shifts_leading_timesteps_only() -> None:
    np.testing.assert_array_equal(spaced_timesteps(1000, 4, "leading", 1), [751, 501, 251, 1])
    for spacing in ("linspace", "trailing"):
        shifted = spaced_timesteps(1000, 4, spacing, 3)
        np.testing.assert_array_equal(shifted, spaced_timesteps(1000, 4, spacing, 0))


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
        root = karras_sigmas(41, LOW, HIGH, rho) ** (1 / rho)
        np.testing.assert_allclose((root - root[-1]) / (root[0] - root[-1]), ramp, atol=1e-13)
    logs = np.log(exponential_sigmas(41, LOW, HIGH))
    np.testing.assert_allclose((logs - logs[-1]) / (logs[0] - logs[-1]), ramp, atol=1e-13)
    # Lee et al. 2024: the distribution function of Beta(0.6, 0.6) makes it even.
    share = (beta_sigmas(41, LOW, HIGH) - LOW) / (HIGH - LOW)
    np.testing.assert_allclose(betainc(0.6, 0.6, np.clip(share, 0, 1)), ramp, atol=1e-12)


@pytest.mark.parametrize("num_steps", STEP_COUNTS)
@pytest.mark.parametrize("grid", [None, *GRIDS])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_tables_have_the_grid_and_its_closing_zero(
    spacing: str, grid: str | None, num_steps: int
) -> None:
    schedule = kd.dpm2_schedule(NOISE, num_steps, timestep_spacing=spacing, grid=grid)
    timesteps = spaced_timesteps(1000, num_steps, spacing, 0)
    levels = NOISE.sigma_at(timesteps)
    if grid is not None:
        levels = GRIDS[grid](num_steps, levels[-1], levels[0])
        timesteps = NOISE.timestep_at(levels)
    assert schedule.num_steps == num_steps
    assert schedule.num_rows == 2 * num_steps - 1
    np.testing.assert_array_equal(schedule.sigmas, np.append(levels, 0).astype(np.float32))
    assert np.all(np.diff(schedule.sigmas) < 0)
    told = np.asarray(schedule.rows.timestep)
    assert np.all((told >= 0) & (told <= 999))
    np.testing.assert_allclose(told[::2], timesteps, rtol=1e-7)


def test_given_ends_replace_those_of_the_timesteps() -> None:
    for grid in GRIDS:
        schedule = kd.euler_schedule(NOISE, 9, grid=grid, sigma_min=0.2, sigma_max=5.0)
        np.testing.assert_allclose(schedule.sigmas[jnp.array([0, 8])], [5.0, 0.2], rtol=2e-7)
        halves: list[dict[str, Any]] = [{"sigma_min": 0.2}, {"sigma_max": 5.0}]
        for half in halves:
            schedule = kd.euler_schedule(NOISE, 9, grid=grid, **half)
            expected = [half.get("sigma_max", HIGH), half.get("sigma_min", LOW)]
            np.testing.assert_allclose(schedule.sigmas[jnp.array([0, 8])], expected, rtol=2e-7)


# --- grids given by the user -----------------------------------------------------------------


def test_given_timesteps_are_used_verbatim() -> None:
    timesteps: Any = [999, 500.5, 3]
    schedule = kd.dpm2_schedule(NOISE, timesteps=timesteps)
    np.testing.assert_array_equal(schedule.rows.timestep[::2], np.array(timesteps, np.float32))
    sigmas = np.append(NOISE.sigma_at(timesteps), 0)
    np.testing.assert_array_equal(schedule.sigmas, sigmas.astype(np.float32))


@pytest.mark.parametrize("closing", [[], [0.0]])
def test_given_sigmas_are_used_verbatim_with_or_without_their_closing_zero(closing: list) -> None:
    sigmas = [20.0, 3.3, 0.7, 0.01]  # beyond both ends of the training range
    schedule = kd.dpm2_schedule(NOISE, 4, sigmas=[*sigmas, *closing])
    np.testing.assert_array_equal(schedule.sigmas, np.array([*sigmas, 0], np.float32))
    told = np.asarray(schedule.rows.timestep[::2])
    assert told[0] == 999
    assert told[-1] == 0
    np.testing.assert_allclose(NOISE.sigma_at(told[1:3]), sigmas[1:3], rtol=1e-4)


def test_round_timesteps_rounds_grid_points_and_neither_midpoints_nor_sigmas() -> None:
    plain = kd.dpm2_schedule(NOISE, 10, grid="karras")
    rounded = kd.dpm2_schedule(NOISE, 10, grid="karras", round_timesteps=True)
    told, expected = np.asarray(rounded.rows.timestep), np.array(plain.rows.timestep)
    expected[::2] = np.round(expected[::2])
    np.testing.assert_array_equal(told, expected)
    assert np.any(told % 1)
    np.testing.assert_array_equal(rounded.sigmas, plain.sigmas)
    np.testing.assert_array_equal(rounded.rows.sigma, plain.rows.sigma)


# --- init_noise_sigma ------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [None, *GRIDS])
def test_init_noise_sigma_follows_the_spacing_until_steps_are_dropped(grid: str | None) -> None:
    for spacing in SPACINGS:
        schedule = kd.dpm2_schedule(NOISE, 8, timestep_spacing=spacing, grid=grid)
        sigmas = np.asarray(schedule.sigmas, np.float64)
        expected = math.hypot(sigmas[0], 1) if spacing == "leading" else sigmas[0]
        assert schedule.init_noise_sigma == pytest.approx(expected, rel=2e-7)
        assert schedule.start_at(0).init_noise_sigma == schedule.init_noise_sigma
        later = schedule.start_at(3).init_noise_sigma
        assert later == pytest.approx(math.hypot(1, sigmas[3]), rel=2e-7)


@pytest.mark.parametrize("num_steps", [1, 4, 7, 25, 50, 100])
def test_strength_of_the_pipelines_keeps_the_last_steps(num_steps: int) -> None:
    """In exact fractions: binary floats would keep 28 of 50 at a strength of 0.58."""
    schedule = kd.dpm2_schedule(NOISE, num_steps)
    for hundredths in range(1, 101):
        strength = hundredths / 100
        kept = Fraction(hundredths, 100) * num_steps // 1
        if kept == 0:
            with pytest.raises(ValueError, match=f"leaves none of {num_steps} outer steps"):
                schedule.start_at_strength(strength)
        elif hundredths % 7 == 2:  # every length compiles nothing, but each costs a transfer
            rest = schedule.start_at_strength(strength)
            assert rest.num_steps == kept
            np.testing.assert_array_equal(rest.sigmas, schedule.sigmas[num_steps - kept :])


def test_strength_means_two_things_for_lcm_each_by_its_name() -> None:
    """Exactly N steps below it, or those of N steps that lie below it."""
    below = kd.lcm_schedule(NOISE, 4, strength=0.5)
    assert below.rows.timestep.tolist() == [499, 379, 259, 139]
    dropped = kd.lcm_schedule(NOISE, 4).start_at_strength(0.5)
    assert dropped.rows.timestep.tolist() == [499, 259]


def test_lcm_starts_at_unit_variance() -> None:
    schedule = kd.lcm_schedule(NOISE, 4)
    assert schedule.init_noise_sigma == 1
    assert schedule.start_at(2).init_noise_sigma == pytest.approx(1, abs=2e-7)


# --- LCM -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"num_steps": 1}, [999]),
        ({"num_steps": 2}, [999, 499]),
        ({"num_steps": 4}, [999, 759, 499, 259]),
        ({"num_steps": 8}, [999, 879, 759, 639, 499, 379, 259, 139]),
        ({"num_steps": 4, "strength": 0.5}, [499, 379, 259, 139]),
        ({"num_steps": 3, "original_steps": 3}, [998, 665, 332]),
        ({"timesteps": [999, 759, 499, 259]}, [999, 759, 499, 259]),
        ({"timesteps": [999, 759, 499, 259], "strength": 0.5}, [499, 259]),
        ({"timesteps": [999, 759, 499, 259], "strength": 0.74}, [499, 259]),
        ({"timesteps": [7, 0]}, [7, 0]),
        # In binary 50 * 0.58 is 28.999999999999996, and a strength of 0.58 means 29 of 50.
        ({"num_steps": 1, "strength": 0.58}, [29 * 20 - 1]),
        ({"timesteps": list(range(49, -1, -1)), "strength": 0.58}, list(range(28, -1, -1))),
    ],
)
def test_lcm_timesteps_have_their_known_values(arguments: Any, expected: list[int]) -> None:
    schedule = kd.lcm_schedule(NOISE, **arguments)
    np.testing.assert_array_equal(schedule.rows.timestep, expected)
    # sigma of every level in variance-preserving units, and the closing 0
    sigmas = np.append(np.sqrt(1 - NOISE.alphas_cumprod[expected]), 0)
    np.testing.assert_allclose(schedule.sigmas, sigmas, rtol=2e-7)
    assert schedule.num_steps == schedule.num_rows == len(expected)


def test_lcm_takes_exactly_the_steps_asked_for_from_its_grid() -> None:
    for original in (1, 7, 50, 333, 1000):
        grid = np.arange(1, original + 1) * (1000 // original) - 1
        for num_steps in range(1, original + 1):
            timesteps = lcm_timesteps(1000, num_steps, original, None, 1.0)
            assert len(timesteps) == num_steps
            assert timesteps[0] == grid[-1]
            assert np.all(np.diff(timesteps) < 0)
            assert set(timesteps) <= set(grid)
            # Evenly spread: gaps on the grid differ by at most one.
            gaps = np.diff(np.searchsorted(grid, timesteps[::-1]))
            assert num_steps < 3 or np.ptp(gaps) <= 1


# --- traced values ---------------------------------------------------------------------------


def floats_of(schedule: kd.Schedule) -> dict[str, jax.Array]:
    leaves = {**vars(schedule.rows), "sigmas": schedule.sigmas, "init": schedule.init_noise_sigma}
    return {k: v for k, v in leaves.items() if jnp.issubdtype(v.dtype, jnp.floating)}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("method", ["euler", "dpm2_ancestral"])
def test_traced_ends_give_the_host_table_and_finite_gradients(method: str, grid: str) -> None:
    build: Any = getattr(kd, f"{method}_schedule")
    rho = {"rho": 5.0} if grid == "karras" else {}
    ends = {"sigma_min": 0.05, "sigma_max": 12.0, **rho}

    def table(ends: dict) -> dict[str, jax.Array]:
        return floats_of(build(noise, 6, grid=grid, timestep_spacing="leading", **ends))

    noise = kd.noise_schedule()
    with X64.enable_x64(True):  # the formulas, without the rounding
        traced, expected = jax.jit(table)(ends), table(ends)
        for name, leaf in traced.items():
            atol = 1e-6 if name == "timestep" else 1e-12
            np.testing.assert_allclose(leaf, expected[name], rtol=1e-11, atol=atol, err_msg=name)
    # As a user runs them, over a batch of ends, in float32.
    noise = NOISE
    batch = {name: jnp.float32(value) * jnp.array([1, 1.3, 0.9]) for name, value in ends.items()}
    gradients = jax.jit(jax.vmap(jax.jacrev(table)))(batch)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))
    assert np.all(np.asarray(gradients["sigmas"]["sigma_max"])[:, 0] == pytest.approx(1, rel=1e-5))
    tables = jax.jit(jax.vmap(table))(batch)
    for i in range(3):
        host = table({name: float(value[i]) for name, value in batch.items()})
        for name, leaf in tables.items():
            atol = 5e-3 if name == "timestep" else 2e-6
            np.testing.assert_allclose(leaf[i], host[name], rtol=2e-5, atol=atol, err_msg=name)


def test_given_grids_may_be_traced() -> None:
    def total(grid: dict[str, Any]) -> Any:
        return sum(jnp.sum(v) for v in floats_of(kd.dpm2_schedule(NOISE, **grid)).values())

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
    method = draw(st.sampled_from(["euler", "dpm2", "dpm2_ancestral", "lcm"]))
    if method == "lcm":
        return training, method, num_steps, {"original_steps": min(count, 50)}
    options: dict[str, Any] = {
        "timestep_spacing": spacing,
        "grid": draw(st.sampled_from([None, *GRIDS])),
    }
    if spacing == "leading":
        options["steps_offset"] = draw(st.integers(0, count - 1 - (num_steps - 1) * count // 12))
    if method != "dpm2":
        options |= {"eta": draw(st.floats(0, 1)), "s_noise": draw(st.floats(0, 1.1))}
    return training, method, num_steps, options


@settings(deadline=None, derandomize=True, max_examples=100, database=None)
@given(configurations())
def test_every_configuration_gives_a_finite_descending_table(configuration: tuple) -> None:
    training, method, num_steps, options = configuration
    count = training["num_train_timesteps"]
    offset = options.get("steps_offset", 0)
    assume(offset + (num_steps - 1) * (count // num_steps) < count)
    noise = kd.noise_schedule(**training)
    assume(method != "lcm" or num_steps <= min(count, 50))
    schedule = getattr(kd, f"{method}_schedule")(noise, num_steps, **options)
    for leaf in jax.tree.leaves((schedule, noise)):
        assert np.all(np.isfinite(np.asarray(leaf, np.float64)))
    assert schedule.num_steps == num_steps
    # In variance-preserving units sigma = sqrt(1 - abar) rounds to 1 at several high levels.
    assert np.all(
        np.diff(schedule.sigmas) <= 0 if method == "lcm" else np.diff(schedule.sigmas) < 0
    )
    assert schedule.sigmas[-1] == 0
    starts = np.append(True, schedule.rows.advances[:-1])
    assert np.all(np.diff(schedule.rows.timestep[starts]) < 0)
    # Between whole timesteps a grid's sigma is linear in t and a midpoint's t is linear in
    # log sigma, as in diffusers: they part by less than a timestep of training.
    assert np.all(np.diff(schedule.rows.timestep) < 1)
    assert np.all((schedule.rows.timestep >= 0) & (schedule.rows.timestep <= count - 1))
    assert np.all(schedule.rows.sigma > 0)
    assert np.all(schedule.rows.noise_weight >= 0)
    assert schedule.init_noise_sigma > 0
