"""The named grids: against k-diffusion, diffusers and ComfyUI, for every N, and their gradients."""

import json
from pathlib import Path
from typing import Any

import grid_truth
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers import x64

import kdiff_jax as kd
from kdiff_jax._spacing import SIGMA_GRIDS
from kdiff_jax._timestep_grids import TIMESTEP_GRIDS, grid_timesteps

NOISE = kd.noise_schedule("scaled_linear")
LEVELS = NOISE.sigmas
LOW, HIGH = (float(sigma) for sigma in LEVELS[[0, -1]])
AYS = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029]

with np.load(Path(__file__).parent / "golden" / "grids.npz") as stored:
    HEADER = json.loads(str(stored["header"]))
    RECORDED = [(case, stored[str(i)]) for i, case in enumerate(HEADER["cases"])]


def builder_sigmas(num_steps: int, **options: Any) -> np.ndarray:
    """The grid of a schedule, in float64 and without its closing 0."""
    with x64():
        return np.asarray(kd.euler_schedule(NOISE, num_steps, **options).sigmas)[:-1]


# --- recordings of k-diffusion and diffusers ---------------------------------------------------


@pytest.mark.parametrize("name", ["karras", "exponential", "polyexponential", "vp", "beta"])
def test_grids_are_those_that_were_recorded(name: str) -> None:
    cases = [(case["arguments"], grid) for case, grid in RECORDED if case["name"] == name]
    assert len(cases) >= 12
    for arguments, grid in cases:
        found = getattr(kd, f"{name}_sigmas")(len(grid), **arguments)
        # exp(x) - 1 of k-diffusion loses four digits at its smallest x.
        np.testing.assert_allclose(found, grid, rtol=1e-10 if name == "vp" else 1e-12)


# --- ComfyUI, by a truth of its own ------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [2, 3, 7, 20, 25, 30, 61, 200, 999])
def test_even_timesteps_are_those_of_comfyui(num_steps: int) -> None:
    for grid in ("normal", "simple", "sgm_uniform"):
        expected = getattr(grid_truth, grid)(LEVELS, num_steps)
        np.testing.assert_allclose(builder_sigmas(num_steps, grid=grid), expected, rtol=1e-12)
    found, expected = (
        builder_sigmas(num_steps, grid="ddim_uniform"),
        grid_truth.ddim_uniform(LEVELS, num_steps),
    )
    # The same from below; ComfyUI goes on to T - 1, which may be more than N steps.
    assert len(expected) >= num_steps
    np.testing.assert_allclose(found, expected[-num_steps:], rtol=1e-12)


def test_simple_takes_whole_numbers_where_comfyui_takes_floats() -> None:
    """`int(x * (T / N))` in floats may fall one below `x T // N`, never further."""
    off = 0
    for num_steps in range(1, 1001):
        spacing = 1000 / num_steps
        theirs = np.array([999 - int(x * spacing) for x in range(num_steps)])
        difference = theirs - grid_timesteps("simple", 1000, num_steps)
        assert set(difference) <= {0, 1}
        off += bool(difference.any())
    assert 0 < off < 300


def test_beta_timesteps_are_comfyui_s_where_those_do_not_repeat() -> None:
    same = 0
    for count in (1000, 400):
        for num_steps in (*range(1, 130, 4), 200, count):
            found = kd.beta_timesteps(num_steps, count)
            assert found.shape == (num_steps,)
            assert np.all(np.diff(found) <= -1)
            assert found[0] == count - 1
            assert found[-1] >= 0
            expected = grid_truth.beta_timesteps(count, num_steps)
            if len(expected) == num_steps:
                np.testing.assert_array_equal(found, expected)
                same += 1
            # Moved no further than to the nearest free timestep, which is a few away.
            apart = set(found) - set(expected)
            assert len(apart) == num_steps - len(expected)
    assert same > 20
    sigmas = builder_sigmas(25, grid="beta_timesteps")
    steps = grid_truth.beta_timesteps(1000, 25)
    np.testing.assert_allclose(sigmas, LEVELS[steps], rtol=1e-12)


@pytest.mark.parametrize("num_steps", [2, 3, 4, 10, 25, 100])
def test_formulas_are_those_of_comfyui(num_steps: int) -> None:
    for low, high in ((LOW, HIGH), (0.002, 80.0), (0.5, 0.7)):
        found = kd.kl_optimal_sigmas(num_steps, low, high)
        expected = grid_truth.kl_optimal(num_steps, low, high)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        for process in ((19.9, 0.1), (8.0, 0.7)):
            found = kd.vp_sigmas(num_steps, low, high, beta_d=process[0], beta_min=process[1])
            expected = grid_truth.vp_between(num_steps, low, high, *process)
            np.testing.assert_allclose(found, expected, rtol=1e-9)
        found = kd.align_your_steps_sigmas(num_steps, AYS)
        np.testing.assert_allclose(found, grid_truth.align_your_steps(num_steps, AYS), rtol=1e-12)
    shapes: list[tuple[float, int | None]] = [(0.025, None), (0.3, None)]
    shapes += [(0.01, 1), (0.5, num_steps - 1)]
    for threshold, linear in shapes:
        found = kd.linear_quadratic_sigmas(num_steps, HIGH, threshold, linear)
        expected = grid_truth.linear_quadratic(num_steps, HIGH, threshold, linear or num_steps // 2)
        np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_an_interpolated_table_keeps_its_entries_and_comfyui_leaves_out_the_last() -> None:
    np.testing.assert_allclose(kd.align_your_steps_sigmas(11, AYS), AYS, rtol=1e-14)
    np.testing.assert_allclose(kd.align_your_steps_sigmas(21, [*AYS, 0])[::2], AYS, rtol=1e-14)
    schedule = kd.dpm2_schedule(NOISE, sigmas=kd.align_your_steps_sigmas(8, AYS)[:-1])
    assert schedule.num_steps == 7


@pytest.mark.parametrize(("mu", "beta"), [(0.0, 0.5), (0.5, 0.9), (-1.0, 0.2), (2.0, 0.6)])
def test_laplace_is_comfyui_s_but_for_levels_that_repeat_an_end(mu: float, beta: float) -> None:
    repeated = 0
    for num_steps in (1, 2, 3, 4, 10, 25, 101, 1000):
        for low, high in ((LOW, HIGH), (0.002, 80.0), (1.2, 1.7)):
            found = kd.laplace_sigmas(num_steps, low, high, mu, beta)
            expected = grid_truth.laplace(num_steps, low, high, mu, beta)
            assert np.all(np.diff(found.astype(np.float32)) < 0)
            again = np.diff(expected) == 0
            alone = ~(np.append(again, False) | np.insert(again, 0, False))
            np.testing.assert_allclose(found[alone], expected[alone], rtol=1e-12)
            np.testing.assert_allclose(found[0], expected[0], rtol=1e-12)
            repeated += int(again.sum())
            # Those that were spread are even in log sigma, from the end to the next level.
            spread = np.log(found[: np.sum(expected >= high) + 1])
            if np.sum(expected <= low) <= 1:
                np.testing.assert_allclose(np.diff(spread, 2), 0, atol=1e-9)
    assert repeated > 0


def ends_of(grid: str) -> dict[str, Any]:
    return {"sigma_max": 9.0} | ({} if grid == "linear_quadratic" else {"sigma_min": 0.1})


# --- every grid, every N, every sampler --------------------------------------------------------


@pytest.mark.parametrize("grid", [*SIGMA_GRIDS, *TIMESTEP_GRIDS])
def test_every_step_count_gives_exactly_that_many_descending_levels(grid: str) -> None:
    for num_steps in (*range(1, 60, 3), 333, 500, 998, 999):
        for discard in (False, True):
            if grid == "ddim_uniform" and num_steps + discard > 999:
                continue
            schedule = kd.euler_schedule(NOISE, num_steps, grid=grid, discard_penultimate=discard)
            sigmas = np.asarray(schedule.sigmas)
            assert sigmas.shape == (num_steps + 1,)
            assert sigmas.dtype == np.float32
            assert np.all(np.diff(sigmas) < 0)
            assert sigmas[-1] == 0
            told = np.asarray(schedule.rows.timestep)
            assert np.all((told >= 0) & (told <= 999))
            # The network is told the timestep that has this sigma.
            at = np.asarray(NOISE.timestep_at(sigmas[:-1]))
            np.testing.assert_allclose(told, at, atol=2e-3)
    one = kd.euler_schedule(NOISE, 1, grid=grid)
    assert one.rows.timestep.tolist() == [999]
    assert one.sigmas[0] == pytest.approx(HIGH, rel=1e-6)


@pytest.mark.parametrize("grid", [None, *SIGMA_GRIDS, *TIMESTEP_GRIDS])
@pytest.mark.parametrize("method", ["dpm2", "dpm2_ancestral", "euler"])
def test_a_discarded_penultimate_level_is_that_of_one_step_more(
    method: str, grid: str | None
) -> None:
    build: Any = getattr(kd, f"{method}_schedule")
    for num_steps in (1, 2, 9):
        longer = build(NOISE, num_steps + 1, grid=grid)
        found = build(NOISE, num_steps, grid=grid, discard_penultimate=True)
        assert found.num_steps == num_steps
        expected = np.append(np.asarray(longer.sigmas)[:-2], 0)
        np.testing.assert_array_equal(found.sigmas, expected)
        assert found.init_noise_sigma == longer.init_noise_sigma
        verbatim = build(NOISE, sigmas=expected)
        np.testing.assert_allclose(found.rows.sigma, verbatim.rows.sigma, rtol=3e-7)
        np.testing.assert_allclose(found.rows.timestep, verbatim.rows.timestep, atol=2e-2)


@pytest.mark.parametrize("grid", SIGMA_GRIDS)
def test_a_grid_by_name_is_its_function_s(grid: str) -> None:
    ends = ends_of(grid)
    shapes: list[dict[str, Any]] = [{}]
    shapes += [{"rho": 2.5}] if grid in ("karras", "polyexponential") else []
    for shape in shapes:
        expected = getattr(kd, f"{grid}_sigmas")(7, **ends, **shape)
        for noise in (NOISE, None):
            with x64():
                found = kd.dpm2_schedule(noise, 7, grid=grid, **ends, **shape)
            np.testing.assert_array_equal(found.sigmas, np.append(expected, 0))


# --- custom levels, and no training timesteps --------------------------------------------------


@pytest.mark.parametrize("method", ["dpm2", "dpm2_ancestral", "euler", "lcm"])
def test_without_a_noise_schedule_the_network_is_told_sigma(method: str) -> None:
    build: Any = getattr(kd, f"{method}_schedule")
    sigmas = [80.0, 7.0, 0.5, 0.002]
    for given in (sigmas, [*sigmas, 0.0]):
        schedule = build(None, sigmas=given)
        known = build(NOISE, sigmas=given)
        levels = known.rows.sigma if method != "lcm" else np.array(sigmas, np.float32)
        np.testing.assert_array_equal(schedule.rows.timestep, levels)
        for name in ("sigma", "alpha", "epsilon_weight", "noise_weight", "input_scale"):
            leaf, expected = getattr(schedule.rows, name), getattr(known.rows, name)
            np.testing.assert_array_equal(leaf, expected, err_msg=name)
        assert schedule.init_noise_sigma == (80 if method != "lcm" else 1)
    # And it runs: a network that is told sigma, for data that are a unit Gaussian.
    denoise = kd.denoiser(
        lambda params, x, told: told[:, None] * x / jnp.sqrt(1 + told**2)[:, None]
    )
    x = kd.initial_sample(schedule, jax.random.key(0), (64, 8))
    x0 = kd.sample(denoise, None, schedule, x, jax.random.key(1))
    assert np.all(np.isfinite(x0))


def test_lcm_takes_levels_verbatim_and_is_the_same_as_by_timesteps() -> None:
    timesteps = [999, 640, 333, 20]
    by_time = kd.lcm_schedule(NOISE, timesteps=timesteps)
    by_level = kd.lcm_schedule(NOISE, sigmas=LEVELS[timesteps])
    for a, b in zip(jax.tree.leaves(by_time), jax.tree.leaves(by_level), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-7)
    shorter = kd.lcm_schedule(NOISE, sigmas=LEVELS[timesteps], strength=0.5)
    assert shorter.rows.timestep.tolist() == [333, 20]
    between = kd.lcm_schedule(NOISE, sigmas=[3.0, 1.0])
    np.testing.assert_allclose(between.rows.alpha, [10**-0.5, 2**-0.5], rtol=2e-7)
    np.testing.assert_allclose(
        between.rows.timestep, NOISE.timestep_at(np.array([3.0, 1.0])), rtol=1e-6
    )


# --- gradients ---------------------------------------------------------------------------------

PARAMETERS: dict[str, dict[str, Any]] = {
    "karras": {"sigma_min": 0.05, "sigma_max": 12.0, "rho": 6.0},
    "exponential": {"sigma_min": 0.05, "sigma_max": 12.0},
    "polyexponential": {"sigma_min": 0.05, "sigma_max": 12.0, "rho": 1.4},
    "vp": {"sigma_min": 0.05, "sigma_max": 12.0, "beta_d": 18.0, "beta_min": 0.2},
    "beta": {"sigma_min": 0.05, "sigma_max": 12.0},
    "linear_quadratic": {"sigma_max": 12.0, "threshold_noise": 0.05},
    "kl_optimal": {"sigma_min": 0.05, "sigma_max": 12.0},
    "laplace": {"sigma_min": 0.05, "sigma_max": 12.0, "mu": 0.1, "beta": 0.6},
    "align_your_steps": {"table": np.array(AYS)},
}
FURTHER: dict[str, list[dict[str, Any]]] = {
    "vp": [{"beta_d": 18.0, "beta_min": 0.2, "eps_s": 2e-3}],
    # Several levels are spread below the top and above the bottom.
    "laplace": [{"sigma_min": 0.4, "sigma_max": 2.5, "mu": 0.1, "beta": 0.6}],
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    formula = getattr(kd, f"{name}_sigmas")

    def grids(parameters: dict[str, Any]) -> Any:
        found = [formula(num_steps, **parameters) for num_steps in (1, 6)]
        xp: Any = np if isinstance(found[0], np.ndarray) else jnp
        return xp.concatenate(found)

    for parameters in (PARAMETERS[name], *FURTHER.get(name, [])):
        expected = grids(parameters)
        with x64():
            found, slopes = jax.jit(lambda p: (grids(p), jax.jacfwd(grids)(p)))(parameters)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        for key, value in parameters.items():
            for at in np.ndindex(np.shape(value)):
                step = np.zeros(np.shape(value))
                step[at] = 1e-5 * np.asarray(value)[at]
                above, below = (
                    grids(parameters | {key: np.asarray(value) + by}) for by in (step, -step)
                )
                slope = np.asarray(slopes[key])[(slice(None), *at)]
                difference = (above - below) / (2 * step[at])
                np.testing.assert_allclose(slope, difference, rtol=1e-6, atol=1e-8, err_msg=key)
        # As a user runs it: in float32, and backwards.
        narrow = {key: jnp.asarray(value, jnp.float32) for key, value in parameters.items()}
        found, slopes = jax.jit(lambda p: (grids(p), jax.jacrev(grids)(p)))(narrow)
        np.testing.assert_allclose(found, expected, rtol=5e-6)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slopes))


@pytest.mark.parametrize("grid", SIGMA_GRIDS)
def test_tables_on_traced_grids_are_those_of_the_host_with_finite_gradients(grid: str) -> None:
    noise = None if grid in ("karras", "linear_quadratic") else NOISE

    def table(ends: dict[str, Any]) -> Any:
        built = kd.dpm2_ancestral_schedule(noise, 5, grid=grid, discard_penultimate=True, **ends)
        leaves = [built.sigmas, built.init_noise_sigma, *vars(built.rows).values()]
        return jnp.concatenate([jnp.ravel(leaf).astype(float) for leaf in leaves])

    with x64():
        found, gradients = jax.jit(lambda e: (table(e), jax.jacrev(table)(e)))(ends_of(grid))
        np.testing.assert_allclose(found, table(ends_of(grid)), rtol=1e-10, atol=1e-10)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))


def test_a_traced_noise_schedule_gives_every_grid_of_timesteps() -> None:
    @jax.jit
    def sigmas(noise: kd.NoiseSchedule) -> list[jax.Array]:
        return [kd.dpm2_schedule(noise, 5, grid=grid).sigmas for grid in TIMESTEP_GRIDS]

    for grid, found in zip(TIMESTEP_GRIDS, sigmas(NOISE), strict=True):
        np.testing.assert_allclose(found, kd.dpm2_schedule(NOISE, 5, grid=grid).sigmas, rtol=3e-6)


def test_traced_levels_reach_lcm() -> None:
    def total(sigmas: Any) -> Any:
        rows = kd.lcm_schedule(NOISE, sigmas=sigmas).rows
        return jnp.sum(rows.denoised_weight + 0.5 * rows.noise_weight) + rows.timestep[1]

    sigmas = jnp.array([9.0, 2.0, 0.3])
    value, slope = jax.jit(jax.value_and_grad(total))(sigmas)
    assert value == pytest.approx(float(total(np.asarray(sigmas))), rel=1e-5)
    assert np.all(np.isfinite(slope))
    assert np.all(np.asarray(slope)[1:] != 0)
