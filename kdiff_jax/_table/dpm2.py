"""DPM-Solver-2 and its ancestral form: two rows a step, through the midpoint in log sigma.

    midpoint   x_m    = a(sm) * D + sm * epsilon                      sm = sqrt(s0 * s_down)
    landing    x_next = keep * (x + (a(s_down) - a(s0)) * D_m + (s_down - s0) * epsilon_m)
                        + s_up * s_noise * z
    closing    x_next = D                                             where the levels end at 0

epsilon = (x - D) / s0 is the slope dx/dsigma of the probability-flow ODE, epsilon_m the same at
the midpoint; a = 1, and D_m has no weight in the landing. On a rectified flow
`x = (1 - s) x0 + s eps`, so a(s) = 1 - s and the slope is epsilon - D. keep is 1 but on an
ancestral flow.

Lu et al. 2022 (arXiv:2206.00927), DPM-Solver-2 with r = 1/2; Karras et al. 2022
(arXiv:2206.00364); `sample_dpm_2` and `sample_dpm_2_ancestral` of k-diffusion,
`KDPM2DiscreteScheduler` and `KDPM2AncestralDiscreteScheduler` of diffusers; on a flow,
`sample_dpm_2` and `sample_dpm_2_ancestral_RF` of ComfyUI.
"""

from __future__ import annotations

from collections.abc import Sequence

from jax.typing import ArrayLike

from kdiff_jax._arrays import Array, common_namespace
from kdiff_jax._levels.levels import Levels
from kdiff_jax._table.ancestral import ancestral_split, finite_levels
from kdiff_jax._table.fill import fill
from kdiff_jax._table.schedule import Schedule


def dpm2(levels: Levels) -> Schedule:
    """DPM-Solver-2, second order: N steps cost 2N - 1 evaluations.

    From s0 to s1, with `sm = sqrt(s0 * s1)` and `epsilon_m` at the midpoint:
    `x_m = D + sm * epsilon`, then `x_next = x + (s1 - s0) * epsilon_m`; the closing step is `D`.
    On a rectified flow `x_m = (1 - sm) * D + sm * epsilon` and
    `x_next = x + (s1 - s0) * (epsilon_m - D_m)`.

    Args:
      levels: the run, from `kd.levels`; with churn, or reversed, too.

    Returns:
      A Schedule of 2N - 1 rows (2N where the levels end above 0), without a noise column but for
      churn.

    Example:
      >>> import kdiff_jax as kd
      >>> schedule = kd.dpm2(kd.levels(kd.noise_schedule("scaled_linear"), 25, grid="karras"))
      >>> schedule.num_steps, schedule.num_rows, schedule.sigmas.shape
      (25, 49, (26,))

    Source: Lu et al. 2022 (arXiv:2206.00927); Karras et al. 2022 (arXiv:2206.00364), Algorithm 2
    (churn); `sample_dpm_2` of k-diffusion.
    """
    _, s1 = finite_levels(levels).inner
    return fill(levels, *_evaluations(levels, s1, 1.0))


def dpm2_ancestral(
    levels: Levels,
    eta: ArrayLike | Sequence[float] = 1.0,
    s_noise: ArrayLike | Sequence[float] = 1.0,
) -> Schedule:
    """Ancestral DPM-Solver-2: down to sigma_down by DPM2, then noise up to the next level.

    With `r = s1 / s0` and `q = (s0 - s1)(s0 + s1) / s0^2`:
    `s_down = s1 * sqrt((1 - eta)(1 + eta) + (eta r)^2)`, `s_up = s1 * eta * sqrt(q)`,
    `sm = sqrt(s0 * s_down)`; `x_next = x + (s_down - s0) * epsilon_m + s_up * s_noise * z`.
    eta = 0 gives the numbers of `dpm2`; a closing step draws no noise.
    On a rectified flow `s_down = s1 * (1 - eta * (s0 - s1) / s0)`, the step to it is multiplied by
    `keep = (1 - s1) / (1 - s_down)`, and `s_up = sqrt(s1^2 - (keep * s_down)^2)`.

    Args:
      levels: the run, from `kd.levels`.
      eta: scalar or [N], 0 to below `1 / sqrt(q)` of every step, `s0 / (s0 - s1)` on a flow.
      s_noise: scalar or [N], multiplies the noise. Both may be traced.

    Returns:
      A Schedule of 2N - 1 rows (2N where the levels end above 0) with a noise column, whatever
      eta is, so that tables with another eta share an executable.

    Raises:
      ValueError: eta or s_noise negative, eta at or beyond its bound; levels with churn, or that
        ascend.

    Example:
      >>> import kdiff_jax as kd
      >>> levels = kd.levels(kd.noise_schedule("scaled_linear"), 25)
      >>> kd.dpm2_ancestral(levels, eta=0.5).num_rows
      49

    Source: `sample_dpm_2_ancestral` of k-diffusion, `KDPM2AncestralDiscreteScheduler`.
    """
    s_down, s_up, keep = ancestral_split(levels, eta, s_noise)
    midpoint, landing = _evaluations(levels, s_down, keep)
    return fill(levels, midpoint, {**landing, "noise_weight": s_up})


def _evaluations(
    levels: Levels, s_down: Array, keep: ArrayLike
) -> tuple[dict[str, ArrayLike], dict[str, ArrayLike]]:
    noise = levels.noise
    xp, s0, s_down, keep = common_namespace(levels.inner[0], s_down, keep)
    sm = xp.sqrt(s0 * s_down)
    midpoint = {"sigma": s0, "denoised_weight": noise.alpha_at(sm), "epsilon_weight": sm}
    landing = {
        "sigma": sm,
        "timestep": noise.timestep_at(sm),
        "anchor_weight": keep,
        "denoised_weight": keep * (noise.alpha_at(s_down) - noise.alpha_at(s0)),
        "epsilon_weight": keep * (s_down - s0),
    }
    return midpoint, landing
