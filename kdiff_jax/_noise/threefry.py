"""A faster program for the random numbers of `jax.random`, and nothing else.

JAX lowers threefry on CPU to a loop of rounds, each of which reads and writes the whole array. Here
its twenty rounds are written out, so that XLA makes one loop over the elements from the counter to
the normal number. On other platforms JAX writes them out too, and the same program serves them all:
what it gains there is in docs/tpu.md.

Promised is: the same uint32 bits as `jax.random`, and normal numbers within 3 units in the last
place of its own. `is_written_out` is the only switch: where it returns False, `jax.random` draws
everything, and no result changes by more than that.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011): Threefry-2x32-20;
the counters and the way from bits to normal numbers are those of `jax.random`.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


def is_written_out(keys: jax.Array, shape: tuple[int, ...]) -> bool:
    """Whether the counters of `jax.random` are known here for these keys; decided when traced."""
    return (
        jax.random.key_impl(keys) == "threefry2x32"
        and jax.config.values["jax_threefry_partitionable"]
        and all(isinstance(size, int) for size in shape)  # else symbolic, in an export
        and 0 < math.prod(shape) < 2**32  # beyond, the upper half of the counter is not 0
    )


def normal(keys: jax.Array, data: tuple[jax.Array, ...], shape: tuple[int, ...]) -> jax.Array:
    """[B, *shape] float32, `vmap(jax.random.normal)` after `fold_in` of every item of `data`."""
    return normal_of(random_bits(keys, data, shape))


def add_in_two(
    draws: jax.Array,
    weight: jax.Array,
    keys: jax.Array,
    data: tuple[jax.Array, ...],
    x: jax.Array,
) -> jax.Array:
    """`x + weight * z` where `draws`, else x; the bits of z under a condition of their own.

    Under one condition XLA fuses bits and sum into one loop, a chain so long that a core cannot
    overlap its passes. Two conditions take two thirds of the time, for one sample of scratch.
    """

    def no_bits() -> jax.Array:
        # Of x and not of its shape alone: under a mesh of explicit axes it carries the sharding.
        return jnp.zeros_like(x, jnp.uint32)

    def bits() -> jax.Array:
        return no_bits() | random_bits(keys, data, x.shape[1:])

    def noisy(x: jax.Array) -> jax.Array:
        return x + weight * normal_of(drawn).astype(x.dtype)

    drawn = jax.lax.cond(draws, bits, no_bits)
    return jax.lax.cond(draws, noisy, lambda x: x, x)


def random_bits(keys: jax.Array, data: tuple[jax.Array, ...], shape: tuple[int, ...]) -> jax.Array:
    """[B, *shape] uint32, `vmap(jax.random.bits)` after `fold_in` of every item of `data`."""
    words = jax.random.key_data(keys)
    key = words[:, 0], words[:, 1]
    for place, item in enumerate(data):
        if place > 1:
            # JAX 0.12 makes one loop of them all on CPU, and takes minutes to compile it.
            key = jax.lax.optimization_barrier(key)
        key = _threefry(key, item.astype(jnp.uint32))
    if len(data) > 2 and math.prod(shape) == 1:
        # And of the numbers too, where a key draws one.
        key = jax.lax.optimization_barrier(key)
    per_key = keys.shape + (1,) * len(shape)
    high, low = _threefry((key[0].reshape(per_key), key[1].reshape(per_key)), _positions(shape))
    return high ^ low


def normal_of(bits: jax.Array) -> jax.Array:
    """The float32 normal numbers that `jax.random.normal` makes of uint32 bits."""
    # 23 random bits under the exponent of 1 are uniform in [1, 2); then in (-1, 1).
    unit = jax.lax.bitcast_convert_type(bits >> np.uint32(9) | np.uint32(0x3F800000), jnp.float32)
    lowest = np.nextafter(np.float32(-1), np.float32(0))
    uniform = jnp.maximum(lowest, (unit - np.float32(1)) * (np.float32(1) - lowest) + lowest)
    return np.float32(np.sqrt(2)) * jax.lax.erf_inv(uniform)


def _positions(shape: tuple[int, ...]) -> jax.Array:
    """[1, *shape] uint32: the place of each number in its sample."""
    # Not a reshaped iota: XLA could not partition that along the axes of the sample.
    place = jnp.zeros((1, *shape), jnp.uint32)
    for axis in range(len(shape)):
        stride = np.uint32(math.prod(shape[axis + 1 :]))
        place += stride * jax.lax.broadcasted_iota(jnp.uint32, (1, *shape), axis + 1)
    return place


def _threefry(key: tuple[jax.Array, jax.Array], low: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32 of the counter (0, low)."""
    parts = (*key, key[0] ^ key[1] ^ _PARITY)
    x0, x1 = jnp.zeros_like(low) + parts[0], low + parts[1]
    for group in range(5):
        for bits in _ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = (x1 << np.uint32(bits)) | (x1 >> np.uint32(32 - bits))
            x1 = x0 ^ x1
        x0 = x0 + parts[(group + 1) % 3]
        x1 = x1 + (parts[(group + 2) % 3] + np.uint32(group + 1))
    return x0, x1
