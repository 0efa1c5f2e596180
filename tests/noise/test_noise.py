"""The noise: one z for a sample at a row wherever it is drawn, independent and standard normal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
import scipy.stats
from samplers import NOISE, SAMPLERS, STOCHASTIC

import kdiff_jax as kd

KEY = jax.random.key(7)
SHAPE = (3, 5)
# One size for all statistics, a million numbers: one program.
MILLION = (8, 125_000)


def unit_schedule():
    """A schedule with an initial noise of standard deviation 1, to see the initial z itself."""
    return SAMPLERS["lcm"](4)


def draws(what, shape, key=KEY):
    schedule = unit_schedule()
    if what == "initial":
        return np.asarray(kd.initial_sample(schedule, key, shape))
    return np.asarray(kd.row_noise(key, schedule[what], shape))


@pytest.mark.parametrize("name", STOCHASTIC)
def test_row_noise_and_step_draw_the_same_z(name):
    # That a run draws it as well is in tests/run/test_properties.py.
    schedule = SAMPLERS[name](3)
    zero = kd.Prediction(jnp.zeros(SHAPE), jnp.zeros(SHAPE))
    state = kd.init(schedule, jnp.zeros(SHAPE))
    for k, row in enumerate(schedule):
        z = np.asarray(kd.row_noise(KEY, row, SHAPE))
        stepped = kd.step(state, row, zero, key=KEY).sample
        np.testing.assert_allclose(stepped, np.float32(row.noise_weight) * z, rtol=1e-6)
        only = sp.keep_noise_of(schedule, k)
        np.testing.assert_array_equal(kd.step(state, only[k], zero, key=KEY).sample, z)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_row_of_weight_zero_gets_no_noise_and_needs_no_key(name):
    schedule = SAMPLERS[name](3)
    zero = kd.Prediction(jnp.zeros(SHAPE), jnp.zeros(SHAPE))
    state = kd.init(schedule, jnp.zeros(SHAPE))
    quiet = [row for row in schedule if row.noise_weight == 0]
    assert quiet[-1].index == schedule[-1].index  # the last row is always among them
    for row in quiet:
        assert not np.any(np.asarray(kd.step(state, row, zero, key=KEY).sample))
        assert not np.any(np.asarray(kd.step(state, row, zero).sample))


@pytest.mark.parametrize("name", STOCHASTIC)
def test_initial_sample_is_the_same_unit_noise_at_every_level(name):
    schedule = SAMPLERS[name](3)
    for start in (schedule, schedule[2:]):
        x = kd.initial_sample(start, KEY, SHAPE)
        np.testing.assert_array_equal(x, start.init_noise_sigma * draws("initial", SHAPE))


def test_noise_has_the_row_index_and_not_its_place():
    schedule = SAMPLERS["ancestral"](5)
    later = kd.dpm2_ancestral(kd.levels(NOISE, 5).start_at(2))
    for rest in (later, schedule[4:]):
        for k, row in enumerate(rest):
            z = kd.row_noise(KEY, row, SHAPE)
            np.testing.assert_array_equal(z, kd.row_noise(KEY, schedule[4 + k], SHAPE))


def test_rows_with_batch_leaves_draw_each_sample_its_own_rows_noise():
    schedule = SAMPLERS["ancestral"](5)
    at = np.array([7, 1, 3])
    rows = jax.tree.map(lambda leaf: leaf[at], schedule.rows)
    z = kd.row_noise(KEY, rows, SHAPE)
    state = kd.init(schedule, jnp.zeros(SHAPE))
    zero = kd.Prediction(jnp.zeros(SHAPE), jnp.zeros(SHAPE))
    stepped = kd.step(state, rows, zero, key=KEY).sample
    np.testing.assert_allclose(stepped, rows.noise_weight[:, None] * z, rtol=1e-6)
    for b, k in enumerate(at):
        np.testing.assert_array_equal(z[b], kd.row_noise(KEY, schedule[k], SHAPE)[b])


@pytest.mark.parametrize("what", ["initial", 0, 2])
def test_a_million_draws_are_standard_normal(what):
    z = draws(what, MILLION).astype(np.float64).ravel()
    n = z.size
    assert n == 1_000_000
    # Moments of the standard normal and their standard errors: Var z^k = E z^2k - (E z^k)^2.
    for power, moment, second in [(1, 0, 1), (2, 1, 3), (3, 0, 15), (4, 3, 105)]:
        error = np.sqrt((second - moment**2) / n)
        assert abs(np.mean(z**power) - moment) < 4 * error, power
    assert scipy.stats.kstest(z, "norm").pvalue > 1e-3
    # Drawn in bfloat16 there would be 128 values, in any 16 bits fewer than 65,536.
    assert len(np.unique(z)) > 100_000


def test_noise_is_float32_with_and_without_x64():
    schedule = unit_schedule()
    assert kd.row_noise(KEY, schedule[0], SHAPE).dtype == jnp.float32
    with sp.x64():
        z = kd.row_noise(KEY, unit_schedule()[0], SHAPE)
        assert z.dtype == jnp.float32
        x = kd.initial_sample(unit_schedule(), KEY, SHAPE)
        assert x.dtype == jnp.float64
    np.testing.assert_array_equal(z, kd.row_noise(KEY, schedule[0], SHAPE))
    np.testing.assert_array_equal(x, kd.initial_sample(schedule, KEY, SHAPE))


def assert_uncorrelated(vectors):
    """Every pair within 5 standard errors of 0, and no vector twice."""
    n = vectors.shape[1]
    correlation = np.corrcoef(vectors) - np.eye(len(vectors))
    # 1 / sqrt(n) each; 5 of them leave 6e-7 a pair by chance.
    assert np.max(np.abs(correlation)) < 5 / np.sqrt(n)


def test_rows_samples_and_initial_noise_are_pairwise_uncorrelated():
    vectors = [draws(what, MILLION) for what in ("initial", 0, 1, 2, 3)]
    assert_uncorrelated(np.concatenate(vectors))


def test_neighbouring_numbers_of_a_sample_are_uncorrelated():
    assert_uncorrelated(draws(0, MILLION).reshape(-1, 8).T)


def test_another_seed_gives_other_noise():
    vectors = [draws("initial", MILLION, jax.random.key(seed)) for seed in range(4)]
    assert_uncorrelated(np.concatenate(vectors))


def test_initial_noise_and_step_noise_live_in_separate_domains():
    # `split(key, n)[i] == fold_in(key, i)`: drawn from the folded key alone, the initial noise of
    # sample 3 under a key would be the step noise of row 3 under the same key for one sample.
    key = jax.random.key(3)
    split = jax.random.split(key, 8)
    folded = [jax.random.key_data(jax.random.fold_in(key, i)) for i in range(8)]
    np.testing.assert_array_equal(jax.random.key_data(split), folded)

    itself = jnp.stack([key, *jax.random.split(jax.random.key(4), 7)])  # as of a batch of one
    rows, size = SAMPLERS["ancestral"](5), 20_000
    by_jax = jax.jit(jax.vmap(lambda k: jax.random.normal(k, (size,))))
    vectors = [
        draws("initial", MILLION, key)[:, :size],
        draws("initial", MILLION, itself)[:1, :size],
        *(np.asarray(kd.row_noise(itself, row, MILLION))[:1, :size] for row in rows),
        *(np.asarray(kd.row_noise(key, row, MILLION))[:, :size] for row in rows),
        np.asarray(by_jax(split)),
        np.asarray(by_jax(itself))[:1],
    ]
    assert_uncorrelated(np.concatenate(vectors))
