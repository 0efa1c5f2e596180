"""The named grids: against k-diffusion, diffusers and ComfyUI, for every N, and their gradients."""

import functools
import json
from pathlib import Path
from typing import Any

import grid_truth
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers import NOISE, x64

import kdiff_jax as kd
from kdiff_jax._levels.spacing import SIGMA_GRIDS, TIMESTEP_GRIDS

SIGMAS = NOISE.sigmas
LOW, HIGH = (float(sigma) for sigma in SIGMAS[[0, -1]])
AYS = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029]

with np.load(Path(__file__).parents[1] / "golden" / "grids.npz") as stored:
    HEADER = json.loads(str(stored["header"]))
    RECORDED = [(case, stored[str(i)]) for i, case in enumerate(HEADER["cases"])]


def sigmas_of(num_steps: int, **options: Any) -> np.ndarray:
    """The levels of a run, in float64 and without their closing 0."""
    return np.asarray(kd.levels(NOISE, num_steps, **options).sigmas)[:-1]


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
        expected = getattr(grid_truth, grid)(SIGMAS, num_steps)
        np.testing.assert_allclose(sigmas_of(num_steps, grid=grid), expected, rtol=1e-12)
    found, expected = (
        sigmas_of(num_steps, grid="ddim_uniform"),
        grid_truth.ddim_uniform(SIGMAS, num_steps),
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
        difference = theirs - kd.levels(NOISE, num_steps, grid="simple").timesteps
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
    sigmas = sigmas_of(25, grid="beta_timesteps")
    steps = grid_truth.beta_timesteps(1000, 25)
    np.testing.assert_allclose(sigmas, SIGMAS[steps], rtol=1e-12)


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
    assert kd.levels(NOISE, sigmas=kd.align_your_steps_sigmas(8, AYS)[:-1]).num_steps == 7


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
def test_every_step_count_gives_exactly_that_many_descending_levels(grid: Any) -> None:
    for num_steps in (*range(1, 60, 3), 333, 500, 998, 999):
        for discard in (False, True):
            if grid == "ddim_uniform" and num_steps + discard > 999:
                continue
            levels = kd.levels(NOISE, num_steps, grid=grid, discard_penultimate=discard)
            assert levels.sigmas.shape == (num_steps + 1,)
            assert np.all(np.diff(levels.sigmas.astype(np.float32)) < 0)
            assert levels.sigmas[-1] == 0
            assert np.all((levels.timesteps >= 0) & (levels.timesteps <= 999))
            # The network's timestep is the one that has this sigma.
            at = NOISE.timestep_at(levels.sigmas[:-1])
            np.testing.assert_allclose(levels.timesteps, at, atol=1e-8)
    one = kd.levels(NOISE, 1, grid=grid)
    assert one.timesteps.tolist() == [999]
    assert one.sigmas[0] == pytest.approx(HIGH, rel=1e-12)


@pytest.mark.parametrize("grid", [None, *SIGMA_GRIDS, *TIMESTEP_GRIDS])
def test_a_discarded_penultimate_level_is_that_of_one_step_more(grid: Any) -> None:
    for num_steps in (1, 2, 9):
        longer = kd.levels(NOISE, num_steps + 1, grid=grid)
        found = kd.levels(NOISE, num_steps, grid=grid, discard_penultimate=True)
        assert found.num_steps == num_steps
        expected = np.append(longer.sigmas[:-2], 0)
        np.testing.assert_array_equal(found.sigmas, expected)
        np.testing.assert_array_equal(found.timesteps, longer.timesteps[:-1])
        assert found.init_noise_sigma == longer.init_noise_sigma
        verbatim = kd.levels(NOISE, sigmas=expected)
        np.testing.assert_array_equal(found.sigmas, verbatim.sigmas)
        np.testing.assert_allclose(found.timesteps, verbatim.timesteps, atol=2e-2)


@pytest.mark.parametrize("grid", SIGMA_GRIDS)
def test_a_grid_by_name_is_its_function_s(grid: Any) -> None:
    ends = ends_of(grid)
    shapes: list[dict[str, Any]] = [{}]
    shapes += [{"rho": 2.5}] if grid in ("karras", "polyexponential") else []
    for shape in shapes:
        expected = getattr(kd, f"{grid}_sigmas")(7, **ends, **shape)
        for noise in (NOISE, None):
            found = kd.levels(noise, 7, grid=grid, **ends, **shape)
            np.testing.assert_array_equal(found.sigmas, np.append(expected, 0))


# --- no training timesteps ---------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:the noise level 80 is far above")
def test_without_a_noise_schedule_the_timestep_is_sigma() -> None:
    sigmas = [80.0, 7.0, 0.5, 0.002]
    tables = []
    for sampler in (kd.dpm2, kd.dpm2_ancestral, kd.euler, kd.lcm):
        build: Any = kd.lcm_levels if sampler is kd.lcm else kd.levels
        for given in (sigmas, [*sigmas, 0.0]):
            schedule, known = (sampler(build(noise, sigmas=given)) for noise in (None, NOISE))
            levels = known.rows.sigma if sampler is not kd.lcm else np.array(sigmas, np.float32)
            np.testing.assert_array_equal(schedule.rows.timestep, levels)
            for name in ("sigma", "alpha", "epsilon_weight", "noise_weight", "input_scale"):
                leaf, expected = getattr(schedule.rows, name), getattr(known.rows, name)
                np.testing.assert_array_equal(leaf, expected, err_msg=name)
            assert schedule.init_noise_sigma == (80 if sampler is not kd.lcm else 1)
        tables.append(schedule)
    # And it runs: a network that takes sigma, for data that are a unit Gaussian.
    denoise = kd.denoiser(lambda params, x, at: at[:, None] * x / jnp.sqrt(1 + at**2)[:, None])
    together = kd.stack(tables)
    x = kd.initial_sample(together, jax.random.key(0), (4, 64))
    assert np.all(np.isfinite(kd.sample(denoise, None, together, x, jax.random.key(1))))


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


CASES = {name: [first, *FURTHER.get(name, [])] for name, first in PARAMETERS.items()}


def grids(cases: Any) -> Any:
    """One step and six of every formula with every set of parameters, [7] each."""
    found: dict[str, list[Any]] = {}
    for name, sets in cases.items():
        formula = getattr(kd, f"{name}_sigmas")
        both = [[formula(num_steps, **parameters) for num_steps in (1, 6)] for parameters in sets]
        xp: Any = np if isinstance(both[0][0], np.ndarray) else jnp
        found[name] = [xp.concatenate(parts) for parts in both]
    return found


def slopes_of(cases: Any) -> Any:
    """With respect to the parameters of each set, by forward mode."""

    def of_set(name: str, parameters: Any) -> Any:
        return jax.jacfwd(lambda p: grids({name: [p]})[name][0])(parameters)

    return {name: [of_set(name, parameters) for parameters in sets] for name, sets in cases.items()}


def test_gradients_are_those_of_finite_differences() -> None:
    expected = grids(CASES)
    with x64():
        found, slopes = jax.jit(lambda cases: (grids(cases), slopes_of(cases)))(CASES)
    for name, sets in CASES.items():
        for i, parameters in enumerate(sets):
            np.testing.assert_allclose(found[name][i], expected[name][i], rtol=1e-12, err_msg=name)
            for key, value in parameters.items():
                for at in np.ndindex(np.shape(value)):
                    step = np.zeros(np.shape(value))
                    step[at] = 1e-5 * np.asarray(value)[at]
                    above, below = (
                        grids({name: [parameters | {key: np.asarray(value) + by}]})[name][0]
                        for by in (step, -step)
                    )
                    slope = np.asarray(slopes[name][i][key])[(slice(None), *at)]
                    difference = (above - below) / (2 * step[at])
                    where = f"{name}: {key}"
                    np.testing.assert_allclose(slope, difference, 1e-6, 1e-8, err_msg=where)


@functools.partial(jax.jit, static_argnums=0)
def grids_and_slopes(function: Any, arguments: Any) -> Any:
    """What it returns, and backwards the slopes of the sum of all its entries.

    One entry that is not finite makes the sum of all of them not finite.
    """
    found, pullback = jax.vjp(function, arguments)
    (slopes,) = pullback(jax.tree.map(jnp.ones_like, found))
    return found, slopes


def test_formulas_in_float32_are_as_exact_and_have_finite_gradients_backwards() -> None:
    narrow = jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), CASES)

    found, slopes = grids_and_slopes(grids, narrow)
    for name, expected in grids(CASES).items():
        for a, b in zip(found[name], expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=5e-6, err_msg=name)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slopes[name])), name


def test_tables_on_traced_grids_are_those_of_the_host_with_finite_gradients() -> None:
    def tables(ends: Any) -> Any:
        found = {}
        for grid, of_grid in ends.items():
            noise = None if grid in ("karras", "linear_quadratic") else NOISE
            levels = kd.levels(noise, 5, grid=grid, discard_penultimate=True, **of_grid)
            leaves = jax.tree.leaves(kd.dpm2_ancestral(levels))
            found[grid] = jnp.concatenate([jnp.ravel(leaf).astype(float) for leaf in leaves])
        return found

    ends = {grid: ends_of(grid) for grid in SIGMA_GRIDS}
    with x64():
        found, gradients = grids_and_slopes(tables, ends)
        for grid, expected in tables(ends).items():
            np.testing.assert_allclose(found[grid], expected, 1e-10, 1e-10, err_msg=grid)
            assert all(np.isfinite(leaf) for leaf in gradients[grid].values()), grid
            assert gradients[grid]["sigma_max"] != 0, grid


def test_a_traced_noise_schedule_gives_every_grid_of_timesteps() -> None:
    def levels_on(noise: kd.NoiseSchedule) -> list[Any]:
        return [kd.dpm2(kd.levels(noise, 5, grid=grid)).sigmas for grid in TIMESTEP_GRIDS]

    for found, expected in zip(jax.jit(levels_on)(NOISE), levels_on(NOISE), strict=True):
        np.testing.assert_allclose(found, expected, rtol=3e-6)
