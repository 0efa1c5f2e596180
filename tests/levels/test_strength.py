"""Two strengths: exactly N steps below one, of any grid, and those of N steps that lie below it."""

import math
from fractions import Fraction
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samplers import NOISE

import kdiff_jax as kd
from kdiff_jax._levels.spacing import SIGMA_GRIDS, TIMESTEP_GRIDS

FLOW = kd.flow_schedule(shift=3.0)


def assert_same(found: kd.Levels, expected: kd.Levels) -> None:
    assert found.first_step == expected.first_step
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@settings(deadline=None, derandomize=True, max_examples=200, database=None)
@given(steps=st.integers(1, 30), percent=st.integers(1, 100))
def test_exactly_as_many_steps_are_the_end_of_a_longer_run(steps: int, percent: int) -> None:
    levels = kd.levels(NOISE, steps, strength=percent / 100)
    whole = kd.levels(NOISE, steps * 100 // percent)
    assert levels.num_steps == steps
    assert levels.first_step == whole.num_steps - steps
    np.testing.assert_array_equal(levels.sigmas, whole.sigmas[-steps - 1 :])
    np.testing.assert_array_equal(levels.timesteps, whole.timesteps[-steps:])


@pytest.mark.parametrize("discard", [False, True])
@pytest.mark.parametrize("grid", [None, *SIGMA_GRIDS, *TIMESTEP_GRIDS])
def test_every_grid_has_exactly_as_many_steps_below_a_strength(grid: Any, discard: bool) -> None:
    ends = {} if grid == "linear_quadratic" else {"sigma_min": 0.03}
    kinds: list[Any] = [(NOISE, {})]
    if grid in SIGMA_GRIDS:
        kinds += [(None, {**ends, "sigma_max": 14.6})]
    if grid not in ("vp", "laplace"):
        kinds += [(FLOW, {})]
    for noise, options in kinds:
        options = {"grid": grid, "discard_penultimate": discard, **options}
        for strength in (1.0, 0.75, 0.58, 0.3, 0.07):
            levels = kd.levels(noise, 7, strength=strength, **options)
            total = math.floor(7 / Fraction(str(strength)))
            whole = kd.levels(noise, total, **options)
            np.testing.assert_array_equal(levels.sigmas, whole.sigmas[-8:])
            np.testing.assert_array_equal(levels.timesteps, whole.timesteps[-7:])
            assert levels.first_step == total - 7
            assert_same(levels, whole.start_at(total - 7))


def test_a_strength_of_0_58_of_50_steps_is_29() -> None:
    """In binary 0.58 * 50 is 28.999999999999996, and 29 / 0.58 is 50.00000000000001."""
    kept = kd.levels(NOISE, 50).start_at_strength(0.58)
    exact = kd.levels(NOISE, 29, strength=0.58)
    assert kept.num_steps == exact.num_steps == 29
    assert_same(kept, exact)
    assert kd.lcm_levels(NOISE, 29, strength=0.58).num_steps == 29


@pytest.mark.parametrize("num_steps", [1, 4, 7, 25, 50, 100])
def test_strength_of_the_pipelines_keeps_the_last_steps(num_steps: int) -> None:
    """In exact fractions: binary floats would keep 28 of 50 at a strength of 0.58."""
    levels = kd.levels(NOISE, num_steps)
    for hundredths in range(1, 101):
        kept = Fraction(hundredths, 100) * num_steps // 1
        if kept == 0:
            with pytest.raises(ValueError, match=f"leaves none of {num_steps} outer steps"):
                levels.start_at_strength(hundredths / 100)
        else:
            assert_same(
                levels.start_at_strength(hundredths / 100), levels.start_at(num_steps - kept)
            )


def test_a_run_may_have_as_many_steps_as_any_count() -> None:
    assert kd.levels(kd.flow_schedule(), 1_000_000).num_steps == 1_000_000


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kd.levels(NOISE, 0, strength=0.5), "num_steps = 0"),
        (lambda: kd.levels(NOISE, 5, strength=0.0), "strength = 0"),
        (lambda: kd.levels(NOISE, 5, strength=1.2), r"\(0, 1\]"),
        (lambda: kd.levels(NOISE, 5, strength=math.nan), "strength = nan"),
        (lambda: kd.levels(NOISE, 5).start_at_strength(1.01), r"\(0, 1\]"),
        (lambda: kd.levels(NOISE, sigmas=[3, 1], strength=0.5), "strength = 0.5 .*with sigmas"),
        (lambda: kd.levels(NOISE, timesteps=[9, 5], strength=0.5), "strength .*with timesteps"),
        (
            lambda: kd.levels(NOISE, 300, strength=0.2, timestep_spacing="trailing"),
            "strength = 0.2 builds 1500 steps: num_steps = 1500",
        ),
        (
            lambda: kd.levels(NOISE, 300, strength=0.2, grid="simple", discard_penultimate=True),
            "strength = 0.2 and discard_penultimate=True build 1501 steps: num_steps = 1501",
        ),
        (
            lambda: kd.levels(NOISE, 1000, grid="simple", discard_penultimate=True),
            "^discard_penultimate=True builds 1001 steps: num_steps = 1001",
        ),
    ],
)
def test_strengths_that_cannot_be_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
