"""From one noise to another: spherical interpolation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from kdiff_jax._arrays import per_sample, state_dtype
from kdiff_jax._checks import check_batch
from kdiff_jax._denoise.prediction import as_leaf


def slerp(first: jax.Array, second: jax.Array, fraction: ArrayLike) -> jax.Array:
    """From one noise to another along the sphere, each sample at its own angle.

    `sin((1 - f) w) / sin(w) * first + sin(f w) / sin(w) * second`, with w the angle between the
    two. Between unit Gaussian noises the result is as good as unit Gaussian, where a straight
    mixture would be too weak; where both have one norm, so has the result.

    Args:
      first: [B, ...] noise, or a sample of `initial_sample`.
      second: the same shape; not a negative multiple of first, to which there are many ways.
      fraction: scalar or [B]; 0 gives first, 1 second. A small one varies first a little.

    Returns:
      [B, ...] float32 (float64 where first is).

    Raises:
      ValueError: shapes that differ or have no batch axis; a fraction that is no finite number.

    Example:
      >>> import jax, jax.numpy as jnp, kdiff_jax as kd
      >>> schedule = kd.dpm2(kd.levels(kd.noise_schedule("scaled_linear"), 25))
      >>> a, b = (kd.initial_sample(schedule, jax.random.key(i), (1, 64)) for i in (0, 1))
      >>> path = kd.slerp(jnp.repeat(a, 5, 0), jnp.repeat(b, 5, 0), jnp.linspace(0, 1, 5))
      >>> path.shape
      (5, 64)

    Source: Shoemake 1985, "Animating rotation with quaternion curves"; the variation seed of
    AUTOMATIC1111's web UI.
    """
    first, second = check_batch("first", first), check_batch("second", second)
    if first.shape != second.shape:
        raise ValueError(
            f"first {first.shape} and second {second.shape} differ; expected [B, ...] both."
        )
    if isinstance(fraction, jax.Array):
        if not jnp.issubdtype(fraction.dtype, jnp.floating):
            raise ValueError(f"fraction is {fraction.dtype}; expected a real floating dtype: cast.")
    else:
        fraction = as_leaf("fraction", fraction)
    if fraction.shape != first.shape[: fraction.ndim]:
        raise ValueError(f"fraction has shape {fraction.shape}; pass one number, or [B] of them.")
    return _slerp(first, second, fraction)


# Compiled, so that its constants are no transfers.
@jax.jit
def _slerp(first: jax.Array, second: jax.Array, fraction: jax.Array) -> jax.Array:
    first = first.astype(state_dtype(first))
    second = second.astype(first.dtype)
    fraction = per_sample(fraction, first)

    def norm(x: jax.Array) -> jax.Array:
        square = jnp.sum(x**2, axis=tuple(range(1, x.ndim)), keepdims=True)
        return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)

    lengths = norm(first), norm(second)
    a, b = (x / jnp.where(n > 0, n, 1) for x, n in zip((first, second), lengths, strict=True))
    # Kahan's angle: arccos of the dot product loses half the digits of a small one.
    angle = 2 * jnp.arctan2(norm(a - b), norm(a + b))
    bent = jnp.sin(angle) > 0
    angle = jnp.where(bent, angle, 1)

    def weight(part: jax.Array) -> jax.Array:
        return jnp.where(bent, jnp.sin(part * angle) / jnp.sin(angle), part)

    return weight(1 - fraction) * first + weight(fraction) * second
