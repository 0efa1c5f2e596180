"""DPM-Solver-2 and its ancestral form: two rows a step, through the midpoint in log sigma.

    midpoint   x_m    = D + sm * epsilon                      sm = sqrt(s0 * s_down)
    landing    x_next = x + (s_down - s0) * epsilon_m + s_up * s_noise * z
    last       x_next = D                                     where the grid closes at 0
    churn      s0 is raised to s0 * (1 + gamma) before the step, by noise that the row before adds

epsilon = (x - D) / s0 is the slope dx/dsigma of the probability-flow ODE, epsilon_m the same at
the midpoint. On a rectified flow x = (1 - s) x0 + s eps, so D is weighted too, by what 1 - s
becomes at the midpoint, and by its change in the landing: the slope is epsilon - D.

Lu et al. 2022 (arXiv:2206.00927), DPM-Solver-2 with r = 1/2; Karras et al. 2022
(arXiv:2206.00364); `sample_dpm_2` and `sample_dpm_2_ancestral` of k-diffusion,
`KDPM2DiscreteScheduler` and `KDPM2AncestralDiscreteScheduler` of diffusers; on a flow,
`sample_dpm_2` and `sample_dpm_2_ancestral_RF` of ComfyUI.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from kdiff_jax._ancestral import step_split
from kdiff_jax._checks import common_namespace
from kdiff_jax._churn import churned, may_churn
from kdiff_jax._flow import FlowSchedule
from kdiff_jax._noise_schedule import NoiseSchedule
from kdiff_jax._schedule import Schedule, build_schedule
from kdiff_jax._spacing import Grid, inference_grid


def _fill(
    grid: Grid,
    eta: Any,
    s_noise: Any,
    deterministic: bool,
    churn: tuple[Any, Any] | None = None,
) -> Schedule:
    s_down, s_up, keep = step_split(grid.sigmas, eta, s_noise, grid.flow)
    raised, added = churn or (grid.sigmas, np.zeros(grid.sigmas.shape))
    xp, start, levels, s0, added, timestep, s_down, s_up, keep = common_namespace(
        grid.init_noise_sigma, grid.sigmas, raised, added, grid.timesteps, s_down, s_up, keep
    )
    if churn is not None:  # the network is told the level that the sample was raised to
        timestep = xp.where(s0 > levels, grid.timestep_at(s0), timestep)
    sm = xp.sqrt(s0[:-1] * s_down)
    num_steps = len(s0)
    num_rows = 2 * num_steps - 1

    def rows(midpoint: Any, landing: Any, last: Any) -> Any:
        xp, *parts = common_namespace(midpoint, landing, last)
        pair = [part if part.shape else xp.full(num_steps - 1, part) for part in parts[:2]]
        return xp.concatenate([xp.stack(pair, -1).reshape(-1), parts[2].reshape(1)])

    sigma = rows(s0[:-1], sm, s0[-1])
    alpha_change = grid.alpha_at(s_down) - grid.alpha_at(s0[:-1])
    columns = {
        "index": np.arange(num_rows),
        "step": np.arange(num_rows) // 2,
        "timestep": rows(timestep[:-1], grid.timestep_at(sm), timestep[-1]),
        "alpha": grid.alpha_at(sigma),
        "sigma": sigma,
        "input_scale": grid.input_scale_at(sigma),
        "anchor_weight": rows(0, keep, 0),
        "denoised_weight": rows(grid.alpha_at(sm), keep * alpha_change, 1),
        "epsilon_weight": rows(sm, keep * (s_down - s0[:-1]), 0),
        # The churn of a step is added by the row before it.
        "noise_weight": rows(0, s_up + added[1:], 0),
        "advances": rows(False, True, True),
    }
    return build_schedule(
        columns,
        xp.concatenate([levels, xp.zeros(1, levels.dtype)]),
        xp.hypot(start, added[0]),
        deterministic=deterministic,
        unit_alpha=not grid.flow,
        alternating=not grid.flow,
        zero_terminal_snr=grid.zero_terminal_snr,
        flow=grid.flow,
    )


def dpm2_schedule(
    noise: NoiseSchedule | FlowSchedule | None,
    num_steps: int | None = None,
    *,
    s_churn: Any = 0.0,
    s_tmin: Any = 0.0,
    s_tmax: Any = math.inf,
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
    """DPM-Solver-2, second order: N steps cost 2N - 1 evaluations. Without noise, or with churn.

    From s0 to s1, with `sm = sqrt(s0 * s1)` and `epsilon_m` at the midpoint:
    `x_m = D + sm * epsilon`, then `x_next = x + (s1 - s0) * epsilon_m`; the last step is `D`.
    On a rectified flow `x_m = (1 - sm) * D + sm * epsilon` and
    `x_next = x + (s1 - s0) * (epsilon_m - D_m)`.

    Churn starts a step from a raised level, `s0 * (1 + gamma)` in place of s0, with
    `gamma = min(s_churn / N, sqrt(2) - 1)` where `s_tmin <= s0 <= s_tmax` and 0 elsewhere. The
    noise that raises it, `s_noise * s0 * sqrt(gamma (2 + gamma)) * z`, is added by the row before;
    that of the first step is part of the initial sample, by `init_noise_sigma`.

    Args:
      noise: the noise levels of training. One with zero terminal SNR ends in abar = 2**-24, a
        sigma of 4096, as in diffusers' Euler. A rectified flow from `kd.flow_schedule`. None: the
        network is told sigma as its timestep.
      num_steps: N; left out where timesteps or sigmas are given.
      s_churn: scalar or [N], how much noise the steps take up and remove again; may be traced.
      s_tmin, s_tmax: the noise levels between which there is churn, both included; may be traced.
      s_noise: scalar or [N], multiplies the noise of the churn; its first value that of the first
        step. May be traced.
      timestep_spacing: "linspace" (N values from T - 1 to 0), "leading" or "trailing"; "leading"
        also makes init_noise_sigma `sqrt(sigma_max^2 + 1)` instead of sigma_max. A rectified flow
        has "linspace" (1 to its sigma_min) and "trailing" (`1 - i / N`), then shifted.
      steps_offset: added to the timesteps of "leading".
      grid: None takes the sigmas of those timesteps. "karras", "exponential", "polyexponential",
        "vp", "beta", "kl_optimal" and "laplace" run from the first to the last of them in their
        own spacing, "linear_quadratic" from the first to 0: see `kd.karras_sigmas` and so on,
        whose result with other parameters goes into sigmas. "normal", "simple", "sgm_uniform",
        "ddim_uniform" and "beta_timesteps" have timesteps of their own, as in ComfyUI: even ones
        from T - 1 to 0, `T - 1 - floor(i T / N)`, even ones without the last 0,
        `1 + i (T // N)`, and `kd.beta_timesteps`. A rectified flow has neither these nor "vp" and
        "laplace"; the others run from 1 down to the last level of its spacing, unshifted.
      rho: the exponent of a Karras (7 by default) or polyexponential (1) grid.
      sigma_min, sigma_max: ends of a grid in place of those of the timestep spacing; needed where
        noise is None. These three may be traced, for sweeps and gradients.
      timesteps: training timesteps, strictly descending, whole or fractional, used verbatim.
      sigmas: noise levels, strictly descending, used verbatim; a closing 0 may end them.
      round_timesteps: round the timesteps of grid points, not of midpoints, as diffusers does on
        a Karras grid; the sigmas stay, so the network is told a level that is slightly off.
      discard_penultimate: build the grid of N + 1 steps and leave out its last level before 0, as
        ComfyUI does for DPM2; N steps are left.

    Returns:
      A Schedule of 2N - 1 rows; `sigmas` is the grid before churn. It promises to draw no noise
      where s_churn is the number 0. With any other, with one a step (zeros too) or a traced one
      it is stochastic, so that the tables of a sweep share an executable. Raised past the
      training range, a level has the last timestep.

    Raises:
      ValueError: N that is no positive integer, unknown names, two grids at once, leading or
        trailing with N > T, an offset past T - 1, ends in the wrong order, lists that do not
        descend, noise=None with anything that needs training timesteps; s_churn, s_tmin, s_tmax
        or s_noise negative, s_tmin above s_tmax; churn or rounding on a rectified flow.

    Example:
      >>> import kdiff_jax as kd
      >>> schedule = kd.dpm2_schedule(kd.noise_schedule("scaled_linear"), 25, grid="karras")
      >>> schedule.num_steps, schedule.num_rows, schedule.sigmas.shape
      (25, 49, (26,))
      >>> churn = kd.dpm2_schedule(kd.noise_schedule(), sigmas=[8.0, 2.0, 0.5], s_churn=0.75)
      >>> churn[0].sigma.item(), churn.init_noise_sigma.item(), churn.deterministic
      (10.0, 10.0, False)

    Source: Lu et al. 2022 (arXiv:2206.00927); Karras et al. 2022 (arXiv:2206.00364), Algorithm 2
    (churn); `sample_dpm_2` of k-diffusion.
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
    if levels.flow and may_churn(s_churn):
        raise ValueError(
            f"s_churn = {s_churn} on a rectified flow: the noise that churn adds would take the "
            "sample off the line alpha + sigma = 1 that the network knows; leave it out, or take "
            "dpm2_ancestral_schedule, whose noise stays on the line."
        )
    churn = churned(levels.sigmas, s_churn, s_tmin, s_tmax, s_noise)
    deterministic = not may_churn(s_churn)
    return _fill(levels, eta=0.0, s_noise=0.0, deterministic=deterministic, churn=churn)


def dpm2_ancestral_schedule(
    noise: NoiseSchedule | FlowSchedule | None,
    num_steps: int | None = None,
    *,
    eta: Any = 1.0,
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
    """Ancestral DPM-Solver-2: down to sigma_down by DPM2, then noise up to the grid again.

    With `r = s1 / s0` and `q = (s0 - s1)(s0 + s1) / s0^2`:
    `s_down = s1 * sqrt((1 - eta)(1 + eta) + (eta r)^2)`, `s_up = s1 * eta * sqrt(q)`,
    `sm = sqrt(s0 * s_down)`; `x_next = x + (s_down - s0) * epsilon_m + s_up * s_noise * z`.
    eta = 0 gives the table of `dpm2_schedule`; the last step draws no noise.
    On a rectified flow `s_down = s1 * (1 - eta * (s0 - s1) / s0)`, the step to it is multiplied by
    `keep = (1 - s1) / (1 - s_down)`, and `s_up = sqrt(s1^2 - (keep * s_down)^2)`.

    Args:
      noise: as for `dpm2_schedule`, zero terminal SNR, a rectified flow and None included.
      num_steps: N; left out where timesteps or sigmas are given.
      eta: scalar or [N], 0 to below `1 / sqrt(q)` of every step, `s0 / (s0 - s1)` on a flow; may
        be traced.
      s_noise: scalar or [N], multiplies the noise; may be traced.
      timestep_spacing, steps_offset, grid, rho, sigma_min, sigma_max, timesteps, sigmas,
        round_timesteps, discard_penultimate: as for `dpm2_schedule`.

    Returns:
      A Schedule of 2N - 1 rows; stochastic whatever eta is, so that tables with another eta
      share an executable.

    Raises:
      ValueError: as for `dpm2_schedule`; eta or s_noise negative, eta at or beyond its bound.

    Example:
      >>> import kdiff_jax as kd
      >>> schedule = kd.dpm2_ancestral_schedule(kd.noise_schedule("scaled_linear"), 25, eta=0.5)
      >>> schedule.num_rows, schedule.deterministic
      (49, False)

    Source: `sample_dpm_2_ancestral` of k-diffusion, `KDPM2AncestralDiscreteScheduler`.
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
    return _fill(levels, eta=eta, s_noise=s_noise, deterministic=False)
