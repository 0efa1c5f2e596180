"""Where the references are wrong, and this library is right on purpose."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kdiff_jax as kd

NOISE = kd.noise_schedule("scaled_linear")
COSINE = kd.noise_schedule("squaredcos_cap_v2")
X = jnp.ones((2, 3))
KEY = jax.random.key(0)
SAMPLERS: list[Callable[[kd.Levels], kd.Schedule]] = [kd.euler, kd.dpm2, kd.dpm2_ancestral]


def network(params: Any, x: jax.Array, timestep: jax.Array) -> jax.Array:
    del timestep
    return params * x


DENOISE = kd.denoiser(network)


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_step_is_an_euler_step_from_the_highest_noise(sampler, spacing):
    schedule = sampler(kd.levels(NOISE, 1, timestep_spacing=spacing))
    assert (schedule.num_steps, schedule.num_rows) == (1, 1)
    assert schedule[0].timestep == 999
    state = kd.init(schedule, 10 * X)
    state = kd.step(state, schedule[0], DENOISE(0.1, state.sample, schedule[0]))
    sigma = NOISE.sigmas[-1]
    expected = 10 - sigma * (0.1 * 10 / np.sqrt(1 + sigma**2))
    np.testing.assert_allclose(state.sample, np.full((2, 3), expected), rtol=1e-6)


def test_trailing_takes_n_steps_where_the_reference_takes_one_more():
    extra = [n for n in range(1, 1001) if len(np.arange(1000, 0, -1000 / n)) == n + 1]
    assert len(extra) == 62
    assert {61, 103} <= set(extra)
    for num_steps in extra[::10]:  # every N at the level of the grid: test_spacing.py
        schedule = kd.euler(kd.levels(NOISE, num_steps, timestep_spacing="trailing"))
        assert schedule.num_steps == num_steps
        assert schedule[-1].timestep >= 0


@pytest.mark.parametrize("num_steps", [2, 3, 5, 8])
def test_ancestral_steps_of_the_cosine_schedule_are_finite_and_noisy(num_steps):
    sigmas = np.interp(np.linspace(999, 0, num_steps), np.arange(1000), COSINE.sigmas)
    s0, s1 = sigmas[:-1].astype(np.float32), sigmas[1:].astype(np.float32)
    # In float32 the published difference loses sigma_down: 0, NaN or far off.
    up = s1 * np.sqrt((s0**2 - s1**2) / s0**2)
    with np.errstate(invalid="ignore"):
        published = np.sqrt(s1**2 - up**2)
    assert not np.all(np.abs(published / (sigmas[1:] ** 2 / sigmas[:-1]) - 1) < 0.01)

    schedule = kd.dpm2_ancestral(kd.levels(COSINE, num_steps))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(schedule))
    assert np.all(np.asarray(schedule.rows.noise_weight)[1::2] > 0)
    assert schedule[-1].noise_weight == 0
    x0 = kd.sample(DENOISE, np.float32(0.1), schedule.pad(15), X, KEY)
    assert np.all(np.isfinite(x0))


def test_noise_is_drawn_whenever_the_next_level_is_not_zero():
    # k-diffusion drops it where sigma_down, here 1e-9, rounds to 0.
    row = kd.dpm2_ancestral(kd.levels(None, sigmas=[1e3, 1e-3]))[1]
    assert row.noise_weight == pytest.approx(1e-3, rel=1e-6)
    assert row.epsilon_weight == pytest.approx(-1e3, rel=1e-6)


def test_networks_that_predict_the_sample_work_in_dpm2():
    constant = kd.denoiser(lambda params, x, timestep: jnp.full(x.shape, params), "sample")
    found = kd.sample(constant, jnp.float32(0.7), kd.dpm2(kd.levels(NOISE, 6)), 10 * X)
    np.testing.assert_array_equal(found, jnp.full((2, 3), 0.7))


@pytest.mark.parametrize("sampler", [kd.dpm2, kd.dpm2_ancestral])
def test_runs_start_at_whole_steps_only(sampler):
    levels = kd.levels(NOISE, 3)
    for step in range(3):
        row = sampler(levels.start_at(step))[0]
        assert (row.step, row.index, row.anchor_weight) == (step, 2 * step, 0)


def test_rows_are_found_by_position_where_timesteps_repeat():
    schedule = kd.dpm2(kd.levels(NOISE, 100, grid="karras", round_timesteps=True))
    timesteps = np.asarray(schedule.rows.timestep)[::2]
    assert len(set(timesteps)) < 100
    # A new level at every step, whatever timestep the network receives.
    assert np.all(np.diff(np.asarray(schedule.rows.sigma)[::2]) < 0)
    i = int(np.flatnonzero(np.diff(timesteps) == 0)[0])
    assert schedule[2 * i].timestep == schedule[2 * i + 2].timestep
    assert schedule[2 * i].sigma > schedule[2 * i + 2].sigma


@pytest.mark.parametrize("strength", [1.0, 0.75, 0.5, 0.25])
def test_the_last_lcm_row_is_noiseless_after_timesteps_with_a_strength(strength):
    timesteps = [999, 759, 499, 259]
    schedule = kd.lcm(kd.lcm_levels(NOISE, timesteps=timesteps, strength=strength))
    assert schedule.num_steps == 4 * strength
    assert schedule[-1].noise_weight == 0
    assert schedule[-1].denoised_weight == 1
    assert np.all(np.asarray(schedule.rows.noise_weight)[:-1] > 0)
