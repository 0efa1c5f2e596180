"""Padded schedules: one executable for every number of steps, and the very same samples."""

import collections
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
from programs import compilations
from samplers import ELEMENTWISE, MIXING, NOISE, ONE_OF_EACH, SAMPLERS, draws, relative_error

import kdiff_jax as kd

KEY = jax.random.key(3)
SHAPE, SIZE = (3, 8), 11
# The columns that a table of any sampler may have; anchor_weight brings advances.
COLUMNS = (
    "epsilon_weight",
    "noise_weight",
    "anchor_weight",
    "denoised_weight_1",
    "denoised_weight_2",
    "alpha",
    "input_scale",
)
elementwise = kd.denoiser(sp.elementwise_model)
mixing = kd.denoiser(sp.mixing_model, "v_prediction")
every_sampler = pytest.mark.parametrize("name", SAMPLERS)


def key_of(schedule, key=KEY):
    return key if draws(schedule) else None


def columns_of(schedule):
    return {name for name, column in vars(schedule.rows).items() if column is not None}


def host(tree):
    return jax.tree.map(np.asarray, tree)


def assert_same(got, expected):
    assert str(jax.tree.structure(got)) == str(jax.tree.structure(expected))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


# --- the run ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_padded_run_is_bitwise_the_run(name):
    denoise, params = (elementwise, ELEMENTWISE) if name == "euler" else (mixing, MIXING)
    # Two rows or more: a loop of one row is not a loop to the compiler.
    for steps in (2, 5) if name in ("euler", "unipc") else (5,):
        schedule = SAMPLERS[name](steps)
        x = kd.initial_sample(schedule, KEY, SHAPE)
        expected = kd.sample(denoise, params, schedule, x, key_of(schedule))
        got = kd.sample(denoise, params, schedule.pad(SIZE), x, key_of(schedule))
        np.testing.assert_array_equal(got, expected)
    one = SAMPLERS[name](1)
    x = kd.initial_sample(one, KEY, SHAPE)
    end = sp.run_by_hand(denoise, params, one, x, KEY)[-1]
    got = kd.sample(denoise, params, one.pad(SIZE), x, key_of(one))
    assert relative_error(got, end.sample) < 1e-6


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


def test_nothing_recompiles_for_any_number_of_steps_or_any_grid(caplog):
    def schedules():
        for n in range(1, 101):
            levels = kd.levels(NOISE, n)
            yield "dpm2", kd.dpm2(levels)
            yield "ancestral", kd.dpm2_ancestral(levels, eta=n / 101)
            yield "euler", kd.euler(kd.levels(NOISE, n, grid="karras"))
        grids: list[Any] = [None, "karras", "exponential", "beta"]
        for n, grid in itertools.product((2, 17, 64), grids):
            yield "dpm2", kd.dpm2(kd.levels(NOISE, n, grid=grid, timestep_spacing="trailing"))
        yield "dpm2", kd.dpm2(kd.levels(NOISE, sigmas=[9, 3, 1]))
        yield "dpm2", kd.dpm2(kd.levels(NOISE, 9).end_at(5))
        yield "dpm2", kd.dpm2(kd.levels(NOISE, 9).reversed())
        yield "ancestral", kd.dpm2_ancestral(kd.levels(NOISE, 9).start_at(4), s_noise=0.5)
        yield "ancestral", kd.dpm2(kd.levels(NOISE, 9).churned(2.0))
        for n, strength in itertools.product((1, 3, 8), (0.4, 1.0)):
            yield "lcm", kd.lcm(kd.lcm_levels(NOISE, n, strength=strength))

    x, seen = jnp.ones((2, 5)), set()
    for columns, schedule in schedules():
        run = elementwise, ELEMENTWISE, schedule.pad(199), x, KEY
        # The first of each kind is compiled, which also shows that compilations are seen.
        compiled = len(compilations(caplog, lambda run=run: kd.sample(*run)))
        assert (compiled > 0) == (columns not in seen)
        seen.add(columns)
    assert seen == {"dpm2", "ancestral", "euler", "lcm"}


def test_tables_of_all_samplers_with_the_same_columns_share_one_executable(caplog):
    count, x = 0, jnp.ones((2, 8))
    for steps, name in enumerate(SAMPLERS, 2):
        schedule = SAMPLERS[name](steps)
        padded = schedule.pad(47, COLUMNS)
        run = mixing, MIXING, padded, x, KEY
        count += len(compilations(caplog, lambda run=run: kd.sample(*run)))
        noise = [kd.row_noise(KEY, row, x.shape) for row in schedule]
        expected = sp.run_in_numpy(mixing, MIXING, schedule, x, noise)
        assert relative_error(kd.sample(*run), expected) < 2e-6, name
    assert count == 1


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
def test_the_real_rows_are_kept_and_the_others_leave_the_whole_state_as_it_is(name):
    schedule = SAMPLERS[name](4)
    padded = schedule.pad(SIZE)
    assert columns_of(padded) == columns_of(schedule) | {"idle"}
    rows, count = host(padded.rows), schedule.num_rows
    for column, values in vars(schedule.rows).items():
        if values is not None:
            np.testing.assert_array_equal(getattr(rows, column)[:count], values)
    np.testing.assert_array_equal(rows.idle, np.arange(SIZE) >= count)
    state = sp.run_by_hand(mixing, MIXING, schedule, jnp.ones(SHAPE), KEY)[-1]
    for i in range(count, SIZE):
        row = jax.tree.map(lambda leaf, i=i: leaf[i], rows)
        after = kd.step(state, row, mixing(MIXING, state.sample + 1, row), key=KEY)
        assert_same(after, state)
        assert row.sigma == schedule[-1].sigma > 0


@every_sampler
def test_counting_indexing_and_iterating_go_by_the_real_rows(name):
    for steps in (1, 4):
        schedule = SAMPLERS[name](steps)
        padded = schedule.pad(SIZE)
        numbers = steps, schedule.num_rows, len(schedule)
        assert numbers == (padded.num_steps, padded.num_rows, len(padded))
        for got, expected in zip(padded, schedule, strict=True):
            assert_same(got, expected)
        assert_same(padded[-1], schedule[-1])
        for outside in (schedule.num_rows, -schedule.num_rows - 1):
            with pytest.raises(IndexError, match=f"{schedule.num_rows} rows"):
                padded[outside]


@every_sampler
def test_one_shape_and_structure_whatever_the_steps(name):
    padded = [SAMPLERS[name](steps).pad(SIZE) for steps in (1, 2, 5)]
    shapes = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), table) for table in padded]
    assert shapes[0] == shapes[1] == shapes[2]
    assert padded[0].sigmas.shape == (SIZE + 1,)
    for steps, table in zip((1, 2, 5), padded, strict=True):
        plain = SAMPLERS[name](steps)
        assert plain.length is None
        assert table.length == plain.num_rows
        assert table.length.dtype == np.int32
        sigmas = np.asarray(table.sigmas)
        np.testing.assert_array_equal(sigmas[: steps + 1], plain.sigmas)
        assert not np.any(sigmas[steps + 1 :])


# --- its columns -----------------------------------------------------------------------------

NEUTRAL = {"advances": True, "alpha": 1.0, "input_scale": 1.0}


@every_sampler
def test_a_new_column_is_filled_so_that_it_changes_nothing(name):
    schedule = SAMPLERS[name](3)
    plain, wide = schedule.pad(SIZE), schedule.pad(SIZE, COLUMNS)
    assert columns_of(wide) == columns_of(plain) | {*COLUMNS, "advances"}
    for column in columns_of(wide):
        found, before = getattr(wide.rows, column), getattr(plain.rows, column)
        expected = NEUTRAL.get(column, 0.0) if before is None else before
        np.testing.assert_array_equal(found, np.broadcast_to(expected, SIZE), err_msg=column)
    # The order does not matter, nor do names of columns that every row has.
    again = schedule.pad(SIZE, ["sigma", "advances", *reversed(COLUMNS)])
    assert_same(again, wide)


def test_columns_that_leave_out_one_of_the_table_are_refused():
    for name, build in SAMPLERS.items():
        schedule = build(3)
        have = columns_of(schedule) & {*COLUMNS, "advances"}
        # anchor_weight brings advances.
        for column in have - ({"advances"} if "anchor_weight" in have else set()):
            named = have - {column} - ({"advances"} if column == "anchor_weight" else set())
            with pytest.raises(
                ValueError, match=rf"leaves out .*'{column}'.*which this table uses"
            ):
                schedule.pad(SIZE, named)
            assert columns_of(schedule.pad(SIZE, have)) == columns_of(schedule) | {"idle"}, name


def test_padding_again_to_the_same_size_changes_nothing_but_may_add_columns():
    schedule = SAMPLERS["dpm2"](3)
    padded = schedule.pad(SIZE)
    assert_same(padded.pad(SIZE), padded)
    assert_same(padded.pad(SIZE, COLUMNS), schedule.pad(SIZE, COLUMNS))
    one = schedule.pad(SIZE, [*columns_of(schedule), "noise_weight"])
    assert columns_of(one) - columns_of(padded) == {"noise_weight"}


# --- inside jit ------------------------------------------------------------------------------


def test_inside_jit_a_padded_schedule_is_indexed_but_not_counted():
    schedule = SAMPLERS["dpm2"](3)

    @jax.jit
    def ends(padded):
        return padded[0], padded[1], padded[-1]

    for got, i in zip(ends(schedule.pad(SIZE)), (0, 1, -1), strict=True):
        assert_same(got, schedule[i])
    for count in (len, lambda s: s.num_steps, list):
        with pytest.raises(ValueError, match=r"length.*traced.*before jit"):
            jax.jit(count)(schedule.pad(SIZE))


def test_a_table_built_from_traced_values_is_padded_too():
    @jax.jit
    def run(sigma_max, x):
        schedule = kd.dpm2(kd.levels(NOISE, 3, grid="karras", sigma_max=sigma_max))
        tables = schedule, schedule.pad(SIZE), schedule.pad(SIZE, COLUMNS)
        return [kd.sample(mixing, MIXING, table, x, KEY) for table in tables]

    whole, *padded = run(jnp.float32(9), jnp.ones(SHAPE))
    for same in padded:
        assert relative_error(same, whole) < 1e-6


def test_under_x64_too_and_in_a_stack_of_tables_of_other_lengths():
    @jax.jit
    def lengths(sigma_max):
        levels = kd.levels(NOISE, 3, grid="karras", sigma_max=sigma_max)
        return kd.stack([kd.euler(levels), kd.dpm2(levels)]).rows.idle

    with sp.x64():
        idle = lengths(jnp.float64(9))
    assert idle.sum(axis=1).tolist() == [2, 0]


# --- refusals --------------------------------------------------------------------------------


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
        (lambda s: s.pad(9, ["weight"]), r"columns names \['weight'\]; expected columns of Row"),
        (lambda s: s.pad(9, ["idle", *COLUMNS]), r"columns names \['idle'\]"),
        (lambda s: s.pad(9, "alpha"), "leaves out .*'anchor_weight'"),
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
