"""The betas of training: named schedules, or one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from kdiff_jax._checks import check_choice, check_number, check_vector

BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]


def betas_of(
    beta_schedule: BetaSchedule,
    num_train_timesteps: int,
    beta_start: float,
    beta_end: float,
    trained_betas: Sequence[float] | np.ndarray | None,
) -> np.ndarray:
    """The T betas that the arguments of `kd.noise_schedule` ask for, [T] float64, checked."""
    check_choice("beta_schedule", beta_schedule, get_args(BetaSchedule))
    if trained_betas is not None:
        betas = check_vector("trained_betas", trained_betas)
        if betas.size != num_train_timesteps:
            raise ValueError(
                f"trained_betas has {betas.size} entries and num_train_timesteps is "
                f"{num_train_timesteps}; give one beta for each training timestep."
            )
        if betas.min() <= 0 or betas.max() >= 1:
            raise ValueError(
                f"trained_betas span [{betas.min()}, {betas.max()}]; every beta must lie in (0, 1)."
            )
    elif beta_schedule == "squaredcos_cap_v2":
        u = np.arange(num_train_timesteps + 1) / num_train_timesteps
        abar = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - abar[1:] / abar[:-1], 0.999)
    else:
        for name, beta in (("beta_start", beta_start), ("beta_end", beta_end)):
            if not 0 < check_number(name, beta) < 1:
                raise ValueError(f"{name} = {beta} is out of range; a beta must lie in (0, 1).")
        power = 0.5 if beta_schedule == "scaled_linear" else 1.0
        ends = np.float64(beta_start) ** power, np.float64(beta_end) ** power
        betas = np.linspace(*ends, num_train_timesteps) ** (1 / power)
    return betas
