"""Prediction: the network's output as estimates of x0 and of the noise."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kdiff_jax._arrays import as_float, divided, is_traced, per_sample, rounded, state_dtype
from kdiff_jax._checks import as_numbers, check_number, held_by_jax, shown
from kdiff_jax._table.row import Row


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prediction:
    """Both halves of the network's output, `x = alpha * denoised + sigma * epsilon`.

    Attributes:
      denoised: [B, ...] the estimate of x0.
      epsilon: [B, ...] the estimate of eps, the noise in x.

    Example:
      >>> import jax.numpy as jnp, kdiff_jax as kd
      >>> def denoise(params, x, row, cond=None):  # such a function is a denoiser
      ...     return kd.Prediction(denoised=x / 2, epsilon=x / (2 * row.sigma))
      >>> schedule = kd.euler(kd.levels(kd.noise_schedule("scaled_linear"), 2))
      >>> kd.sample(denoise, None, schedule, jnp.full((1, 2), schedule[0].sigma)).shape
      (1, 2)
    """

    denoised: jax.Array
    epsilon: jax.Array

    def __repr__(self) -> str:
        return f"Prediction(denoised {brief(self.denoised)}, epsilon {brief(self.epsilon)})"


class Denoise(Protocol):
    """What `kd.denoiser` and its wrappers make, and any function of the same signature.

    The wrappers are dataclasses with `eq=False`: `jax.jit(denoise)` hashes them, and arrays have no
    hash.
    """

    def __call__(self, params: Any, x: jax.Array, row: Row, cond: Any = None, /) -> Prediction: ...


def units(row: Row, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """alpha, sigma and input_scale of a row in the dtype and rank of x; 1 where there is none."""

    def or_one(name: str) -> jax.Array:
        leaf = getattr(row, name)
        return jnp.ones((), x.dtype) if leaf is None else per_sample(leaf, x, f"row.{name}: ")

    return or_one("alpha"), or_one("sigma"), or_one("input_scale")


def epsilon_of(denoised: jax.Array, x: jax.Array, row: Row) -> jax.Array:
    """The epsilon that belongs to an estimate of x0: `(x - alpha * D) / sigma`."""
    alpha, sigma, _ = units(row, x)
    return divided(x - alpha * denoised, sigma)


def layers_of(denoise: Any) -> Iterator[Any]:
    """A denoiser and those inside it, from the outermost wrapper to the network's own."""
    yield denoise
    while hasattr(denoise, "denoise"):
        denoise = denoise.denoise
        yield denoise


def prediction_type_of(denoise: object) -> str | None:
    """The prediction type of the network under the wrappers; None for a caller's own denoiser."""
    *_, innermost = layers_of(denoise)
    return getattr(innermost, "prediction_type", None)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def one_of(dtype: np.dtype) -> jax.Array:
    """The constant 1, out of a program: outside of one it would cross to the device each time."""
    return jnp.ones((), dtype)


def check_call(x: Any, row: Any) -> jax.Array:
    """The sample that a denoiser is called with, as an array; refused if x or row is none."""
    if not isinstance(row, Row):
        raise ValueError(
            f"row = {shown(row)} is no Row; pass one row of a schedule: schedule[i], or what a "
            "loop over a schedule or a scan over schedule.rows gives."
        )
    for name in ("step", "sigma", "timestep", "alpha", "input_scale"):
        value = getattr(row, name)
        # A key is a JAX array too, of a dtype that is none of NumPy's.
        known = isinstance(value, jax.Array) and isinstance(value.dtype, np.dtype)
        known = known and value.dtype.kind in "iufV"  # V: bfloat16
        if not known and not (value is None and name in ("alpha", "input_scale")):
            held_by_jax(f"row.{name}", value if np.isscalar(value) else _host_array(value))
    if not isinstance(x, jax.Array):
        x = jnp.asarray(held_by_jax("x", x))
    if x.ndim < 1 or not x.size:
        raise ValueError(
            f"the sample is a scalar or empty, of shape {x.shape}; expected [B, ...], the batch "
            "axis first."
        )
    state_dtype(x)
    return x


def _host_array(value: Any) -> Any:
    """A row's leaf of NumPy as it is; the type of anything else, which is no number."""
    plain = type(value) is np.ndarray and value.size
    return value if plain else type(value)


def predicted(denoise: Denoise, params: Any, x: jax.Array, row: Row, cond: Any) -> Prediction:
    """What the denoiser inside a wrapper returns, which is refused if it is no Prediction."""
    prediction = denoise(params, x, row, cond)
    if not isinstance(prediction, Prediction):
        raise ValueError(
            f"the denoiser {brief(denoise)} returned {described(prediction)}; expected a "
            "kd.Prediction. Wrap a network in kd.denoiser(model_fn)."
        )
    return prediction


def described(value: Any) -> str:
    """What a function returned, for a message: the shapes of arrays, the names in containers."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, dict):
        return f"a dict of {shown([*value])}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {shown([described(part) for part in value])}"
    if value is None or isinstance(value, (bool, int, float, complex, str)):
        return shown(value)
    return f"a {type(value).__name__}"


def as_denoise(denoise: Any, name: str = "denoise") -> Any:
    """The denoiser of a wrapper as a pytree; refused if nothing can call it."""
    if not callable(denoise):
        raise ValueError(
            f"{name} = {shown(denoise)} is not callable; pass a denoiser: kd.denoiser(model_fn), "
            "or a function denoise(params, x, row, cond=None) -> kd.Prediction."
        )
    return as_pytree(denoise)


def as_pytree(function: Callable[..., Any]) -> Any:
    """A caller's own callable becomes a pytree without leaves, to cross a jit boundary."""
    known = not jax.tree_util.all_leaves([function])
    return function if known else jax.tree_util.Partial(function)


def as_leaf(name: str, value: ArrayLike, *, square: bool = False, **bounds: float) -> jax.Array:
    """An option of a wrapper as its leaf: finite numbers within their bounds, see check_number.

    What `square` says is squared: neither it nor its square may leave float32.
    """
    if is_traced(value):
        return as_float(value)
    numbers = as_numbers(name, value)
    for number in np.ravel(numbers):
        check_number(name, number.item(), **bounds)
    # As it is rounded: float32 has no 1e39, and 1e-46 is 0 in it.
    size = np.abs(rounded(numbers))
    low, high = (1e-15, 1e15) if square else (0.0, np.inf)
    if (
        numbers.size == 0
        or numbers.ndim > 1
        or np.any((size >= high) | ((numbers != 0) & (size <= low)))
    ):
        raise ValueError(
            f"{name} = {shown(value)} is empty, of rank 2, or leaves what float32 holds; pass one "
            "number, or one a sample, [B]."
        )
    return as_float(value)


def brief(value: object) -> str:
    """A function by its name, a number by its value, an array by its shape; for a short repr."""
    if isinstance(value, functools.partial):
        return brief(value.func)
    if isinstance(value, jax.Array):
        scalar = value.ndim == 0 and not is_traced(value)
        return str(np.asarray(value)) if scalar else f"{value.dtype}{list(value.shape)}"
    text = str(getattr(value, "__name__", repr(value)))
    # A denoiser in many wrappers still prints in two lines.
    return text if len(text) <= 120 else f"{type(value).__name__}(...)"
