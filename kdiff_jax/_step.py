"""One step of any sampler: the state it starts from, and the line of arithmetic."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdiff_jax._checks import is_traced
from kdiff_jax._denoise import Prediction, column, per_sample
from kdiff_jax._noise import add_row_noise, sample_keys
from kdiff_jax._noise_schedule import state_dtype
from kdiff_jax._schedule import Row, Schedule, State


def init(schedule: Schedule, x: jax.Array) -> State:
    """The state at the start of a run, for stepping by hand.

    Args:
      schedule: the run.
      x: [B, ...] a sample at the level of `schedule[0]`.

    Returns:
      A State in float32 (float64 where x is), whatever the dtype of x.

    Raises:
      ValueError: a sample without a batch axis or not of a floating dtype.

    Example:
      >>> import jax, kdiff_jax as kd
      >>> schedule = kd.dpm2_schedule(kd.noise_schedule("scaled_linear"), 25)
      >>> x = kd.initial_sample(schedule, jax.random.key(0), (2, 8))
      >>> kd.init(schedule, x).sample.shape
      (2, 8)
    """
    del schedule  # every sampler starts alike today; the name keeps the call of the public face
    x = check_sample(x)
    return State(sample=x, anchor=x)


def step(
    state: State,
    row: Row,
    prediction: Prediction,
    *,
    key: jax.Array | None = None,
    noise: jax.Array | None = None,
) -> State:
    """One row of any sampler.

        x_next = anchor_weight * anchor + denoised_weight * D + epsilon_weight * epsilon
                 + noise_weight * z
        anchor = where(advances, x_next, anchor)

    Args:
      state: from `init` or from the step before.
      row: the row that the prediction was made for; leaves scalar or [B].
      prediction: `denoise(params, state.sample, row, cond)`.
      key: one key, or [B] keys, one a sample; the noise drawn is `row_noise(key, row, shape)`.
        Pass the same key at every row: the row's index makes the noise fresh.
      noise: [B, ...] unit Gaussian noise in place of a key.

    Returns:
      The next State.

    Raises:
      ValueError: both key and noise; a row that draws noise and neither of them. Where the row
        is traced its weight cannot be seen: without key and noise, a row that should have drawn
        noise then gives NaN, not a sample without its noise.

    Example:
      >>> import jax, jax.numpy as jnp, kdiff_jax as kd
      >>> schedule = kd.dpm2_ancestral_schedule(kd.noise_schedule("scaled_linear"), 5)
      >>> denoise = kd.denoiser(lambda params, x, timestep: params * x)
      >>> key, params = jax.random.key(0), jnp.float32(0.1)
      >>> state = kd.init(schedule, kd.initial_sample(schedule, key, (2, 8)))
      >>> for row in schedule:
      ...     prediction = denoise(params, state.sample, row)
      ...     state = kd.step(state, row, prediction, key=key)
      >>> state.sample.shape
      (2, 8)

    Source: the table of each sampler; see `euler_schedule`, `dpm2_schedule`, `lcm_schedule`.
    """
    if key is not None and noise is not None:
        raise ValueError("step was given both key and noise; give one of them.")
    shape = state.sample.shape
    if noise is not None and jnp.shape(noise) != shape:
        raise ValueError(
            f"noise has shape {jnp.shape(noise)} and the sample {shape}; give one z a sample."
        )
    unseen = is_traced(row.noise_weight)
    if key is None and noise is None and not unseen and np.any(np.asarray(row.noise_weight)):
        raise ValueError(
            f"row {np.asarray(row.index)} draws noise (noise_weight = "
            f"{np.asarray(row.noise_weight)}) and step was given neither key nor noise; pass "
            "key=..., the same at every row, or noise=..., an array of the sample's shape."
        )
    keys = None if key is None else sample_keys(key, shape[0])
    return _step(state, row, prediction, keys, noise)


@jax.jit
def _step(state: State, row: Row, prediction: Prediction, keys: Any, noise: Any) -> State:
    if keys is not None:
        return advance(state, row, prediction, functools.partial(add_row_noise, row=row, keys=keys))
    weight = per_sample(row.noise_weight, state.sample)
    if noise is None:
        noise = jnp.where(weight != 0, jnp.nan, jnp.zeros_like(weight))
    return advance(state, row, prediction, lambda x: x + weight * noise.astype(x.dtype))


def advance(
    state: State,
    row: Row,
    prediction: Prediction,
    add_noise: Callable[[jax.Array], jax.Array] | None,
    reads: str = "both",
) -> State:
    """The line of `step`, without what the builder of the table promises to be absent.

    `reads` names what the row may start from: "both", "either" of the two, or, whole, one of
    "denoised" and "anchor": the two halves of a step of DPM2, between which the anchor lives.
    """
    x, anchor = state.sample, state.anchor
    denoised, epsilon = prediction.denoised.astype(x.dtype), prediction.epsilon.astype(x.dtype)
    if reads == "denoised":
        x_next = denoised
    elif reads == "anchor":
        x_next = anchor
    elif reads == "either" and anchor is not None:
        # One multiplication of a sample less: a fifth of the time where the network is nothing.
        on = per_sample(row.anchor_weight, x) != 0
        weight = jnp.where(on, per_sample(row.anchor_weight, x), per_sample(row.denoised_weight, x))
        x_next = weight * jnp.where(on, anchor, denoised)
    else:
        x_next = per_sample(row.denoised_weight, x) * denoised
    x_next += per_sample(row.epsilon_weight, x) * epsilon
    if reads == "both" and anchor is not None:
        x_next += per_sample(row.anchor_weight, x) * anchor
    if add_noise is not None:
        x_next = add_noise(x_next)
    if reads == "denoised":
        return State(x_next, x)
    if reads == "anchor" or anchor is None:
        return State(x_next, None)
    advances = column(jnp.asarray(row.advances), x)
    return State(x_next, jnp.where(advances, x_next, anchor))


def check_sample(x: Any) -> jax.Array:
    if isinstance(x, jax.Array) and x.dtype == np.float32 and x.ndim:
        return x  # what follows takes as long as a whole step of a small sample
    x = jnp.asarray(x)
    if x.ndim < 1:
        raise ValueError("the sample is a scalar; expected [B, ...], the batch axis first.")
    return x.astype(state_dtype(x))
