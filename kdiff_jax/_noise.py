"""Noise: the initial sample, the z of a row, clean data brought to a level; and its keys."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdiff_jax._checks import check_int
from kdiff_jax._denoise import column, per_sample
from kdiff_jax._noise_schedule import state_dtype
from kdiff_jax._random import is_written_out, normal, normal_of, random_bits
from kdiff_jax._schedule import Row, Schedule

# `split(key, n)[i] == fold_in(key, i)`: without a domain of its own, the initial noise of sample
# 3 would be the step noise of row 3.
_INITIAL_DOMAIN = 0x696E6974
_STEP_DOMAIN = 0x73746570

# noise_fn(key, row, shape) -> [B, ...]
NoiseFn = Callable[[Any, Row, tuple[int, ...]], jax.Array]


def initial_sample(schedule: Schedule, key: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Pure noise at the first row's level: `init_noise_sigma * z`.

    Args:
      schedule: the run that begins there; of a stack each sample begins its own.
      key: one key, or [B] keys, one a sample; one key means `vmap(fold_in)(key, arange(B))`.
      shape: (B, ...), the batch axis first.

    Returns:
      [B, ...] float32 (float64 under x64, its noise drawn in float32).

    Raises:
      ValueError: a key that is no key, of another number than B, or of an implementation whose
        noise depends on the neighbours; a shape without a batch axis.

    Example:
      >>> import jax, kdiff_jax as kd
      >>> schedule = kd.dpm2_schedule(kd.noise_schedule("scaled_linear"), 25)
      >>> kd.initial_sample(schedule, jax.random.key(0), (4, 8, 8, 1)).shape
      (4, 8, 8, 1)

    Source: `init_noise_sigma` of diffusers' schedulers.
    """
    shape = check_shape(shape)
    noise = _draw(sample_keys(key, shape[0]), jnp.int32(0), shape, _INITIAL_DOMAIN)
    # Kept apart from the sqrt(2) inside a normal number: where init_noise_sigma is a constant of
    # the program, XLA would multiply the two first, and round another way.
    noise = jax.lax.optimization_barrier(noise.astype(schedule.init_noise_sigma.dtype))
    return per_sample(schedule.init_noise_sigma, noise) * noise


def row_noise(key: jax.Array, row: Row, shape: Sequence[int]) -> jax.Array:
    """The noise z that `step` and `sample` draw for a row.

    It depends on the sample's key and `row.index` alone: not on the batch, its order, its
    sharding, or where the run was resumed.

    Args:
      key: one key, or [B] keys, one a sample; one key means `vmap(fold_in)(key, arange(B))`.
      row: a row, leaves scalar or [B].
      shape: (B, ...), the shape of the sample.

    Returns:
      [B, ...] float32 unit Gaussian noise.

    Raises:
      ValueError: as for `initial_sample`.

    Example:
      >>> import jax, kdiff_jax as kd
      >>> schedule = kd.lcm_schedule(kd.noise_schedule("scaled_linear"), 4)
      >>> kd.row_noise(jax.random.key(0), schedule[0], (2, 8)).shape
      (2, 8)
    """
    shape = check_shape(shape)
    return _draw(sample_keys(key, shape[0]), jnp.asarray(row.index), shape, _STEP_DOMAIN)


def add_noise(row: Row, x0: jax.Array, eps: jax.Array) -> jax.Array:
    """Clean data brought to the noise level of a row: `alpha * x0 + sigma * eps`.

    Args:
      row: where the run is to begin, usually `schedule[0]`; leaves scalar or [B].
      x0: [B, ...] clean samples.
      eps: the shape of x0, unit Gaussian noise.

    Returns:
      [B, ...] float32 (float64 where x0 is).

    Raises:
      ValueError: shapes that differ, samples that are not of a floating dtype.

    Example:
      >>> import jax, jax.numpy as jnp, kdiff_jax as kd
      >>> schedule = kd.dpm2_schedule(kd.noise_schedule("scaled_linear"), 25).start_at(10)
      >>> eps = jax.random.normal(jax.random.key(0), (2, 8))
      >>> kd.add_noise(schedule[0], jnp.zeros((2, 8)), eps).shape
      (2, 8)

    Source: `add_noise` of diffusers' KDPM2DiscreteScheduler and LCMScheduler.
    """
    x0, eps = jnp.asarray(x0), jnp.asarray(eps)
    if x0.ndim < 1 or x0.shape != eps.shape:
        raise ValueError(f"x0 {x0.shape} and eps {eps.shape} differ; expected [B, ...] both.")
    x0 = x0.astype(state_dtype(x0))
    return per_sample(row.alpha, x0) * x0 + per_sample(row.sigma, x0) * eps.astype(x0.dtype)


def add_row_noise(x: jax.Array, row: Row, keys: jax.Array) -> jax.Array:
    """`x + noise_weight * z`, with the z of every sample's row."""
    draws, weight = row.noise_weight != 0, per_sample(row.noise_weight, x)
    data, shape = (jnp.uint32(_STEP_DOMAIN), jnp.asarray(row.index)), x.shape[1:]

    def noisy(x: jax.Array) -> jax.Array:
        return x + weight * normal(keys, data, shape).astype(x.dtype)

    def at_once(x: jax.Array) -> jax.Array:
        # z is added where it is made, and never written down.
        return jax.lax.cond(draws, noisy, lambda x: x, x)

    def in_two(x: jax.Array) -> jax.Array:
        # XLA fuses all of `noisy` into one loop, a chain so long that a core cannot overlap its
        # passes. Bits and sum, each in a condition of its own, take two thirds of the time, for
        # one sample of scratch.
        bits = jax.lax.cond(
            draws,
            lambda: random_bits(keys, data, shape),
            lambda: jnp.zeros(x.shape, jnp.uint32),
        )
        return jax.lax.cond(
            draws, lambda x: x + weight * normal_of(bits).astype(x.dtype), lambda x: x, x
        )

    # Random bits are most of the cost of a stochastic run on CPU; half its rows need none.
    if jnp.ndim(row.noise_weight):
        return noisy(x)
    if not is_written_out(keys, shape):
        return at_once(x)
    return jax.lax.platform_dependent(x, cpu=in_two, default=at_once)


def add_noise_of(noise_fn: NoiseFn, x: jax.Array, row: Row, keys: Any) -> jax.Array:
    """`x + noise_weight * z`, with the z that a caller's own function gives."""

    def noisy(x: jax.Array) -> jax.Array:
        z = jnp.asarray(noise_fn(keys, row, x.shape))
        if z.shape != x.shape or not jnp.issubdtype(z.dtype, jnp.floating):
            raise ValueError(
                f"noise_fn returned {z.dtype}{list(z.shape)} for a sample of {x.dtype}"
                f"{list(x.shape)}; return unit Gaussian noise of the sample's shape."
            )
        return x + per_sample(row.noise_weight, x) * z.astype(x.dtype)

    if jnp.ndim(row.noise_weight):
        # It is called for samples too whose row draws none, and may have none to give.
        return jnp.where(column(row.noise_weight, x) != 0, noisy(x), x)
    return jax.lax.cond(row.noise_weight != 0, noisy, lambda x: x, x)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GivenNoise:
    """Made by `kd.given_noise`."""

    noise: Any

    def __call__(self, key: Any, row: Row, shape: Sequence[int]) -> jax.Array:
        del key
        if self.noise.shape[1:] != tuple(shape):
            raise ValueError(
                f"noise has shape {self.noise.shape} and the sample {tuple(shape)}; give "
                "[N, B, ...], the sample's shape for every outer step."
            )
        samples = (jnp.arange(shape[0]),) if jnp.ndim(row.step) else ()
        return self.noise.at[(row.step, *samples)].get(mode="fill", fill_value=jnp.nan)


def given_noise(noise: jax.Array) -> GivenNoise:
    """A `noise_fn` for `kd.sample` that hands out an array: `z = noise[row.step]`.

    Args:
      noise: [N, B, ...] unit Gaussian noise, one entry for each outer step of the whole run: what
        a run cut by `start_at` leaves out is not read. The last step draws none, so N - 1
        entries do. In a stack each sample reads the entries of its own steps.

    Returns:
      A pytree, called as `noise_fn(key, row, shape)`; the key may be None. A step past the end
      of the array gives NaN, not the noise of another step.

    Raises:
      ValueError: an array without a step and a batch axis, or not of a floating dtype; when it is
        used, one of another shape than the samples.

    Example:
      >>> import jax, jax.numpy as jnp, kdiff_jax as kd
      >>> schedule = kd.lcm_schedule(kd.noise_schedule("scaled_linear"), 4)
      >>> denoise = kd.denoiser(lambda params, x, timestep: params * x)
      >>> x, *noise = jax.random.normal(jax.random.key(0), (4, 2, 8))
      >>> noise_fn = kd.given_noise(jnp.stack(noise))
      >>> kd.sample(denoise, jnp.float32(0.1), schedule, x, noise_fn=noise_fn).shape
      (2, 8)

    Source: the `noise_sampler` arguments of k-diffusion's samplers.
    """
    noise = jnp.asarray(noise)
    if noise.ndim < 2:
        raise ValueError(f"noise has shape {noise.shape}; pass [N, B, ...], one z a step.")
    return GivenNoise(noise.astype(state_dtype(noise)))


def _draw(keys: jax.Array, index: jax.Array, shape: tuple[int, ...], domain: int) -> jax.Array:
    # float32 always: jax.random.normal has 128 distinct values in bfloat16.
    return normal(keys, (jnp.uint32(domain), index), shape[1:])


def sample_keys(key: Any, batch: int) -> jax.Array:
    """[B] typed keys from one key, [B] keys, or the same as legacy uint32 arrays."""
    if not isinstance(key, (jax.Array, np.ndarray)):
        raise ValueError(f"key = {key!r} is no PRNG key; pass jax.random.key(seed) or [B] of them.")
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
        return _fold(key, batch)
    if key.shape != (batch,):
        raise ValueError(
            f"key holds {key.shape} keys for {batch} samples; pass one key, or [{batch}] keys."
        )
    return key


@functools.partial(jax.jit, static_argnums=1)
def _fold(key: jax.Array, batch: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))


def check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    shape = tuple(check_int("shape", size, 0) for size in shape)
    if not shape:
        raise ValueError("shape is empty; expected (B, ...), the batch axis first.")
    return shape
