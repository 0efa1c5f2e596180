"""The betas of training: named schedules, or one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from kdiff_jax._arrays import is_traced
from kdiff_jax._checks import check_choice, check_number, check_vector

BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
# Ho et al. 2020, and Stable Diffusion.
_ENDS = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}


def betas_of(
    beta_schedule: BetaSchedule,
    num_train_timesteps: int,
    beta_start: float | None,
    beta_end: float | None,
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
        ends = [*_ENDS[beta_schedule]]
        for i, (name, beta) in enumerate((("beta_start", beta_start), ("beta_end", beta_end))):
            if beta is None:
                continue
            if is_traced(beta):
                raise ValueError(
                    f"{name} is traced, and a noise schedule is built on the host; pass a number, "
                    "and trace the levels instead: sigmas=, sigma_min= and sigma_max=."
                )
            ends[i] = check_number(name, beta)
            if not 0 < ends[i] < 1:
                raise ValueError(f"{name} = {beta} is out of range; a beta must lie in (0, 1).")
        power = 0.5 if beta_schedule == "scaled_linear" else 1.0
        first, last = (end**power for end in ends)
        betas = np.linspace(first, last, num_train_timesteps) ** (1 / power)
    return betas


def noise_of(betas: np.ndarray, rescale_zero_terminal_snr: bool) -> tuple[np.ndarray, np.ndarray]:
    """alphas_cumprod and sigmas of betas, [T] float64 each; the last sigma may be infinite."""
    log_abar = np.cumsum(np.log1p(-betas))
    alphas_cumprod = np.exp(log_abar)
    # expm1 keeps the digits of 1 - abar that a subtraction loses where abar is close to 1.
    with np.errstate(over="ignore"):
        sigmas = np.sqrt(np.expm1(-log_abar))
    if sigmas[-1] > np.finfo(np.float32).max:
        raise ValueError(
            f"the betas leave alphas_cumprod = {alphas_cumprod[-1]:.3g} at the last timestep, a "
            "sigma that float32 cannot hold; lower beta_end or the betas, or take "
            "rescale_zero_terminal_snr=True with betas that keep more signal."
        )
    if rescale_zero_terminal_snr:
        if betas.size < 2:
            raise ValueError(
                "rescale_zero_terminal_snr needs num_train_timesteps of at least 2, got 1: "
                "one level cannot keep its signal and lose it."
            )
        root = np.sqrt(alphas_cumprod)
        with np.errstate(divide="ignore", invalid="ignore"):
            root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
            alphas_cumprod = root**2
            sigmas = np.sqrt((1 - root) * (1 + root)) / root
    limits = np.finfo(np.float32)
    held = sigmas[:-1] if rescale_zero_terminal_snr else sigmas
    if not (np.all(np.diff(sigmas) > 0) and np.all((held >= limits.tiny) & (held <= limits.max))):
        raise ValueError(
            f"the betas from {betas[0]:.3g} to {betas[-1]:.3g} make levels that do not rise, or "
            "that float32 cannot hold; take betas further from 0 and 1 "
            "(beta_start and beta_end, or trained_betas)."
        )
    return alphas_cumprod, sigmas
