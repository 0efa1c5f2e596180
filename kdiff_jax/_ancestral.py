"""How an ancestral step splits: down to `sigma_down` without noise, back up by `sigma_up`."""

from typing import Any

import numpy as np

from kdiff_jax._checks import common_namespace, is_traced, one_per_step


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
    num_steps = sigmas.shape[0]
    xp, sigmas, eta, s_noise = common_namespace(
        sigmas, one_per_step("eta", eta, num_steps), one_per_step("s_noise", s_noise, num_steps)
    )
    # The last of N values belongs to the closing step, which takes none.
    eta, s_noise = (xp.broadcast_to(value, (num_steps,))[:-1] for value in (eta, s_noise))
    s0, s1 = sigmas[:-1], sigmas[1:]
    ratio = s1 / s0
    share = (s0 - s1) * (s0 + s1) / s0**2
    inside = (1 - eta) * (1 + eta) + (eta * ratio) ** 2
    if not is_traced(inside) and np.any(inside <= 0):
        worst = int(np.argmin(inside))
        raise ValueError(
            f"eta = {eta[worst]} is too large: the step from sigma = {s0[worst]:.6g} to "
            f"{s1[worst]:.6g} allows eta below {1 / np.sqrt(share[worst]):.6g}; lower eta or take "
            "more steps."
        )
    return s1 * xp.sqrt(inside), s1 * eta * xp.sqrt(share) * s_noise
