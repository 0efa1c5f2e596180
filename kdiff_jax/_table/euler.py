"""Euler's method on the probability-flow ODE, DDIM, and its ancestral form: one row a step.

    x_next = a(s1) * D + keep * s_down * epsilon + s_up * s_noise * z        a = 1; on a flow 1 - s

Karras et al. 2022 (arXiv:2206.00364), Algorithm 1 without its second-order correction; Song et al.
2020 (arXiv:2010.02502); `sample_euler` and `sample_euler_ancestral` of k-diffusion.
"""

from __future__ import annotations

from collections.abc import Sequence

from jax.typing import ArrayLike

from kdiff_jax._checks import one_per_step
from kdiff_jax._levels.levels import Levels
from kdiff_jax._table.ancestral import ancestral_split, finite_levels
from kdiff_jax._table.fill import fill
from kdiff_jax._table.schedule import Schedule


def euler(
    levels: Levels,
    eta: ArrayLike | Sequence[float] | None = None,
    s_noise: ArrayLike | Sequence[float] = 1.0,
) -> Schedule:
    """Euler's method, first order: N steps cost N evaluations; with an eta it is ancestral.

    From s0 to s1: `x_next = D + s_down * epsilon + s_up * s_noise * z`, with s_down and s_up as
    in `dpm2_ancestral` and no noise in a closing step.

    This is DDIM, and the eta of DDIM is this eta, exactly: divided by sqrt(abar'), the noise of
    its step, `eta sqrt((1 - abar') / (1 - abar)) sqrt(1 - abar / abar') z`, is
    `eta s1 sqrt((s0^2 - s1^2) / s0^2) z = s_up z`, and what it leaves of epsilon is s_down.

    Args:
      levels: the run, from `kd.levels`.
      eta: scalar or [N], how much of each step is noise. None, the default: the table has no noise
        column, and no key is needed; 0.0 keeps the column, for tables of a sweep.
      s_noise: scalar or [N], multiplies the noise. Both may be traced.

    Returns:
      A Schedule of N rows.

    Raises:
      ValueError: eta or s_noise negative, eta at or beyond its bound; an eta with churn or with
        levels that ascend.

    Example:
      >>> import kdiff_jax as kd
      >>> kd.euler(kd.levels(kd.noise_schedule("scaled_linear"), 10)).num_rows
      10

    Source: Karras et al. 2022 (arXiv:2206.00364); Song et al. 2020 (arXiv:2010.02502), equation
    12; `sample_euler(_ancestral)` of k-diffusion, `DDIMScheduler` of diffusers.
    """
    s0, s1 = finite_levels(levels).inner
    if eta is None:
        one_per_step("s_noise", s_noise, levels.num_steps)
        row = {"denoised_weight": levels.noise.alpha_at(s1), "epsilon_weight": s1}
    else:
        s_down, s_up, keep = ancestral_split(levels, eta, s_noise)
        row = {
            "denoised_weight": levels.noise.alpha_at(s1),
            "epsilon_weight": keep * s_down,
            "noise_weight": s_up,
        }
    return fill(levels, {"sigma": s0, **row})
