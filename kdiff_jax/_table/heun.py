"""Heun's method: two rows a step, at both of its ends.

    at s0      x_e    = a(s1) * D + s1 * epsilon
    at s1      x_next = x / 2 + (a(s1) - a(s0) / 2) * D_e + (s1 - s0 / 2) * epsilon_e
    closing    x_next = D                                             where the levels end at 0

With x_e = a(s1) D_e + s1 epsilon_e this is `x + (s1 - s0) / 2 * (slope + slope_e)`, the mean of
the slopes at both ends: a = 1 and slope = epsilon, on a rectified flow a = 1 - s and
slope = epsilon - D.

Karras et al. 2022 (arXiv:2206.00364), Algorithm 1; `sample_heun` of k-diffusion,
`HeunDiscreteScheduler` and `FlowMatchHeunDiscreteScheduler` of diffusers.
"""

from __future__ import annotations

from kdiff_jax._arrays import common_namespace
from kdiff_jax._levels.levels import Levels
from kdiff_jax._table.ancestral import finite_levels
from kdiff_jax._table.fill import fill, timesteps_reached
from kdiff_jax._table.schedule import Schedule


def heun(levels: Levels) -> Schedule:
    """Heun's method, second order: N steps cost 2N - 1 evaluations.

    From s0 to s1: `x_e = D + s1 * epsilon`, then with epsilon_e at s1
    `x_next = x + (s1 - s0) * (epsilon + epsilon_e) / 2`; the closing step is `D`. On a rectified
    flow `epsilon - D` is in place of epsilon.

    Args:
      levels: the run, from `kd.levels`; with churn, or reversed, too.

    Returns:
      A Schedule of 2N - 1 rows (2N where the levels end above 0), without a noise column but for
      churn; its columns are those of `dpm2`.

    Example:
      >>> import kdiff_jax as kd
      >>> kd.heun(kd.levels(kd.noise_schedule("scaled_linear"), 25, grid="karras"))
      Schedule(25 steps, 49 rows, sigma 14.61 .. 0.02917)

    Source: Karras et al. 2022 (arXiv:2206.00364), Algorithms 1 and 2; `sample_heun` of
    k-diffusion.
    """
    s0, s1 = finite_levels(levels).inner
    _, a0, a1 = common_namespace(levels.noise.alpha_at(s0), levels.noise.alpha_at(s1))
    start = {"sigma": s0, "denoised_weight": a1, "epsilon_weight": s1}
    end = {
        "sigma": s1,
        "timestep": timesteps_reached(levels),
        "anchor_weight": 0.5,
        "denoised_weight": a1 - a0 / 2,
        "epsilon_weight": s1 - s0 / 2,
    }
    return fill(levels, start, end)
