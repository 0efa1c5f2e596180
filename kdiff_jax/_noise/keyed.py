"""Noise drawn from keys: the initial sample and the z of a row; and clean data with noise added.

The noise of a sample depends on its own key and on what is folded into it: the domain, then the
index of the row, then, where a row has one index a frame, the frame.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdiff_jax._arrays import along, on_own_mesh, per_sample, state_dtype
from kdiff_jax._checks import check_batch, check_int, shown
from kdiff_jax._denoise.prediction import units
from kdiff_jax._levels.training import warn_of_pixels
from kdiff_jax._noise import threefry
from kdiff_jax._table.check import check_row, check_schedule
from kdiff_jax._table.row import Row
from kdiff_jax._table.schedule import Schedule

# `split(key, n)[i] == fold_in(key, i)`: without a domain of its own, the initial noise of sample
# 3 would be the step noise of row 3.
INITIAL_DOMAIN = 0x696E6974
STEP_DOMAIN = 0x73746570
_MOST_NUMBERS = 2**40


def initial_sample(schedule: Schedule, key: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Pure noise at the first row's level: `init_noise_sigma * z`.

    Args:
      schedule: the run that begins there; of a stack each sample begins its own.
      key: one key, or [B] keys, one a sample; one key means `vmap(fold_in)(key, arange(B))`.
      shape: (B, ...), the batch axis first.

    Returns:
      [B, ...] float32 (float64 under x64, its noise drawn in float32).

    Raises:
      ValueError: a schedule that is none; a key that is no key, of another number than B, or of an
        implementation whose noise depends on the neighbours; a shape without a batch axis.

    Example:
      >>> import jax, kdiff_jax as kd
      >>> schedule = kd.dpm2(kd.levels(kd.noise_schedule("scaled_linear"), 25))
      >>> kd.initial_sample(schedule, jax.random.key(0), (4, 8, 8, 1)).shape
      (4, 8, 8, 1)

    Source: `init_noise_sigma` of diffusers' schedulers.
    """
    check_schedule(schedule)
    shape = check_shape(shape)
    return _initial(schedule.init_noise_sigma, sample_keys(key, shape[0]), shape)


# Compiled, so that the number of the domain is no transfer.
@functools.partial(jax.jit, static_argnums=2)
def _initial(init_noise_sigma: jax.Array, keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    noise = draw(keys, INITIAL_DOMAIN, jnp.int32(0), shape)
    # Kept apart from the sqrt(2) inside a normal number: where init_noise_sigma is a constant of
    # the program, XLA would multiply the two first, and round another way.
    noise = jax.lax.optimization_barrier(noise.astype(init_noise_sigma.dtype))
    return per_sample(init_noise_sigma, noise) * noise


def row_noise(key: jax.Array, row: Row, shape: Sequence[int]) -> jax.Array:
    """The noise z that `step` and `sample` draw for a row.

    It depends on the sample's key and `row.index` alone: not on the batch, its order, its
    sharding, or where the run was resumed. A row with an index for each frame, [B, F], has the
    noise of frame f from the key, the index at (b, f) and f.

    Args:
      key: one key, or [B] keys, one a sample; one key means `vmap(fold_in)(key, arange(B))`.
      row: a row; its index is a scalar, [B] or [B, F].
      shape: (B, ...), the shape of the sample.

    Returns:
      [B, ...] float32 unit Gaussian noise.

    Raises:
      ValueError: as for `initial_sample`; an index whose shape does not begin that of the sample.

    Example:
      >>> import jax, kdiff_jax as kd
      >>> schedule = kd.lcm(kd.lcm_levels(kd.noise_schedule("scaled_linear"), 4))
      >>> kd.row_noise(jax.random.key(0), schedule[0], (2, 8)).shape
      (2, 8)
    """
    check_row(row)
    shape = check_shape(shape)
    return draw(sample_keys(key, shape[0]), STEP_DOMAIN, jnp.asarray(row.index), shape)


def add_noise(row: Row, x0: jax.Array, eps: jax.Array) -> jax.Array:
    """Clean data brought to the noise level of a row: `alpha * x0 + sigma * eps`.

    Args:
      row: where the run is to begin, usually `schedule[0]`; leaves scalar, [B] or [B, F].
      x0: [B, ...] clean samples; a NumPy array of pixels in [0, 255] warns.
      eps: the shape of x0, unit Gaussian noise.

    Returns:
      [B, ...] float32 (float64 where x0 is).

    Raises:
      ValueError: shapes that differ, samples that are not of a floating dtype.

    Example:
      >>> import jax, jax.numpy as jnp, kdiff_jax as kd
      >>> levels = kd.levels(kd.noise_schedule("scaled_linear"), 25)
      >>> schedule = kd.dpm2(levels.start_at(10))
      >>> eps = jax.random.normal(jax.random.key(0), (2, 8))
      >>> kd.add_noise(schedule[0], jnp.zeros((2, 8)), eps).shape
      (2, 8)

    Source: `add_noise` of diffusers' KDPM2DiscreteScheduler and LCMScheduler.
    """
    check_row(row)
    warn_of_pixels("x0", x0, stacklevel=3)
    x0, eps = check_batch("x0", x0), check_batch("eps", eps)
    if x0.shape != eps.shape:
        raise ValueError(f"x0 {x0.shape} and eps {eps.shape} differ; expected [B, ...] both.")
    x0 = x0.astype(state_dtype(x0))
    alpha, sigma, _ = units(row, x0)
    return alpha * x0 + sigma * eps.astype(x0.dtype)


def add_row_noise(x: jax.Array, row: Row, keys: jax.Array) -> jax.Array:
    """`x + noise_weight * z`, with the z of every sample's row; x where the row has no column."""
    if row.noise_weight is None:
        return x
    weight, index = per_sample(row.noise_weight, x), jnp.asarray(row.index)
    draws = weight != 0

    def noisy(x: jax.Array) -> jax.Array:
        return x + weight * draw(keys, STEP_DOMAIN, index, x.shape).astype(x.dtype)

    def drawn_where_needed(x: jax.Array) -> jax.Array:
        # z is added where it is made, and never written down.
        return jax.lax.cond(draws, noisy, lambda x: x, x)

    if weight.ndim:
        return noisy(x)
    # Random bits are most of the cost of a stochastic run on CPU; half its rows need none.
    if index.ndim > 1 or not threefry.is_written_out(keys, x.shape[1:]):
        return drawn_where_needed(x)
    data = jnp.uint32(STEP_DOMAIN), index
    in_two = functools.partial(threefry.add_in_two, draws, weight, keys, data)
    return jax.lax.platform_dependent(x, cpu=in_two, default=drawn_where_needed)


# Compiled, for those who step by hand: one program for every row.
@functools.partial(jax.jit, static_argnums=(1, 3))
@on_own_mesh
def draw(keys: jax.Array, domain: int, index: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[B, ...] float32 unit Gaussian noise of [B] keys, for an index scalar, [B] or [B, F]."""
    if index.shape != shape[: index.ndim]:
        raise ValueError(
            f"an index of shape {index.shape} met a sample of shape {shape}; give one index, or "
            "one a sample, [B], or one a frame, [B, F]."
        )
    keys, index = _sharded_alike(keys, index)
    if index.ndim < 2:
        return normal(keys, (jnp.uint32(domain), index), shape[1:])

    def of_frames(key: jax.Array, index: jax.Array) -> jax.Array:
        frames = jnp.arange(len(index))
        each = jnp.broadcast_to(key, frames.shape)
        return normal(each, (jnp.uint32(domain), index, frames), shape[2:])

    return jax.vmap(of_frames)(keys, index)


def _sharded_alike(keys: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both as they are; under a mesh of explicit axes sharded alike, or vmap refuses them."""
    if not index.ndim:
        return keys, index
    words, index = jax.random.key_data(keys), index.astype(jnp.uint32)
    # A sum is sharded as either of its terms, and a sum with 0 costs nothing.
    index += along(jnp.zeros_like(words[:, 0]), index)
    words += along(jnp.zeros_like(index[(slice(None), *[0] * (index.ndim - 1))]), words)
    return jax.random.wrap_key_data(words, impl=jax.random.key_impl(keys)), index


@functools.partial(jax.jit, static_argnums=2)
def normal(keys: jax.Array, data: tuple[jax.Array, ...], shape: tuple[int, ...]) -> jax.Array:
    """`jax.random.normal` of every key, after `fold_in` of every item of `data` in turn.

    Args:
      keys: [B] typed keys.
      data: integers to fold into the keys, each scalar or [B].
      shape: what to draw for a key.

    Returns:
      [B, *shape] float32.
    """
    if threefry.is_written_out(keys, shape):
        return threefry.normal(keys, data, shape)
    for item in data:
        item = item.astype(jnp.uint32)
        keys = jax.vmap(jax.random.fold_in, (0, 0 if item.ndim else None))(keys, item)
    # float32 always: jax.random.normal has 128 distinct values in bfloat16.
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def sample_keys(key: Any, batch: int) -> jax.Array:
    """[B] typed keys from one key, [B] keys, or the same as legacy uint32 arrays."""
    if not isinstance(key, (jax.Array, np.ndarray)):
        instead = "jax.random.key(seed) or [B] of them"
        if isinstance(key, (list, tuple)):
            instead = "one array of them: jnp.stack(keys)"
        raise ValueError(f"key = {shown(key)} is no PRNG key; pass {instead}.")
    if isinstance(key, jax.Array) and str(key.dtype) == "key<fry>" and key.shape == (batch,):
        return key  # the questions below take as long as a row of a small sample
    if not jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.dtype != jnp.uint32 or key.ndim not in (1, 2):
            raise ValueError(
                f"key is {key.dtype}{key.shape}, no PRNG key; pass jax.random.key(seed), or [B] "
                "of them from jax.random.split."
            )
        try:
            key = jax.random.wrap_key_data(jnp.asarray(key))
        except TypeError:
            raise ValueError(
                f"key is uint32{key.shape}, which is no key of JAX's default implementation; "
                "pass jax.random.key(seed, impl='threefry2x32')."
            ) from None
    if "rbg" in str(jax.random.key_impl(key)):
        raise ValueError(
            f"key is of the implementation {jax.random.key_impl(key)!r}, whose noise under vmap "
            "depends on the other samples of the batch; pass jax.random.key(seed, "
            "impl='threefry2x32')."
        )
    if key.ndim == 0:
        return _key_of_each_sample(key, batch)
    if key.shape != (batch,):
        raise ValueError(
            f"key holds {key.shape} keys for {batch} samples; pass one key, or [{batch}] keys."
        )
    return key


@functools.partial(jax.jit, static_argnums=1)
def _key_of_each_sample(key: jax.Array, batch: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))


def check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """A sample's shape as a tuple of integers; it has a batch axis."""
    if not isinstance(shape, (tuple, list, np.ndarray)) or getattr(shape, "ndim", 1) < 1:
        raise ValueError(f"shape = {shown(shape)}; expected (B, ...): pass a tuple of integers.")
    shape = tuple(check_int("shape", size, 0, _MOST_NUMBERS) for size in shape)
    if not shape:
        raise ValueError("shape is empty; expected (B, ...), the batch axis first.")
    if math.prod(shape) > _MOST_NUMBERS:
        raise ValueError(f"shape = {shape} holds more numbers than any memory; pass a smaller one.")
    return shape
