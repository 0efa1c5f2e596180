"""A network as a denoiser: how it is called, and its output turned into D and epsilon."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from kdiff_jax._arrays import divided, is_traced, state_dtype
from kdiff_jax._checks import check_choice, shown
from kdiff_jax._denoise.arguments import check_arrays
from kdiff_jax._denoise.captured import warn_of_captured
from kdiff_jax._denoise.prediction import (
    Prediction,
    brief,
    check_call,
    described,
    epsilon_of,
    units,
)
from kdiff_jax._table.row import Row

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]
PREDICTION_TYPES: tuple[PredictionType, ...] = get_args(PredictionType)

# model_fn(params, x, timestep) or model_fn(params, x, timestep, cond) -> an array of x's shape
ModelFn = Callable[..., jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Denoiser:
    """A network as a denoiser; made by `kd.denoiser`. The function and the names are static.

    Example:
      >>> import jax.numpy as jnp, kdiff_jax as kd
      >>> denoise = kd.denoiser(lambda params, x, timestep: x, "v_prediction", jnp.bfloat16)
      >>> denoise.prediction_type, denoise.dtype
      ('v_prediction', dtype(bfloat16))
    """

    model_fn: ModelFn = field(metadata={"static": True})
    prediction_type: PredictionType = field(metadata={"static": True})
    dtype: np.dtype | None = field(metadata={"static": True})

    def __call__(self, params: Any, x: jax.Array, row: Row, cond: Any = None) -> Prediction:
        x = check_call(x, row)
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
    if timestep.size == 1 and timestep.ndim < 2:
        timestep = jnp.broadcast_to(timestep, xs.shape[:1])
    if timestep.shape != xs.shape[: timestep.ndim]:
        raise ValueError(
            f"timesteps of shape {timestep.shape} met a sample of shape {xs.shape}; give one "
            "timestep, or one a sample, [B], or one a frame, [B, F]."
        )
    check_arrays("params", params)
    check_arrays("cond", cond)
    extra = () if cond is None else (cond,)
    inputs = xs if dtype is None else xs.astype(dtype)
    # A module of flax NNX writes into itself, and refuses to in a scan that it came into from
    # outside; a copy of the pytree is made in there, of the same arrays.
    own = jax.tree.map(lambda leaf: leaf, params)
    try:
        out = model_fn(own, inputs, timestep, *extra)
    except TypeError as error:
        _check_signature(model_fn, 3 + len(extra), error)
        raise
    _check_unwritten(params, own)
    _check_output(out, xs.shape)
    return jnp.asarray(out).astype(xs.dtype)


def _check_signature(model_fn: ModelFn, count: int, error: TypeError) -> None:
    """Says what model_fn takes, where an error came because it was called with something else."""
    given = ", ".join(["params", "x", "timestep", "cond"][:count])
    try:
        signature = inspect.signature(model_fn)
    except (TypeError, ValueError):  # some functions of C have none
        return
    try:
        signature.bind(*range(count))
    except TypeError:
        raise ValueError(
            f"model_fn takes {signature}, and is called as model_fn({given}), with cond where "
            "kd.sample is given one; pass a function of these that calls the network: "
            "docs/networks.md has one for each library."
        ) from error
    error.add_note(
        f"model_fn({given}) is called with arrays of JAX: docs/networks.md has the lines by which "
        "a network of another library takes them."
    )


def _check_unwritten(params: Any, own: Any) -> None:
    """Refuses a module that wrote into its arrays: what it wrote ends with the call."""
    before, after = jax.tree.leaves(params), jax.tree.leaves(own)
    if len(before) != len(after) or all(map(operator.is_, before, after)):
        return
    containers = (jax.tree_util.DictKey, jax.tree_util.SequenceKey)
    written = [
        jax.tree_util.keystr(path)
        for (path, new), old in zip(
            jax.tree_util.tree_flatten_with_path(own)[0], before, strict=True
        )
        # Dicts and lists are the caller's own, and the copy of them was written into.
        if not _is_same(old, new) and not all(isinstance(key, containers) for key in path)
    ]
    if written:
        raise ValueError(
            f"model_fn wrote into its params at {shown(written)}, which ends with the call; call "
            ".eval() on a module with dropout or batch norm before. If it is in that mode already, "
            "nnx.jit or nnx.remat in it wrote back what it read: pass graphdef, params = "
            "nnx.split(module), and call nnx.merge(graphdef, params, copy=True) in model_fn."
        )


def _is_same(old: Any, new: Any) -> bool:
    """Whether an exchanged leaf holds what it held, as far as that is known."""
    if old is new or is_traced(old, new) or not isinstance(old, jax.Array):
        return old is new
    if jnp.issubdtype(old.dtype, jax.dtypes.extended):
        old, new = jax.random.key_data(old), jax.random.key_data(new)
    return np.array_equal(jax.device_get(old), jax.device_get(new))


def _check_output(out: Any, shape: tuple[int, ...]) -> None:
    """Refuses what is no array of floats of the sample's shape."""
    if not (hasattr(out, "shape") and hasattr(out, "dtype")):
        advice = "return the array of the sample's shape alone"
        if isinstance(out, dict):
            advice = "return its entry that is the output"
        elif hasattr(out, "sample"):
            advice = "return its .sample"
        elif isinstance(out, (tuple, list)):
            advice += ", out[0]; a ControlNet's are inputs of the network, inside one model_fn"
        raise ValueError(f"model_fn returned {described(out)}, no array; {advice}.")
    if tuple(out.shape) != shape:
        raise ValueError(
            f"model_fn returned shape {tuple(out.shape)} for a sample of shape {shape}; expected "
            "the same shape: cut off learned variances, or move the channels."
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(
            f"model_fn returned {described(out)}; return real floats, as the network predicts."
        )


def check_network(model_fn: ModelFn, dtype: DTypeLike | None) -> np.dtype | None:
    """Checks a network, and returns the dtype of its input as a NumPy dtype, or None."""
    if not callable(model_fn):
        raise ValueError(
            f"model_fn = {shown(model_fn)} is not callable; pass a function "
            "model_fn(params, x, timestep) or model_fn(params, x, timestep, cond)."
        )
    try:
        hash(model_fn)
    except TypeError:
        raise ValueError(
            f"model_fn = {shown(model_fn)} has no hash, by which programs are kept; pass a "
            "function that calls it, and its arrays as params."
        ) from None
    # The caller of kd.denoiser, of which this is a part.
    warn_of_captured(model_fn, stacklevel=3)
    if dtype is None:
        return None
    try:
        # NumPy would take an array for its dtype, and shows what is none in full.
        found = jnp.dtype(dtype) if isinstance(dtype, (str, type, np.dtype)) else None
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise ValueError(
            f"dtype = {shown(dtype) if found is None else found} is no floating dtype; pass one, "
            "or None."
        )
    return found


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
      ValueError: a model_fn that is not callable or has no hash, an unknown prediction type, a
        dtype that is no floating one. When it is called: a row that is no Row, a sample that is no
        array of floats, a leaf of params or cond that is neither an array nor a number; a network
        that returns something else than an array of floats of the sample's shape, or writes into
        its params: a module of flax NNX in train mode; a model_fn that takes other arguments.
      UserWarning: model_fn captures arrays, or objects that hold them, of more than 1 MB.

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
