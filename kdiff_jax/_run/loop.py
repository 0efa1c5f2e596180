"""The compiled loop over the rows of a schedule: one scan, or one while_loop for traced lengths."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from kdiff_jax._arrays import on_own_mesh
from kdiff_jax._denoise.arguments import check_arrays
from kdiff_jax._denoise.prediction import Denoise, Prediction
from kdiff_jax._noise.given import NoiseFn, add_noise_of
from kdiff_jax._noise.keyed import add_row_noise
from kdiff_jax._run import progress
from kdiff_jax._run.ring import remembered, ring_of, without
from kdiff_jax._run.state import State, begun
from kdiff_jax._run.step import advance, check_prediction
from kdiff_jax._table.row import Row, with_units
from kdiff_jax._table.schedule import Schedule

Remat = Literal["none", "rows", "segments"]
SaveFn = Callable[[State, Prediction, Row], Any]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Loop:
    """What the loop carries; None is carried for nothing."""

    done: jax.Array | None
    state: State
    saved: Any
    mark: jax.Array | None = None
    ring: jax.Array | None = None


Body = Callable[[Loop, Row], Loop]
Report = Callable[[Loop], None]


@functools.partial(jax.jit, static_argnames=("unroll", "remat"))
@on_own_mesh
def run(
    denoise: Denoise,
    params: Any,
    schedule: Schedule,
    x: jax.Array | State,
    keys: jax.Array | None,
    cond: Any,
    noise_fn: NoiseFn | None,
    save_fn: SaveFn | None,
    bar: jax.Array | None,
    end: jax.Array | None,
    *,
    unroll: int,
    remat: Remat,
) -> tuple[jax.Array, Any]:
    """The sample after the last row, and what save_fn returned."""
    state = begun(schedule.rows, _shared_as(x, keys, schedule.rows.index))
    # Tables of a stack have their rows on the last axis, a loop wants them on the first.
    rows = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, -1, 0), replace(schedule.rows, idle=None))
    length = schedule.length
    stacked = rows.index.ndim > 1
    if end is None:
        end = jnp.int32(rows.index.shape[0]) if length is None else jnp.max(length)

    def body(loop: Loop, row: Row) -> Loop:
        if stacked and length is not None and loop.done is not None:
            row = replace(row, idle=loop.done >= length)
        row = with_units(row)
        output = denoise(params, loop.state.sample, row, cond)
        prediction = check_prediction("what denoise returned", output, loop.state.sample)
        before, ring = remembered(loop.state, loop.ring, prediction.denoised, loop.done)
        add_noise = None
        if row.noise_weight is not None:
            own = add_row_noise if noise_fn is None else functools.partial(add_noise_of, noise_fn)
            add_noise = functools.partial(own, row=row, keys=keys)  # type: ignore[arg-type]
        after = advance(before, row, prediction, add_noise)
        saved = loop.saved
        if save_fn is not None:
            saved = _save(save_fn, saved, row.step - rows.step[0], after, prediction, row)
        done = None if loop.done is None else loop.done + 1
        mark = None if loop.mark is None else progress.marked(loop.mark)
        return Loop(done, without(after), saved, mark, ring)

    def report(loop: Loop) -> None:
        if bar is not None:
            progress.report(bar, loop.done, end, 1 if remat == "segments" else unroll)

    saved = None
    if save_fn is not None:
        saved = _buffers(save_fn, state, rows, schedule.sigmas.shape[-1] - 1)
    loop = _at_first(state, saved, bar, length)
    if length is None:
        loop = _scan(body, report, loop, rows, unroll, remat)
    else:
        loop = _while(body, report, loop, rows, end)
    if bar is not None:
        progress.report_end(bar, loop.mark)
    # The sample alone: a history would be one more array to write down.
    return loop.state.sample, loop.saved


def _at_first(state: State, saved: Any, bar: jax.Array | None, length: jax.Array | None) -> Loop:
    """The carry before the first row."""
    ring = ring_of(state)
    counted = any(value is not None for value in (bar, length, ring))
    done, mark = jnp.int32(0) if counted else None, None if bar is None else jnp.int32(0)
    return Loop(done, without(state), saved, mark, ring)


def _shared_as(x: jax.Array | State, *others: jax.Array | None) -> jax.Array | State:
    """Under a mesh of explicit axes, copies of x on every device become each device's share.

    The loop must carry x as it is after the first row: where the keys or the tables of its samples
    are.
    """

    def sharding(leaf: Any) -> Any:
        found = jax.typeof(leaf).sharding if hasattr(jax, "typeof") else None
        return found if found is not None and any(found.spec) else None

    known = [sharding(other) for other in others if other is not None and other.ndim]
    own = next((s for s in known if s is not None and s.spec[0] is not None), None)
    if own is None or any(sharding(leaf) is not None for leaf in jax.tree.leaves(x)):
        return x
    return jax.sharding.reshard(x, NamedSharding(own.mesh, PartitionSpec(own.spec[0])))


def _while(body: Body, report: Report, loop: Loop, rows: Row, end: jax.Array) -> Loop:
    def whole(loop: Loop) -> Loop:
        report(loop)
        # As `lax.scan` takes its rows, so that the compiler rounds alike.
        row = jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(
                leaf, loop.done, keepdims=False, allow_negative_indices=False
            ),
            rows,
        )
        return body(loop, row)

    def goes_on(loop: Loop) -> jax.Array:
        assert loop.done is not None
        return loop.done < end

    return jax.lax.while_loop(goes_on, whole, loop)


def _scan(body: Body, report: Report, loop: Loop, rows: Row, unroll: int, remat: Remat) -> Loop:
    def whole(loop: Loop, row: Row) -> tuple[Loop, None]:
        report(loop)
        # No report inside a checkpoint: the backward pass would repeat it.
        return once(loop, row), None

    # A scan keeps its iterations apart by itself, so the barrier against CSE is not needed.
    once = body if remat == "none" else jax.checkpoint(body, prevent_cse=False)
    if remat == "segments":
        return _scan_segments(once, report, loop, rows, unroll)
    return jax.lax.scan(whole, loop, rows, unroll=unroll)[0]


def _scan_segments(once: Body, report: Report, loop: Loop, rows: Row, unroll: int) -> Loop:
    num_rows = rows.index.shape[0]
    size = math.isqrt(num_rows - 1) + 1
    num_segments = -(-num_rows // size)
    spare = num_segments * size - num_rows

    def cut(leaf: jax.Array) -> jax.Array:
        leaf = jnp.pad(leaf, [(0, spare)] + [(0, 0)] * (leaf.ndim - 1), mode="edge")
        return leaf.reshape(num_segments, size, *leaf.shape[1:])

    def run_or_pass(loop: Loop, real_row: tuple[jax.Array, Row]) -> tuple[Loop, None]:
        real, row = real_row
        if not spare:  # a condition is one sample more of scratch on TPU
            return once(loop, row), None
        return jax.lax.cond(real, once, lambda loop, row: loop, loop, row), None

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def run_segment(loop: Loop, segment: tuple[jax.Array, Row]) -> Loop:
        return jax.lax.scan(run_or_pass, loop, segment, unroll=unroll)[0]

    def whole_segment(loop: Loop, segment: tuple[jax.Array, Row]) -> tuple[Loop, None]:
        report(loop)
        return run_segment(loop, segment), None

    real = jnp.arange(num_segments * size).reshape(num_segments, size) < num_rows
    return jax.lax.scan(whole_segment, loop, (real, jax.tree.map(cut, rows)))[0]


@jax.jit
def _to_save(save_fn: SaveFn, state: State, prediction: Prediction, row: Row) -> Any:
    # Compiled as a function of its own so that it is traced once, for its shapes and for the loop.
    saved = save_fn(state, prediction, row)
    check_arrays("what save_fn returned", saved, "an entry that is no array belongs outside")
    return saved


def _buffers(save_fn: SaveFn, state: State, rows: Row, num_steps: int) -> Any:
    """Zeros for what save_fn returns in each step, sharded as it is."""
    x = state.sample
    row = jax.eval_shape(lambda rows: with_units(jax.tree.map(lambda leaf: leaf[0], rows)), rows)
    outputs = jax.eval_shape(_to_save, save_fn, state, Prediction(x, x), row)
    # In `shard_map` a carry varies over the axes that the sample varies over: its zero does.
    zero = jnp.sum(jnp.zeros_like(x))

    def buffer(out: jax.ShapeDtypeStruct) -> jax.Array:
        shape = (num_steps, *out.shape)
        if out.sharding is None or not any(out.sharding.spec):
            return jnp.broadcast_to(zero.astype(out.dtype), shape)
        sharding = NamedSharding(out.sharding.mesh, PartitionSpec(None, *out.sharding.spec))
        return jax.lax.full(shape, 0, out.dtype, sharding=sharding)

    return jax.tree.map(buffer, outputs)


def _save(
    save_fn: SaveFn, saved: Any, slot: jax.Array, state: State, prediction: Prediction, row: Row
) -> Any:
    x = state.sample

    def write(saved: Any) -> Any:
        def put(buffer: jax.Array, value: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_index_in_dim(buffer, value, slot, 0)

        # At the end of a step the anchor is the sample; so the carried one is not read here.
        after = state if state.anchor is None else replace(state, anchor=x)
        both = Prediction(prediction.denoised.astype(x.dtype), prediction.epsilon.astype(x.dtype))
        return jax.tree.map(put, saved, _to_save(save_fn, after, both, row))

    if row.advances is None:
        return write(saved)
    # Half rows evaluate nothing: what is saved may be a decoded preview.
    return jax.lax.cond(row.advances, write, lambda saved: saved, saved)
