"""What must hold for every sampler of the table in `samplers.py`, whatever its rows hold."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
from samplers import (
    ELEMENTWISE,
    MIXING,
    ONE_OF_EACH,
    SAMPLERS,
    STOCHASTIC,
    relative_error,
    run_by_hand,
)

import kdiff_jax as kd

N, SHAPE = 4, (4, 8)
KEY = jax.random.key(11)
elementwise = kd.denoiser(sp.elementwise_model)
mixing = kd.denoiser(sp.mixing_model, "v_prediction")
every_sampler = pytest.mark.parametrize("name", SAMPLERS)
# Of properties that belong to the program, which the columns decide.
one_of_each = pytest.mark.parametrize("name", ONE_OF_EACH)
every_stochastic_sampler = pytest.mark.parametrize("name", STOCHASTIC)


def start(name, steps=N, shape=SHAPE):
    schedule = SAMPLERS[name](steps)
    return schedule, kd.initial_sample(schedule, KEY, shape)


def key_of(schedule, key=KEY):
    return key if sp.draws(schedule) else None


@functools.partial(jax.jit, static_argnames="denoise")
def scanned_by_hand(denoise, params, schedule, x, key):
    def body(state, row):
        return kd.step(state, row, denoise(params, state.sample, row), key=key), None

    return jax.lax.scan(body, kd.init(schedule, x), schedule.rows)[0].sample


# --- by hand, scanned by hand, kd.sample -----------------------------------------------------


@every_sampler
def test_by_hand_and_scanned_equal_sample(name):
    schedule, x = start(name)
    whole = kd.sample(mixing, MIXING, schedule, x, key_of(schedule))
    by_hand = run_by_hand(mixing, MIXING, schedule, x, key_of(schedule))[-1].sample
    scanned = scanned_by_hand(mixing, MIXING, schedule, x, key_of(schedule))
    assert relative_error(by_hand, whole) < 1e-6
    assert relative_error(scanned, whole) < 1e-6


@every_sampler
def test_sample_is_the_line_of_the_design_in_float64(name):
    schedule, x = start(name)
    noise = [kd.row_noise(KEY, row, SHAPE) for row in schedule]
    expected = sp.run_in_numpy(mixing, MIXING, schedule, x, noise)
    assert relative_error(kd.sample(mixing, MIXING, schedule, x, KEY), expected) < 2e-6


@every_stochastic_sampler
def test_by_hand_scanned_and_sample_draw_the_same_noise_bitwise(name):
    schedule, x = start(name)
    for k, row in enumerate(schedule):
        z = kd.row_noise(KEY, row, SHAPE)
        only = sp.keep_noise_of(schedule, k)
        run = sp.identity_denoise, None, only, x, KEY
        np.testing.assert_array_equal(kd.sample(*run), z)
        np.testing.assert_array_equal(scanned_by_hand(*run), z)
        np.testing.assert_array_equal(run_by_hand(*run)[-1].sample, z)


@pytest.mark.parametrize("name", ["dpm2", "ancestral", "lcm", "unipc"])
def test_not_jitted_equals_jitted(name):
    schedule, x = start(name, 2, (2, 3))
    jitted = kd.sample(elementwise, ELEMENTWISE, schedule, x, key_of(schedule))
    with jax.disable_jit():
        eager = kd.sample(elementwise, ELEMENTWISE, schedule, x, key_of(schedule))
    assert relative_error(eager, jitted) < 1e-6


# --- neighbours, batches, rows of a batch ----------------------------------------------------


@one_of_each
def test_a_sample_depends_on_no_neighbour_order_or_batch_size(name):
    # 16 floats fill the widest vector register. What is left of a batch beyond full registers is
    # compiled into other instructions, whose last bit may differ (in JAX 0.6 and 0.12 it does).
    schedule, x = start(name, shape=(4, 16))
    keys = jax.random.split(KEY, len(x))

    def run(chosen):
        return kd.sample(elementwise, ELEMENTWISE, schedule, x[chosen], keys[chosen])

    whole = run(np.arange(4))
    for chosen in ([2, 0, 3, 1], [3, 3, 3, 3], [2], [0, 1, 2, 3, 3, 2, 1]):
        np.testing.assert_array_equal(run(np.array(chosen)), whole[np.array(chosen)])


@every_sampler
def test_each_sample_at_its_own_row_equals_each_run_alone(name):
    schedule, x = start(name)
    schedule = sp.widened(schedule)
    keys = jax.random.split(KEY, len(x))
    first = np.array([schedule.num_rows - 1, 0, 2, 1])
    together = kd.init(schedule, x)
    for i in range(schedule.num_rows):
        rows = schedule.rows_at(first + i)
        together = kd.step(together, rows, mixing(MIXING, together.sample, rows), key=keys)
    for b, begin in enumerate(first):
        # Of a batch in which all samples begin at that row.
        state = kd.init(schedule, x)
        for i in range(begin, schedule.num_rows):
            row = schedule[i]
            state = kd.step(state, row, mixing(MIXING, state.sample, row), key=keys)
        for leaf, alone in zip(*map(jax.tree.leaves, (together, state)), strict=True):
            size = float(jnp.max(jnp.abs(state.sample)))
            np.testing.assert_allclose(leaf[b], alone[b], rtol=0, atol=1e-6 * size)


@one_of_each
def test_a_sweep_under_vmap_equals_each_schedule_alone(name):
    schedule, x = start(name)

    def other(leaf):
        return 0.9 * leaf if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    tables = schedule, jax.tree.map(other, schedule)
    sweep = jax.tree.map(lambda *leaves: jnp.stack(leaves), *tables)

    def run(schedule):
        return kd.sample(mixing, MIXING, schedule, x, key_of(schedule))

    swept = jax.vmap(run)(sweep)
    for got, table in zip(swept, tables, strict=True):
        assert relative_error(got, run(table)) < 1e-6


# --- keys and noise --------------------------------------------------------------------------


@every_stochastic_sampler
def test_one_key_is_one_folded_key_a_sample(name):
    schedule, x = start(name)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(len(x)))
    np.testing.assert_array_equal(kd.initial_sample(schedule, keys, SHAPE), x)
    one = kd.sample(elementwise, ELEMENTWISE, schedule, x, KEY)
    many = kd.sample(elementwise, ELEMENTWISE, schedule, x, keys)
    np.testing.assert_array_equal(one, many)


@every_stochastic_sampler
def test_legacy_keys_are_the_typed_keys_they_hold(name):
    schedule, x = start(name)
    for typed in (KEY, jax.random.split(KEY, len(x))):
        expected = kd.sample(elementwise, ELEMENTWISE, schedule, x, typed)
        legacy = jax.random.key_data(typed)
        got = kd.sample(elementwise, ELEMENTWISE, schedule, x, legacy)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_keys_whose_noise_depends_on_neighbours_are_refused(impl):
    schedule, x = start("ancestral")
    key = jax.random.key(0, impl=impl)
    for call in (
        lambda: kd.initial_sample(schedule, key, SHAPE),
        lambda: kd.row_noise(key, schedule[1], SHAPE),
        lambda: kd.sample(elementwise, ELEMENTWISE, schedule, x, key),
        lambda: run_by_hand(elementwise, ELEMENTWISE, schedule, x, key),
    ):
        with pytest.raises(ValueError, match=f"{impl}.*threefry2x32"):
            call()
    with pytest.raises(ValueError, match="key"):
        kd.row_noise(jax.random.key_data(key), schedule[1], SHAPE)


@every_stochastic_sampler
def test_noise_handed_in_equals_its_key(name):
    schedule, x = start(name)
    for row, state in zip(
        schedule, run_by_hand(mixing, MIXING, schedule, x, KEY)[:-1], strict=True
    ):
        prediction = mixing(MIXING, state.sample, row)
        by_key = kd.step(state, row, prediction, key=KEY)
        by_noise = kd.step(state, row, prediction, noise=kd.row_noise(KEY, row, SHAPE))
        assert relative_error(by_noise.sample, by_key.sample) < 1e-6


# --- what a step refuses ---------------------------------------------------------------------


def test_a_key_and_noise_at_once_or_neither_of_them_are_refused():
    schedule, x = start("ancestral")
    state, prediction = kd.init(schedule, x), kd.Prediction(x, x)
    with pytest.raises(ValueError, match="both key and noise"):
        kd.step(state, schedule[1], prediction, key=KEY, noise=x)
    with pytest.raises(ValueError, match=r"row 1 draws noise.*neither key nor noise"):
        kd.step(state, schedule[1], prediction)
    with pytest.raises(ValueError, match=r"noise has shape \(2, 8\)"):
        kd.step(state, schedule[1], prediction, noise=x[:2])
    # Traced, the weight cannot be seen: what should have drawn noise is NaN, and what should not
    # is a sample.
    traced = jax.jit(lambda row: kd.step(state, row, prediction).sample)
    assert np.all(np.isnan(traced(schedule[1])))
    assert np.all(np.isfinite(traced(schedule[0])))
