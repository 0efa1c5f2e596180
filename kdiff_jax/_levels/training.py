"""Clean data and noise for training: what every kind of noise levels asks of them."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdiff_jax._arrays import is_traced, state_dtype
from kdiff_jax._checks import as_array, check_batch, check_within


def clean_and_noise(x0: Any, eps: Any) -> tuple[jax.Array, jax.Array]:
    """x0 and eps as arrays of one floating dtype; their shapes are not compared."""
    warn_of_pixels("x0", x0)
    x0, eps = (
        check_batch(name, value) if isinstance(value, np.ndarray) else as_array(name, value)
        for name, value in (("x0", x0), ("eps", eps))
    )
    for name, array in (("x0", x0), ("eps", eps)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name} is {array.dtype}; expected a real floating dtype: cast it.")
    dtype = state_dtype(x0)
    return x0.astype(dtype), eps.astype(dtype)


def flow_timesteps(timesteps: Any, last: int, x0: jax.Array) -> jax.Array:
    """Timesteps in [0, last], whole or fractional, one a sample, in the dtype of x0."""
    check_within("timesteps", timesteps, 0, last, "the timesteps of this flow")
    array = as_array("timesteps", timesteps).astype(x0.dtype)
    if array.shape != x0.shape[:1]:
        raise ValueError(
            f"timesteps {array.shape} do not fit x0 {x0.shape}; expected [B], one a sample."
        )
    return array


def inside_or_nan(timesteps: jax.Array, last: int, values: jax.Array) -> jax.Array:
    """Values of timesteps in [0, last]; NaN for traced ones outside, which cannot be refused."""
    if not is_traced(timesteps):
        return values
    return jnp.where((timesteps >= 0) & (timesteps <= last), values, np.nan)


def warn_of_pixels(name: str, x0: Any, stacklevel: int = 5) -> None:
    """Warns of an image in [0, 255] on the host, where looking at it costs no transfer."""
    array = x0 if isinstance(x0, np.ndarray) else np.zeros(0)
    if array.size and array.dtype.kind == "f" and array.min() >= 0 and array.max() > 100:
        warnings.warn(
            f"{name} spans [{array.min():g}, {array.max():g}], like the pixels of an image; "
            f"networks are trained on [-1, 1]: pass {name} / 127.5 - 1.",
            stacklevel=stacklevel,
        )


def warn_above_training(level: float, highest: float) -> None:
    """Warns of a level to visit that is far above all of training."""
    if level > 4 * highest:
        warnings.warn(
            f"the noise level {level:.6g} is far above {highest:.6g}, the highest of training, and "
            "the network receives the last timestep there; lower it.",
            stacklevel=5,
        )
