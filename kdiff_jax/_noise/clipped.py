"""Noise without its tails, as ComfyUI's SamplerLCM clips it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from kdiff_jax._arrays import per_sample
from kdiff_jax._checks import brought, check_batch
from kdiff_jax._denoise.prediction import as_leaf, as_pytree, brief
from kdiff_jax._noise.given import NoiseFn
from kdiff_jax._noise.keyed import row_noise
from kdiff_jax._table.row import Row
from kdiff_jax._table.schedule import Schedule


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class ClippedNoise:
    """Made by `kd.clipped_noise`."""

    noise_fn: NoiseFn
    bound: jax.Array

    def __call__(self, key: Any, row: Row, shape: tuple[int, ...]) -> jax.Array:
        z = check_batch("what noise_fn returned", self.noise_fn(key, row, shape))
        if math.prod(z.shape[1:]) < 2:
            raise ValueError(
                f"noise of shape {z.shape} has one number a sample, and no deviation; leave "
                "kd.clipped_noise out."
            )
        return _clipped(z, self.bound)

    def check_run(self, schedule: Schedule, shape: tuple[int, ...]) -> None:
        """Refuses what the noise that is clipped refuses."""
        check_run = getattr(self.noise_fn, "check_run", None)
        if check_run is not None:
            check_run(schedule, shape)

    def __repr__(self) -> str:
        return f"ClippedNoise({brief(self.bound)}, {brief(self.noise_fn)})"


# Compiled, for those who step by hand: no constant crosses to the device.
@jax.jit
def _clipped(z: jax.Array, bound: jax.Array) -> jax.Array:
    deviation = jnp.std(z, axis=tuple(range(1, z.ndim)), ddof=1, keepdims=True)
    most = per_sample(bound, z).astype(z.dtype) * deviation
    return jnp.clip(z, -most, most)


def clipped_noise(bound: ArrayLike, noise_fn: NoiseFn | None = None) -> ClippedNoise:
    """A `noise_fn` for `kd.sample` that cuts the tails off: `clip(z, -b, b)`, `b = bound * std(z)`.

    The deviation is that of the sample's own numbers (n - 1 in its denominator), so that no sample
    depends on its neighbours; ComfyUI takes it over the whole batch. The noise is clipped before
    s_noise multiplies it. It is no Gaussian any more, which `kd.log_prob` takes it for.

    Args:
      bound: above 0, in standard deviations; one number, or one a sample, [B]. HiDream-O1 Dev was
        distilled with 2.5.
      noise_fn: the noise that is clipped; None: `kd.row_noise` of the key.

    Returns:
      A pytree, called as `noise_fn(key, row, shape) -> [B, ...]`.

    Raises:
      ValueError: a bound that is not above 0; a noise_fn that is not callable; when it is used,
        samples of one number.

    Example:
      >>> import jax, jax.numpy as jnp, kdiff_jax as kd
      >>> schedule = kd.lcm(kd.levels(kd.flow_schedule(), 4, grid="simple"), s_noise=0.9)
      >>> denoise = kd.denoiser(lambda params, x, timestep: params * x, "flow_prediction")
      >>> key = jax.random.key(0)
      >>> x = kd.initial_sample(schedule, key, (2, 8))
      >>> noise_fn = kd.clipped_noise(2.5)
      >>> kd.sample(denoise, jnp.float32(0.1), schedule, x, key, noise_fn=noise_fn).shape
      (2, 8)

    Source: `noise_clip_std` in `sample_lcm` of ComfyUI.
    """
    noise_fn = row_noise if noise_fn is None else noise_fn
    if not callable(noise_fn):
        raise ValueError(
            f"noise_fn = {brought(noise_fn)} is not callable; pass a function "
            "noise_fn(key, row, shape), kd.given_noise(array), or None."
        )
    return ClippedNoise(as_pytree(noise_fn), as_leaf("bound", bound, above=0))
