"""A whole run: every row of a schedule, from a sample or a saved State, compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar, get_args, overload

import jax
import numpy as np

from kdiff_jax._arrays import is_traced
from kdiff_jax._checks import brought, check_choice, check_int
from kdiff_jax._denoise.arguments import check_arguments
from kdiff_jax._denoise.prediction import Denoise, Prediction, as_pytree, prediction_type_of
from kdiff_jax._noise.given import NoiseFn
from kdiff_jax._noise.keyed import sample_keys
from kdiff_jax._run import progress as bars
from kdiff_jax._run.check import (
    check_cfg_plus_plus,
    check_denoise,
    check_lengths,
    parameters_of,
    warn_of_midpoints,
)
from kdiff_jax._run.loop import Remat, run
from kdiff_jax._run.state import State, check_start
from kdiff_jax._table.row import Row
from kdiff_jax._table.schedule import Schedule

Saved = TypeVar("Saved")


@overload
def sample(
    denoise: Denoise,
    params: Any,
    schedule: Schedule,
    x: jax.Array | State,
    key: jax.Array | None = None,
    cond: Any = None,
    *,
    noise_fn: NoiseFn | None = None,
    save_fn: None = None,
    progress: bool | str = False,
    unroll: int = 1,
    remat: Remat = "none",
) -> jax.Array: ...


@overload
def sample(
    denoise: Denoise,
    params: Any,
    schedule: Schedule,
    x: jax.Array | State,
    key: jax.Array | None = None,
    cond: Any = None,
    *,
    noise_fn: NoiseFn | None = None,
    save_fn: Callable[[State, Prediction, Row], Saved],
    progress: bool | str = False,
    unroll: int = 1,
    remat: Remat = "none",
) -> tuple[jax.Array, Saved]: ...


def sample(
    denoise: Denoise,
    params: Any,
    schedule: Schedule,
    x: jax.Array | State,
    key: jax.Array | None = None,
    cond: Any = None,
    *,
    noise_fn: NoiseFn | None = None,
    save_fn: Callable[[State, Prediction, Row], Saved] | None = None,
    progress: bool | str = False,
    unroll: int = 1,
    remat: Remat = "none",
) -> jax.Array | tuple[jax.Array, Saved]:
    """A whole run: every row of the schedule under one `lax.scan`, jit-compiled.

    The network is traced once and evaluated `schedule.num_rows` times. Nothing recompiles for
    other numbers in the schedule, the denoiser, params, key or cond; another `model_fn`, shape or
    number of rows does. After `schedule.pad` another number of rows does not either, and with a
    `kd.stack` of schedules each sample runs on its own, to its own end.

    Args:
      denoise: from `kd.denoiser` and its wrappers, or any function of the same signature.
      params: any pytree, handed to the network: its weights.
      schedule: the run; of a stack of B tables each sample has its own.
      x: [B, ...] the sample at the level of `schedule[0]`, from `initial_sample` or `add_noise`;
        or the State that was saved before that row, with the rest of the rows, `schedule[a:]`.
      key: one key, or [B] keys, one a sample; None where the schedule draws no noise.
      cond: any pytree, handed to the network: labels, embeddings.
      noise_fn: `noise_fn(key, row, shape) -> [B, ...]` unit Gaussian noise, in place of
        `kd.row_noise`: `kd.brownian_noise()`, `kd.given_noise(array)`, or a function of your
        own, kept one as for model_fn. It is called in rows that draw noise, with [B] keys (None
        where key is None) and the shape of x; a row's leaves are scalars, or [B] in a stack,
        where what it returns for samples that draw none is not used.
      save_fn: `save_fn(state, prediction, row) -> pytree`, called at the end of each outer step
        with the state after it, and the prediction and row of its last evaluation. Keep one
        function, as for model_fn.
      progress: True, or a description, shows a tqdm bar of the evaluations (`pip install tqdm`).
        The call then returns when the run is over, except inside jit, vmap or grad of the caller
        (whose gradients show none in JAX 0.6). Ctrl-C ends the wait at once: on one CPU device the
        program then ends at its next report, elsewhere the device computes it to its end, and a
        script does not exit before that. Of several processes each chooses for itself; a bar
        appears in the one with the first device of the batch.
      unroll: rows in one iteration of the scan; each is one more copy of the network to compile,
        not to trace.
      remat: what reverse-mode gradients remember, for R rows. "none": all that the network
        computed, R times. "rows": the samples of R rows, and the network for one row; it is
        evaluated twice. "segments": the samples of 2 sqrt(R) rows, and the network for one row;
        it is evaluated three times.

    Returns:
      [B, ...] the sample after the last row, float32 (float64 where x is). With save_fn the pair
      of it and what save_fn returned, each leaf stacked to [N, ...]; of a padded schedule N is
      that of the padded table, and the entries past the real end are zeros.

    Raises:
      ValueError: arguments in another order, or of another kind: levels as schedule, a network as
        denoise, a list of keys; a noise_fn or per_step scales that end before the
        run; neither key nor noise_fn for a schedule with a noise column; a noise_fn for one
        without, or one that returns another shape; `kd.cfg_plus_plus` on rows that go on from the
        anchor, or inside of another wrapper; a slice of rows that read a history without
        the State, or a State of other columns; an epsilon network on a schedule with
        zero terminal SNR; on a schedule of a rectified flow a network of another type than
        flow_prediction or sample, or flow_prediction elsewhere; a sample without a batch axis or
        not of a floating dtype; a stack of another number of tables than samples, or with
        save_fn; unroll that is no positive integer; an unknown remat; either of these two with a
        padded schedule, whose loop is no scan and has no reverse mode (an error of JAX where it is
        differentiated; forward mode works).
      ImportError: progress without tqdm.

    Example:
      >>> import jax, jax.numpy as jnp, kdiff_jax as kd
      >>> schedule = kd.dpm2(kd.levels(kd.noise_schedule("scaled_linear"), 25))
      >>> denoise = kd.denoiser(lambda params, x, timestep: params * x)
      >>> x = kd.initial_sample(schedule, jax.random.key(0), (2, 8))
      >>> kd.sample(denoise, jnp.float32(0.1), schedule, x).shape
      (2, 8)
      >>> def save_fn(state, prediction, row):
      ...     return {"preview": prediction.denoised, "sigma": row.sigma}
      >>> x0, saved = kd.sample(denoise, jnp.float32(0.1), schedule, x, save_fn=save_fn)
      >>> saved["preview"].shape, saved["sigma"].shape
      ((25, 2, 8), (25,))
      >>> state = kd.init(schedule, x)  # save it anywhere on the way, and go on from there:
      >>> kd.sample(denoise, jnp.float32(0.1), schedule[0:], state).shape
      (2, 8)

    Source: the loops of `sample_dpm_2(_ancestral)` of k-diffusion and of diffusers' pipelines.
    """
    start = check_start(schedule, x)
    first = start.sample if isinstance(start, State) else start
    draws = schedule.rows.noise_weight is not None
    check_denoise(denoise)
    _check_noise(draws, key, noise_fn)
    check_lengths(denoise, noise_fn, schedule, first.shape)
    warn_of_midpoints(denoise, schedule)
    check_cfg_plus_plus(denoise, schedule)
    _check_network(schedule, prediction_type_of(denoise))
    check_arguments(denoise, params, cond, first.shape[0])
    unroll = check_int("unroll", unroll, 1)
    check_choice("remat", remat, get_args(Remat))
    _check_loop(schedule, first, save_fn, unroll, remat)
    keys = None if key is None else sample_keys(key, first.shape[0])
    keys = keys if draws else None
    noise_fn, save_fn = (None if f is None else as_pytree(f) for f in (noise_fn, save_fn))
    bar = bars.begin(progress)
    # What only decides which networks and calls are refused must not make another executable.
    table = schedule
    if schedule.flow or schedule.zero_terminal_snr or schedule.continues:
        table = replace(schedule, flow=False, zero_terminal_snr=False, continues=False)

    end = _end_of_sharded(table.length)
    arguments = as_pytree(denoise), params, table, start, keys, cond, noise_fn, save_fn, bar, end
    whole_run = run if bar is None else functools.partial(bars.watch, bar, run)
    sampled, saved = whole_run(*arguments, unroll=unroll, remat=remat)
    return sampled if save_fn is None else (sampled, saved)


def _end_of_sharded(length: jax.Array | None) -> jax.Array | None:
    """The rows of the longest table, found here where devices would have to ask each other."""
    if length is None or is_traced(length) or not isinstance(length, jax.Array):
        return None
    if length.is_fully_replicated or not length.is_fully_addressable:
        return None
    return jax.device_put(np.max(jax.device_get(length)))


def _check_noise(draws: bool, key: jax.Array | None, noise_fn: NoiseFn | None) -> None:
    if key is None and noise_fn is None and draws:
        raise ValueError(
            "this schedule draws noise and sample was given no key; pass key=jax.random.key(seed) "
            "or [B] keys, one a sample."
        )
    if noise_fn is not None and not callable(noise_fn):
        raise ValueError(
            f"noise_fn = {brought(noise_fn)} is not callable; pass a function "
            "noise_fn(key, row, shape), or kd.given_noise(array)."
        )
    if noise_fn is not None and not hasattr(noise_fn, "check_run"):
        parameters_of("noise_fn", noise_fn, 3, "expected noise_fn(key, row, shape): pass one.")
    if noise_fn is not None and not draws:
        raise ValueError(
            "noise_fn was given with a schedule that draws no noise, so nothing would call it; "
            "leave it out, or take a schedule that does: kd.dpm2_ancestral, kd.euler with an eta, "
            "kd.lcm, or levels.churned(...)."
        )


def _check_network(schedule: Schedule, prediction_type: str | None) -> None:
    if schedule.flow and prediction_type not in ("flow_prediction", "sample", None):
        raise ValueError(
            f"prediction_type={prediction_type!r} on a schedule of a rectified flow, which begins "
            "where no signal is left; pass prediction_type='flow_prediction' to kd.denoiser, or "
            "'sample' if the network predicts x0, or build the levels from kd.noise_schedule."
        )
    if prediction_type == "flow_prediction" and not schedule.flow:
        raise ValueError(
            "prediction_type='flow_prediction' on a schedule that is not of a rectified flow; "
            "build its levels from kd.flow_schedule(...)."
        )
    if schedule.zero_terminal_snr and prediction_type in ("epsilon", "edm"):
        raise ValueError(
            f"prediction_type={prediction_type!r} holds nothing of x0 where "
            "rescale_zero_terminal_snr=True leaves no signal (alpha = 0 or next to it); use a "
            "v_prediction or sample network, or a noise schedule without the rescaling."
        )


def _check_loop(
    schedule: Schedule, x: jax.Array, save_fn: Callable[..., Any] | None, unroll: int, remat: str
) -> None:
    tables = schedule.rows.index.shape[:-1]
    if tables != x.shape[: len(tables)]:
        raise ValueError(
            f"the schedule is a stack of {list(tables)} tables and x holds {x.shape[0]} samples; "
            "stack one table a sample."
        )
    if save_fn is not None:
        if not callable(save_fn):
            raise ValueError(
                f"save_fn = {brought(save_fn)} is not callable; pass a function "
                "save_fn(state, prediction, row)."
            )
        advice = "expected save_fn(state, prediction, row): pass one."
        parameters_of("save_fn", save_fn, 3, advice)
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
