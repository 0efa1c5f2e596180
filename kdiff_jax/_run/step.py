"""One step of any sampler: a line of arithmetic."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdiff_jax._arrays import along, on_own_mesh, per_sample
from kdiff_jax._checks import brought, check_batch
from kdiff_jax._denoise.prediction import Prediction
from kdiff_jax._noise.keyed import add_row_noise, sample_keys
from kdiff_jax._run.state import State, check_state
from kdiff_jax._table.check import check_row, is_known
from kdiff_jax._table.row import Row


def step(
    state: State,
    row: Row,
    prediction: Prediction,
    *,
    key: jax.Array | None = None,
    noise: jax.Array | None = None,
) -> State:
    """One row of any sampler.

        x_next = denoised_weight * D + epsilon_weight * epsilon + anchor_weight * anchor
                 + denoised_weight_1 * D_1 + denoised_weight_2 * D_2 + noise_weight * z
        anchor = where(advances, x_next, anchor);  D_2 = D_1;  D_1 = D

    Args:
      state: from `init` or from the step before.
      row: the row that the prediction was made for; leaves scalar, [B] or [B, F]. A weight that
        is None is a term that is not there.
      prediction: `denoise(params, state.sample, row, cond)`.
      key: one key, or [B] keys, one a sample; the noise drawn is `row_noise(key, row, shape)`.
        Pass the same key at every row: the row's index makes the noise fresh.
      noise: [B, ...] unit Gaussian noise in place of a key.

    Returns:
      The next State.

    Raises:
      ValueError: a state, row or prediction that is none, or of another shape; both key and noise;
        a row that draws noise and neither of them; a State of other
        columns than the row. Where the row is traced its weight cannot be seen: without key and
        noise, a row that should have drawn noise then gives NaN, not a sample without its noise.

    Example:
      >>> import jax, jax.numpy as jnp, kdiff_jax as kd
      >>> schedule = kd.dpm2_ancestral(kd.levels(kd.noise_schedule("scaled_linear"), 5))
      >>> denoise = kd.denoiser(lambda params, x, timestep: params * x)
      >>> key, params = jax.random.key(0), jnp.float32(0.1)
      >>> state = kd.init(schedule, kd.initial_sample(schedule, key, (2, 8)))
      >>> for row in schedule:
      ...     prediction = denoise(params, state.sample, row)
      ...     state = kd.step(state, row, prediction, key=key)
      >>> state.sample.shape
      (2, 8)

    Source: the table of each sampler; see `kd.euler`, `kd.dpm2`, `kd.lcm`.
    """
    check_row(row)
    check_state(state, row)
    check_prediction("prediction", prediction, state.sample)
    if key is not None and noise is not None:
        raise ValueError("step was given both key and noise; give one of them.")
    shape, weight = state.sample.shape, row.noise_weight
    if noise is not None and (noise := check_batch("noise", noise)).shape != shape:
        raise ValueError(
            f"noise has shape {noise.shape} and the sample {shape}; give one z a sample."
        )
    neither = key is None and noise is None and weight is not None
    if neither and is_known(weight) and np.any(weight := jax.device_get(weight)):
        raise ValueError(
            f"row {jax.device_get(row.index)} draws noise (noise_weight = {weight}) and step was "
            "given neither key nor noise; pass key=..., the same at every row, or noise=..., an "
            "array of the sample's shape."
        )
    keys = None if key is None else sample_keys(key, shape[0])
    return _step(state, row, prediction, keys, noise)


def check_prediction(name: str, prediction: Any, x: jax.Array) -> Prediction:
    """A Prediction for this sample, and not the output of a network."""
    if not isinstance(prediction, Prediction):
        raise ValueError(
            f"{name} is {brought(prediction)}; expected a Prediction: pass what a denoiser "
            "returns, kd.denoiser(model_fn)(params, x, row, cond)."
        )
    for half in ("denoised", "epsilon"):
        value = check_batch(f"{name}.{half}", getattr(prediction, half))
        if value.shape != x.shape:
            raise ValueError(
                f"{name}.{half} has shape {value.shape} and the sample {x.shape}; pass one of the "
                "sample's shape."
            )
    return prediction


@jax.jit
@on_own_mesh
def _step(
    state: State,
    row: Row,
    prediction: Prediction,
    keys: jax.Array | None,
    noise: jax.Array | None,
) -> State:
    if row.noise_weight is None:
        return advance(state, row, prediction, None)
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
) -> State:
    """The line of `step`; terms and histories that are None are not there."""
    x = state.sample
    denoised = prediction.denoised.astype(x.dtype)
    # With an anchor, a row has a weight for it or for D, seldom for both: masked, the compiled loop
    # reads only that one. Where every row has a weight a mask costs a fifth on CPU, so no others.
    masked = state.anchor is not None
    weight = per_sample(row.denoised_weight, x)
    x_next = term(weight, denoised) if masked else weight * denoised
    if row.epsilon_weight is not None:
        x_next += per_sample(row.epsilon_weight, x) * prediction.epsilon.astype(x.dtype)
    if row.anchor_weight is not None and state.anchor is not None:
        x_next += term(per_sample(row.anchor_weight, x), state.anchor)
    if row.denoised_weight_1 is not None and state.denoised_1 is not None:
        x_next += per_sample(row.denoised_weight_1, x) * state.denoised_1
    if row.denoised_weight_2 is not None and state.denoised_2 is not None:
        x_next += per_sample(row.denoised_weight_2, x) * state.denoised_2
    if add_noise is not None:
        x_next = add_noise(x_next)
    anchor = state.anchor
    if anchor is not None:
        moves = row.advances is None or along(jnp.asarray(row.advances), x)
        anchor = x_next if moves is True else jnp.where(moves, x_next, anchor)
    after = State(
        x_next,
        anchor,
        None if state.denoised_1 is None else denoised,
        None if state.denoised_2 is None else state.denoised_1,
    )
    return after if row.idle is None else keep_idle(row.idle, state, after)


def keep_idle(idle: jax.Array, before: State, after: State) -> State:
    """The whole State of an idle sample stays as it is."""

    def choose(old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(along(jnp.asarray(idle), new), old, new)

    return jax.tree.map(choose, before, after)


@jax.custom_jvp
def term(weight: jax.Array, value: jax.Array) -> jax.Array:
    """`weight * value`, and 0 where the weight is 0, for arrays that most rows do not want.

    Plain products of D and the anchor cost 1.9 times as much at 1 MB on CPU, products of masked
    values 1.15 times at 64 KB; of epsilon, masked too, the last bit depended on the size of the
    batch. Its derivative is that of the product, since a `where` has none in a weight of 0.
    """
    return jnp.where(weight != 0, weight * value, jnp.zeros((), value.dtype))


@term.defjvp
def _term_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (weight, value), (d_weight, d_value) = primals, tangents
    return term(weight, value), d_weight * value + weight * d_value
