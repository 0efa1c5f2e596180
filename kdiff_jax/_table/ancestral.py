"""The split of an ancestral step, with one eta and one s_noise for each step of the levels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jax.typing import ArrayLike

from kdiff_jax._arrays import Array, common_namespace, is_traced
from kdiff_jax._checks import check_kind, one_per_step, shown
from kdiff_jax._levels.levels import Levels


def check_levels(levels: Levels) -> Levels:
    """What every sampler is a function of; a noise schedule or a table is easily passed for it."""
    remedy = "levels, from kd.levels(noise, num_steps) or kd.lcm_levels(noise, num_steps)"
    checked: Levels = check_kind("levels", levels, Levels, remedy)
    return checked


def finite_levels(levels: Levels) -> Levels:
    """Levels for every sampler but those in variance-preserving units, `kd.lcm` and `kd.tcd`."""
    sigmas = check_levels(levels).sigmas
    if not is_traced(sigmas) and not np.all(np.isfinite(sigmas)):
        raise ValueError(
            "levels hold sigma = inf, no signal at all, as those of kd.lcm_levels do with zero "
            "terminal SNR: kd.lcm and kd.tcd run them; for another sampler take "
            "kd.levels(noise, num_steps), which begins at a finite sigma there."
        )
    return levels


def ancestral_split(
    levels: Levels,
    eta: ArrayLike | Sequence[float],
    s_noise: ArrayLike | Sequence[float],
    to: Array | None = None,
) -> tuple[Array, Array, Array]:
    """sigma_down, the noise weight and keep of the steps that end above 0; [M] each.

    Down to sigma_down without noise, times keep (1 but on a rectified flow), then up again by
    `sigma_up * s_noise * z`; the formulas are in `_levels/split.py`.

    Args:
      levels: N steps, without churn, descending.
      eta: scalar or [N]; 0 is deterministic, 1 the ancestral step.
      s_noise: scalar or [N], multiplies the noise.
      to: [M] levels that the steps are to reach, in place of their ends.

    Raises:
      ValueError: levels with churn or ascending; eta or s_noise negative, not finite or of another
        shape; eta at or beyond the bound of a step.
    """
    finite_levels(levels)
    refuse_churn(levels, f"eta = {shown(eta)}")
    s0, s1 = levels.inner
    s1 = s1 if to is None else to
    count = levels.num_steps
    xp, etas, factors = common_namespace(
        one_per_step("eta", eta, count), one_per_step("s_noise", s_noise, count)
    )
    # The last of N values belongs to a closing step, which takes none.
    etas, factors = (
        xp.broadcast_to(v, (count,))[: s0.shape[0]] if v.ndim else v for v in (etas, factors)
    )
    s_down, s_up, keep = levels.noise.split(s0, s1, etas)
    _, s_up, factors = common_namespace(s_up, factors)
    return s_down, s_up * factors, keep


def refuse_churn(levels: Levels, what: str) -> None:
    """A sampler that draws noise of its own takes neither churn nor levels that ascend."""
    if check_levels(levels).raised is not None:
        raise ValueError(
            f"{what} adds noise of its own to levels with churn, and adding both is too much; "
            "take one of the two: levels without churned(...), or a deterministic sampler."
        )
    if levels.ascends:
        raise ValueError(
            f"{what} draws noise, and these levels ascend (inversion): what noise has covered no "
            "way back can find; invert with a deterministic sampler: kd.dpm2, or kd.euler without "
            "eta."
        )
