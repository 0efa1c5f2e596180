"""Clean data and noise for training: what every kind of noise levels asks of them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdiff_jax._arrays import is_traced, state_dtype
from kdiff_jax._checks import check_array, warn_of_pixels


def clean_and_noise(x0: Any, eps: Any) -> tuple[jax.Array, jax.Array]:
    """x0 and eps as arrays of one floating dtype; their shapes are not compared."""
    warn_of_pixels("x0", x0)
    x0, eps = check_array("x0", x0), check_array("eps", eps)
    for name, array in (("x0", x0), ("eps", eps)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name} is {array.dtype}; expected a real floating dtype: cast it.")
    dtype = state_dtype(x0)
    return x0.astype(dtype), eps.astype(dtype)


def inside_or_nan(timesteps: jax.Array, last: int, values: jax.Array) -> jax.Array:
    """Values of timesteps in [0, last]; NaN for traced ones outside, which cannot be refused."""
    if not is_traced(timesteps):
        return values
    return jnp.where((timesteps >= 0) & (timesteps <= last), values, np.nan)
