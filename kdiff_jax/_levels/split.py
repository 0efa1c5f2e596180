"""How an ancestral step splits: down to `sigma_down` without noise, back up by `sigma_up`.

`variance_split` where alpha is 1 throughout, `flow_split` where alpha + sigma is.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from kdiff_jax._arrays import Array, common_namespace, is_traced

Split = tuple[Array, Array, Array]


@np.errstate(all="ignore")
def variance_split(s0: Array, s1: Array, eta: Array) -> Split:
    """sigma_down, sigma_up and keep of the steps from s0 to s1, without cancellation; [M] each.

    With `r = s1 / s0` and `q = (s0 - s1)(s0 + s1) / s0^2`:

        sigma_down = s1 * sqrt((1 - eta)(1 + eta) + (eta r)^2)
        sigma_up   = s1 * eta * sqrt(q)        so that sigma_down^2 + sigma_up^2 = s1^2
        keep       = 1

    Raises:
      ValueError: eta at or beyond `1 / sqrt(q)`, where sigma_down would be 0 or imaginary.

    Source: Song et al. 2020 (arXiv:2010.02502), equation 16; `get_ancestral_step` of k-diffusion.
    """
    xp, s0, s1, eta = common_namespace(s0, s1, eta)
    q, inside = variance_shares(s0, s1, eta)
    inside = _check_eta(inside, eta, s0, s1, lambda worst: 1 / np.sqrt(q[worst]))
    return s1 * xp.sqrt(inside), s1 * eta * xp.sqrt(q), xp.ones_like(s1)


def variance_shares(s0: Any, s1: Any, eta: Any) -> tuple[Any, Any]:
    """`q` of a step, and what is left of the variance at s1 once `eta^2 q` of it is fresh noise."""
    return (s0 - s1) * (s0 + s1) / s0**2, (1 - eta) * (1 + eta) + (eta * (s1 / s0)) ** 2


@np.errstate(all="ignore")
def flow_split(s0: Array, s1: Array, eta: Array) -> Split:
    """sigma_down, sigma_up and keep of the steps of a rectified flow; [M] each.

    With `q = (s0 - s1) / s0`:

        sigma_down = s1 * (1 - eta q)
        keep       = (1 - s1) / (1 - sigma_down)      so that alpha + sigma is 1 again
        sigma_up   = sqrt(s1^2 - (keep * sigma_down)^2)

    `x_next = keep * x_down + sigma_up * s_noise * z`; eta = 1 puts the midpoint of DPM2 at s1.

    Raises:
      ValueError: eta at or beyond `1 / q`.

    Source: `sample_dpm_2_ancestral_RF` and `sample_euler_ancestral_RF` of ComfyUI.
    """
    xp, s0, s1, eta = common_namespace(s0, s1, eta)
    q = (s0 - s1) / s0
    inside = 1 - eta * q
    inside = _check_eta(inside, eta, s0, s1, lambda worst: 1 / q[worst])
    s_down = s1 * inside
    keep = (1 - s1) / (1 - s_down)
    # s1 - keep * s_down without its cancellation; the square root has no derivative at eta = 0.
    up_squared = s1 * eta * q / (1 - s_down) * (s1 + keep * s_down)
    s_up = xp.where(up_squared > 0, xp.sqrt(xp.where(up_squared > 0, up_squared, 1)), 0)
    return s_down, s_up, keep


def _check_eta(inside: Any, eta: Any, s0: Any, s1: Any, bound: Any) -> Any:
    """`inside`; NaN where a traced eta is beyond its bound, since a trace cannot raise."""
    if is_traced(inside):
        return jnp.where((inside > 0) & (eta >= 0), inside, np.nan)
    if np.all(inside > 0):
        return inside
    worst = int(np.argmin(inside))
    eta = np.broadcast_to(eta, s0.shape)[worst]
    raise ValueError(
        f"eta = {eta} is too large: the step from sigma = {s0[worst]:.6g} to {s1[worst]:.6g} "
        f"allows eta below {bound(worst):.6g}; lower eta or take more steps."
    )
