"""The loop: a whole trajectory under one `lax.scan`."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from kdiff_jax import _progress
from kdiff_jax._checks import check_choice, check_int
from kdiff_jax._denoise import (
    Denoise,
    Prediction,
    as_pytree,
    column,
    evaluate,
    evaluate_traced_once,
    prediction_type_of,
)
from kdiff_jax._noise import NoiseFn, add_noise_of, add_row_noise, sample_keys
from kdiff_jax._reverse import without_reverse_mode
from kdiff_jax._schedule import Row, Schedule, State
from kdiff_jax._step import advance, check_sample


def sample(
    denoise: Denoise,
    params: Any,
    schedule: Schedule,
    x: jax.Array,
    key: jax.Array | None = None,
    cond: Any = None,
    *,
    noise_fn: NoiseFn | None = None,
    save_fn: Callable[..., Any] | None = None,
    progress: bool | str = False,
    unroll: int = 1,
    remat: str = "none",
) -> Any:
    """A whole run: every row of the schedule under one `lax.scan`, jit-compiled.

    The network is traced once and evaluated `schedule.num_rows` times. Nothing recompiles for
    other numbers in the schedule, the denoiser, params, key or cond; another `model_fn`, shape or
    number of rows does. After `schedule.pad` another number of rows does not either, and with a
    `kd.stack` of schedules each sample runs on its own, to its own end.

    Args:
      denoise: from `kd.denoiser` and its wrappers, or any function of the same signature.
      params: any pytree, handed to the network: its weights.
      schedule: the run; of a stack of B tables each sample has its own.
      x: [B, ...] the sample at the level of `schedule[0]`, from `initial_sample` or `add_noise`.
      key: one key, or [B] keys, one a sample; None where the schedule draws no noise.
      cond: any pytree, handed to the network: labels, embeddings.
      noise_fn: `noise_fn(key, row, shape) -> [B, ...]` unit Gaussian noise, in place of
        `kd.row_noise`: `kd.brownian_noise()`, `kd.given_noise(array)`, or a function of your
        own, kept one as for model_fn. It is called in rows that draw noise, with [B] keys (None
        where key is None) and the shape of x; a row's leaves are scalars, or [B] in a stack,
        where what it gives to samples that draw none is not used.
      save_fn: `save_fn(state, prediction, row) -> pytree`, called at the end of each outer step
        with the state after it, and the prediction and row of its last evaluation. Keep one
        function, as for model_fn.
      progress: True, or a description, shows a tqdm bar of the evaluations (`pip install tqdm`).
        The call then returns when the run is over, except inside jit, vmap or grad of the caller
        (whose gradients show none in JAX 0.6).
      unroll: rows in one iteration of the scan; each is one more copy of the network to compile,
        not to trace. 2 makes an iteration of a step of DPM2, which halves the cost of the loop
        itself (not with remat).
      remat: what reverse-mode gradients remember, for R rows. "none": all that the network
        computed, R times. "rows": the samples of R rows, and the network for one row; it is
        evaluated twice. "segments": the samples of 2 sqrt(R) rows, and the network for one row;
        it is evaluated three times.

    Returns:
      [B, ...] the sample after the last row, float32 (float64 where x is). With save_fn the pair
      of it and what save_fn returned, each leaf stacked to [N, ...]; of a padded schedule N is
      that of the padded table, and the entries past the real end are zeros.

    Raises:
      ValueError: neither key nor noise_fn for a stochastic schedule; a noise_fn for one that
        draws no noise, or one that returns another shape; an epsilon network on a schedule with
        zero terminal SNR; on a schedule of a rectified flow a network of another type than
        flow_prediction or sample, or flow_prediction elsewhere; a sample without a batch axis or
        not of a floating dtype; a stack of another number of tables than samples, or with
        save_fn; unroll that is no positive integer; an unknown remat; either of these two with a
        padded schedule, whose loop is no scan and has no reverse mode (differentiating it says so
        too; forward mode works).
      ImportError: progress without tqdm.

    Example:
      >>> import jax, jax.numpy as jnp, kdiff_jax as kd
      >>> schedule = kd.dpm2_schedule(kd.noise_schedule("scaled_linear"), 25, grid="karras")
      >>> denoise = kd.denoiser(lambda params, x, timestep: params * x)
      >>> x = kd.initial_sample(schedule, jax.random.key(0), (2, 8))
      >>> kd.sample(denoise, jnp.float32(0.1), schedule, x).shape
      (2, 8)
      >>> def save_fn(state, prediction, row):
      ...     return {"preview": prediction.denoised, "sigma": row.sigma}
      >>> x0, saved = kd.sample(denoise, jnp.float32(0.1), schedule, x, save_fn=save_fn)
      >>> saved["preview"].shape, saved["sigma"].shape
      ((25, 2, 8), (25,))

    Source: the loops of `sample_dpm_2(_ancestral)` of k-diffusion and of diffusers' pipelines.
    """
    if key is None and noise_fn is None and not schedule.deterministic:
        raise ValueError(
            "this schedule draws noise and sample was given no key; pass key=jax.random.key(seed) "
            "or [B] keys, one a sample."
        )
    if noise_fn is not None:
        if not callable(noise_fn):
            raise ValueError(
                f"noise_fn = {noise_fn!r} is not callable; pass a function noise_fn(key, row, "
                "shape), or kd.given_noise(array)."
            )
        if schedule.deterministic:
            raise ValueError(
                "noise_fn was given with a schedule that draws no noise, so nothing would call "
                "it; leave it out, or take a schedule that does: dpm2_ancestral_schedule, "
                "dpm2_schedule with s_churn, euler_schedule with an eta, lcm_schedule."
            )
    _check_network(schedule, prediction_type_of(denoise))
    x = check_sample(x)
    unroll = check_int("unroll", unroll, 1)
    check_choice("remat", remat, ("none", "rows", "segments"))
    _check_loop(schedule, x, save_fn, unroll, remat)
    keys = None if schedule.deterministic or key is None else sample_keys(key, x.shape[0])
    noise_fn, save_fn = (None if f is None else as_pytree(f) for f in (noise_fn, save_fn))
    bar = _progress.begin(progress)
    call = functools.partial(_sample, as_pytree(denoise), params, schedule, x, keys, cond)
    run = functools.partial(call, noise_fn, save_fn, bar, unroll=unroll, remat=remat)
    return run() if bar is None else _progress.watch(bar, run)


def _check_network(schedule: Schedule, said: str | None) -> None:
    if schedule.flow and said not in ("flow_prediction", "sample", None):
        raise ValueError(
            f"prediction_type={said!r} on a schedule of a rectified flow, which begins where "
            "no signal is left; pass prediction_type='flow_prediction' to kd.denoiser, or "
            "'sample' if the network says x0, or build the schedule from kd.noise_schedule."
        )
    if said == "flow_prediction" and not schedule.flow:
        raise ValueError(
            "prediction_type='flow_prediction' on a schedule that is not of a rectified flow; "
            "build it from kd.flow_schedule(...)."
        )
    if schedule.zero_terminal_snr and said in ("epsilon", "edm"):
        raise ValueError(
            f"prediction_type={said!r} says nothing about x0 where rescale_zero_terminal_snr=True "
            "leaves no signal (alpha = 0 or next to it); use a v_prediction or sample network, or "
            "a noise schedule without the rescaling."
        )


def _check_loop(schedule: Schedule, x: jax.Array, save_fn: Any, unroll: int, remat: str) -> None:
    tables = schedule.rows.index.shape[:-1]
    if tables and tables != x.shape[:1]:
        raise ValueError(
            f"the schedule is a stack of {list(tables)} tables and x holds {x.shape[0]} samples; "
            "stack one table a sample."
        )
    if save_fn is not None:
        if not callable(save_fn):
            raise ValueError(
                f"save_fn = {save_fn!r} is not callable; pass a function "
                "save_fn(state, prediction, row)."
            )
        if tables:
            raise ValueError(
                "save_fn was given with a stack of tables, whose steps end at different rows; "
                "jax.vmap kd.sample over the stack, x[:, None] and [B] keys instead, or step by "
                "hand."
            )
    if schedule.length is not None and (unroll != 1 or remat != "none"):
        raise ValueError(
            f"unroll = {unroll} and remat = {remat!r} with a padded schedule, whose loop is no "
            "scan and has no reverse mode; leave them out, or pass the schedule before pad."
        )


@functools.partial(jax.jit, static_argnames=("unroll", "remat"))
def _sample(
    denoise: Denoise,
    params: Any,
    schedule: Schedule,
    x: jax.Array,
    keys: Any,
    cond: Any,
    noise_fn: Any,
    save_fn: Any,
    bar: Any,
    *,
    unroll: int,
    remat: str,
) -> Any:
    rows, length = schedule.rows, schedule.length
    stacked = rows.index.ndim == 2
    if stacked:
        rows = jax.tree.map(jnp.transpose, rows)
    num_rows = rows.index.shape[0]
    end = jnp.int32(num_rows) if length is None else jnp.max(length)
    by_default = "either" if schedule.alternating else "both"

    in_pairs = schedule.alternating and length is None and unroll % 2 == 0 and remat == "none"

    def run_row(loop: _Loop, row: Row, reads: str = by_default) -> _Loop:
        if schedule.unit_alpha:
            row = replace(row, alpha=jnp.ones_like(row.alpha))  # a constant, folded away
        x = loop.state.sample
        ask = evaluate_traced_once if in_pairs else evaluate
        prediction = ask(denoise, params, x, row, cond)
        noiseless = schedule.deterministic or reads == "denoised"
        draw = add_row_noise if noise_fn is None else functools.partial(add_noise_of, noise_fn)
        add_noise = None if noiseless else functools.partial(draw, row=row, keys=keys)
        state = advance(loop.state, row, prediction, add_noise, reads)
        if stacked and length is not None:
            state = _where(loop.done < length, state, loop.state)
        saved = loop.saved
        if save_fn is not None:
            slot = row.step - rows.step[0]
            saved = _save(save_fn, saved, slot, state.sample, prediction, row)
        return _Loop(None if loop.done is None else loop.done + 1, state, saved)

    def tell(loop: _Loop) -> None:
        if bar is not None:
            _progress.report(bar, loop.done, end, 1 if remat == "segments" else unroll)

    counted = bar is not None or length is not None
    loop = _Loop(
        jnp.int32(0) if counted else None,
        State(sample=x, anchor=None if schedule.anchorless or in_pairs else x),
        None if save_fn is None else _buffers(save_fn, schedule, x),
    )
    if in_pairs:
        loop = _scan_pairs(run_row, tell, loop, rows, unroll // 2)
    elif length is None:
        loop = _scan(run_row, tell, loop, rows, unroll, remat)
    else:

        def body(loop: _Loop) -> _Loop:
            tell(loop)
            # As `lax.scan` takes its rows, so that the compiler rounds alike.
            row = jax.tree.map(
                lambda leaf: jax.lax.dynamic_index_in_dim(
                    leaf, loop.done, keepdims=False, allow_negative_indices=False
                ),
                rows,
            )
            return run_row(loop, row)

        loop = jax.lax.while_loop(lambda loop: loop.done < end, body, loop)
    if bar is not None:
        _progress.report_end(bar, loop.state.sample)
    out = loop.state.sample if save_fn is None else (loop.state.sample, loop.saved)
    return out if length is None else without_reverse_mode(out)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Loop:
    """What the loop carries; None is carried for nothing."""

    done: Any
    state: State
    saved: Any


def _scan_pairs(run_row: Any, tell: Any, loop: _Loop, rows: Row, unroll: int) -> _Loop:
    """Both rows of a step of DPM2 in one iteration, so that no anchor is carried or written."""

    def whole(loop: _Loop, pair: Row) -> tuple[_Loop, None]:
        tell(loop)
        midpoint, landing = (jax.tree.map(lambda leaf, i=i: leaf[i], pair) for i in (0, 1))
        return run_row(run_row(loop, midpoint, "denoised"), landing, "anchor"), None

    pairs = jax.tree.map(lambda leaf: leaf[:-1].reshape(-1, 2, *leaf.shape[1:]), rows)
    loop = jax.lax.scan(whole, loop, pairs, unroll=unroll)[0]
    return run_row(loop, jax.tree.map(lambda leaf: leaf[-1], rows), "denoised")


def _scan(run_row: Any, tell: Any, loop: _Loop, rows: Row, unroll: int, remat: str) -> _Loop:
    def whole(loop: _Loop, row: Row) -> tuple[_Loop, None]:
        tell(loop)
        # No report inside a checkpoint: the backward pass would repeat it.
        return once(loop, row), None

    # A scan keeps its iterations apart by itself, so the barrier against CSE is not needed.
    once = run_row if remat == "none" else jax.checkpoint(run_row, prevent_cse=False)
    if remat != "segments":
        return jax.lax.scan(whole, loop, rows, unroll=unroll)[0]

    num_rows = rows.index.shape[0]
    size = math.isqrt(num_rows - 1) + 1
    num_segments = -(-num_rows // size)
    spare = num_segments * size - num_rows

    def cut(leaf: jax.Array) -> jax.Array:
        leaf = jnp.pad(leaf, [(0, spare)] + [(0, 0)] * (leaf.ndim - 1), mode="edge")
        return leaf.reshape(num_segments, size, *leaf.shape[1:])

    def run_or_pass(loop: _Loop, real_row: tuple[jax.Array, Row]) -> tuple[_Loop, None]:
        real, row = real_row
        return jax.lax.cond(real, once, lambda loop, row: loop, loop, row), None

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def run_segment(loop: _Loop, segment: Any) -> _Loop:
        return jax.lax.scan(run_or_pass, loop, segment, unroll=unroll)[0]

    def whole_segment(loop: _Loop, segment: Any) -> tuple[_Loop, None]:
        tell(loop)
        return run_segment(loop, segment), None

    real = jnp.arange(num_segments * size).reshape(num_segments, size) < num_rows
    return jax.lax.scan(whole_segment, loop, (real, jax.tree.map(cut, rows)))[0]


def _where(running: jax.Array, new: State, old: State) -> State:
    return jax.tree.map(lambda new, old: jnp.where(column(running, new), new, old), new, old)


@jax.jit
def _to_save(save_fn: Any, state: State, prediction: Prediction, row: Row) -> Any:
    # Compiled as a function of its own so that it is traced once, for its shapes and for the loop.
    return save_fn(state, prediction, row)


def _buffers(save_fn: Any, schedule: Schedule, x: jax.Array) -> Any:
    row = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((), leaf.dtype), schedule.rows)
    shapes = jax.eval_shape(_to_save, save_fn, State(x, x), Prediction(x, x), row)
    num_steps = schedule.sigmas.shape[-1] - 1
    return jax.tree.map(lambda out: jnp.zeros((num_steps, *out.shape), out.dtype), shapes)


def _save(save_fn: Any, saved: Any, slot: Any, x: jax.Array, said: Prediction, row: Row) -> Any:
    def write(saved: Any) -> Any:
        def put(buffer: jax.Array, value: Any) -> jax.Array:
            return jax.lax.dynamic_update_index_in_dim(buffer, value, slot, 0)

        # At the end of a step the anchor is the sample, also where the loop carries none.
        prediction = Prediction(said.denoised.astype(x.dtype), said.epsilon.astype(x.dtype))
        return jax.tree.map(put, saved, _to_save(save_fn, State(x, x), prediction, row))

    # Half rows evaluate nothing: what is saved may be a decoded preview.
    return jax.lax.cond(row.advances, write, lambda saved: saved, saved)
