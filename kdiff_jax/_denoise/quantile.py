"""A quantile of the numbers of each sample, without sorting them."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np


def quantile(values: jax.Array, ratio: jax.Array) -> jax.Array:
    """`jnp.quantile` of the numbers of each sample, which are not negative.

    The bits of floats that are not negative are ordered as the floats are, so bisection over them
    finds an order statistic exactly, in 31 counts (63 in float64). A sort costs 37 times as much
    on CPU at 786,432 numbers, and 20 to 85 samples of scratch on TPU.

    Args:
      values: [B, ...], float32 or float64.
      ratio: scalar in [0, 1] in the dtype of values.

    Returns:
      [B]; NaN for a sample that holds one. Its gradient is that of the numbers that it lies
      between; of equal ones, their mean.
    """
    axes = tuple(range(1, values.ndim))
    place = ratio * _last_place(math.prod(values.shape[1:]), values.dtype)
    below = jnp.floor(place)
    low, high = _neighbours(values, below.astype(jnp.int32))
    share = place - below
    rest, high = _mixed(share, low, high)
    return _nan_where(jnp.any(jnp.isnan(values), axes), low * rest + high * share)


# Compiled, so that no constant crosses to the device in a call outside of a program.
@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _last_place(count: int, dtype: np.dtype) -> jax.Array:
    return jnp.asarray(count, dtype) - 1


@functools.partial(jax.jit, inline=True)
def _mixed(share: jax.Array, low: jax.Array, high: jax.Array) -> tuple[jax.Array, jax.Array]:
    return 1 - share, jnp.where(share > 0, high, low)


@functools.partial(jax.jit, inline=True)
def _nan_where(mask: jax.Array, values: jax.Array) -> jax.Array:
    return jnp.where(mask, jnp.nan, values)


@jax.custom_jvp
@functools.partial(jax.jit, inline=True)
def _neighbours(values: jax.Array, rank: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The numbers of places `rank` and `rank + 1` of each sample, [B] each; of the last, twice."""
    axes = tuple(range(1, values.ndim))
    kind, count = (jnp.uint64, 63) if values.dtype == jnp.float64 else (jnp.uint32, 31)
    bits = jax.lax.bitcast_convert_type(values, kind)

    def narrowed(i: jax.Array, found: jax.Array) -> jax.Array:
        larger = found | (jnp.ones((), kind) << (count - 1 - i).astype(kind))
        smaller = jnp.sum(bits < larger, axes, jnp.int32, keepdims=True)
        return jnp.where(smaller <= rank, larger, found)

    # What a loop carries has to be sharded, and to vary, as the bits: the first count makes it so.
    first = narrowed(jnp.int32(0), jnp.zeros((), kind))
    low = jax.lax.fori_loop(1, count, narrowed, first)
    at_most = jnp.sum(bits <= low, axes, jnp.int32, keepdims=True)
    largest = jnp.asarray(jnp.iinfo(kind).max, kind)
    above = jnp.min(jnp.where(bits > low, bits, largest), axes, keepdims=True)
    high = jnp.where((at_most > rank + 1) | (above == largest), low, above)
    low, high = (jax.lax.bitcast_convert_type(at, values.dtype) for at in (low, high))
    return jnp.squeeze(low, axes), jnp.squeeze(high, axes)


@_neighbours.defjvp
def _neighbours_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    (values, rank), (change, _) = primals, tangents
    low, high = _neighbours(values, rank)

    def mean_at(at: jax.Array) -> jax.Array:
        here = values == jnp.expand_dims(at, axes)
        total = jnp.sum(jnp.where(here, change, jnp.zeros((), change.dtype)), axes)
        # A sample with a NaN may have nothing there.
        return total / jnp.maximum(jnp.sum(here, axes, jnp.int32), 1).astype(change.dtype)

    axes = tuple(range(1, values.ndim))
    return (low, high), (mean_at(low), mean_at(high))
