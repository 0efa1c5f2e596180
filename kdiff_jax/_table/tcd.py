"""Trajectory consistency sampling: down to a level below the next one, and up to it by noise.

    x_next = sqrt(abar' / abar_s) * (sqrt(abar_s) * D + sqrt(1 - abar_s) * epsilon)
             + sqrt(1 - abar' / abar_s) * z              s = floor((1 - gamma) * t')
    closing  x_next = D

abar' is at the next timestep t', in variance-preserving units as in lcm.py.

Zheng et al. 2024 (arXiv:2402.19159), Algorithm 4 (strategic stochastic sampling); `TCDScheduler`
of diffusers.
"""

from __future__ import annotations

from jax.typing import ArrayLike

from kdiff_jax._arrays import Array, common_namespace, is_traced
from kdiff_jax._checks import check_number
from kdiff_jax._levels.levels import Levels
from kdiff_jax._levels.noise_schedule import NoiseSchedule
from kdiff_jax._table.ancestral import check_levels, refuse_churn
from kdiff_jax._table.fill import fill, timesteps_reached
from kdiff_jax._table.schedule import Schedule


def tcd(levels: Levels, gamma: ArrayLike = 0.3) -> Schedule:
    """Trajectory consistency sampling: N steps cost N evaluations, typically 2 to 8.

    With `s = floor((1 - gamma) t')` below the next timestep t':
    `x_next = sqrt(abar') D + sqrt(abar' (1 - abar_s) / abar_s) epsilon + sqrt(1 - abar' / abar_s)
    z`; a closing step is `D`. The network predicts as any other: no `kd.consistency` around it.

    Args:
      levels: the run of a beta schedule, from `kd.lcm_levels`. `TCDScheduler` of diffusers ends
        at t = 0 with the noise of that level left in the sample, whatever its set_alpha_to_one
        says: `kd.levels(noise, timesteps=[999, 759, 499, 259, 0]).end_at(4)`.
      gamma: how much of a step is noise, from 0 (none) to 1 (nearly that of `lcm`); diffusers
        calls it eta. May be traced, but s is a whole number, which has no gradient.

    Returns:
      A Schedule of N rows, with a noise column whatever gamma is; init_noise_sigma is 1. The rows
      and `sigmas` are in variance-preserving units, `sigma = sqrt(1 - abar)`.

    Raises:
      ValueError: gamma outside [0, 1]; levels of a rectified flow or of sigmas alone, with churn,
        or that ascend.

    Example:
      >>> import kdiff_jax as kd
      >>> kd.tcd(kd.lcm_levels(kd.noise_schedule("scaled_linear"), 4)).rows.timestep.tolist()
      [999.0, 759.0, 499.0, 259.0]

    Source: Zheng et al. 2024 (arXiv:2402.19159); `TCDScheduler` of diffusers.
    """
    given = check_number("gamma", gamma, at_least=0)
    if not is_traced(given) and given > 1:
        raise ValueError(f"gamma = {gamma} is out of range; expected it in [0, 1].")
    noise = check_levels(levels).noise
    if not isinstance(noise, NoiseSchedule):
        what = "a rectified flow" if noise.flow else "sigmas alone"
        raise ValueError(
            f"tcd was given levels of {what}, and it is defined on the whole timesteps of a beta "
            "schedule: kd.tcd(kd.lcm_levels(noise, 4)); here take kd.lcm, or kd.euler with an eta."
        )
    refuse_churn(levels, "tcd")
    s0, s1 = levels.inner
    alpha, _ = noise.unit_variance(s1)
    xp, alpha, s1, share, reached, table = common_namespace(
        alpha, s1, given, timesteps_reached(levels), noise.sigmas
    )
    # 0.7 * 690 is 482.99999999999994 in binary: what rounding may have taken is given back.
    spare = 2 * xp.finfo(share.dtype).eps
    s = xp.floor((1 - share + spare) * reached).astype(int)
    # A level that the caller chose may lie below that of t = 0.
    below = xp.minimum(table[s], s1)
    gap = (s1 - below) * (s1 + below)
    # The last level of a grid is that of t = 0 but for rounding, which is no noise; and sqrt has no
    # slope at 0, so its input is masked.
    draws = gap > 4 * spare * s1 * s1
    up = xp.where(draws, xp.sqrt(xp.where(draws, gap, 1)), 0)

    def units(sigma: Array) -> tuple[Array, Array, None]:
        return *noise.unit_variance(sigma), None

    row = {
        "sigma": s0,
        "denoised_weight": alpha,
        "epsilon_weight": alpha * below,
        "noise_weight": alpha * up,
    }
    return fill(levels, row, units=units, init_noise_sigma=1.0)
