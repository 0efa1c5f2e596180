"""The guidance scale as an input of the network, for networks that guidance was distilled into."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kdiff_jax._arrays import is_traced
from kdiff_jax._checks import as_numbers, check_int, shown


def guidance_embedding(w: ArrayLike, dim: int) -> jax.Array:
    """Sines and cosines of guidance scales, for a network that guidance was distilled into.

    With `half = dim // 2`, `f_i = 10000^(-i / (half - 1))` and `a_i = 1000 * w * f_i`:
    `[sin a_0 .. sin a_(half-1), cos a_0 .. cos a_(half-1)]`, and a 0 at the end where dim is odd.

    Args:
      w: [B] guidance scales; may be traced. Published latent-consistency checkpoints count from
        0: they receive `w = scale - 1`, where scale is that of `guided`.
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
        _check_scales(w)
    if len(np.shape(w)) != 1 or np.shape(w) == (0,):
        raise ValueError(
            f"w has shape {np.shape(w)}; pass [B] guidance scales, one a sample: "
            "jnp.full(batch, w)."
        )
    w = jnp.asarray(w if isinstance(w, jax.Array) else np.asarray(w))
    return _embedded(w.astype(np.float64 if w.dtype == np.float64 else np.float32), dim)


def _check_scales(w: ArrayLike) -> None:
    try:
        values = as_numbers("w", w)
    except ValueError:
        raise ValueError(f"w = {shown(w)} holds no real numbers; pass [B] scales.") from None
    # 1000 w is what the waves are of, in float32 too.
    if not np.all(np.abs(values) < 1e35):
        raise ValueError(f"w = {shown(w)} holds a NaN or an infinity; pass finite guidance scales.")


@functools.partial(jax.jit, static_argnums=1, inline=True)
def _embedded(w: jax.Array, dim: int) -> jax.Array:
    half = dim // 2
    # In float64 on the host: an angle may be thousands of radians, so its frequency must be right.
    frequencies = np.exp(np.arange(half) * (-np.log(10_000.0) / (half - 1)))
    angles = 1000.0 * w[:, None] * jnp.asarray(frequencies, w.dtype)[None]
    embedding = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.pad(embedding, [(0, 0), (0, dim % 2)])
