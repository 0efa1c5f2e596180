"""Guidance: moving the estimate of x0 away from the unconditional one, or telling how far.

`guided` evaluates the network with and without its condition; a network that guidance was distilled
into is told the scale instead, by `guidance_embedding`, and is evaluated once.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kdiff_jax._checks import check_int, is_traced
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


def guidance_embedding(w: ArrayLike, dim: int) -> jax.Array:
    """Sines and cosines of guidance scales, for a network that guidance was distilled into.

    With `half = dim // 2`, `f_i = 10000^(-i / (half - 1))` and `a_i = 1000 * w * f_i`:
    `[sin a_0 .. sin a_(half-1), cos a_0 .. cos a_(half-1)]`, and a 0 at the end where dim is odd.

    Args:
      w: [B] guidance scales; may be traced. Published latent-consistency checkpoints count from
        0: they are told `w = scale - 1`, where scale is that of `guided`.
      dim: the size of the embedding, at least 4: `time_cond_proj_dim` of a diffusers network, 256
        in published checkpoints.

    Returns:
      [B, dim] float32 (float64 where w is float64).

    Raises:
      ValueError: w that is not [B] or not finite, a dim that is no integer or below 4.

    Example:
      >>> import jax.numpy as jnp, kdiff_jax as kd
      >>> kd.guidance_embedding(jnp.array([0.5, 1.0]), 256).shape
      (2, 256)

    Source: Luo et al. 2023 (arXiv:2310.04378), section 4.2; `get_guidance_scale_embedding` of
    diffusers' LatentConsistencyModelPipeline.
    """
    dim = check_int("dim", dim, 4)
    if not is_traced(w):
        values = np.asarray(w)
        if values.dtype.kind not in "iuf" and values.dtype != jnp.bfloat16:
            raise ValueError(f"w = {w!r} holds no real numbers; pass [B] guidance scales.")
        if not np.all(np.isfinite(values.astype(np.float64))):
            raise ValueError(f"w = {w!r} holds a NaN or an infinity; pass finite guidance scales.")
    if jnp.ndim(w) != 1:
        raise ValueError(
            f"w has shape {jnp.shape(w)}; pass [B] guidance scales, one a sample: "
            "jnp.full(batch, w)."
        )
    w = jnp.asarray(w)
    w = w.astype(np.float64 if w.dtype == np.float64 else np.float32)
    half = dim // 2
    # In float64 on the host: an angle may be thousands of radians, so its frequency must be right.
    frequencies = np.exp(np.arange(half) * (-np.log(10_000.0) / (half - 1)))
    angles = 1000.0 * w[:, None] * jnp.asarray(frequencies, w.dtype)[None]
    embedding = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.pad(embedding, [(0, 0), (0, dim % 2)])
