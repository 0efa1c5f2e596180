"""What the network says, as a prediction: `denoised` and `epsilon`, and wrappers that change it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kdiff_jax._checks import check_choice, check_number, is_traced
from kdiff_jax._noise_schedule import state_dtype
from kdiff_jax._schedule import Row

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prediction:
    """Both halves of the network's answer, `x = alpha * denoised + sigma * epsilon`.

    Attributes:
      denoised: [B, ...] the estimate of x0.
      epsilon: [B, ...] the estimate of eps, the noise in x.
    """

    denoised: jax.Array
    epsilon: jax.Array


# denoise(params, x, row, cond=None) -> Prediction
Denoise = Callable[..., Prediction]


def column(value: jax.Array, x: jax.Array) -> jax.Array:
    """[B] values as a column that meets [B, ...] without rank promotion; a scalar as it is."""
    return value.reshape(value.shape + (1,) * (x.ndim - 1)) if value.ndim else value


def per_sample(value: ArrayLike, x: jax.Array) -> jax.Array:
    """A number, or [B] numbers as a column that meets [B, ...] without rank promotion."""
    value = jnp.asarray(value).astype(x.dtype)
    if value.ndim and value.shape != x.shape[:1]:
        raise ValueError(
            f"values of shape {value.shape} met a batch of {x.shape[0]}; give one number, or one a "
            "sample. Inside kd.guided the batch is doubled: wrap values [B] around it, or take "
            "batched=False there."
        )
    return column(value, x)


def _epsilon_of(denoised: jax.Array, x: jax.Array, row: Row) -> jax.Array:
    return (x - per_sample(row.alpha, x) * denoised) / per_sample(row.sigma, x)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Denoiser:
    """A network as a denoiser; made by `kd.denoiser`. The function and the names are static."""

    model_fn: Callable[..., Any] = field(metadata={"static": True})
    prediction_type: str = field(metadata={"static": True})
    dtype: Any = field(metadata={"static": True})

    def __call__(self, params: Any, x: jax.Array, row: Row, cond: Any = None) -> Prediction:
        x = jnp.asarray(x)
        x = x.astype(state_dtype(x))
        scale = per_sample(row.input_scale, x)
        xs = scale * x
        out = ask(self.model_fn, params, xs, row.timestep, cond, self.dtype)
        alpha, sigma = per_sample(row.alpha, x), per_sample(row.sigma, x)
        if self.prediction_type == "flow_prediction":
            return Prediction(x - sigma * out, x + alpha * out)
        if self.prediction_type == "epsilon":
            return Prediction((x - sigma * out) / alpha, out)
        if self.prediction_type == "v_prediction":
            a, s = scale * alpha, scale * sigma
            return Prediction(a * xs - s * out, s * xs + a * out)
        return Prediction(out, _epsilon_of(out, x, row))


def ask(
    model_fn: Callable[..., Any], params: Any, xs: jax.Array, time: Any, cond: Any, dtype: Any
) -> jax.Array:
    """What the network says of its input at a time, [B] float32; in the dtype of the sample."""
    time = jnp.broadcast_to(jnp.asarray(time, jnp.float32), xs.shape[:1])
    extra = () if cond is None else (cond,)
    out = jnp.asarray(
        model_fn(params, xs if dtype is None else xs.astype(dtype), time, *extra),
    )
    if out.shape != xs.shape:
        raise ValueError(
            f"model_fn returned shape {out.shape} for a sample of shape {xs.shape}; expected "
            "the same shape: cut off learned variances, or move the channels."
        )
    return out.astype(xs.dtype)


def check_network(model_fn: Any, dtype: Any) -> Any:
    """The dtype of a network's input as one, or None."""
    if not callable(model_fn):
        raise ValueError(
            f"model_fn = {model_fn!r} is not callable; pass a function "
            "model_fn(params, x, timestep) or model_fn(params, x, timestep, cond)."
        )
    if dtype is not None and not jnp.issubdtype(dtype := jnp.dtype(dtype), jnp.floating):
        raise ValueError(f"dtype = {dtype} is no floating dtype; pass one, or None.")
    return dtype


def denoiser(
    model_fn: Callable[..., Any], prediction_type: str = "epsilon", dtype: Any = None
) -> Denoiser:
    """A network as a denoiser: `denoise(params, x, row, cond=None) -> Prediction`.

    With `xs = input_scale * x`, `a = input_scale * alpha`, `s = input_scale * sigma` and `out`
    what the network says of xs:

        epsilon          D = (x - sigma * out) / alpha     epsilon = out
        v_prediction     D = a * xs - s * out              epsilon = s * xs + a * out
        sample           D = out                           epsilon = (x - alpha * D) / sigma
        flow_prediction  D = x - sigma * out               epsilon = x + alpha * out

    Args:
      model_fn: `model_fn(params, x, timestep)`, or `model_fn(params, x, timestep, cond)` where
        cond is given; x [B, ...], timestep [B] float32, the same shape as x back. Pass weights as
        params and keep one function: a fresh lambda, or a bound method, for each call retraces.
      prediction_type: "epsilon", "v_prediction" or "sample"; "flow_prediction", the velocity
        `eps - x0`, or "sample" on the schedules of `kd.flow_schedule`.
      dtype: what the network's input is cast to, e.g. jnp.bfloat16; None leaves it float32. The
        sample itself stays in float32 at least, and the timestep in float32.

    Returns:
      A Denoiser, a pytree without leaves: pass it anywhere in a compiled program.

    Raises:
      ValueError: a model_fn that is not callable, an unknown prediction type, a dtype that is no
        floating one; when it is traced, a network that returns another shape.

    Example:
      >>> import jax.numpy as jnp, kdiff_jax as kd
      >>> denoise = kd.denoiser(lambda params, x, timestep: params * x)
      >>> schedule = kd.dpm2_schedule(kd.noise_schedule(), 10)
      >>> denoise(jnp.float32(0.1), jnp.ones((2, 8)), schedule[0]).denoised.shape
      (2, 8)

    Source: Karras et al. 2022 (arXiv:2206.00364), section 5; Salimans and Ho 2022
    (arXiv:2202.00512), appendix D; Liu et al. 2022 (arXiv:2209.03003) for flow_prediction;
    `convert_model_output` of diffusers.
    """
    dtype = check_network(model_fn, dtype)
    check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
    return Denoiser(model_fn, prediction_type, dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Clipped:
    """Made by `kd.clipped`."""

    denoise: Denoise
    clip_range: Any

    def __call__(self, params: Any, x: jax.Array, row: Row, cond: Any = None) -> Prediction:
        denoised = self.denoise(params, x, row, cond).denoised
        limit = per_sample(self.clip_range, denoised)
        denoised = jnp.clip(denoised, -limit, limit)
        return Prediction(denoised, _epsilon_of(denoised, x.astype(denoised.dtype), row))


def clipped(denoise: Denoise, clip_range: ArrayLike = 1.0) -> Clipped:
    """A denoiser whose estimate of x0 is clipped: `D <- clip(D, -clip_range, clip_range)`.

    Args:
      denoise: the denoiser to wrap.
      clip_range: positive, scalar or [B].

    Returns:
      A denoiser; epsilon follows from the new D.

    Raises:
      ValueError: a clip_range that is not positive.

    Example:
      >>> import kdiff_jax as kd
      >>> denoise = kd.clipped(kd.denoiser(lambda params, x, timestep: x), clip_range=1.0)

    Source: `clip_sample` of diffusers' LCMScheduler.
    """
    return Clipped(as_pytree(denoise), as_leaf("clip_range", clip_range, above=0))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Thresholded:
    """Made by `kd.thresholded`."""

    denoise: Denoise
    ratio: Any
    sample_max_value: Any

    def __call__(self, params: Any, x: jax.Array, row: Row, cond: Any = None) -> Prediction:
        denoised = self.denoise(params, x, row, cond).denoised
        flat = jnp.abs(denoised).reshape(denoised.shape[0], -1)
        limit = jnp.quantile(flat, jnp.asarray(self.ratio).astype(flat.dtype), axis=1)
        limit = per_sample(jnp.clip(limit, 1, self.sample_max_value.astype(flat.dtype)), denoised)
        denoised = jnp.clip(denoised, -limit, limit) / limit
        return Prediction(denoised, _epsilon_of(denoised, x.astype(denoised.dtype), row))


def thresholded(
    denoise: Denoise, ratio: ArrayLike = 0.995, sample_max_value: ArrayLike = 1.0
) -> Thresholded:
    """A denoiser with dynamic thresholding: `D <- clip(D, -s, s) / s`, s of each sample its own.

    `s = clip(quantile(|D|, ratio), 1, sample_max_value)`. It changes the range of D, so it suits
    networks on pixels in [-1, 1], not on latents.

    Args:
      denoise: the denoiser to wrap.
      ratio: the quantile, in (0, 1].
      sample_max_value: the largest s, at least 1.

    Returns:
      A denoiser; epsilon follows from the new D.

    Raises:
      ValueError: a ratio outside (0, 1], a sample_max_value below 1.

    Example:
      >>> import kdiff_jax as kd
      >>> denoise = kd.thresholded(kd.denoiser(lambda params, x, timestep: x), 0.995, 1.5)

    Source: Saharia et al. 2022 (arXiv:2205.11487), section 2.3; `thresholding` of diffusers.
    """
    if not is_traced(ratio) and check_number("ratio", ratio, above=0) > 1:
        raise ValueError(f"ratio = {ratio} is no quantile; expected it in (0, 1].")
    return Thresholded(
        as_pytree(denoise),
        as_leaf("ratio", ratio, above=0),
        as_leaf("sample_max_value", sample_max_value, at_least=1),
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Consistency:
    """Made by `kd.consistency`."""

    denoise: Denoise
    timestep_scaling: Any
    sigma_data: Any

    def __call__(self, params: Any, x: jax.Array, row: Row, cond: Any = None) -> Prediction:
        denoised = self.denoise(params, x, row, cond).denoised
        x = x.astype(denoised.dtype)
        time = per_sample(row.timestep, x) * per_sample(self.timestep_scaling, x)
        data = per_sample(self.sigma_data, x)
        norm = time**2 + data**2
        c_skip, c_out = data**2 / norm, time / jnp.sqrt(norm)
        denoised = c_out * denoised + c_skip * (per_sample(row.input_scale, x) * x)
        return Prediction(denoised, _epsilon_of(denoised, x, row))


def consistency(
    denoise: Denoise, timestep_scaling: ArrayLike = 10.0, sigma_data: ArrayLike = 0.5
) -> Consistency:
    """A denoiser with the boundary scaling of a consistency model: `D <- c_out D + c_skip xs`.

    With `t = timestep * timestep_scaling` and `xs = input_scale * x`:
    `c_skip = sigma_data^2 / (t^2 + sigma_data^2)`, `c_out = t / sqrt(t^2 + sigma_data^2)`, so
    that at timestep 0 the consistency function is the identity.

    Args:
      denoise: the denoiser to wrap; clipping and thresholding belong inside.
      timestep_scaling: positive; 10 in published LCM checkpoints.
      sigma_data: positive; 0.5 in published LCM checkpoints.

    Returns:
      A denoiser; epsilon follows from the new D.

    Raises:
      ValueError: a timestep_scaling or sigma_data that is not positive.

    Example:
      >>> import kdiff_jax as kd
      >>> denoise = kd.consistency(kd.denoiser(lambda params, x, timestep: x))

    Source: Song et al. 2023 (arXiv:2303.01469), equation 5; Luo et al. 2023 (arXiv:2310.04378);
    `get_scalings_for_boundary_condition_discrete` of diffusers.
    """
    return Consistency(
        as_pytree(denoise),
        as_leaf("timestep_scaling", timestep_scaling, above=0),
        as_leaf("sigma_data", sigma_data, above=0),
    )


def evaluate(denoise: Denoise, params: Any, x: jax.Array, row: Row, cond: Any) -> Prediction:
    """The denoiser's answer."""
    return denoise(params, x, row, cond)


# Where a program holds the network more than once, it is still traced once.
evaluate_traced_once = jax.jit(evaluate)


def prediction_type_of(denoise: Any) -> str | None:
    """The prediction type of the network under the wrappers; None for a caller's own denoiser."""
    while hasattr(denoise, "denoise"):
        denoise = denoise.denoise
    return getattr(denoise, "prediction_type", None)


def as_pytree(function: Callable[..., Any]) -> Any:
    """A caller's own callable becomes a pytree without leaves, to cross a jit boundary."""
    known = not jax.tree_util.all_leaves([function])
    return function if known else jax.tree_util.Partial(function)


def as_float(value: Any) -> jax.Array:
    """A number as a leaf of one dtype, so that another value is never another program."""
    return jnp.asarray(value, jax.dtypes.canonicalize_dtype(np.float64))


def as_leaf(name: str, value: Any, **bounds: float) -> jax.Array:
    if not is_traced(value):
        for number in np.ravel(np.asarray(value, object)):
            check_number(name, number, **bounds)
    return as_float(value)
