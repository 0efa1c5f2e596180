"""Padded schedules: one executable for every number of steps, and the very same samples."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
from samplers import ELEMENTWISE, MIXING, NOISE, SAMPLERS, relative_error
from test_program import compilations

import kdiff_jax as kd

KEY = jax.random.key(3)
SHAPE, SIZE = (3, 8), 11
elementwise = kd.denoiser(sp.elementwise_model)
mixing = kd.denoiser(sp.mixing_model, "v_prediction")
every_sampler = pytest.mark.parametrize("name", SAMPLERS)


def key_of(schedule, key=KEY):
    return None if schedule.deterministic else key


def leaves_equal(got, expected):
    assert str(jax.tree.structure(got)) == str(jax.tree.structure(expected))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


# --- the run ---------------------------------------------------------------------------------


@every_sampler
def test_a_padded_run_is_bitwise_the_run(name):
    denoise, params = (elementwise, ELEMENTWISE) if name == "euler" else (mixing, MIXING)
    for steps in (1, 5):
        schedule = SAMPLERS[name](steps)
        x = kd.initial_sample(schedule, KEY, SHAPE)
        expected = kd.sample(denoise, params, schedule, x, key_of(schedule))
        got = kd.sample(denoise, params, schedule.pad(SIZE), x, key_of(schedule))
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("name", ["dpm2", "lcm"])
def test_the_network_is_traced_once_and_evaluated_for_real_rows_only(name):
    count: collections.Counter[str] = collections.Counter()

    def model_fn(params, x, timestep):
        count["traced"] += 1
        jax.debug.callback(lambda: count.update(evaluated=1))
        return params * x

    denoise, evaluated = kd.denoiser(model_fn), 0
    for steps in (4, 1, 6):
        schedule = SAMPLERS[name](steps)
        evaluated += schedule.num_rows
        kd.sample(denoise, np.float32(0.1), schedule.pad(SIZE), jnp.ones(SHAPE), key_of(schedule))
        jax.effects_barrier()
        assert count == {"traced": 1, "evaluated": evaluated}


def test_nothing_recompiles_for_any_number_of_steps(caplog):
    def schedules():
        for n in range(1, 101):
            yield "dpm2", kd.dpm2_schedule(NOISE, n)
            yield "ancestral", kd.dpm2_ancestral_schedule(NOISE, n, eta=n / 101)
            yield "euler", kd.euler_schedule(NOISE, n, grid="karras")
        for n, grid in itertools.product((2, 17, 64), (None, "karras", "exponential", "beta")):
            yield "dpm2", kd.dpm2_schedule(NOISE, n, grid=grid, timestep_spacing="trailing")
        yield "dpm2", kd.dpm2_schedule(NOISE, sigmas=[9, 3, 1])
        yield "ancestral", kd.dpm2_ancestral_schedule(NOISE, 9, s_noise=0.5).start_at(4)
        for n, strength in itertools.product((1, 3, 8), (0.4, 1.0)):
            yield "lcm", kd.lcm_schedule(NOISE, n, strength=strength)

    x, seen = jnp.ones((2, 5)), set()
    for builder, schedule in schedules():
        run = elementwise, ELEMENTWISE, schedule.pad(199), x, KEY
        # The first of each builder is compiled, which also shows that compilations are seen.
        names = compilations(caplog, lambda run=run: kd.sample(*run))
        compiled = sum("_sample" in name for name in names)
        assert compiled == (builder not in seen)
        seen.add(builder)
    assert seen == {"dpm2", "ancestral", "euler", "lcm"}


def test_general_tables_of_all_builders_share_one_executable(caplog):
    count = 0
    for steps, name in enumerate(SAMPLERS, 2):
        schedule = SAMPLERS[name](steps)
        x = kd.initial_sample(schedule, KEY, (2, 9))
        general = schedule.pad(25, general=True)
        count += len(
            compilations(caplog, lambda g=general, x=x: kd.sample(mixing_9, None, g, x, KEY))
        )
        expected = kd.sample(mixing_9, None, schedule, x, KEY)
        assert relative_error(kd.sample(mixing_9, None, general, x, KEY), expected) < 1e-6
    assert count == 1


def mixing_9(params, x, row, cond=None):
    weight = jnp.linspace(-0.4, 0.4, 81, dtype=x.dtype).reshape(9, 9)
    denoised = jnp.tanh(x @ weight)
    column = (-1,) + (1,) * (x.ndim - 1)
    alpha, sigma = (jnp.reshape(value, column) for value in (row.alpha, row.sigma))
    return kd.Prediction(denoised, (x - alpha * denoised) / sigma)


def test_vmap_over_padded_tables_equals_each_alone():
    tables = [SAMPLERS["ancestral"](n).pad(SIZE) for n in (2, 5, 3)]
    x = jnp.ones(SHAPE)

    def run(schedule):
        return kd.sample(mixing, MIXING, schedule, x, KEY)

    together = jax.vmap(run)(jax.tree.map(lambda *leaves: jnp.stack(leaves), *tables))
    for got, table in zip(together, tables, strict=True):
        assert relative_error(got, run(table)) < 1e-6


# --- the table -------------------------------------------------------------------------------


@every_sampler
def test_the_real_rows_are_kept_and_the_others_leave_the_sample_as_it_is(name):
    schedule = SAMPLERS[name](4)
    padded = schedule.pad(SIZE)
    leaves_equal(jax.tree.map(lambda leaf: leaf[: schedule.num_rows], padded.rows), schedule.rows)
    end = sp.run_by_hand(mixing, MIXING, schedule, jnp.ones(SHAPE), KEY)[-1]
    state = end
    for i in range(schedule.num_rows, SIZE):
        row = jax.tree.map(lambda leaf, i=i: leaf[i], padded.rows)
        state = kd.step(state, row, mixing(MIXING, state.sample, row), key=KEY)
        leaves_equal(state, end)
        assert float(row.sigma) == float(schedule[-1].sigma) > 0


@every_sampler
def test_counting_indexing_and_iterating_go_by_the_real_rows(name):
    for steps in (1, 4):
        schedule = SAMPLERS[name](steps)
        padded = schedule.pad(SIZE)
        numbers = steps, schedule.num_rows, len(schedule)
        assert numbers == (padded.num_steps, padded.num_rows, len(padded))
        for got, expected in zip(padded, schedule, strict=True):
            leaves_equal(got, expected)
        leaves_equal(padded[-1], schedule[-1])
        for outside in (schedule.num_rows, -schedule.num_rows - 1):
            with pytest.raises(IndexError, match=f"{schedule.num_rows} rows"):
                padded[outside]


@every_sampler
def test_start_at_of_a_padded_table_is_the_padded_rest(name):
    schedule = SAMPLERS[name](5)
    for general in (False, True):
        padded = schedule.pad(SIZE, general=general)
        for step in range(5):
            expected = schedule.start_at(step).pad(SIZE, general=general)
            leaves_equal(padded.start_at(step), expected)
    with pytest.raises(ValueError, match="step = 5 is past the end of a schedule of 5"):
        padded.start_at(5)


@every_sampler
def test_one_shape_and_structure_whatever_the_steps(name):
    padded = [SAMPLERS[name](steps).pad(SIZE) for steps in (1, 2, 5)]
    shapes = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), table) for table in padded]
    assert shapes[0] == shapes[1] == shapes[2]
    one_row_a_step = padded[0].anchorless
    assert padded[0].sigmas.shape == (SIZE + 1 if one_row_a_step else (SIZE + 1) // 2 + 1,)
    assert SAMPLERS[name](3).length is None


def test_padding_again_to_the_same_size_changes_nothing_but_may_make_it_general():
    padded = SAMPLERS["dpm2"](3).pad(SIZE)
    leaves_equal(padded.pad(SIZE), padded)
    leaves_equal(padded.pad(SIZE, general=True), SAMPLERS["dpm2"](3).pad(SIZE, general=True))


def test_inside_jit_a_padded_schedule_is_indexed_but_not_counted():
    schedule = SAMPLERS["dpm2"](3)

    @jax.jit
    def ends(padded):
        return padded[0], padded[1], padded[-1]

    for got, i in zip(ends(schedule.pad(SIZE)), (0, 1, -1), strict=True):
        leaves_equal(got, schedule[i])
    for count in (len, lambda s: s.num_steps, list, lambda s: s.start_at(1)):
        with pytest.raises(ValueError, match=r"length.*traced.*before jit"):
            jax.jit(count)(schedule.pad(SIZE))


def test_a_table_built_from_traced_values_is_padded_too():
    @jax.jit
    def run(sigma_max, x):
        schedule = kd.dpm2_schedule(NOISE, 3, grid="karras", sigma_max=sigma_max)
        return [kd.sample(mixing, MIXING, s, x) for s in (schedule, schedule.pad(SIZE))]

    whole, padded = run(jnp.float32(9), jnp.ones(SHAPE))
    assert relative_error(padded, whole) < 1e-6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.pad(4), "num_rows = 4 is too small for a schedule of 5 rows.*at least 5"),
        (lambda s: s.pad(9.0), "num_rows = 9.0 is not an integer"),
        (lambda s: s.pad(True), "num_rows = True is not an integer"),
        (lambda s: s.pad(0), "num_rows = 0 is too small"),
        (lambda s: s.pad(9).pad(10), "num_rows = 10 but .* already padded to 9 rows"),
        (lambda s: s.pad(9).pad(7), "num_rows = 7 but .* already padded to 9 rows"),
        (lambda s: kd.stack([s, s]).pad(9), "pad lengthens one table.*before stacking"),
    ],
)
def test_bad_padding_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(SAMPLERS["dpm2"](3))


@pytest.mark.parametrize("option", [{"unroll": 2}, {"remat": "rows"}])
def test_options_of_a_scan_are_refused_with_a_padded_schedule(option):
    schedule = SAMPLERS["dpm2"](3).pad(SIZE)
    with pytest.raises(ValueError, match=r"unroll = .*remat = .*padded"):
        kd.sample(elementwise, ELEMENTWISE, schedule, jnp.ones(SHAPE), **option)
