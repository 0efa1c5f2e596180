"""k-diffusion's noise sampler along a Brownian path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

import kdiff_jax as kd
from kdiff_jax._arrays import Array, is_traced
from kdiff_jax._checks import check_batch, check_int, check_number
from kdiff_jax._noise.given import NoiseFn
from kdiff_jax._noise.keyed import sample_keys
from kdiff_jax.adapters.k_diffusion.checks import check_callable, check_numbers


@dataclass(frozen=True, eq=False)
class BrownianPath:
    """A noise_sampler; made by `BrownianTreeNoiseSampler`."""

    path: NoiseFn
    keys: jax.Array = field(repr=False)  # [B] of them take B lines
    shape: tuple[int, ...]
    ends: tuple[float, float]
    clock: tuple[Callable[[Any], Any], float, float] | None

    def __call__(self, sigma: ArrayLike, sigma_next: ArrayLike) -> jax.Array:
        """Unit Gaussian noise of the step from sigma to sigma_next, [B, ...]."""
        left, reached = self._level("sigma", sigma), self._level("sigma_next", sigma_next)
        zero = jnp.int32(0)
        row = kd.Row(
            index=zero,
            step=zero,
            timestep=left,
            sigma=left,
            sigma_left=left,
            sigma_reached=reached,
            denoised_weight=jnp.zeros_like(left),
        )
        return self.path(self.keys, row, self.shape)

    def _level(self, name: str, sigma: ArrayLike) -> jax.Array:
        low, high = self.ends
        level: Any = check_numbers(name, sigma, at_least=low * (1 - 1e-6), at_most=high * 1.000001)
        if level.shape:
            raise ValueError(f"{name} has shape {level.shape}; pass one noise level.")
        level = level if is_traced(level) else np.clip(level, low, high)
        if self.clock is not None:
            transform, start, end = self.clock
            level = jnp.exp((transform(level) - start) / (end - start))
        return jnp.asarray(level, float)


def BrownianTreeNoiseSampler(
    x: ArrayLike,
    sigma_min: float,
    sigma_max: float,
    seed: int | Sequence[int] | jax.Array | None = None,
    transform: Callable[[Any], Array] | None = None,
) -> BrownianPath:
    """A noise_sampler on one Brownian path: `(W(t1) - W(t0)) / sqrt(|t1 - t0|)`.

    The path is that of `kd.brownian_noise(sigma_min, sigma_max)`, whose t is log sigma; k-diffusion
    has t = sigma there.

    Args:
      x: [B, ...] a sample of the run, for its shape.
      sigma_min, sigma_max: the levels that the path spans, those of the run.
      seed: an integer, [B] integers, a key, or [B] keys; there is no global generator to take one
        from.
      transform: None, or t as a monotonic function of sigma, such as `lambda sigma: sigma`.

    Returns:
      A callable `(sigma, sigma_next) -> [B, ...]`, the noise_sampler of a sampler.

    Raises:
      ValueError: no seed, or one of another kind or count; levels as for `kd.brownian_noise`; when
        it is called, a level outside the path.

    Example:
      >>> import jax.numpy as jnp
      >>> from kdiff_jax.adapters import k_diffusion as K
      >>> noise_sampler = K.BrownianTreeNoiseSampler(jnp.zeros((2, 8)), 0.03, 14.6, seed=0)
      >>> noise_sampler(14.6, 7.0).shape
      (2, 8)

    Source: `BrownianTreeNoiseSampler` of k-diffusion.
    """
    x = check_batch("x", x)
    low, high = check_number("sigma_min", sigma_min), check_number("sigma_max", sigma_max)
    path, clock = kd.brownian_noise(low, high), None
    if transform is not None:
        check_callable("transform", transform, "a monotonic function of sigma, or None")
        ends = sorted(check_number("transform(sigma)", transform(end)) for end in (low, high))
        if ends[0] == ends[1]:
            raise ValueError(f"transform is {ends[0]} at both ends; pass a monotonic function.")
        path, clock = kd.brownian_noise(1.0, np.e), (transform, *ends)
    return BrownianPath(path, _keys_of(seed, x.shape[0]), x.shape, (low, high), clock)


def _keys_of(seed: Any, batch: int) -> jax.Array:
    most = 2**32 - 1
    if seed is None:
        raise ValueError("seed is missing; pass an integer, or a key: nothing is drawn globally.")
    if isinstance(seed, (list, tuple)):
        keys = [jax.random.key(check_int("seed", entry, 0, most)) for entry in seed]
        if len(keys) != batch:
            raise ValueError(f"seed holds {len(keys)} numbers for {batch} samples; pass {batch}.")
        return jnp.stack(keys)
    if not (isinstance(seed, jax.Array) and jax.dtypes.issubdtype(seed.dtype, jax.dtypes.prng_key)):
        seed = jax.random.key(check_int("seed", seed, 0, most))
    try:
        return sample_keys(seed, batch)
    except ValueError as error:
        raise ValueError(f"seed: {error}") from None
