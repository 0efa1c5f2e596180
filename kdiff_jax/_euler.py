"""Euler's method on the probability-flow ODE, and its ancestral form: one row a step.

    x_next = D + sigma_down * epsilon + sigma_up * s_noise * z

On a rectified flow, where x = (1 - sigma) x0 + sigma eps, D is weighted by 1 - sigma_next.
Karras et al. 2022 (arXiv:2206.00364), Algorithm 1 without its second-order correction;
`sample_euler` and `sample_euler_ancestral` of k-diffusion.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kdiff_jax._ancestral import step_split
from kdiff_jax._checks import common_namespace
from kdiff_jax._flow import FlowSchedule
from kdiff_jax._noise_schedule import NoiseSchedule
from kdiff_jax._schedule import Schedule, build_schedule
from kdiff_jax._spacing import inference_grid


def euler_schedule(
    noise: NoiseSchedule | FlowSchedule | None,
    num_steps: int | None = None,
    *,
    eta: Any = None,
    s_noise: Any = 1.0,
    timestep_spacing: str = "linspace",
    steps_offset: int = 0,
    grid: str | None = None,
    rho: Any = None,
    sigma_min: Any = None,
    sigma_max: Any = None,
    timesteps: Sequence[float] | np.ndarray | None = None,
    sigmas: Sequence[float] | np.ndarray | None = None,
    round_timesteps: bool = False,
    discard_penultimate: bool = False,
) -> Schedule:
    """Euler's method: N steps cost N evaluations; with an eta it is Euler ancestral.

    From s0 to s1: `x_next = D + s_down * epsilon + s_up * s_noise * z`, with s_down and s_up as
    in `dpm2_ancestral_schedule` and no noise in the closing step.

    Args:
      noise: as for `dpm2_schedule`, zero terminal SNR, a rectified flow and None included.
      num_steps: N; left out where timesteps or sigmas are given.
      eta: scalar or [N], how much of each step is noise; None, the default, promises a table
        without noise, whereas eta = 0 is one value of a table that may have some.
      s_noise: scalar or [N], multiplies the noise.
      timestep_spacing, steps_offset, grid, rho, sigma_min, sigma_max, timesteps, sigmas,
        round_timesteps, discard_penultimate: as for `dpm2_schedule`.

    Returns:
      A Schedule of N rows; stochastic where eta is given, whatever its value.

    Raises:
      ValueError: as for `dpm2_ancestral_schedule`.

    Example:
      >>> import kdiff_jax as kd
      >>> schedule = kd.euler_schedule(kd.noise_schedule(), 10)
      >>> schedule.num_rows, schedule.deterministic
      (10, True)

    Source: Karras et al. 2022 (arXiv:2206.00364); `sample_euler(_ancestral)` of k-diffusion.
    """
    levels = inference_grid(
        noise,
        num_steps,
        timestep_spacing=timestep_spacing,
        steps_offset=steps_offset,
        grid=grid,
        rho=rho,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
        timesteps=timesteps,
        sigmas=sigmas,
        round_timesteps=round_timesteps,
        discard_penultimate=discard_penultimate,
    )
    s_down, s_up, keep = step_split(
        levels.sigmas, 0.0 if eta is None else eta, s_noise, levels.flow
    )
    xp, s0, s_down, s_up, keep, end = common_namespace(
        levels.sigmas, s_down, s_up, keep, np.zeros(1)
    )
    reached = xp.concatenate([s0[1:], end])
    columns = {
        "index": np.arange(len(s0)),
        "step": np.arange(len(s0)),
        "timestep": levels.timesteps,
        "alpha": levels.alpha_at(s0),
        "sigma": s0,
        "input_scale": levels.input_scale_at(s0),
        "anchor_weight": 0.0,
        "denoised_weight": levels.alpha_at(reached),
        "epsilon_weight": xp.concatenate([keep * s_down, end]),
        "noise_weight": xp.concatenate([s_up, end]),
        "advances": True,
    }
    return build_schedule(
        columns,
        xp.concatenate([s0, end]),
        levels.init_noise_sigma,
        deterministic=eta is None,
        anchorless=True,
        unit_alpha=not levels.flow,
        zero_terminal_snr=levels.zero_terminal_snr,
        flow=levels.flow,
    )
