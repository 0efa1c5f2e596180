"""Stacks: every sample of a batch on its own table, and requests that join and leave by hand."""

import collections
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
from programs import compilations
from samplers import ELEMENTWISE, MIXING, NOISE, SAMPLERS, relative_error

import kdiff_jax as kd

KEY = jax.random.key(17)
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
mixing = kd.denoiser(sp.mixing_model)
TABLES = [SAMPLERS[name](1 + place % 9) for place, name in enumerate(SAMPLERS)]
KEYS = jax.random.split(KEY, len(TABLES))
SIZE = 25


def alone(schedule, key):
    """A request of its own, from its initial noise to its sample, [1, 8]; one program."""
    keys, padded = key[None], schedule.pad(SIZE, COLUMNS)
    return kd.sample(mixing, MIXING, padded, kd.initial_sample(schedule, keys, (1, 8)), keys)


def columns_of(schedule):
    return {name for name, column in vars(schedule.rows).items() if column is not None}


# --- kd.sample -------------------------------------------------------------------------------


def test_every_sample_runs_its_own_sampler_and_number_of_steps():
    tables = kd.stack(TABLES)
    x = kd.initial_sample(tables, KEYS, (len(TABLES), 8))
    got = kd.sample(mixing, MIXING, tables, x, KEYS)
    for b, (schedule, key) in enumerate(zip(TABLES, KEYS, strict=True)):
        assert relative_error(got[b : b + 1], alone(schedule, key)) < 1e-6, b


def test_starts_of_image_to_image_share_a_batch():
    for sampler, levels in (
        (kd.dpm2, kd.levels(NOISE, 5)),
        (kd.dpm2_ancestral, kd.levels(NOISE, 5)),
        (kd.lcm, kd.lcm_levels(NOISE, 5)),
    ):
        # The columns and the length of the longest, so that the three samplers share a program.
        starts = [sampler(levels.start_at(k)).pad(SIZE, COLUMNS) for k in (0, 3, 4)]
        tables, keys = kd.stack(starts), KEYS[:3]
        image, eps = jnp.ones((3, 8)), jax.random.normal(KEY, (3, 8))
        x = kd.add_noise(tables.rows_at(0), image, eps)
        got = kd.sample(mixing, MIXING, tables, x, keys)
        for b, schedule in enumerate(starts):
            x_alone = kd.add_noise(schedule[0], image[b : b + 1], eps[b : b + 1])
            np.testing.assert_array_equal(x[b : b + 1], x_alone)
            expected = kd.sample(mixing, MIXING, schedule, x_alone, keys[b : b + 1])
            assert relative_error(got[b : b + 1], expected) < 1e-6


def test_each_sample_is_bitwise_what_it_is_in_any_other_slot_and_company():
    tables = [table.pad(SIZE, COLUMNS) for table in TABLES]
    x = kd.initial_sample(kd.stack(tables), KEYS, (len(tables), 16))

    def run(order):
        order = np.asarray(order)
        company = kd.stack([tables[i] for i in order])
        return kd.sample(elementwise, ELEMENTWISE, company, x[order], KEYS[order])

    count = len(tables)
    expected = np.asarray(run(range(count)))
    assert len(np.unique(expected[:, 0])) == count  # no two samples are the same
    generator = np.random.default_rng(0)
    orders = [generator.permutation(count) for _ in range(3)]  # other slots
    orders += [np.roll(np.arange(count) // 2, k) for k in (0, 1)]  # other company
    orders += [np.zeros(count, int), np.arange(count) // 3 * 3]
    for order in orders:
        np.testing.assert_array_equal(run(order), expected[order])


def test_a_sample_stops_at_its_own_end_bitwise_however_long_the_others_run():
    short = SAMPLERS["ancestral"](3).pad(19)
    x = kd.initial_sample(short, KEY, (2, 16))

    def first_of_two(other):
        return kd.sample(elementwise, ELEMENTWISE, kd.stack([short, other]), x, KEY)[0]

    by_itself = first_of_two(short)
    for steps in (1, 4, 10):
        longer = SAMPLERS["ancestral"](steps).pad(19)
        np.testing.assert_array_equal(first_of_two(longer), by_itself)


def test_the_network_is_evaluated_as_often_as_the_longest_needs():
    count: collections.Counter[str] = collections.Counter()

    def model_fn(params, x, timestep):
        count["traced"] += 1
        jax.debug.callback(lambda: count.update(evaluated=1))
        return params * x

    tables = kd.stack([table.pad(SIZE) for table in TABLES])
    x = jnp.ones((len(TABLES), 4))
    kd.sample(kd.denoiser(model_fn), np.float32(0.1), tables, x, KEY).block_until_ready()
    jax.effects_barrier()
    assert count == {"traced": 1, "evaluated": tables.num_rows}
    assert tables.num_rows == max(len(table) for table in TABLES) < SIZE


def test_a_stack_of_one_length_needs_no_padding_and_has_a_reverse_mode():
    pair = [kd.dpm2(kd.levels(NOISE, 3)), kd.dpm2(kd.levels(NOISE, 3, grid="karras"))]
    tables = kd.stack(pair)
    assert tables.length is None
    assert tables.rows.idle is None
    assert (tables.num_steps, tables.num_rows) == (3, 5)
    x = kd.initial_sample(tables, KEY, (2, 8))

    def total(x, schedule, remat="none"):
        return jnp.sum(kd.sample(elementwise, ELEMENTWISE, schedule, x, remat=remat))

    got = jax.grad(total)(x, tables)
    # Two segments of 3 rows: the last one is filled up.
    by_segments = jax.grad(total)(x, tables, "segments")
    for b, schedule in enumerate(pair):
        expected = jax.grad(total)(x[b : b + 1], schedule)
        assert relative_error(got[b : b + 1], expected) < 1e-6
        assert relative_error(by_segments[b : b + 1], expected) < 1e-6


def test_sharded_over_devices_every_sample_still_runs_its_own_table():
    tables = kd.stack(TABLES[-8:])  # one a device
    x = kd.initial_sample(tables, KEY, (8, 16))
    expected = kd.sample(elementwise, ELEMENTWISE, tables, x, KEY)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    got = kd.sample(elementwise, ELEMENTWISE, tables, jax.device_put(x, sharding), KEY)
    assert len(got.sharding.device_set) == 8
    # With numbers [B] instead of scalars a batch of one is compiled into other instructions.
    assert relative_error(got, expected) < 1e-6


# --- the table -------------------------------------------------------------------------------


def test_a_stack_has_the_columns_of_all_its_tables_and_no_more():
    names = ["euler", "dpm2", "ancestral", "lcm", "unipc"]
    for first in names:
        for second in names:
            pair = [SAMPLERS[first](3), SAMPLERS[second](3)]
            union = columns_of(pair[0]) | columns_of(pair[1])
            stacked = kd.stack(pair)
            idle = {"idle"} if stacked.length is not None else set()
            assert columns_of(stacked) == union | idle, (first, second)
            assert (stacked.length is None) == (len(pair[0]) == len(pair[1]))


def test_a_fact_that_refuses_a_network_stays_where_one_table_has_it():
    no_signal = kd.noise_schedule(rescale_zero_terminal_snr=True)
    mixed = kd.stack([SAMPLERS["lcm"](2), kd.lcm(kd.lcm_levels(no_signal, 2))])
    assert mixed.zero_terminal_snr
    with pytest.raises(ValueError, match="rescale_zero_terminal_snr"):
        kd.sample(mixing, MIXING, mixed, jnp.ones((2, 8)), KEY)


def test_the_rows_of_a_stack_are_those_of_its_tables():
    tables = kd.stack(TABLES)
    for i in (*range(0, tables.num_rows, 3), tables.num_rows - 1):
        got = jax.tree.map(np.asarray, tables.rows_at(i))
        for b, schedule in enumerate(TABLES):
            row = jax.tree.map(lambda leaf, b=b: leaf[b], got)
            assert row.idle == (i >= schedule.num_rows)
            # Past the end the network sees the last level of the run, and the sample stays.
            own = schedule[min(i, schedule.num_rows - 1)]
            for name, value in vars(own).items():
                absent = {"advances": True}.get(name, 0.0)
                if name != "idle":
                    assert getattr(row, name) == (absent if value is None else value), name
    assert tables.num_steps == max(schedule.num_steps for schedule in TABLES)


def test_stacks_of_one_shape_stack_once_more_a_table_for_each_frame():
    frames = [kd.stack([SAMPLERS[name](3).pad(7) for name in ("dpm2", "ancestral", "euler")])]
    frames += [kd.stack([SAMPLERS[name](2).pad(7) for name in ("lcm", "dpm2", "ancestral")])]
    both: Any = kd.stack(frames)
    assert both.rows.index.shape == (2, 3, 7)
    assert both.length.tolist() == [[5, 5, 3], [2, 3, 3]]
    assert (both.num_rows, both.num_steps) == (5, 3)
    at: Any = both.rows_at(jnp.array([[0, 4, 2], [1, 2, 3]]))
    assert at.step.tolist() == [[0, 2, 2], [1, 1, 1]]
    assert at.idle.tolist() == [[False] * 3, [False, False, True]]
    again = [jax.tree.map(lambda leaf, b=b: leaf[b], both) for b in range(2)]
    for got, expected in zip(again, frames, strict=True):
        for name in columns_of(expected):
            found, wanted = getattr(got.rows, name), getattr(expected.rows, name)
            np.testing.assert_array_equal(found, wanted, err_msg=name)


# --- requests that join and leave ------------------------------------------------------------


@jax.jit
def advance(tables, state, position, keys):
    rows = tables.rows_at(position)
    prediction = mixing(MIXING, state.sample, rows)
    return kd.step(state, rows, prediction, key=keys), position + 1


@jax.jit
def admit(slots, s, request):
    return jax.tree.map(lambda slot, new: slot.at[s].set(new), slots, request)


def test_requests_join_and_leave_a_running_batch_from_one_executable(caplog):
    num_slots = 3

    def request(schedule, key):
        padded = schedule.pad(SIZE, COLUMNS)
        x = kd.initial_sample(schedule, key[None], (1, 8))
        state = jax.tree.map(lambda leaf: leaf[0], kd.init(padded, x))
        return padded, state, jnp.int32(0), key

    idle = request(SAMPLERS["euler"](1), KEY)
    slots = (kd.stack([idle[0]] * num_slots), *jax.tree.map(lambda a: jnp.stack([a] * 3), idle[1:]))
    waiting = list(enumerate(zip(TABLES, KEYS, strict=True)))
    in_slot: list[Any] = [None] * num_slots
    results: dict[int, jax.Array] = {}
    warm = False

    def serve():
        nonlocal slots
        while len(results) < len(TABLES):
            for s in range(num_slots):
                if in_slot[s] is not None and slots[2][s] == slots[0].length[s]:
                    results[in_slot[s]] = slots[1].sample[s]
                    in_slot[s] = None
                if in_slot[s] is None and waiting:
                    in_slot[s], (schedule, key) = waiting.pop(0)
                    slots = admit(slots, s, request(schedule, key))
            state, position = advance(*slots)
            slots = (slots[0], state, position, slots[3])
            if warm is False:
                return

    serve()  # compiles
    warm = True
    programs = ("advance", "admit", "sample", "step")
    names = compilations(caplog, serve)
    assert [name for name in names if any(p in name for p in programs)] == []
    for b, (schedule, key) in enumerate(zip(TABLES, KEYS, strict=True)):
        assert relative_error(results[b][None], alone(schedule, key)) < 1e-6, b


# --- refusals --------------------------------------------------------------------------------


def float64_table():
    with sp.x64():
        return kd.dpm2(kd.levels(NOISE, 3))


DPM2: Any = SAMPLERS["dpm2"](3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kd.stack([]), "an empty list.*at least one"),
        (lambda: kd.stack([DPM2, DPM2.rows]), r"stack was given Row\("),
        (lambda: kd.stack(DPM2), r"stack was given Schedule\(.*kd.stack\(\[schedule\]\)"),
        (lambda: kd.stack(3), r"stack was given 3; pass a list"),  # type: ignore[arg-type]
        (lambda: kd.stack([DPM2, kd.stack([DPM2])]), "single tables, or stacks of one shape"),
        (lambda: kd.stack([kd.stack([DPM2]), kd.stack([DPM2] * 2)]), "stacks of one shape"),
        (lambda: kd.stack([kd.stack([kd.stack([DPM2])])]), "stacks of one shape"),
        (
            lambda: kd.stack([kd.stack([DPM2.pad(n)] * 2) for n in (7, 9)]),
            "pad their tables alike before stacking",
        ),
        (lambda: kd.stack([DPM2, float64_table()]), "float32 and float64 do not stack"),
        (lambda: kd.stack([DPM2.pad(9), DPM2.pad(7)]), "already padded to .*7.* rows"),
        (lambda: kd.stack([DPM2.pad(5), SAMPLERS["euler"](9)]), "already padded to .5. rows"),
        (lambda: kd.stack([DPM2, DPM2])[0], r"shape \(2, 5\).*rows_at"),
        (lambda: DPM2.rows_at(2), r"i has shape \[\]; pass \[B\]"),
        (lambda: kd.stack([DPM2]).rows_at(np.arange(2)), r"i has shape \[2\]; pass \[1\]"),
        (lambda: DPM2.rows_at(np.ones(2)), "i is float"),
    ],
)
def test_bad_stacks_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_stack_needs_a_table_a_sample_and_saves_nothing():
    tables, x = kd.stack([DPM2, SAMPLERS["dpm2"](4)]), jnp.ones((3, 8))
    with pytest.raises(ValueError, match=r"\[2\] tables and x holds 3 samples"):
        kd.sample(mixing, MIXING, tables, x)
    with pytest.raises(ValueError, match=r"save_fn.*stack of tables.*jax\.vmap"):
        kd.sample(mixing, MIXING, tables, x[:2], save_fn=lambda state, prediction, row: ())
