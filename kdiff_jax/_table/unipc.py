"""UniPC of order 2 with B(h) = exp(h) - 1: a predictor, and a corrector that costs no evaluation.

    predicted  x_1 = a(s1) * D + s1 * epsilon + P * (D - D_1)
    corrected  x_1 + new * (D_next - D) - more * (D - D_1)                D_next of the next row

h is the step in log(alpha / sigma), `b = h / h_last` (0 where there is no last step),
`K = a(s1) (1 - exp(-h))`, `P = K b / 2`, `c = phi_2 / (1 - exp(-h))`,
`rho = (c + 2 phi_3 / (1 - exp(-h))) b / (1 + b)`, `new = K (c - rho)`, in the first step `K / 2`,
`more = P - K rho b`; phi_2 and phi_3 as in `dpmpp_multistep.py`. The sample is corrected once the
network has seen the predicted one, so the correction of a step is part of the row after it, whose
step multiplies it by `s1 / s0`: with a prime

    x_next = (a(s1) + P + new') * D - (P + new' + more') * D_1 + more' * D_2 + s1 * epsilon

Zhao et al. 2023 (arXiv:2302.04867), Algorithms 5 and 6; `UniPCMultistepScheduler` of diffusers.
"""

from __future__ import annotations

from kdiff_jax._arrays import common_namespace
from kdiff_jax._checks import check_flag
from kdiff_jax._levels.levels import Levels
from kdiff_jax._table.exponential import after_one, log_steps, phis, refuse_multistep_churn
from kdiff_jax._table.fill import fill
from kdiff_jax._table.schedule import Schedule


def unipc(levels: Levels, corrector: bool = True) -> Schedule:
    """UniPC of order 2, third order with its corrector: N steps cost N evaluations.

    The predictor is that of `dpmpp_2m`; the corrector of the step that has just ended is linear in
    D, D_1 and D_2, and so a part of the next row. The closing step multiplies it by 0.

    Args:
      levels: the run, from `kd.levels`; reversed, too, but not on the even levels of a
        flow, whose first step up is long.
      corrector: False leaves it out, and with it D_2: the table of `dpmpp_2m`.

    Returns:
      A Schedule of N rows without a noise column, which read D of the two rows before. Where the
      levels end above 0, the last sample is predicted only.

    Raises:
      ValueError: levels with churn; a corrector that is no bool.

    Example:
      >>> import kdiff_jax as kd
      >>> kd.unipc(kd.levels(kd.flow_schedule(shift=3.0), 20)).num_rows
      20

    Source: Zhao et al. 2023 (arXiv:2302.04867), B(h) = exp(h) - 1; `UniPCMultistepScheduler` of
    diffusers with "bh2", `predict_x0` and `solver_order=2`.
    """
    check_flag("corrector", corrector)
    refuse_multistep_churn(levels, "unipc")
    s0, s1 = levels.inner
    alpha_at = levels.noise.alpha_at
    h, b, _ = log_steps(levels)
    xp, s0, s1, a0, a1, h, b = common_namespace(s0, s1, alpha_at(s0), alpha_at(s1), h, b)
    # a(s1) (1 - exp(-h)), finite where a(s0) or a(s1) is 0.
    k = a1 - a0 * s1 / s0
    p = k * b / 2
    row = {"sigma": s0, "epsilon_weight": s1}
    if not corrector:
        return fill(levels, {**row, "denoised_weight": a1 + p, "denoised_weight_1": -p})
    (phi_2, phi_3), e = phis(h), -xp.expm1(-h)
    c = xp.where(xp.arange(h.shape[0]) == 0, 0.5, phi_2 / e)
    rho = (c + 2 * phi_3 / e) * b / (1 + b)
    new, more = (after_one(v) * s1 / s0 for v in (k * (c - rho), p - k * rho * b))
    return fill(
        levels,
        {
            **row,
            "denoised_weight": a1 + p + new,
            "denoised_weight_1": -p - new - more,
            "denoised_weight_2": more,
        },
    )
