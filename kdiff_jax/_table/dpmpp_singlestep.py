"""DPM-Solver++ with two rows a step: 2S ancestral, and the SDE solver with r = 1/2.

    2S     midpoint   x_m    = a(sm) * D + sm * epsilon                   sm = sqrt(s0 * s_down)
           landing    x_next = keep * (s_down / s0 * x + (a(s_down) - a(s0) s_down / s0) * D_m)
                               + s_up * s_noise * z
    SDE    midpoint   x_m    = D + down_m * epsilon + up_m * s_noise * z_m     m = sqrt(s0 * s1)
           landing    x_next = s_down / s0 * x + (1 - s_down / s0) * D_m + s_up * s_noise * z
    closing           x_next = D                                          where the levels end at 0

s_down, s_up split the step from s0 to s1, down_m, up_m that from s0 to m.

Lu et al. 2022 (arXiv:2211.01095), Algorithm 1 with r = 1/2; `sample_dpmpp_2s_ancestral` and
`sample_dpmpp_sde` of k-diffusion.
"""

from __future__ import annotations

from collections.abc import Sequence

from jax.typing import ArrayLike

from kdiff_jax._arrays import common_namespace
from kdiff_jax._levels.levels import Levels
from kdiff_jax._table.ancestral import ancestral_split, check_levels
from kdiff_jax._table.fill import fill
from kdiff_jax._table.schedule import Schedule


def dpmpp_2s_ancestral(
    levels: Levels,
    eta: ArrayLike | Sequence[float] = 1.0,
    s_noise: ArrayLike | Sequence[float] = 1.0,
) -> Schedule:
    """DPM-Solver++ 2S, ancestral: N steps cost 2N - 1 evaluations, second order where eta = 0.

    `x_m = D + sm * epsilon` at `sm = sqrt(s0 * s_down)`, then
    `x_next = s_down / s0 * x + (1 - s_down / s0) * D_m + s_up * s_noise * z`, with s_down and s_up
    as in `dpm2_ancestral`; a closing step is `D` and draws no noise. On a rectified flow
    `x_m = (1 - sm) * D + sm * epsilon`, and the step to s_down is multiplied by keep, as there.

    Args:
      levels: the run, from `kd.levels`.
      eta: scalar or [N], 0 to below the bound of `dpm2_ancestral`.
      s_noise: scalar or [N], multiplies the noise. Both may be traced.

    Returns:
      A Schedule of 2N - 1 rows (2N where the levels end above 0) with a noise column, whatever
      eta is; its columns are those of `dpm2_ancestral`.

    Raises:
      ValueError: eta or s_noise negative, eta at or beyond its bound; levels with churn, or that
        ascend.

    Example:
      >>> import kdiff_jax as kd
      >>> kd.dpmpp_2s_ancestral(kd.levels(kd.noise_schedule("scaled_linear"), 25)).num_rows
      49

    Source: Lu et al. 2022 (arXiv:2211.01095), Algorithm 1; `sample_dpmpp_2s_ancestral` of
    k-diffusion. On a flow as `sample_dpmpp_2s_ancestral_RF` of ComfyUI, which has its midpoint in
    the middle in log(alpha / sigma), and at 0.9999 in a step from 1, where that does not exist.
    """
    s_down, s_up, keep = ancestral_split(levels, eta, s_noise)
    alpha_at, timestep_at = levels.noise.alpha_at, levels.noise.timestep_at
    xp, s0, s_down, keep = common_namespace(levels.inner[0], s_down, keep)
    sm, ratio = xp.sqrt(s0 * s_down), s_down / s0
    midpoint = {"sigma": s0, "denoised_weight": alpha_at(sm), "epsilon_weight": sm}
    landing = {
        "sigma": sm,
        "timestep": timestep_at(sm),
        "anchor_weight": keep * ratio,
        "denoised_weight": keep * (alpha_at(s_down) - alpha_at(s0) * ratio),
        "noise_weight": s_up,
    }
    return fill(levels, midpoint, landing)


def dpmpp_sde(
    levels: Levels,
    eta: ArrayLike | Sequence[float] = 1.0,
    s_noise: ArrayLike | Sequence[float] = 1.0,
) -> Schedule:
    """DPM-Solver++ SDE with r = 1/2: N steps cost 2N - 1 evaluations and draw noise in both rows.

    With `m = sqrt(s0 * s1)`: an ancestral step to m, `x_m = D + down_m * epsilon + up_m * s_noise
    * z_m`, then from the start again `x_next = s_down / s0 * x + (1 - s_down / s0) * D_m + s_up *
    s_noise * z`; down and up as in `dpm2_ancestral`. eta = 0 gives `dpmpp_2s_ancestral` with
    eta = 0; a closing step is `D` and draws no noise.

    z_m is the noise between s0 and m, z that between s0 and s1: take both from one path, with
    `noise_fn=kd.brownian_noise()`, as k-diffusion does by default; the distribution is then right
    to second order. With a key alone they are independent, which leaves first order (Gaussian
    data, 20 Karras steps: a variance 24 % too small, and 4 % on a path). `kd.given_noise` takes
    two a step.

    Args:
      levels: the run, from `kd.levels`, of a beta schedule or of sigmas alone.
      eta: scalar or [N], 0 to below the bound of `dpm2_ancestral`.
      s_noise: scalar or [N], multiplies both noises. Both may be traced.

    Returns:
      A Schedule of 2N - 1 rows (2N where the levels end above 0); its columns are those of
      `dpm2_ancestral`. `sigma_reached` of a first row is m.

    Raises:
      ValueError: levels of a rectified flow; eta or s_noise negative, eta at or beyond its bound;
        levels with churn, or that ascend.

    Example:
      >>> import kdiff_jax as kd
      >>> kd.dpmpp_sde(kd.levels(kd.noise_schedule("scaled_linear"), 25)).num_rows
      49

    Source: Lu et al. 2022 (arXiv:2211.01095); `sample_dpmpp_sde` of k-diffusion.
    """
    if check_levels(levels).noise.flow:
        raise ValueError(
            "dpmpp_sde was given levels of a rectified flow, and its two noises are defined where "
            "alpha is 1, on a beta schedule and on sigmas alone; on a flow take "
            "kd.dpmpp_2s_ancestral, kd.dpm2_ancestral or kd.euler with an eta."
        )
    s_down, s_up, _ = ancestral_split(levels, eta, s_noise)
    xp, s0, s1, s_down = common_namespace(*levels.inner, s_down)
    m, ratio = xp.sqrt(s0 * s1), s_down / s0
    down_m, up_m, _ = ancestral_split(levels, eta, s_noise, to=m)
    midpoint = {
        "sigma": s0,
        "sigma_reached": m,
        "denoised_weight": 1.0,
        "epsilon_weight": down_m,
        "noise_weight": up_m,
    }
    landing = {
        "sigma": m,
        "timestep": levels.noise.timestep_at(m),
        "anchor_weight": ratio,
        "denoised_weight": 1 - ratio,
        "noise_weight": s_up,
    }
    return fill(levels, midpoint, landing)
