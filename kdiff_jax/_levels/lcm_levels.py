"""`kd.lcm_levels`: the timesteps that a latent-consistency network was distilled on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jax.typing import ArrayLike

from kdiff_jax._arrays import common_namespace
from kdiff_jax._checks import check_int, check_vector, share, shown
from kdiff_jax._levels.alone import kind_of
from kdiff_jax._levels.levels import Levels
from kdiff_jax._levels.noise_schedule import NoiseSchedule


def lcm_levels(
    noise: NoiseSchedule | None,
    num_steps: int | None = None,
    *,
    original_steps: int = 50,
    timesteps: ArrayLike | Sequence[float] | None = None,
    sigmas: ArrayLike | Sequence[float] | None = None,
    strength: float = 1.0,
) -> Levels:
    """The noise levels of a latent-consistency run, on the grid that it was distilled on.

    The N timesteps come from the distillation grid
    `(1 .. floor(original_steps * strength)) * (T // original_steps) - 1`, at
    `floor(linspace(0, len, N, endpoint=False))` from its top.

    Args:
      noise: the noise levels of training; None with sigmas: the network receives sigma. A rectified
        flow has no distillation grid: `kd.lcm(kd.levels(flow, 4))`.
      num_steps: N, at most the timesteps that the grid holds below the strength.
      original_steps: the steps of the teacher that the network was distilled from.
      timesteps: [N] whole training timesteps, strictly descending, in place of num_steps; on the
        distillation grid or off it. With a strength below 1 the first ones are dropped.
      sigmas: [N] noise over signal, as `noise.sigmas` and k-diffusion have it, strictly
        descending, used verbatim in place of num_steps and timesteps; a closing 0 may end them.
        The timesteps that belong to them may be fractional. May be traced. With a strength below
        1 the first ones are dropped.
      strength: in (0, 1], the share of the grid that is run, for image to image.

    Returns:
      Levels of N steps for `kd.lcm`, float64 on the host, or traced where sigmas are.

    Raises:
      ValueError: not exactly one of num_steps, timesteps and sigmas; timesteps that are empty,
        fractional, negative, at or past T, or not descending, or such sigmas; strength outside
        (0, 1] or leaving nothing; more steps than the grid holds; noise None without sigmas, or a
        rectified flow.

    Example:
      >>> import kdiff_jax as kd
      >>> kd.lcm_levels(kd.noise_schedule("scaled_linear"), 4).timesteps.tolist()
      [999.0, 759.0, 499.0, 259.0]

    Source: Luo et al. 2023 (arXiv:2310.04378), Algorithm 3; `LCMScheduler` of diffusers.
    """
    kind = kind_of(noise)
    if kind.flow:
        raise ValueError(
            "lcm_levels was given a rectified flow, which has no distillation grid; take "
            "kd.lcm(kd.levels(flow, 4)), with timestep_spacing, timesteps or sigmas of your own."
        )
    if sigmas is not None:
        if num_steps is not None or timesteps is not None:
            raise ValueError(
                f"num_steps = {shown(num_steps)} and timesteps = {shown(timesteps)} were given "
                "with sigmas, which are all of it; give exactly one of the three."
            )
        chosen, steps = kind.given_sigmas(sigmas)
        kept = _kept_steps(len(chosen), strength, "sigmas")
        chosen, steps = chosen[-kept:], steps[-kept:]
    elif not isinstance(kind, NoiseSchedule):
        raise ValueError("noise = None has no timesteps to choose from; give sigmas=[...].")
    else:
        count = kind.num_train_timesteps
        steps = lcm_timesteps(count, num_steps, original_steps, timesteps, strength)
        chosen = kind.sigmas[steps]
    xp, chosen, steps, end = common_namespace(chosen, steps, np.zeros(1))
    levels = xp.concatenate([chosen, end])
    return Levels(levels, steps, kind, chosen[0], zero_terminal_snr=kind.zero_terminal_snr)


def lcm_timesteps(
    num_train_timesteps: int,
    num_steps: int | None,
    original_steps: int,
    timesteps: ArrayLike | Sequence[float] | None,
    strength: float,
) -> np.ndarray:
    """The timesteps of a latent-consistency run, descending, [N] int64.

    The distillation grid is `(1 .. floor(O * strength)) * (T // O) - 1`; of it, from the top, N
    are taken at `floor(linspace(0, len, N, endpoint=False))`. Timesteps that were given lose
    their first ones instead, to the share `strength`.

    Source: Luo et al. 2023 (arXiv:2310.04378), Algorithm 3; `LCMScheduler.set_timesteps`.
    """
    if (num_steps is None) == (timesteps is None):
        raise ValueError(
            f"num_steps = {shown(num_steps)} and timesteps = {shown(timesteps)}; give exactly one "
            "of them."
        )
    if timesteps is not None:
        steps = _custom_lcm_timesteps(num_train_timesteps, timesteps)
        return steps[len(steps) - _kept_steps(len(steps), strength, "timesteps") :]
    original_steps = check_int("original_steps", original_steps, 1)
    if original_steps > num_train_timesteps:
        raise ValueError(
            f"original_steps = {original_steps} is more than num_train_timesteps = "
            f"{num_train_timesteps}; the distillation grid holds whole timesteps: lower it."
        )
    num_steps = check_int("num_steps", num_steps, 1)
    length = share(original_steps, strength)
    if num_steps > length:
        raise ValueError(
            f"num_steps = {num_steps} is more than the {length} timesteps that original_steps = "
            f"{original_steps} at strength = {strength} holds; take fewer steps, more strength or "
            "a finer original_steps."
        )
    origin = np.arange(1, length + 1) * (num_train_timesteps // original_steps) - 1
    chosen = np.floor(np.linspace(0, length, num_steps, endpoint=False)).astype(np.int64)
    return origin[::-1][chosen]


def _kept_steps(count: int, strength: float, what: str) -> int:
    """How many of the steps that were given one by one an image-to-image strength keeps."""
    kept = share(count, strength)
    if kept < 1:
        raise ValueError(
            f"strength = {strength} leaves none of {count} {what}; raise it to at least "
            f"{1 / count}, or give more {what}."
        )
    return kept


def _custom_lcm_timesteps(
    num_train_timesteps: int, timesteps: ArrayLike | Sequence[float]
) -> np.ndarray:
    last = num_train_timesteps - 1
    steps = check_vector("timesteps", timesteps)
    if np.any(steps != np.round(steps)):
        raise ValueError(f"timesteps = {steps.tolist()} are not all whole; round them yourself.")
    if steps.min() < 0 or steps.max() > last:
        raise ValueError(
            f"timesteps = {steps.tolist()} leave [0, {last}], the training timesteps; keep inside."
        )
    if np.any(np.diff(steps) >= 0):
        raise ValueError(f"timesteps = {steps.tolist()} are not strictly descending; sort them.")
    return steps.astype(np.int64)
