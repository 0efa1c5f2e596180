"""Trajectory consistency sampling: its table against the paper's formula, exactly."""

import math
from fractions import Fraction
from typing import Any

import jax
import numpy as np
import pytest
import samplers as sp
from samplers import NOISE

import kdiff_jax as kd

ABAR = NOISE.alphas_cumprod
# As a config has it, and as a fraction: s is a whole number, which rounding must not move.
GAMMAS = {text: Fraction(text) for text in ("0", "0.1", "0.3", "0.5", "0.7", "0.9", "1")}


def expected(reached: list[int], gamma: Fraction) -> dict[str, list[float]]:
    """The weights of steps to these timesteps: Zheng et al. 2024, in the form of diffusers."""
    s = [math.floor((1 - gamma) * t) for t in reached]
    ratio = [ABAR[t] / ABAR[below] for t, below in zip(reached, s, strict=True)]
    return {
        "denoised_weight": [math.sqrt(r * ABAR[t]) for r, t in zip(ratio, s, strict=True)],
        "epsilon_weight": [math.sqrt(r * (1 - ABAR[t])) for r, t in zip(ratio, s, strict=True)],
        "noise_weight": [math.sqrt(1 - r) for r in ratio],
    }


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("steps", [1, 4, 50])
def test_the_table_is_that_of_the_paper(steps: int, gamma: str) -> None:
    levels = kd.lcm_levels(NOISE, steps)
    times = [int(t) for t in levels.timesteps]
    with sp.x64():
        rows: Any = kd.tcd(levels, float(gamma)).rows
    closing = {"denoised_weight": 1, "epsilon_weight": 0, "noise_weight": 0}
    for name, values in expected(times[1:], GAMMAS[gamma]).items():
        # abar as a ratio of two cumulated products has lost digits that sigma has not.
        found = [*values, closing[name]]
        np.testing.assert_allclose(getattr(rows, name), found, 1e-11, 1e-7, err_msg=name)
    np.testing.assert_allclose(rows.alpha, np.sqrt(ABAR[times]), rtol=1e-12)
    np.testing.assert_allclose(rows.sigma, np.sqrt(1 - ABAR[times]), rtol=1e-10)


def test_every_step_lands_on_the_level_of_the_next() -> None:
    for levels in (kd.lcm_levels(NOISE, 8), kd.levels(NOISE, 7), kd.levels(NOISE, 5).end_at(3)):
        for gamma in (0.0, 0.3, 1.0):
            with sp.x64():
                schedule = kd.tcd(levels, gamma)
            rows: Any = schedule.rows
            noise = np.hypot(rows.epsilon_weight, rows.noise_weight)
            np.testing.assert_allclose(noise, np.asarray(schedule.sigmas)[1:], rtol=1e-12)
            np.testing.assert_allclose(np.hypot(rows.denoised_weight, noise), 1, rtol=1e-12)


def test_a_run_that_ends_at_t_0_draws_no_noise_there() -> None:
    levels = kd.levels(NOISE, timesteps=[999, 499, 0]).end_at(2)
    rows: Any = kd.tcd(levels, 0.3).rows
    assert rows.noise_weight[0] > 0
    assert rows.noise_weight[1] == 0
    np.testing.assert_allclose(rows.epsilon_weight[1], math.sqrt(1 - ABAR[0]), rtol=1e-6)
    # These grids end at the same level, but for the rounding of their formula.
    for levels in (kd.levels(NOISE, 5, grid=grid) for grid in ("karras", "exponential")):
        rows = kd.tcd(levels).rows
        assert rows.noise_weight[-2:].tolist() == [0, 0]


def test_a_traced_gamma_fills_the_same_table() -> None:
    levels = kd.lcm_levels(NOISE, 50)
    run = jax.jit(lambda gamma: kd.tcd(levels, gamma))
    for gamma in map(float, GAMMAS):
        pairs = (jax.tree.leaves(table) for table in (run(gamma), kd.tcd(levels, gamma)))
        for got, leaf in zip(*pairs, strict=True):
            np.testing.assert_allclose(got, leaf, 1e-4, 1e-6)


REFUSED: dict[str, Any] = {
    r"gamma = -0\.1": lambda: kd.tcd(kd.lcm_levels(NOISE, 4), -0.1),
    r"gamma = 1\.5 is out of range; expected it in \[0, 1\]": lambda: kd.tcd(
        kd.lcm_levels(NOISE, 4), 1.5
    ),
    r"a rectified flow.*kd\.lcm_levels.*kd\.lcm, or kd\.euler": lambda: kd.tcd(
        kd.levels(kd.flow_schedule(), 4)
    ),
    r"sigmas alone.*kd\.lcm_levels": lambda: kd.tcd(kd.levels(None, sigmas=[3.0, 1.0])),
    "tcd adds noise of its own to levels with churn": lambda: kd.tcd(
        kd.levels(NOISE, 4).churned(1.0)
    ),
    "tcd draws noise, and these levels ascend": lambda: kd.tcd(kd.levels(NOISE, 4).reversed()),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_it_is_not_defined_for_is_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()
