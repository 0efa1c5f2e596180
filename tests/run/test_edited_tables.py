"""An edited table is another table: every way of running it samples the numbers that it now holds.

The oracle is the line of the design in NumPy, in float64: `samplers.run_in_numpy`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samplers import MIXING, NOISE

import kdiff_jax as kd

SHAPE = (2, 8)
KEY = jax.random.key(41)
ROWS = 5  # of every table here, so that tables with the same columns share their programs
mixing = kd.denoiser(sp.mixing_model, "v_prediction")


def without(schedule, *names):
    """The table with None in place of these columns."""
    return dataclasses.replace(
        schedule, rows=dataclasses.replace(schedule.rows, **dict.fromkeys(names))
    )


BASES = {
    "dpm2": lambda: kd.dpm2(kd.levels(NOISE, 3)),
    "euler": lambda: kd.euler(kd.levels(NOISE, ROWS)),
    # LCM's, whose noise would only take long to compile.
    "lcm": lambda: without(kd.lcm(kd.lcm_levels(NOISE, ROWS)), "noise_weight"),
}
WEIGHTS = (
    "denoised_weight",
    "epsilon_weight",
    "noise_weight",
    "anchor_weight",
    "denoised_weight_1",
    "denoised_weight_2",
)
UNITS = ("timestep", "sigma", "alpha", "input_scale", "sigma_left", "sigma_reached")
INTEGERS = ("index", "step")
COLUMNS = (*WEIGHTS, *UNITS, *INTEGERS, "advances")
NUMBERS = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(-1.5, 1.5, width=32))
COLUMN = st.lists(NUMBERS, min_size=ROWS, max_size=ROWS)
few = functools.partial(
    settings,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def edited(schedule, columns):
    """The table with these columns in place of its own, whether it had them or not."""

    def as_column(name, numbers):
        if name in INTEGERS:
            return jnp.asarray([round(100 * abs(v)) for v in numbers], jnp.int32)
        if name == "advances":
            return jnp.asarray([v > 0 for v in numbers])
        scale = 1000 if name == "timestep" else 1
        dtype = jnp.float32 if name == "timestep" else schedule.sigmas.dtype
        return jnp.asarray([scale * v for v in numbers], dtype)

    new = {name: as_column(name, numbers) for name, numbers in columns.items()}
    return dataclasses.replace(schedule, rows=dataclasses.replace(schedule.rows, **new))


def in_stack(run, schedule, other):
    """The samples of the run, the first of them beside another table's in a stack."""
    first, second = run(schedule=kd.stack([schedule, other]))
    np.testing.assert_allclose(second, run(schedule=other)[1], rtol=1e-10, atol=1e-10)
    return jnp.stack([first, run(schedule=schedule)[1]])


WAYS = {
    "sample": lambda run, schedule, other: run(schedule=schedule),
    "unroll": lambda run, schedule, other: run(schedule=schedule, unroll=2),
    "padded": lambda run, schedule, other: run(schedule=schedule.pad(9)),
    "stacked": in_stack,
    "rows": lambda run, schedule, other: run(schedule=schedule, remat="rows"),
    "segments": lambda run, schedule, other: run(schedule=schedule, remat="segments"),
}


def check(schedule, other, ways=tuple(WAYS)):
    """By hand and in these ways the samples are those of NumPy, which are returned."""
    x = 2 * jax.random.normal(KEY, SHAPE)
    noise = [kd.row_noise(KEY, row, SHAPE) for row in schedule]
    expected = sp.run_in_numpy(jax.jit(mixing), MIXING, schedule, x, noise)
    run = functools.partial(kd.sample, mixing, MIXING, x=x, key=KEY)
    got = {way: WAYS[way](run, schedule, other) for way in ways}
    got["step"] = sp.run_by_hand(mixing, MIXING, schedule, x, KEY)[-1].sample
    for way, samples in got.items():
        # float64 leaves a margin of a million for sums that cancel.
        np.testing.assert_allclose(samples, expected, rtol=1e-10, atol=1e-10, err_msg=way)
    return expected


@functools.cache
def with_every_column():
    """A DPM2 table in which no column is None: the one whose numbers are edited."""
    weights = {name: [0.0] * ROWS for name in ("noise_weight", *WEIGHTS[-2:])}
    return edited(BASES["dpm2"](), {**weights, "alpha": [1.0] * ROWS})


@few(max_examples=10)
@given(st.dictionaries(st.sampled_from(COLUMNS), COLUMN, min_size=1))
def test_edited_numbers_are_sampled_alike_in_every_way(columns):
    with sp.x64():
        table = with_every_column()
        assert all(getattr(table.rows, name) is not None for name in COLUMNS)
        check(edited(table, columns), table)


@pytest.mark.parametrize("name", COLUMNS)
def test_an_edit_of_every_single_column_takes_effect(name):
    # One row in the middle. What a run of this table does not read changes nothing.
    with sp.x64():
        table = with_every_column()
        weights = {weight: [0.7, 0.3, -0.4, 0.6, 0.5] for weight in WEIGHTS}
        table = edited(table, {**weights, "advances": [0, 1, 0, 1, 1]})
        numbers = np.asarray(getattr(table.rows, name)).astype(float)
        if name in INTEGERS:
            numbers = numbers / 100
        numbers[2] = 1 - numbers[2] if name == "advances" else numbers[2] + 0.37
        changed = check(edited(table, {name: numbers}), table, ways=("sample",))
        unread = name in ("step", "sigma_left", "sigma_reached")
        assert np.array_equal(changed, check(table, table, ways=("sample",))) == unread


NONE_COLUMNS = {
    "dpm2": ("noise_weight", "denoised_weight_1", "denoised_weight_2", "alpha"),
    "euler": ("anchor_weight", "advances"),
    "lcm": ("epsilon_weight", "input_scale"),
}


@pytest.mark.parametrize("base", NONE_COLUMNS)
@few(max_examples=3)
@given(data=st.data())
def test_columns_that_were_none_are_sampled_alike_in_every_way(base, data):
    with sp.x64():
        table = BASES[base]()
        assert table.num_rows == ROWS
        columns = {name: data.draw(COLUMN) for name in NONE_COLUMNS[base]}
        assert all(getattr(table.rows, name) is None for name in columns)
        check(edited(table, columns), table)


@pytest.mark.parametrize(
    ("base", "name"), [(base, name) for base, names in NONE_COLUMNS.items() for name in names]
)
def test_an_array_in_a_single_column_that_was_none_takes_effect(base, name):
    with sp.x64():
        table = BASES[base]()
        new = edited(table, {name: [0.5, 0, -1.2, 0.7, 0.25]})
        changed = check(new, table, ways=("sample",))
        # `advances` alone says where steps end, which no weight reads here.
        assert np.array_equal(changed, unedited(base)) == (name == "advances")


@functools.cache
def unedited(base):
    return check(BASES[base](), BASES[base](), ways=("sample",))


@pytest.mark.parametrize(
    ("base", "names"), [("dpm2", ("anchor_weight",)), ("euler", ("epsilon_weight", "input_scale"))]
)
def test_a_column_that_is_taken_away_is_a_term_that_is_gone(base, names):
    with sp.x64():
        table = BASES[base]()
        assert not np.array_equal(check(without(table, *names), table, ("sample",)), unedited(base))


def test_an_edit_of_a_padded_table_and_of_a_stack_takes_effect():
    with sp.x64():
        table = BASES["dpm2"]()
        columns = {"denoised_weight_1": [0.0, 0.4, -0.3, 0.2, 0.1]}
        new, x = edited(table, columns), 2 * jax.random.normal(KEY, SHAPE)
        expected = kd.sample(mixing, MIXING, new, x)
        weights = new.rows.denoised_weight_1
        for edit_later in (table.pad(9), kd.stack([table, table]), kd.stack([table.pad(9)] * 2)):
            shape = edit_later.rows.sigma.shape
            column = jnp.broadcast_to(jnp.pad(weights, (0, shape[-1] - ROWS)), shape)
            rows = dataclasses.replace(edit_later.rows, denoised_weight_1=column)
            got = kd.sample(mixing, MIXING, dataclasses.replace(edit_later, rows=rows), x)
            np.testing.assert_allclose(got, expected, rtol=1e-12)
