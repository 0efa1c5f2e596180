"""How an ancestral step splits: down to `sigma_down` without noise, back up by `sigma_up`.

`ancestral_split` where alpha is 1 throughout, `flow_split` where alpha + sigma is; `step_split` is
the one of the two that a grid needs.
"""

from typing import Any

import numpy as np

from kdiff_jax._checks import common_namespace, is_traced, one_per_step


def step_split(sigmas: Any, eta: Any, s_noise: Any, flow: bool) -> tuple[Any, Any, Any]:
    """sigma_down, the noise weight, and what the step to sigma_down is multiplied by."""
    if flow:
        return flow_split(sigmas, eta, s_noise)
    return *ancestral_split(sigmas, eta, s_noise), 1.0


def ancestral_split(sigmas: Any, eta: Any, s_noise: Any) -> tuple[Any, Any]:
    """`sigma_down` and the noise weight of the steps of a grid, without cancellation.

    With `s0, s1` neighbours on the grid, `r = s1 / s0` and `q = (s0 - s1)(s0 + s1) / s0^2`:

        sigma_down = s1 * sqrt((1 - eta)(1 + eta) + (eta r)^2)
        sigma_up   = s1 * eta * sqrt(q)        so that sigma_down^2 + sigma_up^2 = s1^2

    Args:
      sigmas: [N] the grid, descending, without its closing 0.
      eta: scalar or [N]; 0 is deterministic, 1 the ancestral step.
      s_noise: scalar or [N], multiplies the noise.

    Returns:
      sigma_down and `s_noise * sigma_up`, [N - 1] each: the closing step to 0 has neither.

    Raises:
      ValueError: eta or s_noise negative, not finite or of another shape; eta at or beyond
        `1 / sqrt(q)`, where sigma_down would be 0 or imaginary.

    Source: Song et al. 2020 (arXiv:2010.02502), equation 16; `get_ancestral_step` of k-diffusion.
    """
    xp, s0, s1, eta, s_noise = _steps(sigmas, eta, s_noise)
    share, inside = variance_shares(s0, s1, eta)
    if not is_traced(inside) and np.any(inside <= 0):
        worst = int(np.argmin(inside))
        raise _too_large(eta[worst], s0[worst], s1[worst], 1 / np.sqrt(share[worst]))
    return s1 * xp.sqrt(inside), s1 * eta * xp.sqrt(share) * s_noise


def variance_shares(s0: Any, s1: Any, eta: Any) -> tuple[Any, Any]:
    """`q` of a step, and what is left of the variance at s1 once `eta^2 q` of it is fresh noise."""
    return (s0 - s1) * (s0 + s1) / s0**2, (1 - eta) * (1 + eta) + (eta * (s1 / s0)) ** 2


def flow_split(sigmas: Any, eta: Any, s_noise: Any) -> tuple[Any, Any, Any]:
    """`sigma_down`, the noise weight and what is kept, for the steps of a rectified flow.

    With `s0, s1` neighbours on the grid and `q = (s0 - s1) / s0`:

        sigma_down = s1 * (1 - eta q)
        keep       = (1 - s1) / (1 - sigma_down)      so that alpha + sigma is 1 again
        sigma_up   = sqrt(s1^2 - (keep * sigma_down)^2)

    `x_next = keep * x_down + sigma_up * s_noise * z`; eta = 1 puts the midpoint of DPM2 at s1.

    Args:
      sigmas: [N] the grid, descending from 1 at most, without its closing 0.
      eta: scalar or [N]; 0 is deterministic, 1 the ancestral step.
      s_noise: scalar or [N], multiplies the noise.

    Returns:
      sigma_down, `s_noise * sigma_up` and keep, [N - 1] each: the closing step has none.

    Raises:
      ValueError: as for `ancestral_split`; the bound of eta is `1 / q`.

    Source: `sample_dpm_2_ancestral_RF` and `sample_euler_ancestral_RF` of ComfyUI.
    """
    xp, s0, s1, eta, s_noise = _steps(sigmas, eta, s_noise)
    share = (s0 - s1) / s0
    inside = 1 - eta * share
    if not is_traced(inside) and np.any(inside <= 0):
        worst = int(np.argmin(inside))
        raise _too_large(eta[worst], s0[worst], s1[worst], 1 / share[worst])
    s_down = s1 * inside
    keep = (1 - s1) / (1 - s_down)
    # s1 - keep * s_down without its cancellation; the square root has no derivative at eta = 0.
    up_squared = s1 * eta * share / (1 - s_down) * (s1 + keep * s_down)
    s_up = xp.where(up_squared > 0, xp.sqrt(xp.where(up_squared > 0, up_squared, 1)), 0)
    return s_down, s_up * s_noise, keep


def _steps(sigmas: Any, eta: Any, s_noise: Any) -> tuple[Any, ...]:
    """Where the steps but the closing one begin and end, their eta and s_noise; [N - 1] each."""
    num_steps = sigmas.shape[0]
    xp, sigmas, eta, s_noise = common_namespace(
        sigmas, one_per_step("eta", eta, num_steps), one_per_step("s_noise", s_noise, num_steps)
    )
    # The last of N values belongs to the closing step, which takes none.
    eta, s_noise = (xp.broadcast_to(value, (num_steps,))[:-1] for value in (eta, s_noise))
    return xp, sigmas[:-1], sigmas[1:], eta, s_noise


def _too_large(eta: float, s0: float, s1: float, bound: float) -> ValueError:
    return ValueError(
        f"eta = {eta} is too large: the step from sigma = {s0:.6g} to {s1:.6g} allows eta below "
        f"{bound:.6g}; lower eta or take more steps."
    )
