"""A network as a denoiser: how it is called, and its output turned into D and epsilon."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from kdiff_jax._arrays import divided, state_dtype
from kdiff_jax._checks import check_choice
from kdiff_jax._denoise.prediction import Prediction, brief, epsilon_of, units
from kdiff_jax._table.row import Row

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]
PREDICTION_TYPES: tuple[PredictionType, ...] = get_args(PredictionType)

# model_fn(params, x, timestep) or model_fn(params, x, timestep, cond) -> an array of x's shape
ModelFn = Callable[..., jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Denoiser:
    """A network as a denoiser; made by `kd.denoiser`. The function and the names are static."""

    model_fn: ModelFn = field(metadata={"static": True})
    prediction_type: PredictionType = field(metadata={"static": True})
    dtype: np.dtype | None = field(metadata={"static": True})

    def __call__(self, params: Any, x: jax.Array, row: Row, cond: Any = None) -> Prediction:
        x = jnp.asarray(x)
        x = x.astype(state_dtype(x))
        alpha, sigma, scale = units(row, x)
        xs = scale * x
        out = call_network(self.model_fn, params, xs, row.timestep, cond, self.dtype)
        if self.prediction_type == "flow_prediction":
            return Prediction(x - sigma * out, x + alpha * out)
        if self.prediction_type == "epsilon":
            return Prediction(divided(x - sigma * out, alpha), out)
        if self.prediction_type == "v_prediction":
            a, s = scale * alpha, scale * sigma
            return Prediction(a * xs - s * out, s * xs + a * out)
        return Prediction(out, epsilon_of(out, x, row))

    def __repr__(self) -> str:
        dtype = "" if self.dtype is None else f", {self.dtype}"
        return f"Denoiser({brief(self.model_fn)}, {self.prediction_type!r}{dtype})"


def call_network(
    model_fn: ModelFn,
    params: Any,
    xs: jax.Array,
    timestep: ArrayLike,
    cond: Any,
    dtype: np.dtype | None,
) -> jax.Array:
    """The network's output for a scaled sample, in the sample's shape and dtype.

    The network receives the timestep as float32, [B], or [B, F] where the row has one a frame.
    """
    timestep = jnp.asarray(timestep, jnp.float32)
    if timestep.ndim < 2:
        timestep = jnp.broadcast_to(timestep, xs.shape[:1])
    elif timestep.shape != xs.shape[: timestep.ndim]:
        raise ValueError(
            f"timesteps of shape {timestep.shape} met a sample of shape {xs.shape}; give one "
            "timestep, or one a sample, [B], or one a frame, [B, F]."
        )
    extra = () if cond is None else (cond,)
    inputs = xs if dtype is None else xs.astype(dtype)
    out = jnp.asarray(model_fn(params, inputs, timestep, *extra))
    if out.shape != xs.shape:
        raise ValueError(
            f"model_fn returned shape {out.shape} for a sample of shape {xs.shape}; expected "
            "the same shape: cut off learned variances, or move the channels."
        )
    return out.astype(xs.dtype)


def check_network(model_fn: ModelFn, dtype: DTypeLike | None) -> np.dtype | None:
    """Checks a network, and returns the dtype of its input as a NumPy dtype, or None."""
    if not callable(model_fn):
        raise ValueError(
            f"model_fn = {model_fn!r} is not callable; pass a function "
            "model_fn(params, x, timestep) or model_fn(params, x, timestep, cond)."
        )
    if dtype is None:
        return None
    dtype = jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype = {dtype} is no floating dtype; pass one, or None.")
    return dtype


def denoiser(
    model_fn: ModelFn,
    prediction_type: PredictionType = "epsilon",
    dtype: DTypeLike | None = None,
) -> Denoiser:
    """A network as a denoiser: `denoise(params, x, row, cond=None) -> Prediction`.

    With `xs = input_scale * x`, `a = input_scale * alpha`, `s = input_scale * sigma` and
    `out = model_fn(params, xs, timestep)`:

        epsilon          D = (x - sigma * out) / alpha     epsilon = out
        v_prediction     D = a * xs - s * out              epsilon = s * xs + a * out
        sample           D = out                           epsilon = (x - alpha * D) / sigma
        flow_prediction  D = x - sigma * out               epsilon = x + alpha * out

    Args:
      model_fn: `model_fn(params, x, timestep)`, or `model_fn(params, x, timestep, cond)` where
        cond is given; x [B, ...], timestep [B] float32 ([B, F] where a row has one a frame). It
        returns an array of the shape of x. Pass weights as params and keep one function: a new
        lambda, or a bound method, for each call compiles again.
      prediction_type: "epsilon", "v_prediction" or "sample"; "flow_prediction", the velocity
        `eps - x0`, or "sample" on the schedules of `kd.flow_schedule`.
      dtype: what the network's input is cast to, e.g. jnp.bfloat16; None leaves it float32. The
        sample itself stays in float32 at least, and the timestep in float32.

    Returns:
      A Denoiser, a pytree without leaves: pass it anywhere in a compiled program. Both halves of
      its Prediction are [B, ...] float32 (float64 where x is).

    Raises:
      ValueError: a model_fn that is not callable, an unknown prediction type, a dtype that is no
        floating one; when it is traced, a network that returns another shape.

    Example:
      >>> import jax.numpy as jnp, kdiff_jax as kd
      >>> denoise = kd.denoiser(lambda params, x, timestep: params * x)
      >>> schedule = kd.dpm2(kd.levels(kd.noise_schedule(), 10))
      >>> denoise(jnp.float32(0.1), jnp.ones((2, 8)), schedule[0]).denoised.shape
      (2, 8)

    Source: Karras et al. 2022 (arXiv:2206.00364), section 5; Salimans and Ho 2022
    (arXiv:2202.00512), appendix D; Liu et al. 2022 (arXiv:2209.03003) for flow_prediction;
    `convert_model_output` of diffusers.
    """
    dtype = check_network(model_fn, dtype)
    check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
    return Denoiser(model_fn, prediction_type, dtype)
