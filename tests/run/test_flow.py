"""Runs on a rectified flow: ways to run them, noise from outside, and what an image keeps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flows import FLOW, SAMPLERS, SD3, every_sampler
from mixtures import gaussian_denoise
from samplers import draws, relative_error, run_by_hand

import kdiff_jax as kd
from kdiff_jax._table.schedule import NEUTRAL

# The columns of all samplers of a flow, so that they share executables.
COLUMNS = tuple(NEUTRAL)
KEY = jax.random.key(1)
network = kd.denoiser(
    lambda params, x, timestep: jnp.sin(1.7 * x) - 0.6 * x + 0.1, "flow_prediction"
)


@every_sampler
def test_runs_by_hand_unrolled_padded_stacked_and_cut_are_one(name):
    # As many rows for every sampler: 7. Estimates of earlier rows have weights of up to 1.7.
    two_a_step = ("dpm2", "ancestral", "heun", "2s_ancestral")
    levels = kd.levels(SD3, 4 if name in two_a_step else 7)
    schedule = SAMPLERS[name](levels)
    multistep = schedule.rows.denoised_weight_1 is not None
    bound = 2e-6 if multistep else 1e-6
    x = kd.initial_sample(schedule, KEY, (2, 8))
    whole = kd.sample(network, None, schedule, x, KEY)
    states = run_by_hand(network, None, schedule.pad(12, COLUMNS), x, KEY)
    assert relative_error(states[-1].sample, whole) < bound
    padded = schedule.pad(12, COLUMNS)
    # How rows are unrolled does not ask what their levels are: three kinds of state.
    unroll = 2 if name in ("ancestral", "lcm", "unipc") else 1
    for same in (
        kd.sample(network, None, schedule, x, KEY, unroll=unroll),
        kd.sample(network, None, padded, x, KEY),
        kd.sample(network, None, kd.stack([padded, padded]), x, KEY),
    ):
        assert relative_error(same, whole) < bound
    rest = SAMPLERS[name](levels.start_at(2))
    start = schedule.num_rows - rest.num_rows
    # A multistep run goes on with its own rows, and the State.
    rest = (schedule[start:] if multistep else rest).pad(12, COLUMNS)
    halfway = states[start] if multistep else states[start].sample
    assert relative_error(kd.sample(network, None, rest, halfway, KEY), whole) < bound


@pytest.mark.parametrize("name", ["ancestral", "euler_ancestral", "lcm"])
def test_noise_from_a_function_or_from_an_array(name):
    schedule, shape = SAMPLERS[name](kd.levels(SD3, 5)).pad(12, COLUMNS), (2, 8)
    x = kd.initial_sample(schedule, KEY, shape)

    def run(**how):
        return kd.sample(network, None, schedule, x, **how)

    rows = range(1, 9, 2) if name == "ancestral" else range(4)
    landing = [schedule[i] for i in (*rows, schedule.num_rows - 1)]
    brownian = kd.brownian_noise(float(schedule.sigmas[4]) / 2, 1.0)
    for noise_fn, expected in (
        (kd.row_noise, run(key=KEY)),
        (brownian, run(key=KEY, noise_fn=brownian)),
    ):
        drawn = jnp.stack([noise_fn(KEY, row, shape) for row in landing])
        assert relative_error(run(noise_fn=kd.given_noise(drawn)), expected) < 1e-5


MASK = np.array([0.0, 1.0, 1.0, 0.0])


def denoise_of_x(params, x, row, cond=None):
    """The exact denoiser of Gaussian data, with the epsilon that is left of this very x."""
    denoised = gaussian_denoise(params, x, row).denoised
    return kd.Prediction(denoised, (x - row.alpha * denoised) / row.sigma)


@pytest.mark.parametrize("renoised", [False, True], ids=["projected", "renoised"])
@every_sampler
def test_inpainting_holds_what_is_known_at_the_level_of_every_row(name, renoised):
    plain = SAMPLERS[name](kd.levels(FLOW, 4))
    schedule = plain.pad(12, COLUMNS)
    known, eps, other = np.random.default_rng(3).normal(size=(3, 3, 4)).astype(np.float32)
    x = kd.add_noise(schedule[0], known, eps)
    denoise = kd.inpainted(denoise_of_x, known, MASK, other if renoised else None)
    x0 = kd.sample(denoise, None, schedule, x, KEY)
    np.testing.assert_array_equal(x0[:, MASK == 0], known[:, MASK == 0])
    for row in schedule:
        alpha: Any = row.alpha
        prediction = denoise(None, x, row)
        parts = alpha * prediction.denoised + row.sigma * prediction.epsilon
        np.testing.assert_allclose(parts, x, atol=2e-6)
    seen = []

    def watched(params, x, row, cond=None):
        seen.append(x)
        return denoise_of_x(params, x, row, cond)

    watching = kd.inpainted(watched, known, MASK, other if renoised else None)
    run_by_hand(watching, None, schedule, x, KEY)
    if not renoised and draws(plain):
        return  # the known part then has the noise of the run
    for row, got in zip(schedule, seen, strict=True):
        alpha = row.alpha
        expected = float(alpha) * known + float(row.sigma) * (other if renoised else eps)
        # Heun's slope at the lowest level is what rounding left of a difference, over that level.
        atol = 1e-5 if name == "heun" else 3e-6
        np.testing.assert_allclose(got[:, MASK == 0], expected[:, MASK == 0], atol=atol)
