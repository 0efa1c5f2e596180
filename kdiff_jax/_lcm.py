"""Multistep latent-consistency sampling: one row a step, in variance-preserving units.

    x_next = sqrt(abar') * D + sqrt(1 - abar') * s_noise * z        abar' at the next timestep
    x_next = (1 - sigma') * D + sigma' * s_noise * z                on a rectified flow
    last   = D

Luo et al. 2023 (arXiv:2310.04378), Algorithm 3; Song et al. 2023 (arXiv:2303.01469), Algorithm 1;
`LCMScheduler` and `FlowMatchLCMScheduler` of diffusers.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kdiff_jax._checks import common_namespace, one_per_step
from kdiff_jax._flow import FlowSchedule
from kdiff_jax._noise_schedule import NoiseSchedule, vp_levels
from kdiff_jax._schedule import Schedule, build_schedule
from kdiff_jax._spacing import Grid, inference_grid, verbatim_sigmas
from kdiff_jax._timestep_grids import kept_steps, lcm_timesteps


def lcm_schedule(
    noise: NoiseSchedule | FlowSchedule | None,
    num_steps: int | None = None,
    *,
    original_steps: int | None = None,
    timesteps: Sequence[float] | np.ndarray | None = None,
    sigmas: Sequence[float] | np.ndarray | None = None,
    strength: float = 1.0,
    timestep_spacing: str | None = None,
    s_noise: Any = 1.0,
    s_noise_end: Any = None,
) -> Schedule:
    """Latent-consistency sampling: N steps cost N evaluations, typically 1 to 8.

    `x_next = sqrt(abar') D + sqrt(1 - abar') s_noise z`, the last step is `D`. The N timesteps
    come from the distillation grid
    `(1 .. floor(original_steps * strength)) * (T // original_steps) - 1`, at
    `floor(linspace(0, len, N, endpoint=False))` from its top.

    Args:
      noise: the noise levels of training; None with sigmas: the network is told sigma. A rectified
        flow has no distillation grid: it takes num_steps with a timestep_spacing, or timesteps, or
        sigmas, and no strength; its steps are `(1 - sigma') D + sigma' s_noise z`, and
        init_noise_sigma is its first sigma.
      num_steps: N, at most the timesteps that the grid holds below the strength.
      original_steps: the steps of the teacher that the network was distilled from, 50 by default.
      timesteps: [N] whole training timesteps, strictly descending, in place of num_steps; on the
        distillation grid or off it. With a strength below 1 the first ones are dropped.
      sigmas: [N] noise over signal, as `noise.sigmas` and k-diffusion have it, strictly
        descending, used verbatim in place of num_steps and timesteps; a closing 0 may end them.
        The timesteps that belong to them may be fractional. May be traced. With a strength below
        1 the first ones are dropped. On a rectified flow, its levels in (0, 1].
      strength: in (0, 1], the share of the grid that is run, for image-to-image.
      timestep_spacing: of a rectified flow only, as for `dpm2_schedule`.
      s_noise: scalar or [N], multiplies the noise that a step adds; 1 is what the network was
        trained for, less gives smoother samples. May be traced.
      s_noise_end: where given, step i of N has `s_noise + i / (N - 1) (s_noise_end - s_noise)`;
        the closing step adds no noise, so the last noise is one short of it. May be traced.

    Returns:
      A Schedule of N rows; the last is noiseless by its place. init_noise_sigma is 1, on a
      rectified flow the first level.

    Raises:
      ValueError: not exactly one of num_steps, timesteps and sigmas; timesteps that are empty,
        fractional, negative, at or past T, or not descending, or such sigmas; strength outside
        (0, 1] or leaving nothing; more steps than the grid holds; noise None without sigmas;
        s_noise or s_noise_end negative, or an s_noise_end for an s_noise that is one a step;
        timestep_spacing without a rectified flow, original_steps or strength with one.

    Example:
      >>> import kdiff_jax as kd
      >>> schedule = kd.lcm_schedule(kd.noise_schedule("scaled_linear"), 4)
      >>> schedule.rows.timestep.tolist()
      [999.0, 759.0, 499.0, 259.0]

    Source: Luo et al. 2023 (arXiv:2310.04378), Algorithm 3; `LCMScheduler` of diffusers; s_noise
    and s_noise_end as in `SamplerLCM` of ComfyUI.
    """
    if isinstance(noise, FlowSchedule):
        _refuse("with", original_steps=original_steps, strength=None if strength == 1 else strength)
        grid = _flow_grid(noise, num_steps, timestep_spacing or "linspace", timesteps, sigmas)
        steps, start = grid.timesteps, grid.init_noise_sigma
        alpha, sigma = grid.alpha_at(grid.sigmas), grid.sigmas
    else:
        _refuse("without", timestep_spacing=timestep_spacing)
        levels, steps = _diffusion_levels(
            noise,
            num_steps,
            50 if original_steps is None else original_steps,
            timesteps,
            sigmas,
            strength,
        )
        xp, levels = common_namespace(levels)
        (alpha, sigma), start = vp_levels(levels, xp), 1.0
    factors = noise_factors(s_noise, s_noise_end, len(steps))
    xp, alpha, sigma, s_noise = common_namespace(alpha, sigma, factors)
    columns = {
        "index": np.arange(len(steps)),
        "step": np.arange(len(steps)),
        "timestep": steps,
        "alpha": alpha,
        "sigma": sigma,
        "input_scale": 1.0,
        "anchor_weight": 0.0,
        "denoised_weight": xp.concatenate([alpha[1:], xp.ones(1, alpha.dtype)]),
        "epsilon_weight": 0.0,
        "noise_weight": xp.concatenate([sigma[1:] * s_noise[:-1], xp.zeros(1, sigma.dtype)]),
        "advances": True,
    }
    return build_schedule(
        columns,
        xp.concatenate([sigma, xp.zeros(1, sigma.dtype)]),
        start,
        anchorless=True,
        zero_terminal_snr=isinstance(noise, NoiseSchedule) and noise.zero_terminal_snr,
        flow=isinstance(noise, FlowSchedule),
    )


def _diffusion_levels(
    noise: NoiseSchedule | None,
    num_steps: int | None,
    original_steps: int,
    timesteps: Any,
    sigmas: Any,
    strength: float,
) -> tuple[Any, Any]:
    """Noise over signal, [N], and what the network is told of it."""
    if sigmas is not None:
        if num_steps is not None or timesteps is not None:
            raise ValueError(
                f"num_steps = {num_steps} and timesteps = {timesteps} were given with sigmas, "
                "which say all of it; give exactly one of the three."
            )
        levels, steps = verbatim_sigmas(noise, sigmas)
        kept = kept_steps(len(levels), strength, "sigmas")
        return levels[-kept:], steps[-kept:]
    if noise is None:
        raise ValueError("noise = None has no timesteps to choose from; give sigmas=[...].")
    steps = lcm_timesteps(noise.num_train_timesteps, num_steps, original_steps, timesteps, strength)
    return noise.sigmas[steps], steps


def _flow_grid(
    flow: FlowSchedule, num_steps: Any, timestep_spacing: str, timesteps: Any, sigmas: Any
) -> Grid:
    return inference_grid(
        flow,
        num_steps,
        timestep_spacing=timestep_spacing,
        steps_offset=0,
        grid=None,
        rho=None,
        sigma_min=None,
        sigma_max=None,
        timesteps=timesteps,
        sigmas=sigmas,
        round_timesteps=False,
        discard_penultimate=False,
    )


def _refuse(how: str, **arguments: Any) -> None:
    if given := [name for name, value in arguments.items() if value is not None]:
        raise ValueError(
            f"{' and '.join(given)} {how} a rectified flow; lcm_schedule takes timestep_spacing "
            "with kd.flow_schedule, original_steps and strength with kd.noise_schedule. For "
            "image-to-image on a flow take schedule.start_at(step)."
        )


def noise_factors(s_noise: Any, s_noise_end: Any, num_steps: int) -> Any:
    """[N] what the noise of every step is multiplied by; the closing step has none to multiply."""
    first = one_per_step("s_noise", s_noise, num_steps)
    if s_noise_end is None:
        xp, first = common_namespace(first)
        return xp.broadcast_to(first, (num_steps,))
    last = one_per_step("s_noise_end", s_noise_end, 1)
    if np.ndim(first) or np.ndim(last):
        raise ValueError(
            f"s_noise has shape {np.shape(first)} and s_noise_end {np.shape(last)}; give two "
            "numbers, or s_noise alone with one a step."
        )
    _, first, last, ramp = common_namespace(first, last, np.linspace(0, 1, num_steps))
    return first + ramp * (last - first)
