"""Rows [B, F]: each frame of each sample has its own level, its own row and its own noise."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
from samplers import ELEMENTWISE, NOISE, SAMPLERS
from test_noise import assert_uncorrelated
from test_threefry import same_numbers

import kdiff_jax as kd
from kdiff_jax._noise.keyed import STEP_DOMAIN

B, F = 3, 4
KEY = jax.random.key(23)
KEYS = jax.random.split(KEY, B)
SCHEDULE = SAMPLERS["ancestral"](5)
# Rows that draw and rows that do not; one twice in a sample and in two samples.
AT = np.array([[1, 3, 3, 8], [7, 1, 0, 5], [2, 4, 6, 1]], np.int32)
ROWS = SCHEDULE.rows_at(AT)


def oracle(keys, index, shape):
    """Noise of frame f of sample b: the key of b folded with the row's index, then with f."""
    z = np.zeros((*index.shape, *shape), np.float32)
    for b, f in np.ndindex(*index.shape):
        key = jax.random.fold_in(keys[b], STEP_DOMAIN)
        for item in (index[b, f], f):
            key = jax.random.fold_in(key, item)
        z[b, f] = jax.random.normal(key, shape)
    return z


@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_the_noise_of_a_frame_is_its_key_folded_with_the_index_and_then_the_frame(shape):
    whole = (B, F, *shape)
    expected = oracle(KEYS, AT, shape)
    same_numbers(kd.row_noise(KEYS, ROWS, whole), expected)
    # One key is a key for each sample, folded with its place in the batch.
    of_one = [jax.random.fold_in(KEY, b) for b in range(B)]
    same_numbers(kd.row_noise(KEY, ROWS, whole), oracle(of_one, AT, shape))


def test_it_depends_on_no_other_frame_and_no_other_sample():
    z = kd.row_noise(KEYS, ROWS, (B, F, 5))
    fewer = kd.row_noise(KEYS[1:2], SCHEDULE.rows_at(AT[1:2, :2]), (1, 2, 5))
    np.testing.assert_array_equal(fewer, z[1:2, :2])
    other = kd.row_noise(KEYS, SCHEDULE.rows_at(np.where(AT[0, 0] == AT, 2, AT)), (B, F, 5))
    np.testing.assert_array_equal(np.any(other != z, axis=2), AT[0, 0] == AT)


def test_frames_at_one_row_have_independent_noise():
    same = SCHEDULE.rows_at(np.full((2, F), 3, np.int32))
    z = np.asarray(kd.row_noise(KEY, same, (2, F, 20_000))).reshape(2 * F, -1)
    whole = np.asarray(kd.row_noise(KEY, SCHEDULE[3], (2, 20_000)))
    assert_uncorrelated(np.concatenate([z, whole]))


def test_a_step_adds_the_noise_of_each_frame_at_its_own_weight():
    zero = jnp.zeros((B, F, 5))
    state = kd.init(SCHEDULE, zero)
    stepped = kd.step(state, ROWS, kd.Prediction(zero, zero), key=KEYS).sample
    weight = np.asarray(ROWS.noise_weight)[..., None]
    assert {bool(w) for w in weight.ravel()} == {True, False}
    np.testing.assert_allclose(stepped, weight * oracle(KEYS, AT, (5,)), rtol=2e-6)


def test_a_run_of_tables_for_each_frame_draws_the_same_noise():
    """A stack of stacks: [B, F, R]. In every frame another row returns its noise."""
    places = itertools.cycle((1, 3, 5, 7))
    tables = [[sp.keep_noise_of(SCHEDULE, next(places)) for _ in range(F)] for _ in range(B)]
    stacked = kd.stack([kd.stack(each) for each in tables])
    x = kd.initial_sample(stacked, KEYS, (B, F, 5))
    got = kd.sample(sp.identity_denoise, None, stacked, x, KEYS)
    index = np.broadcast_to(np.array([1, 3, 5, 7], np.int32), (B, F))
    same_numbers(got, oracle(KEYS, index, (5,)))


# --- clean data at rows of every shape, and with columns that are None ------------------------


@pytest.mark.parametrize("name", ["dpm2", "lcm", "flow"])
def test_add_noise_is_the_line_at_rows_of_every_shape(name):
    flow = kd.dpm2(kd.levels(kd.flow_schedule(), 5))
    schedule = flow if name == "flow" else SAMPLERS[name](5)
    x0, eps = np.random.default_rng(0).normal(size=(2, B, F, 5)).astype(np.float32)
    at = AT % schedule.num_rows
    for i in (at, at[:, 0]):
        row = schedule.rows_at(i)
        alpha, sigma = (
            np.asarray(leaf)[(..., *[None] * (3 - i.ndim))] for leaf in (row.alpha, row.sigma)
        )
        got = kd.add_noise(row, x0, eps)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, alpha * x0 + sigma * eps, rtol=1e-6, atol=1e-6)
        if name == "dpm2":
            np.testing.assert_array_equal(row.alpha, np.ones(()))
            without = dataclasses.replace(row, alpha=None, input_scale=None)
            np.testing.assert_array_equal(kd.add_noise(without, x0, eps), got)


# --- noise from elsewhere ---------------------------------------------------------------------


def test_given_noise_is_that_of_the_step_of_each_frame():
    noise = np.random.default_rng(1).normal(size=(5, B, F, 2)).astype(np.float32)
    got = kd.given_noise(jnp.asarray(noise))(None, ROWS, (B, F, 2))
    step = np.asarray(ROWS.step)
    expected = [[noise[step[b, f], b, f] for f in range(F)] for b in range(B)]
    np.testing.assert_array_equal(got, np.array(expected))


def test_each_frame_has_a_brownian_path_of_its_own():
    size, noise_fn = 4_000, kd.brownian_noise(0.02, 20.0, depth=5)
    levels = 20.0 * (0.02 / 20.0) ** np.array([[0, 0.3, 1], [0.2, 0.45, 0.9]])  # of two frames

    @jax.jit
    def increment(left, reached):
        row = dataclasses.replace(
            SCHEDULE.rows_at(np.zeros((1, 2), np.int32)), sigma_left=left, sigma_reached=reached
        )
        return noise_fn(KEY, row, (1, 2, size))[0]

    def between(i, j):
        ends = (jnp.asarray(levels[None, :, k], jnp.float32) for k in (i, j))
        return np.asarray(increment(*ends), np.float64)

    first, second, whole = between(0, 1), between(1, 2), between(0, 2)
    length = -np.diff(np.log(levels.astype(np.float32)), axis=1)
    parts = np.sqrt(length[:, :1]) * first + np.sqrt(length[:, 1:]) * second
    np.testing.assert_allclose(parts / np.sqrt(length.sum(axis=1))[:, None], whole, atol=5e-5)
    # Independent where a path does not overlap with itself, and between frames everywhere.
    assert_uncorrelated(np.concatenate([first, second]))
    assert np.all(np.abs(np.var(np.concatenate([first, second, whole]), axis=1) - 1) < 0.1)


def test_a_run_calls_a_noise_fn_with_the_rows_of_the_frames():
    noise = jnp.asarray(np.random.default_rng(2).normal(size=(3, 2, 2, 3)), jnp.float32)
    denoise = kd.denoiser(frame_model)
    tables = [[SAMPLERS["lcm"](n) for n in steps] for steps in ((2, 3), (3, 3))]
    pads = [[table.pad(3) for table in each] for each in tables]
    stacked = kd.stack([kd.stack(each) for each in pads])
    x = jnp.ones((2, 2, 3))
    got = kd.sample(denoise, ELEMENTWISE, stacked, x, noise_fn=kd.given_noise(noise))
    for b, f in np.ndindex(2, 2):
        own = kd.given_noise(noise[:, b : b + 1, f : f + 1])
        table, alone = tables[b][f], x[b : b + 1, f : f + 1]
        expected = kd.sample(denoise, ELEMENTWISE, table, alone, noise_fn=own)
        np.testing.assert_allclose(got[b, f], expected[0, 0], rtol=1e-6)


def frame_model(params, x, timestep):
    """The elementwise network, with a timestep [B] or [B, F]."""
    time = timestep.reshape(timestep.shape + (1,) * (x.ndim - timestep.ndim)) / 1000
    return params["gain"] * x / (1 + x * x) + params["shift"] * time


def test_an_index_that_does_not_begin_the_shape_of_the_sample_is_refused():
    with pytest.raises(ValueError, match=r"index of shape \(3, 4\) met .* \(3, 5\).*\[B, F\]"):
        kd.row_noise(KEYS, ROWS, (B, 5))
    levels = kd.levels(NOISE, 5)
    stacked = kd.stack([kd.stack([kd.dpm2_ancestral(levels)] * F)] * B)
    with pytest.raises(ValueError, match=r"\(3, 4\) met a sample of shape \(3, 5\)"):
        kd.initial_sample(stacked, KEYS, (B, 5))
