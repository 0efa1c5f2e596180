"""Churn: noise that is added before a step, so that the step starts from a raised level."""

import math
from typing import Any

import numpy as np

from kdiff_jax._checks import check_number, common_namespace, is_traced, one_per_step


def may_churn(s_churn: Any) -> bool:
    """Whether a table is to promise nothing: for any s_churn but the number 0."""
    return is_traced(s_churn) or np.ndim(s_churn) > 0 or bool(s_churn != 0)


def churned(sigmas: Any, s_churn: Any, s_tmin: Any, s_tmax: Any, s_noise: Any) -> tuple[Any, Any]:
    """The raised levels of a grid, and the weights of the noise that raises them.

        gamma  = min(s_churn / N, sqrt(2) - 1) where s_tmin <= sigma <= s_tmax, else 0
        raised = sigma * (1 + gamma)
        added  = s_noise * sigma * sqrt(gamma (2 + gamma))   so that raised^2 = sigma^2 + added^2
                                                             at s_noise = 1
    Args:
      sigmas: [N] the grid, descending, without its closing 0.
      s_churn: scalar or [N].
      s_tmin, s_tmax: the levels between which there is churn, both included.
      s_noise: scalar or [N], multiplies the noise.

    Returns:
      raised and added, [N] each.

    Raises:
      ValueError: one of them negative, or of another shape; s_tmin above s_tmax.

    Source: Karras et al. 2022 (arXiv:2206.00364), Algorithm 2; `sample_dpm_2` of k-diffusion.
    """
    num_steps = sigmas.shape[0]
    s_tmin = check_number("s_tmin", s_tmin, at_least=0)
    if is_traced(s_tmax) or s_tmax != math.inf:
        s_tmax = check_number("s_tmax", s_tmax, at_least=0)
    if not is_traced(s_tmin, s_tmax) and s_tmin > s_tmax:
        raise ValueError(
            f"s_tmin = {s_tmin} is above s_tmax = {s_tmax}, so no level has churn; swap them, or "
            "pass s_churn=0."
        )
    xp, sigmas, s_churn, s_tmin, s_tmax, s_noise = common_namespace(
        sigmas,
        one_per_step("s_churn", s_churn, num_steps),
        s_tmin,
        s_tmax,
        one_per_step("s_noise", s_noise, num_steps),
    )
    inside = (s_tmin <= sigmas) & (sigmas <= s_tmax)
    gamma = xp.where(inside, xp.clip(s_churn / num_steps, 0, math.sqrt(2) - 1), 0)
    # sqrt has no slope at 0, so its input is masked: a step without churn has no gradient.
    square = xp.where(gamma > 0, gamma * (2 + gamma), 1)
    added = xp.where(gamma > 0, s_noise * sigmas * xp.sqrt(square), 0)
    return sigmas * (1 + gamma), added
