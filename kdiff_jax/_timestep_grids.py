"""Grids of training timesteps: those that ComfyUI knows by name, and the one of distillation."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kdiff_jax._checks import check_int, check_vector, share
from kdiff_jax._grids import beta_quantiles

TIMESTEP_GRIDS = ("normal", "simple", "sgm_uniform", "ddim_uniform", "beta_timesteps")


def beta_timesteps(
    num_steps: int, num_train_timesteps: int = 1000, alpha: float = 0.6, beta: float = 0.6
) -> np.ndarray:
    """Quantiles of a beta distribution laid over the training timesteps, for `timesteps=`.

    `round(Q(1 - i/N) (T - 1))`, i = 0 .. N - 1, Q the quantiles of Beta(alpha, beta). A timestep
    that rounding would repeat moves to the nearest free one below, or above at the end (ComfyUI
    drops it and runs fewer steps). In sigma, as diffusers has it: `kd.beta_sigmas`.

    Args:
      num_steps: N, at most T.
      num_train_timesteps: T.
      alpha, beta: above 0; 0.6 and 0.6 are the paper's.

    Returns:
      [N] float64, whole, strictly descending, in [0, T - 1].

    Raises:
      ValueError: N or T that is no positive integer, N above T; alpha or beta not above 0.

    Example:
      >>> import kdiff_jax as kd
      >>> kd.beta_timesteps(5).tolist()
      [999.0, 876.0, 637.0, 362.0, 123.0]

    Source: Lee et al. 2024 (arXiv:2407.12173); the scheduler "beta" of ComfyUI.
    """
    num_steps = check_int("num_steps", num_steps, 1)
    num_train_timesteps = check_int("num_train_timesteps", num_train_timesteps, 1)
    _check_whole("beta_timesteps", num_steps, num_train_timesteps)
    i = np.arange(num_steps)
    quantiles = beta_quantiles(1 - i / num_steps, alpha, beta)
    timesteps = np.rint(quantiles * (num_train_timesteps - 1))
    return np.maximum(np.minimum.accumulate(timesteps + i) - i, i[::-1])


def grid_timesteps(grid: str, num_train_timesteps: int, num_steps: int) -> np.ndarray:
    """The timesteps of ComfyUI's grids, descending, [N] float64.

    simple, ddim_uniform and beta_timesteps take whole ones. ComfyUI's "ddim_uniform" runs more
    than N steps for most N that do not divide T; here it is the N lowest of them, DDIM's own.
    Its "simple" may be one off where `x * (T / N)` rounds below a whole number in floats.
    """
    last = num_train_timesteps - 1
    if grid == "normal":
        return np.linspace(last, 0, num_steps)
    if grid == "sgm_uniform":
        return np.linspace(last, 0, num_steps + 1)[:-1]
    if grid == "beta_timesteps":
        return beta_timesteps(num_steps, num_train_timesteps)
    _check_whole(grid, num_steps, num_train_timesteps - (grid == "ddim_uniform"))
    if grid == "ddim_uniform":
        stride = num_train_timesteps // num_steps
        return np.arange(num_steps)[::-1] * float(stride) + (1 if num_steps > 1 else last)
    return last - np.floor(np.arange(num_steps) * num_train_timesteps / num_steps)


def _check_whole(grid: str, num_steps: int, most: int) -> None:
    if num_steps > most:
        raise ValueError(
            f"num_steps = {num_steps} is more than the {most} whole timesteps that {grid!r} can "
            "take; take fewer steps, or a grid of fractional ones: 'normal' or 'sgm_uniform'."
        )


def lcm_timesteps(
    num_train_timesteps: int,
    num_steps: int | None,
    original_steps: int,
    timesteps: Sequence[float] | np.ndarray | None,
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
            f"num_steps = {num_steps} and timesteps = {timesteps}; give exactly one of them."
        )
    if timesteps is not None:
        steps = _custom_lcm_timesteps(num_train_timesteps, timesteps)
        return steps[len(steps) - kept_steps(len(steps), strength, "timesteps") :]
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


def kept_steps(count: int, strength: float, what: str) -> int:
    """How many of the steps that were given one by one an image-to-image strength keeps."""
    kept = share(count, strength)
    if kept < 1:
        raise ValueError(
            f"strength = {strength} leaves none of {count} {what}; raise it to at least "
            f"{1 / count}, or give more {what}."
        )
    return kept


def _custom_lcm_timesteps(num_train_timesteps: int, timesteps: Any) -> np.ndarray:
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
