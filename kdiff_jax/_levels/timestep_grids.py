"""Grids of training timesteps: those that ComfyUI knows by name."""

from __future__ import annotations

import numpy as np

from kdiff_jax._arrays import Array, common_namespace
from kdiff_jax._checks import check_int
from kdiff_jax._levels.between import beta_quantiles


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


def flow_grid(grid: str, num_train_timesteps: int, num_steps: int, lowest: Array) -> Array:
    """The levels of ComfyUI's grids on a rectified flow before they are shifted, [N].

    A flow has T levels there, `t / T` shifted, t = 1 .. T. `normal` and `sgm_uniform` run from 1 to
    the lowest of them, which is shifted already, and are shifted all the same.

    Source: comfy/samplers.py; `ModelSamplingDiscreteFlow` of ComfyUI, whose `sigma(timestep(s))` is
    s shifted once more.
    """
    if grid not in ("normal", "sgm_uniform"):
        return (grid_timesteps(grid, num_train_timesteps, num_steps) + 1) / num_train_timesteps
    if num_train_timesteps == 1 and num_steps > 1:
        raise ValueError(
            f"grid = {grid!r} runs down to 1 / num_train_timesteps, which is 1 here; take "
            "timestep_spacing='trailing', or sigmas=[...]."
        )
    ramp = np.linspace(0, 1, num_steps + (grid == "sgm_uniform"))[:num_steps]
    _, ramp, lowest = common_namespace(ramp, lowest)
    return (1 - ramp) + ramp * lowest


def _check_whole(grid: str, num_steps: int, most: int) -> None:
    if num_steps > most:
        raise ValueError(
            f"num_steps = {num_steps} is more than the {most} whole timesteps that {grid!r} can "
            "take; take fewer steps, or a grid of fractional ones: 'normal' or 'sgm_uniform'."
        )
