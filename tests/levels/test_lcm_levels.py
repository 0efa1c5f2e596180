"""The levels of latent-consistency runs: the distillation grid, given levels, two strengths."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers import NOISE

import kdiff_jax as kd


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
def test_timesteps_have_their_known_values(arguments: Any, expected: list[int]) -> None:
    levels = kd.lcm_levels(NOISE, **arguments)
    np.testing.assert_array_equal(levels.timesteps, expected)
    np.testing.assert_array_equal(levels.sigmas, np.append(NOISE.sigmas[expected], 0))
    schedule = kd.lcm(levels)
    np.testing.assert_array_equal(schedule.rows.timestep, expected)
    # sigma of every level in variance-preserving units, and the closing 0
    sigmas = np.append(np.sqrt(1 - NOISE.alphas_cumprod[expected]), 0)
    np.testing.assert_allclose(schedule.sigmas, sigmas, rtol=2e-7)
    assert levels.num_steps == schedule.num_steps == schedule.num_rows == len(expected)


def test_exactly_the_number_of_steps_is_taken_from_the_grid() -> None:
    for original in (1, 7, 50, 333, 1000):
        grid = np.arange(1, original + 1) * (1000 // original) - 1
        for num_steps in range(1, original + 1):
            timesteps = kd.lcm_levels(NOISE, num_steps, original_steps=original).timesteps
            assert len(timesteps) == num_steps
            assert timesteps[0] == grid[-1]
            assert np.all(np.diff(timesteps) < 0)
            assert set(timesteps) <= set(grid)
            # Evenly spread: gaps on the grid differ by at most one.
            gaps = np.diff(np.searchsorted(grid, timesteps[::-1]))
            assert num_steps < 3 or np.ptp(gaps) <= 1


def test_a_strength_means_two_things_each_by_its_name() -> None:
    """Exactly N steps below it, or those of N steps that lie below it."""
    below = kd.lcm_levels(NOISE, 4, strength=0.5)
    assert below.timesteps.tolist() == [499, 379, 259, 139]
    dropped = kd.lcm_levels(NOISE, 4).start_at_strength(0.5)
    assert dropped.timesteps.tolist() == [499, 259]


def test_runs_start_at_unit_variance() -> None:
    levels = kd.lcm_levels(NOISE, 4)
    assert kd.lcm(levels).init_noise_sigma == 1
    assert kd.lcm(levels.start_at(2)).init_noise_sigma == 1


def test_levels_are_taken_verbatim_and_are_the_same_as_by_timesteps() -> None:
    timesteps = [999, 640, 333, 20]
    by_time = kd.lcm(kd.lcm_levels(NOISE, timesteps=timesteps))
    by_level = kd.lcm(kd.lcm_levels(NOISE, sigmas=NOISE.sigmas[timesteps]))
    for a, b in zip(jax.tree.leaves(by_time), jax.tree.leaves(by_level), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-7)
    shorter = kd.lcm_levels(NOISE, sigmas=NOISE.sigmas[timesteps], strength=0.5)
    np.testing.assert_allclose(shorter.timesteps, [333, 20], rtol=1e-12)
    between: Any = kd.lcm(kd.lcm_levels(NOISE, sigmas=[3.0, 1.0])).rows
    np.testing.assert_allclose(between.alpha, [10**-0.5, 2**-0.5], rtol=2e-7)
    np.testing.assert_allclose(between.timestep, NOISE.timestep_at(np.array([3.0, 1.0])), rtol=1e-6)


def test_traced_levels_reach_the_table() -> None:
    def total(sigmas: Any) -> Any:
        rows: Any = kd.lcm(kd.lcm_levels(NOISE, sigmas=sigmas)).rows
        return jnp.sum(rows.denoised_weight + 0.5 * rows.noise_weight) + rows.timestep[1]

    sigmas = jnp.array([9.0, 2.0, 0.3])
    value, slope = jax.jit(jax.value_and_grad(total))(sigmas)
    assert value == pytest.approx(float(total(np.asarray(sigmas))), rel=1e-5)
    assert np.all(np.isfinite(slope))
    assert np.all(np.asarray(slope)[1:] != 0)
