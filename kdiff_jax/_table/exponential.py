"""What multistep exponential integrators share: steps in log(alpha / sigma), and phi functions.

Hochbruck and Ostermann 2010, Exponential integrators; Lu et al. 2022 (arXiv:2211.01095), appendix
A, for the data-prediction form. Here every phi is that of -h, with its powers of h taken out.
"""

from __future__ import annotations

import math

from kdiff_jax._arrays import Array, common_namespace
from kdiff_jax._levels.levels import Levels
from kdiff_jax._table.ancestral import finite_levels

# Below it phi is summed, above it the published quotients lose less than 2 digits.
_SMALL, _TERMS = 0.3, 13


def log_steps(levels: Levels) -> tuple[Array, Array, Array]:
    """The steps that end above 0 in log(alpha / sigma): h, b = h / h_last, finite; [M] each.

    A step from or to alpha = 0, on a rectified flow, is infinitely long: not finite, its h is 1, so
    that what is computed of it and not used has finite gradients. b is 0 where there is no last
    step, and where one of the two is infinite.
    """
    s0, s1 = levels.inner
    alpha_at = levels.noise.alpha_at
    xp, s0, s1, a0, a1 = common_namespace(s0, s1, alpha_at(s0), alpha_at(s1))
    finite = (a0 > 0) & (a1 > 0)
    before = xp.where(finite, a0 * s1, 1)
    h = xp.where(finite, xp.log1p(xp.where(finite, a1 * s0 - a0 * s1, 0) / before), 1)
    b = xp.where(finite[1:] & finite[:-1], h[1:] / h[:-1], 0)
    return h, xp.concatenate([xp.zeros(1), b])[: h.shape[0]], finite


def phis(h: Array) -> tuple[Array, Array]:
    """`phi_2 = (exp(-h) - 1 + h) / h` and `phi_3 = phi_2 / h - 1/2`, without cancellation."""
    xp, h = common_namespace(h)
    small = xp.abs(h) < _SMALL
    large, near_0 = xp.where(small, 1, h), xp.where(small, h, 0)
    series = 0.0
    for k in reversed(range(_TERMS)):  # the sum of (-h)^k / (k + 3)!
        series = 1 / math.factorial(k + 3) - near_0 * series
    phi_2 = (xp.expm1(-large) + large) / large
    phi_3 = xp.where(small, -near_0 * series, phi_2 / large - 0.5)
    return xp.where(small, near_0 * (phi_3 + 0.5), phi_2), phi_3


def after_one(values: Array) -> Array:
    """Each step's number in the step after it; 0 in the first."""
    xp, values = common_namespace(values)
    return xp.concatenate([xp.zeros(1), values[:-1]])[: values.shape[0]]


def refuse_multistep_churn(levels: Levels, name: str) -> None:
    """Churn moves the sample away from where the earlier estimates were made."""
    if finite_levels(levels).raised is not None:
        raise ValueError(
            f"{name} goes on from estimates of earlier levels, and the noise that churn adds in "
            "between makes them those of another trajectory; take a sampler of single steps for "
            "churn, kd.dpm2 or kd.euler, or kd.dpmpp_2m with an eta on levels without it."
        )
