"""The Schedule itself: counting, indexing, slices to resume from, rows of samples, and its repr."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers import MIXING, NOISE, SAMPLERS, mixing_model, relative_error, run_by_hand

import kdiff_jax as kd

KEY = jax.random.key(3)
SIZE = 13
mixing = kd.denoiser(mixing_model, "v_prediction")
every_sampler = pytest.mark.parametrize("name", SAMPLERS)


def assert_same(found: Any, expected: Any) -> None:
    assert str(jax.tree.structure(found)) == str(jax.tree.structure(expected))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def reads_history(schedule: kd.Schedule) -> bool:
    rows = schedule.rows
    columns = rows.anchor_weight, rows.denoised_weight_1, rows.denoised_weight_2
    return any(column is not None for column in columns)


# --- counting and indexing -------------------------------------------------------------------


@every_sampler
def test_indexing_and_iteration_give_scalar_rows(name: str) -> None:
    schedule = SAMPLERS[name](6)
    per_step = 2 if schedule.rows.anchor_weight is not None else 1
    closing = int(schedule.sigmas[-1] == 0)
    assert schedule.num_steps == 6
    assert len(schedule) == schedule.num_rows == per_step * 6 - (per_step - 1) * closing
    rows = list(schedule)
    assert len(rows) == len(schedule)
    for i, row in enumerate(rows):
        again = schedule[i - len(rows)]
        for column, values in vars(schedule.rows).items():
            if values is None:
                # 1 is what a missing alpha or input_scale means; other columns stay away.
                expected = 1 if column in ("alpha", "input_scale") else None
                assert getattr(row, column) == getattr(again, column) == expected
                continue
            leaf = getattr(row, column)
            assert leaf.shape == ()
            assert leaf.dtype == values.dtype
            assert leaf == values[i] == getattr(again, column)
    assert schedule[np.int64(-1)].index == rows[-1].index  # type: ignore[call-overload]
    for outside in (len(rows), -len(rows) - 1):
        with pytest.raises(IndexError, match=f"row {outside} .*{len(rows)} rows"):
            schedule[outside]
    for wrong in (1.0, "1", None):
        with pytest.raises(TypeError, match=r"one integer or by a slice.*levels\.start_at"):
            schedule[wrong]  # type: ignore[call-overload]


def test_schedules_rows_and_states_are_immutable_pytrees() -> None:
    schedule = SAMPLERS["dpm2"](3)
    state = kd.init(schedule, jnp.zeros((1, 2)))
    for value in (schedule, schedule.rows, schedule[0], state, NOISE):
        field = dataclasses.fields(value)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field, 0)
        again = jax.tree.map(lambda leaf: leaf, value)
        assert type(again) is type(value)
        assert all(isinstance(leaf, (jax.Array, np.ndarray)) for leaf in jax.tree.leaves(again))
    columns = [column for column in vars(schedule.rows).values() if column is not None]
    assert len(jax.tree.leaves(schedule.rows)) == len(columns) < len(dataclasses.fields(kd.Row))


@pytest.mark.parametrize("steps", [1, 5])
def test_rows_leave_and_reach_the_levels_of_the_run_however_the_table_is_cut(steps: int) -> None:
    for name, build in SAMPLERS.items():
        schedule = build(steps)
        sigmas = np.asarray(schedule.sigmas)
        tables = [schedule, schedule.pad(SIZE)]
        tables += [schedule[3:], schedule[3:].pad(SIZE)] if steps > 3 else []
        for table in tables:
            rows, count = jax.tree.map(np.asarray, table.rows), table.num_rows
            step = rows.step[:count]
            np.testing.assert_array_equal(rows.sigma_left[:count], sigmas[step], name)
            reached = sigmas[step + 1]
            if name == "sde":  # its first rows draw noise, up to the midpoint that they reach
                first = np.flatnonzero(~rows.advances[:count])
                reached[first] = rows.sigma[first + 1]
            np.testing.assert_array_equal(rows.sigma_reached[:count], reached, name)
        idle = np.asarray(tables[1].rows.idle)
        assert idle.tolist() == [i >= schedule.num_rows for i in range(SIZE)]
        assert np.all(np.asarray(tables[1].rows.sigma_left)[idle] == sigmas[-2]), name
        # 0, or the level where the run ends above it.
        assert np.all(np.asarray(tables[1].rows.sigma_reached)[idle] == sigmas[-1]), name


# --- slices ----------------------------------------------------------------------------------


@every_sampler
@pytest.mark.parametrize("padded", [False, True])
def test_a_slice_is_the_same_rows_and_their_levels(name: str, padded: bool) -> None:
    plain = SAMPLERS[name](4)
    schedule = plain.pad(SIZE) if padded else plain
    count = schedule.num_rows
    assert schedule[:] is schedule[0:] is schedule
    for a, b in ((1, count), (2, count), (count - 1, count), (0, 2), (1, 3), (-2, count), (0, -1)):
        start, stop, _ = slice(a, b).indices(count)
        part = schedule[a:b]
        kept = jax.tree.map(lambda leaf, at=slice(start, stop): np.asarray(leaf)[at], plain.rows)
        assert (len(part), part.num_rows) == (stop - start, stop - start)
        assert part.rows.index.shape == ((SIZE,) if padded else (stop - start,))
        rows = jax.tree.map(lambda leaf, n=stop - start: np.asarray(leaf)[:n], idle_off(part))
        assert_same(rows, kept)
        steps = np.unique(kept.step)
        assert part.num_steps == len(steps)
        levels = np.asarray(plain.sigmas)[steps[0] : steps[-1] + 2]
        np.testing.assert_array_equal(np.asarray(part.sigmas)[: len(levels)], levels)
        if start == 0:
            assert part.init_noise_sigma == plain.init_noise_sigma
        else:
            alpha = 1.0 if kept.alpha is None else float(kept.alpha[0])
            level = math.hypot(alpha, float(kept.sigma[0]))
            assert part.init_noise_sigma == pytest.approx(level, rel=2e-7)
        assert part.continues == (start > 0 and reads_history(plain))
        assert (part.flow, part.zero_terminal_snr) == (plain.flow, plain.zero_terminal_snr)
        if padded:
            assert_same(part, plain[a:b].pad(SIZE))
    assert_same(schedule[1:][1:], schedule[2:])
    assert schedule[1:][:1].continues == schedule[1:].continues


def idle_off(schedule: kd.Schedule) -> kd.Row:
    return dataclasses.replace(schedule.rows, idle=None)


@every_sampler
def test_a_slice_goes_on_from_the_state_that_was_saved_there(name: str) -> None:
    schedule = SAMPLERS[name](4)
    x = kd.initial_sample(schedule, KEY, (2, 8))
    states = run_by_hand(mixing, MIXING, schedule, x, KEY)
    columns = sorted({"noise_weight", *of(schedule)})
    for k in (1, 2, schedule.num_rows - 1):
        # A slice keeps the shape of its table, so every k is the same executable.
        rest = schedule.pad(SIZE, columns)[k:]
        got = kd.sample(mixing, MIXING, rest, states[k], KEY)
        assert relative_error(got, states[-1].sample) < 1e-6
        if reads_history(schedule):
            reads = "anchor" if schedule.rows.anchor_weight is not None else "denoised_1"
            with pytest.raises(ValueError, match=f"slice that reads {reads}.*State.*start_at"):
                kd.sample(mixing, MIXING, rest, states[k].sample, KEY)
        else:
            again = kd.sample(mixing, MIXING, rest, states[k].sample, KEY)
            np.testing.assert_array_equal(got, again)


def of(schedule: kd.Schedule) -> list[str]:
    """The columns that this table has and another may not."""
    may = ["epsilon_weight", "noise_weight", "anchor_weight", "denoised_weight_1"]
    may += ["denoised_weight_2", "alpha", "input_scale", "advances"]
    return [name for name in may if getattr(schedule.rows, name) is not None]


def test_a_state_of_other_columns_is_refused() -> None:
    dpm2, euler = SAMPLERS["dpm2"](3), SAMPLERS["euler"](3)
    x = jnp.ones((2, 8))
    for rows, state in ((dpm2[2:], kd.init(euler, x)), (euler[1:], kd.init(dpm2, x))):
        with pytest.raises(ValueError, match=r"State holds .* and the rows read"):
            kd.init(rows, state)
    state = kd.init(dpm2, x)
    assert kd.init(dpm2[2:], state) is state


REFUSED: list[Any] = [
    (lambda s: s[::2], "rows 0:7:2 of 7 are no run"),
    (lambda s: s[::-1], "are no run"),
    (lambda s: s[3:3], "rows 3:3:1 of 7 are no run"),
    (lambda s: s[7:], "rows 7:7:1 of 7 are no run.*one row or more"),
    (lambda s: s.pad(SIZE)[7:], "rows 7:7:1 of 7 are no run"),
    (lambda s: kd.stack([s, s])[1:], r"shape \(2, 7\), those of a stack.*rows_at"),
    (lambda s: jax.jit(lambda s: s[1:])(s), "traced here; slice its rows before jit"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_slices_that_are_no_run_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(SAMPLERS["dpm2"](4))


def test_a_stack_of_slices_reads_a_history_where_one_of_them_does() -> None:
    dpm2, euler = SAMPLERS["dpm2"](4), SAMPLERS["euler"](7)
    assert kd.stack([dpm2[2:], dpm2[:5]]).continues
    assert kd.stack([euler, dpm2[3:]]).continues
    assert not kd.stack([euler[2:], dpm2[:5]]).continues
    with pytest.raises(ValueError, match="slice that reads anchor"):
        kd.init(kd.stack([euler, dpm2[3:]]), jnp.ones((2, 8)))


# --- rows of samples -------------------------------------------------------------------------


def test_rows_at_of_one_table_puts_each_sample_at_its_own_place() -> None:
    schedule = SAMPLERS["dpm2"](4)
    take = jax.jit(lambda table, i: table.rows_at(i))
    for table in (schedule, schedule.pad(SIZE)):
        rows = take(table, jnp.array([6, 0, 3, 7, 99]))
        assert rows.idle.tolist() == [False, False, False, True, True]
        for b, i in enumerate((6, 0, 3, 6, 6)):
            row = jax.tree.map(lambda leaf, b=b: leaf[b], rows)
            # Past the end the network sees the last level of the run.
            assert_same(dataclasses.replace(row, idle=None), schedule[i])
    frames = take(schedule, jnp.array([[0, 3], [6, 7]]))
    assert frames.sigma.shape == (2, 2)
    assert frames.idle.tolist() == [[False, False], [False, True]]
    np.testing.assert_array_equal(frames.index, [[0, 3], [6, 6]])


def network(params: jax.Array, x: jax.Array, timestep: jax.Array) -> jax.Array:
    return params * jnp.tanh(x)


def test_tables_of_a_sweep_run_under_vmap() -> None:
    levels = kd.levels(NOISE, 4)
    schedules = [kd.dpm2_ancestral(levels, eta=eta) for eta in (0.0, 0.5, 1.0)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *schedules)
    assert stacked.num_steps == 4
    assert stacked.num_rows == 7
    x, denoise = jnp.ones((2, 3)), kd.denoiser(network)
    swept = jax.vmap(kd.sample, (None, None, 0, None, None))(denoise, 0.1, stacked, x, KEY)
    for found, schedule in zip(swept, schedules, strict=True):
        alone = kd.sample(denoise, 0.1, schedule, x, KEY)
        np.testing.assert_allclose(found, alone, rtol=2e-6)


# --- in a notebook ---------------------------------------------------------------------------


def test_a_repr_is_one_short_line() -> None:
    schedule = kd.dpm2(kd.levels(NOISE, 25, grid="karras"))
    plain = "Schedule(25 steps, 49 rows, sigma 14.61 .. 0.02917)"
    assert repr(schedule) == plain
    assert repr(schedule.pad(60)) == plain.replace("rows", "rows, padded to 60")
    stacked = kd.stack([schedule, SAMPLERS["euler"](3)])
    assert repr(stacked) == "Schedule([2] tables, at most 25 steps, 49 rows)"
    assert repr(schedule[48:]) == "Schedule(1 step, 1 row, sigma 0.02917 .. 0.02917)"
    assert repr(schedule[0]) == "Row(0 of step 0, timestep 999, sigma 14.61)"
    assert repr(schedule.rows).startswith("Row([49], columns index, step, timestep, sigma, ")
    shapes = jax.eval_shape(lambda schedule: schedule, schedule)
    assert "sigma_left" in repr(shapes)
    assert repr(jax.tree.map(lambda leaf: None, schedule)) == "Schedule()"
