"""DPM-Solver++ 2M and 3M and their SDE forms: one row a step, from two or three estimates of x0.

    x_next = a(s1) * D + s_down * epsilon + s_up * s_noise * z           the first-order step
             + a(s1) * psi * b * (D - D_1)                               2M
             + a(s1) * ((phi_2 + w) * b * (D - D_1) - w * b_2 * (D_1 - D_2))        3M

h is the step in log(alpha / sigma), `b = h / h_last` (0 where there is no last step),
`b_2 = b * b_last`, `w = (phi_2 - phi_3 * b) * b_2 / (b + b_2)`, 0 where b_2 is. With an eta,
`s_down = s1 * exp(-eta h)`, `s_up = s1 * sqrt(1 - exp(-2 eta h))`, else s1 and 0. With
`H = h (1 + eta)`: `phi_2 = (exp(-H) - 1 + H) / H`, `phi_3 = phi_2 / H - 1/2`, and psi is
`(1 - exp(-H)) / 2` for "midpoint", phi_2 for "heun". a = 1, on a rectified flow a(s) = 1 - s.

Lu et al. 2022 (arXiv:2211.01095), Algorithm 2 and its section 5 (SDE); `sample_dpmpp_2m`,
`sample_dpmpp_2m_sde` and `sample_dpmpp_3m_sde` of k-diffusion, `DPMSolverMultistepScheduler` of
diffusers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jax.typing import ArrayLike

from kdiff_jax._arrays import Array, common_namespace
from kdiff_jax._checks import check_choice, check_flag, one_per_step, shown
from kdiff_jax._levels.levels import Levels
from kdiff_jax._table.ancestral import finite_levels, refuse_churn
from kdiff_jax._table.exponential import after_one, log_steps, phis, refuse_multistep_churn
from kdiff_jax._table.fill import fill
from kdiff_jax._table.schedule import Schedule

Solver = Literal["midpoint", "heun"]


def dpmpp_2m(
    levels: Levels,
    eta: ArrayLike | Sequence[float] | None = None,
    s_noise: ArrayLike | Sequence[float] = 1.0,
    solver: Solver = "midpoint",
) -> Schedule:
    """DPM-Solver++ 2M, second order: N steps cost N evaluations; with an eta it is 2M SDE.

    `x_next = a(s1) * (D + psi * b * (D - D_1)) + s_down * epsilon + s_up * s_noise * z`, with
    `h = log(alpha1 s0 / (alpha0 s1))`, `b = h / h_last`, `s_down = s1 * exp(-eta h)`,
    `s_up = s1 * sqrt(1 - exp(-2 eta h))`; `psi = (1 - exp(-H)) / 2` at `H = h (1 + eta)`, for
    "heun" `1 - (1 - exp(-H)) / H`. The first step of the levels is of first order.

    Args:
      levels: the run, from `kd.levels`; without an eta reversed, too.
      eta: scalar or [N], how much of each step is noise, 1 for the SDE of the data. None, the
        default: the table has no noise column, and no key is needed; 0.0 keeps the column.
      s_noise: scalar or [N], multiplies the noise. Both may be traced.
      solver: "midpoint", or "heun", which k-diffusion offers with an eta.

    Returns:
      A Schedule of N rows, which read D of the row before.

    Raises:
      ValueError: levels with churn; an eta with levels that ascend; eta or s_noise negative;
        another solver.

    Example:
      >>> import kdiff_jax as kd
      >>> kd.dpmpp_2m(kd.levels(kd.noise_schedule("scaled_linear"), 25, grid="karras"))
      Schedule(25 steps, 25 rows, sigma 14.61 .. 0.02917)

    Source: Lu et al. 2022 (arXiv:2211.01095), Algorithm 2; `sample_dpmpp_2m` and
    `sample_dpmpp_2m_sde` of k-diffusion, `DPMSolverMultistepScheduler` of diffusers.
    """
    check_choice("solver", solver, ("midpoint", "heun"))
    row, h, b = _first_order("dpmpp_2m", levels, eta, s_noise)
    _, h, b, alpha = common_namespace(h, b, row["denoised_weight"])
    more = alpha * _psi(h, solver) * b
    return fill(levels, {**row, "denoised_weight": alpha + more, "denoised_weight_1": -more})


def dpmpp_3m(
    levels: Levels,
    eta: ArrayLike | Sequence[float] | None = None,
    s_noise: ArrayLike | Sequence[float] = 1.0,
    published: bool = True,
    solver: Solver = "heun",
    lower_order_final: bool = False,
) -> Schedule:
    """DPM-Solver++ 3M: N steps cost N evaluations; with an eta it is 3M SDE.

    `x_next = a(s1) * (D + (phi_2 + w) b (D - D_1) - w b_2 (D_1 - D_2)) + s_down * epsilon
    + s_up * s_noise * z`, with `w = (phi_2 - phi_3 b) b_2 / (b + b_2)`; the rest as in `dpmpp_2m`.
    The first step of the levels is of first order, the second is that of 2M.

    As it is published and used it is of second order: its parabola wants twice phi_3. With
    `published=False` it has that and is of third order, which pays from about 40 steps on.

    With an eta and less than about 20 steps on a Karras grid the last long steps leave grain: take
    `dpmpp_2m` there, or `grid="exponential"`.

    Args:
      levels: the run, from `kd.levels`; without an eta reversed, too.
      eta: scalar or [N], how much of each step is noise. None, the default: the table has no noise
        column, and no key is needed; 0.0 keeps the column.
      s_noise: scalar or [N], multiplies the noise. Both may be traced.
      published: phi_3 as in the paper, k-diffusion and diffusers; False: twice it.
      solver: of steps of second order: "heun" as in k-diffusion, "midpoint" as in diffusers.
      lower_order_final: the step before the last of these levels is of second order, and the last,
        where they end above 0, of first; diffusers does it in runs of less than 15 steps.

    Returns:
      A Schedule of N rows, which read D of the two rows before.

    Raises:
      ValueError: levels with churn; an eta with levels that ascend; eta or s_noise negative;
        another solver; flags that are no bool.

    Example:
      >>> import kdiff_jax as kd
      >>> kd.dpmpp_3m(kd.levels(kd.noise_schedule("scaled_linear"), 25), eta=1.0).num_rows
      25

    Source: Lu et al. 2022 (arXiv:2211.01095), appendix B; `sample_dpmpp_3m_sde` of k-diffusion,
    `DPMSolverMultistepScheduler` of diffusers with `solver_order=3`.
    """
    check_choice("solver", solver, ("midpoint", "heun"))
    check_flag("published", published)
    check_flag("lower_order_final", lower_order_final)
    row, h, b = _first_order("dpmpp_3m", levels, eta, s_noise)
    xp, h, b, alpha = common_namespace(h, b, row["denoised_weight"])
    b_2 = b * after_one(b)
    if lower_order_final:
        left = levels.num_steps - np.arange(h.shape[0])
        b, b_2 = xp.where(left < 2, 0, b), xp.where(left < 3, 0, b_2)
    phi_2, phi_3 = phis(h)
    third = b_2 != 0
    w = (phi_2 - (1 if published else 2) * phi_3 * b) * b_2 / xp.where(third, b + b_2, 1)
    more = alpha * (xp.where(third, phi_2, _psi(h, solver)) + w) * b
    older = alpha * w * b_2
    return fill(
        levels,
        {
            **row,
            "denoised_weight": alpha + more,
            "denoised_weight_1": -more - older,
            "denoised_weight_2": older,
        },
    )


def _psi(h: Array, solver: Solver) -> Array:
    xp, h = common_namespace(h)
    return phis(h)[0] if solver == "heun" else -xp.expm1(-h) / 2


def _first_order(
    name: str,
    levels: Levels,
    eta: ArrayLike | Sequence[float] | None,
    s_noise: ArrayLike | Sequence[float],
) -> tuple[dict[str, Array], Array, Array]:
    """The row of the first-order step, with its noise; `h (1 + eta)` and b of every step."""
    s0, s1 = finite_levels(levels).inner
    factors = one_per_step("s_noise", s_noise, levels.num_steps)
    if eta is None:
        refuse_multistep_churn(levels, name)
        h, b, _ = log_steps(levels)
        row = {"sigma": s0, "denoised_weight": levels.noise.alpha_at(s1), "epsilon_weight": s1}
        return row, h, b
    refuse_churn(levels, f"eta = {shown(eta)}")
    h, b, finite = log_steps(levels)
    etas = one_per_step("eta", eta, levels.num_steps)
    # The last of N values belongs to a closing step, which takes none.
    etas, factors = (v[: h.shape[0]] if v.ndim else v for v in (etas, factors))
    xp, s1, h, etas, factors = common_namespace(s1, h, etas, factors)
    kept = xp.where(finite, xp.exp(-etas * h), xp.where(etas > 0, 0, 1))
    # The square root has no derivative at eta = 0.
    square = xp.where(finite, -xp.expm1(-2 * etas * h), xp.where(etas > 0, 1, 0))
    fresh = xp.where(square > 0, xp.sqrt(xp.where(square > 0, square, 1)), 0)
    row = {
        "sigma": s0,
        "denoised_weight": levels.noise.alpha_at(s1),
        "epsilon_weight": s1 * kept,
        "noise_weight": s1 * fresh * factors,
    }
    return row, h * (1 + etas), b
