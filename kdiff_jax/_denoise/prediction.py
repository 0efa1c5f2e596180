"""Prediction: the network's output as estimates of x0 and of the noise."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kdiff_jax._arrays import as_float, divided, is_traced, per_sample
from kdiff_jax._checks import as_numbers, check_number
from kdiff_jax._table.row import Row


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prediction:
    """Both halves of the network's output, `x = alpha * denoised + sigma * epsilon`.

    Attributes:
      denoised: [B, ...] the estimate of x0.
      epsilon: [B, ...] the estimate of eps, the noise in x.
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

    def or_one(leaf: jax.Array | None) -> jax.Array:
        return jnp.ones((), x.dtype) if leaf is None else per_sample(leaf, x)

    return or_one(row.alpha), per_sample(row.sigma, x), or_one(row.input_scale)


def epsilon_of(denoised: jax.Array, x: jax.Array, row: Row) -> jax.Array:
    """The epsilon that belongs to an estimate of x0: `(x - alpha * D) / sigma`."""
    alpha, sigma, _ = units(row, x)
    return divided(x - alpha * denoised, sigma)


def prediction_type_of(denoise: object) -> str | None:
    """The prediction type of the network under the wrappers; None for a caller's own denoiser."""
    while hasattr(denoise, "denoise"):
        denoise = denoise.denoise
    return getattr(denoise, "prediction_type", None)


def as_pytree(function: Callable[..., Any]) -> Any:
    """A caller's own callable becomes a pytree without leaves, to cross a jit boundary."""
    known = not jax.tree_util.all_leaves([function])
    return function if known else jax.tree_util.Partial(function)


def as_leaf(name: str, value: ArrayLike, **bounds: float) -> jax.Array:
    """An option of a wrapper as its leaf: finite numbers within their bounds, see check_number."""
    if not is_traced(value):
        dtype = jax.dtypes.canonicalize_dtype(np.float64)
        several = isinstance(value, (list, tuple, np.ndarray, jax.Array))
        for number in as_numbers(name, jax.device_get(value)).flat if several else [value]:
            if abs(check_number(name, number, **bounds)) > float(np.finfo(dtype).max):
                raise ValueError(f"{name} = {number} is more than {dtype} holds; pass less.")
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
