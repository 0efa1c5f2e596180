"""Guidance: a denoiser that moves the estimate of x0 away from the unconditional one."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kdiff_jax._checks import is_traced
from kdiff_jax._denoise import Denoise, Prediction, as_float, as_pytree, per_sample
from kdiff_jax._schedule import Row


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Guided:
    """Made by `kd.guided`."""

    denoise: Denoise
    scale: Any
    uncond: Any

    def __call__(self, params: Any, x: jax.Array, row: Row, cond: Any = None) -> Prediction:
        if cond is None:
            raise ValueError(
                "a guided denoiser was called without cond; pass cond=..., or take the denoiser "
                "without kd.guided."
            )
        got, expected = (str(jax.tree.structure(tree)) for tree in (cond, self.uncond))
        if got != expected:
            raise ValueError(
                f"cond is {got} and uncond {expected}; expected the same pytree, so that both "
                "halves of the doubled batch fit one call."
            )

        def twice(leaf: jax.Array) -> jax.Array:
            return jnp.concatenate([leaf, leaf])

        rows = jax.tree.map(lambda leaf: twice(leaf) if jnp.ndim(leaf) else leaf, row)
        both = jax.tree.map(
            lambda c, u: jnp.concatenate([c, jnp.broadcast_to(jnp.asarray(u, c.dtype), c.shape)]),
            jax.tree.map(jnp.asarray, cond),
            self.uncond,
        )
        answer = self.denoise(params, twice(jnp.asarray(x)), rows, both)

        def mix(pair: jax.Array) -> jax.Array:
            with_cond, without = jnp.split(pair, 2)
            return without + per_sample(self.scale, without) * (with_cond - without)

        # Both halves are mixed alike, so x = alpha D + sigma epsilon still holds, uncancelled.
        return Prediction(mix(answer.denoised), mix(answer.epsilon))


def guided(denoise: Denoise, scale: ArrayLike, uncond: Any) -> Guided:
    """Classifier-free guidance: `D <- D_uncond + scale * (D_cond - D_uncond)`, epsilon alike.

    The network is traced once and sees one batch of twice the size: first the conditional half.

    Args:
      denoise: the denoiser to wrap.
      scale: scalar or [B], one a sample; 1 is no guidance, 0 unconditional. Another value does
        not recompile, and it may be differentiated.
      uncond: the pytree of `cond` that means "no condition"; leaves broadcast to those of cond,
        so one label or one embedding serves the batch.

    Returns:
      A denoiser that must be given cond.

    Raises:
      ValueError: a scale that is not finite; when it is traced, a missing cond or one of another
        structure than uncond.

    Example:
      >>> import jax, jax.numpy as jnp, kdiff_jax as kd
      >>> def model_fn(params, x, timestep, label):
      ...     return params * x * label[:, None]
      >>> denoise = kd.guided(kd.denoiser(model_fn), scale=2.0, uncond=jnp.float32(0))
      >>> row = kd.dpm2_schedule(kd.noise_schedule(), 10)[0]
      >>> denoise(jnp.float32(0.1), jnp.ones((3, 4)), row, jnp.ones(3)).denoised.shape
      (3, 4)

    Source: Ho and Salimans 2022 (arXiv:2207.12598), equation 6, with scale = 1 + w there, the
    `guidance_scale` of diffusers.
    """
    if not is_traced(scale):
        values = np.asarray(scale)
        if values.ndim > 1 or not np.all(np.isfinite(values.astype(np.float64))):
            raise ValueError(
                f"scale = {scale!r} is no guidance scale; expected finite numbers, one or [B]."
            )
    return Guided(as_pytree(denoise), as_float(scale), uncond)
