"""Multistep latent-consistency sampling: one row a step, in variance-preserving units.

    x_next = sqrt(abar') * D + sqrt(1 - abar') * s_noise * z        abar' at the next timestep
    last   = D

Luo et al. 2023 (arXiv:2310.04378), Algorithm 3; Song et al. 2023 (arXiv:2303.01469), Algorithm 1;
`LCMScheduler` of diffusers.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kdiff_jax._checks import common_namespace, one_per_step
from kdiff_jax._noise_schedule import NoiseSchedule, vp_levels
from kdiff_jax._schedule import Schedule, build_schedule
from kdiff_jax._spacing import kept_steps, lcm_timesteps, verbatim_sigmas


def lcm_schedule(
    noise: NoiseSchedule | None,
    num_steps: int | None = None,
    *,
    original_steps: int = 50,
    timesteps: Sequence[int] | np.ndarray | None = None,
    sigmas: Sequence[float] | np.ndarray | None = None,
    strength: float = 1.0,
    s_noise: Any = 1.0,
    s_noise_end: Any = None,
) -> Schedule:
    """Latent-consistency sampling: N steps cost N evaluations, typically 1 to 8.

    `x_next = sqrt(abar') D + sqrt(1 - abar') s_noise z`, the last step is `D`. The N timesteps
    come from the distillation grid
    `(1 .. floor(original_steps * strength)) * (T // original_steps) - 1`, at
    `floor(linspace(0, len, N, endpoint=False))` from its top.

    Args:
      noise: the noise levels of training; None with sigmas: the network is told sigma.
      num_steps: N, at most the timesteps that the grid holds below the strength.
      original_steps: the steps of the teacher that the network was distilled from.
      timesteps: [N] whole training timesteps, strictly descending, in place of num_steps; on the
        distillation grid or off it. With a strength below 1 the first ones are dropped.
      sigmas: [N] noise over signal, as `noise.sigmas` and k-diffusion have it, strictly
        descending, used verbatim in place of num_steps and timesteps; a closing 0 may end them.
        The timesteps that belong to them may be fractional. May be traced. With a strength below
        1 the first ones are dropped.
      strength: in (0, 1], the share of the grid that is run, for image-to-image.
      s_noise: scalar or [N], multiplies the noise that a step adds; 1 is what the network was
        trained for, less gives smoother samples. May be traced.
      s_noise_end: where given, step i of N has `s_noise + i / (N - 1) (s_noise_end - s_noise)`;
        the closing step adds no noise, so the last noise is one short of it. May be traced.

    Returns:
      A Schedule of N rows; the last is noiseless by its place. init_noise_sigma is 1.

    Raises:
      ValueError: not exactly one of num_steps, timesteps and sigmas; timesteps that are empty,
        fractional, negative, at or past T, or not descending, or such sigmas; strength outside
        (0, 1] or leaving nothing; more steps than the grid holds; noise None without sigmas;
        s_noise or s_noise_end negative, or an s_noise_end for an s_noise that is one a step.

    Example:
      >>> import kdiff_jax as kd
      >>> schedule = kd.lcm_schedule(kd.noise_schedule("scaled_linear"), 4)
      >>> schedule.rows.timestep.tolist()
      [999.0, 759.0, 499.0, 259.0]

    Source: Luo et al. 2023 (arXiv:2310.04378), Algorithm 3; `LCMScheduler` of diffusers; s_noise
    and s_noise_end as in `SamplerLCM` of ComfyUI.
    """
    if sigmas is not None:
        if num_steps is not None or timesteps is not None:
            raise ValueError(
                f"num_steps = {num_steps} and timesteps = {timesteps} were given with sigmas, "
                "which say all of it; give exactly one of the three."
            )
        levels, steps = verbatim_sigmas(noise, sigmas)
        kept = kept_steps(len(levels), strength, "sigmas")
        levels, steps = levels[-kept:], steps[-kept:]
    elif noise is None:
        raise ValueError("noise = None has no timesteps to choose from; give sigmas=[...].")
    else:
        steps = lcm_timesteps(
            noise.num_train_timesteps, num_steps, original_steps, timesteps, strength
        )
        levels = noise.sigmas[steps]
    xp, levels, s_noise = common_namespace(levels, noise_factors(s_noise, s_noise_end, len(steps)))
    alpha, sigma = vp_levels(levels, xp)
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
        1.0,
        anchorless=True,
        zero_terminal_snr=noise is not None and noise.zero_terminal_snr,
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
