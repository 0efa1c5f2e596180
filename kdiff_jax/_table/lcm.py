"""Multistep latent-consistency sampling: one row a step, in variance-preserving units.

    x_next = sqrt(abar') * D + sqrt(1 - abar') * s_noise * z        abar' at the next timestep
    x_next = (1 - s1) * D + s1 * s_noise * z                        on a rectified flow
    closing  x_next = D

Luo et al. 2023 (arXiv:2310.04378), Algorithm 3; Song et al. 2023 (arXiv:2303.01469), Algorithm 1;
`LCMScheduler` and `FlowMatchLCMScheduler` of diffusers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jax.typing import ArrayLike

from kdiff_jax._arrays import Array, common_namespace
from kdiff_jax._checks import one_per_step
from kdiff_jax._levels.levels import Levels
from kdiff_jax._table.ancestral import refuse_churn
from kdiff_jax._table.fill import fill
from kdiff_jax._table.schedule import Schedule


def lcm(
    levels: Levels, s_noise: ArrayLike | Sequence[float] = 1.0, s_noise_end: ArrayLike | None = None
) -> Schedule:
    """Latent-consistency sampling: N steps cost N evaluations, typically 1 to 8.

    `x_next = sqrt(abar') D + sqrt(1 - abar') s_noise z`, a closing step is `D`. On a rectified
    flow `x_next = (1 - s1) D + s1 s_noise z`.

    Args:
      levels: the run, from `kd.lcm_levels`; on a rectified flow from `kd.levels`.
      s_noise: scalar or [N], multiplies the noise that a step adds; 1 is what the network was
        trained for, less gives smoother samples. May be traced.
      s_noise_end: where given, step i of N has `s_noise + i / (N - 1) (s_noise_end - s_noise)`;
        a closing step adds no noise, so the last noise is one short of it. May be traced.

    Returns:
      A Schedule of N rows; the last is noiseless by its place. init_noise_sigma is 1, on a
      rectified flow the first level. The rows and `sigmas` are in variance-preserving units,
      `sigma = sqrt(1 - abar)`.

    Raises:
      ValueError: s_noise or s_noise_end negative, or an s_noise_end for an s_noise that is one a
        step; levels with churn, or that ascend.

    Example:
      >>> import kdiff_jax as kd
      >>> schedule = kd.lcm(kd.lcm_levels(kd.noise_schedule("scaled_linear"), 4))
      >>> schedule.rows.timestep.tolist()
      [999.0, 759.0, 499.0, 259.0]

    Source: Luo et al. 2023 (arXiv:2310.04378), Algorithm 3; `LCMScheduler` of diffusers; s_noise
    and s_noise_end as in `SamplerLCM` of ComfyUI.
    """
    refuse_churn(levels, "lcm")
    noise = levels.noise
    s0, s1 = levels.inner
    factors = noise_factors(s_noise, s_noise_end, levels.num_steps)[: s0.shape[0]]
    alpha, sigma = noise.unit_variance(s1)
    _, sigma, factors = common_namespace(sigma, factors)

    def units(sigma: Array) -> tuple[Array, Array, None]:
        return *noise.unit_variance(sigma), None

    row = {"sigma": s0, "denoised_weight": alpha, "noise_weight": sigma * factors}
    start = levels.init_noise_sigma if noise.flow else 1.0
    return fill(levels, row, units=units, init_noise_sigma=start)


def noise_factors(
    s_noise: ArrayLike | Sequence[float], s_noise_end: ArrayLike | None, num_steps: int
) -> Array:
    """[N] what the noise of every step is multiplied by; a closing step has none to multiply."""
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
