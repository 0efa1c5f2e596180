"""From an image, or from one seed to another: schedules below a strength, noise between two."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from kdiff_jax._checks import check_int, check_strength
from kdiff_jax._denoise import per_sample
from kdiff_jax._noise_schedule import state_dtype
from kdiff_jax._schedule import Schedule


def img2img_schedule(
    schedule_fn: Callable[[int], Schedule], num_steps: int, strength: float
) -> Schedule:
    """Exactly N outer steps below a strength: the last N of `floor(N / strength)`.

    `Schedule.start_at_strength` is the other meaning of a strength, which keeps `N * strength` of
    N steps; `lcm_schedule(noise, N, strength=)` has this one built in. Noise the image to the first
    row with `kd.add_noise(schedule[0], x0, eps)`; with an x0 that was sampled before, a small
    strength gives variations of it.

    Args:
      schedule_fn: `schedule_fn(num_steps) -> Schedule`, with any builder, spacing and grid.
      num_steps: N, the outer steps that are run.
      strength: in (0, 1], their share of the whole run; 1 is the whole run.

    Returns:
      A Schedule, as from `start_at`.

    Raises:
      ValueError: N that is no positive integer, a strength outside (0, 1], a schedule_fn that
        builds another number of steps than it is asked for.

    Example:
      >>> import kdiff_jax as kd
      >>> noise = kd.noise_schedule("scaled_linear")
      >>> schedule = kd.img2img_schedule(lambda n: kd.dpm2_schedule(noise, n), 20, strength=0.3)
      >>> schedule.num_steps, round(float(schedule[0].timestep))
      (20, 292)

    Source: `denoise` of ComfyUI's KSampler.
    """
    num_steps = check_int("num_steps", num_steps, 1)
    # Rounded first: 29 / 0.58 is 50.00000000000001 in binary, and others fall short.
    total = math.floor(round(num_steps / check_strength(strength), 9))
    whole = schedule_fn(total)
    if whole.num_steps != total:
        raise ValueError(
            f"schedule_fn({total}) built {whole.num_steps} steps; expected as many as asked for: "
            "hand in a function of the number of steps."
        )
    return whole.start_at(total - num_steps)


def slerp(first: jax.Array, second: jax.Array, fraction: ArrayLike) -> jax.Array:
    """From one noise to another along the sphere, each sample at its own angle.

    `sin((1 - f) w) / sin(w) * first + sin(f w) / sin(w) * second`, with w the angle between the
    two. Between unit Gaussian noises it is as good as unit Gaussian, where a straight mixture would
    be too weak; where both have one norm, so has the result.

    Args:
      first: [B, ...] noise, or a sample of `initial_sample`.
      second: the same shape; not a negative multiple of first, to which there are many ways.
      fraction: scalar or [B]; 0 gives first, 1 second. A small one varies first a little.

    Returns:
      [B, ...] float32 (float64 where first is).

    Raises:
      ValueError: shapes that differ or have no batch axis.

    Example:
      >>> import jax, jax.numpy as jnp, kdiff_jax as kd
      >>> schedule = kd.dpm2_schedule(kd.noise_schedule("scaled_linear"), 25)
      >>> a, b = (kd.initial_sample(schedule, jax.random.key(i), (1, 64)) for i in (0, 1))
      >>> path = kd.slerp(jnp.repeat(a, 5, 0), jnp.repeat(b, 5, 0), jnp.linspace(0, 1, 5))
      >>> path.shape
      (5, 64)

    Source: Shoemake 1985, "Animating rotation with quaternion curves"; the variation seed of
    AUTOMATIC1111's web UI.
    """
    first, second = jnp.asarray(first), jnp.asarray(second)
    if first.ndim < 1 or first.shape != second.shape:
        raise ValueError(
            f"first {first.shape} and second {second.shape} differ; expected [B, ...] both."
        )
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

    def weight(share: jax.Array) -> jax.Array:
        return jnp.where(bent, jnp.sin(share * angle) / jnp.sin(angle), share)

    return weight(1 - fraction) * first + weight(fraction) * second
