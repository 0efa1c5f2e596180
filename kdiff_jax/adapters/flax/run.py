"""What a Flax scheduler hands from call to call, and the arithmetic of a call.

Pipelines carry a sample of unit variance at every level, and a table is in units of its own:
`x = scale[i] * sample` before row i, `sample = x_next / scale[i + 1]` after it.
"""

from __future__ import annotations

import math
from collections import namedtuple
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import kdiff_jax as kd

# The noise levels of training, [T] each, for those who read them.
SchedulerCommon = namedtuple("SchedulerCommon", ("alphas", "betas", "alphas_cumprod"))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SchedulerState:
    """What a scheduler hands from one call to the next, an immutable pytree.

    Attributes:
      common: the noise levels of training; None on a flow.
      init_noise_sigma: 1, what a pipeline multiplies its first noise by.
      timesteps: [n] int32, one a call; before `set_timesteps` [T], all of training.
      step_index: int32, the row of the next call; -1 before the first one, which is found by its
        timestep.
      key: None, or the key given to `create_state`.
      last_sample: None, or [B, ...] the sample of the last call.
      history: None, or a kd.State, what the step before left, in the units of the table.
      key_words: None, or [B, 2] uint32, the keys of the samples.
      schedule: None, or a kd.Schedule, the table of the run.
      num_inference_steps: None, or n; static.
      made_by: the config that the tables are of, as JSON; static, so that a pipeline which compiles
        by its own identity compiles again for another scheduler.
    """

    common: Any = field(repr=False)
    init_noise_sigma: jax.Array = field(repr=False)
    timesteps: jax.Array = field(repr=False)
    step_index: jax.Array
    key: jax.Array | None = field(default=None, repr=False)
    last_sample: jax.Array | None = field(default=None, repr=False)
    history: Any = field(default=None, repr=False)
    key_words: jax.Array | None = field(default=None, repr=False)
    schedule: Any = None
    num_inference_steps: int | None = field(default=None, metadata={"static": True})
    made_by: str = field(default="", repr=False, metadata={"static": True})

    def replace(self, **changes: Any) -> SchedulerState:
        """The state with these fields in place of its own."""
        return replace(self, **changes)

    def sized(self, shape: tuple[int, ...]) -> SchedulerState:
        """The state as a loop carries it: with all arrays of a sample's shape."""
        blank, words = jnp.zeros(shape, jnp.float32), jnp.zeros((shape[0], 2), jnp.uint32)
        history = kd.init(self.schedule, blank)
        return self.replace(last_sample=blank, history=history, key_words=words)


class SchedulerOutput(NamedTuple):
    """What `step` returns, a tuple: the sample for the next call, and the state for it."""

    prev_sample: jax.Array
    state: SchedulerState

    def to_tuple(self) -> tuple[jax.Array, SchedulerState]:
        """`(prev_sample, state)`."""
        return self.prev_sample, self.state


def scales(schedule: kd.Schedule) -> jax.Array:
    """[R + 1] what makes of a sample of unit variance one of the table, before each row and after.

    The first is what pure noise is multiplied by.
    """
    scale = jnp.ones(len(schedule) + 1, schedule.sigmas.dtype)
    if schedule.rows.input_scale is not None:
        scale = scale.at[:-1].set(1 / schedule.rows.input_scale)
        scale = scale.at[-1].set(jnp.hypot(scale[-1], schedule.sigmas[-1]))
    return scale.at[0].set(schedule.init_noise_sigma)


def row_number(state: SchedulerState, timestep: Any) -> jax.Array:
    """The row of a call: the first one's by its timestep, from then on by counting.

    Of rows with that timestep one that begins a step, and of these the last, so that no call is
    missing at the end; but the first row where a whole run begins.
    """
    begins = (jnp.diff(state.schedule.rows.step, prepend=-1) != 0).astype(jnp.float32)
    t = jnp.ravel(jnp.asarray(timestep))[:1].astype(jnp.float32)
    distance = jnp.abs(state.timesteps[: len(begins)].astype(jnp.float32) - t)
    last = len(begins) - 1 - jnp.argmin((distance - begins / 2)[::-1]).astype(jnp.int32)
    return jnp.where(state.step_index < 0, jnp.where(distance[0] == 0, 0, last), state.step_index)


def sign_words(sample: jax.Array) -> jax.Array:
    """[B, 2] uint32, the signs of the first 64 numbers of each sample, as its key.

    Cut out and added up without a reshape of the sample: with one, or with packbits, TPUs hold the
    samples of the whole loop with the batch innermost, in 40 times the memory.
    """
    shape = sample.shape[1:]
    rests = [max(1, math.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    first = sample[:, *(slice(-(-64 // rest)) for rest in rests)]
    # Bytes in order, the first sign of each its highest bit.
    at = np.arange(math.prod(first.shape[1:]), dtype=np.uint32).reshape(first.shape[1:])
    axes = tuple(range(1, sample.ndim))
    words = [jnp.where(first < 0, (at // 32 == word) << (at % 32 ^ 7), 0) for word in (0, 1)]
    return jnp.stack([jnp.sum(word, axes, jnp.uint32) for word in words], axis=-1)


def begun(schedule: kd.Schedule, i: jax.Array, x: jax.Array, prediction: kd.Prediction) -> kd.State:
    """The state of a run that begins at row i, whose step there is of first order.

    The estimates of earlier rows are those of this one. On a row that lands, the anchor is the
    sample at the start of the step that this prediction comes from in a straight line, so that
    the row makes an Euler step from where it is.
    """
    row, start = schedule[i], schedule[jnp.maximum(i - 1, 0)]
    alpha, sigma = jnp.asarray(start.alpha, x.dtype), start.sigma.astype(x.dtype)
    anchor = alpha * prediction.denoised + sigma * prediction.epsilon
    lands = (row.step == start.step) & (i > 0)
    fresh = {f"denoised_{k}": prediction.denoised for k in (1, 2)}
    fresh["anchor"], state = jnp.where(lands, anchor, x), kd.init(schedule, x)
    return replace(state, **{k: v for k, v in fresh.items() if getattr(state, k) is not None})


@jax.jit
def advanced(denoise: Any, state: SchedulerState, call: Any, keys: Any) -> SchedulerOutput:
    """The next sample and state; a call is an output of the network, its timestep and sample."""
    (model_output, timestep, sample), schedule = call, state.schedule
    i, last = row_number(state, timestep), len(schedule) - 1
    at, scale = jnp.minimum(i, last), scales(schedule).astype(jnp.float32)
    row, x = schedule[at], scale[at] * sample.astype(jnp.float32)
    prediction = denoise(model_output, x, row)
    here = begun(schedule, at, x, prediction), sign_words(sample)
    kept = replace(state.history, sample=x), state.key_words
    # In the first call, where a pipeline may have set the counter to 0 by itself.
    first = state.step_index <= 0
    history, words = jax.tree.map(lambda new, old: jnp.where(first, new, old), here, kept)
    # The default implementation may be one whose noise depends on the neighbours.
    keys = jax.random.wrap_key_data(words, impl="threefry2x32") if keys is None else keys
    history = kd.step(history, row, prediction, key=keys)
    # Where two rows make a step, the last call may be one too many.
    after = jnp.where(i > last, sample, (history.sample / scale[at + 1]).astype(sample.dtype))
    changes = {"history": history, "key_words": words, "step_index": i + 1}
    held = sample.astype(jnp.result_type(state.last_sample))
    return SchedulerOutput(after, state.replace(last_sample=held, **changes))
