"""k-diffusion's samplers as they were published, in float64.

`model(x, sigma) -> denoised` in sigma space. Karras et al. 2022, Algorithm 2 (churn); Lu et al.
2022, Algorithm 1 (DPM-Solver-2, midpoint at the geometric mean); Lu et al. 2022, DPM-Solver++,
Algorithm 1 (2S), in lambda = -log(sigma).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from recordings import Array
from truth import ancestral_levels


def k_sample_dpm_2(
    model: Callable[[Array, float], Array],
    x: ArrayLike,
    sigmas: Sequence[float] | Array,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    noise: Sequence[Array] | Array | None = None,
    trace: list[Array] | None = None,
) -> Array:
    """k-diffusion's `sample_dpm_2`: Karras et al. 2022, Algorithm 2, with DPM-Solver-2 midpoints.

    Args:
        model: `model(x, sigma) -> denoised`, in sigma space.
        x: the sample at `sigmas[0]`, [B, ...].
        sigmas: the grid [N + 1], descending, closed by 0.
        s_churn, s_tmin, s_tmax, s_noise: churn. Before step i, noise raises sigma by a factor of at
            most sqrt(2) where s_tmin <= sigma <= s_tmax.
        noise: `noise[i]` is the standard normal array for the churn of step i.
        trace: where given, the sample after every evaluation of the model is appended to it.
    """
    x = np.asarray(x, np.float64)
    trace = [] if trace is None else trace
    num_steps = len(sigmas) - 1
    for i in range(num_steps):
        sigma, sigma_next = float(sigmas[i]), float(sigmas[i + 1])
        churned = s_tmin <= sigma <= s_tmax
        gamma = min(s_churn / num_steps, math.sqrt(2) - 1) if churned else 0.0
        sigma_hat = sigma * (1 + gamma)
        if gamma > 0:
            if noise is None:
                raise ValueError("churn needs noise")
            x = x + noise[i] * s_noise * math.sqrt(sigma_hat**2 - sigma**2)
        slope = (x - model(x, sigma_hat)) / sigma_hat
        if sigma_next == 0:
            x = x + slope * (sigma_next - sigma_hat)
        else:
            sigma_mid = math.exp(0.5 * (math.log(sigma_hat) + math.log(sigma_next)))
            middle = x + slope * (sigma_mid - sigma_hat)
            trace.append(middle)
            slope = (middle - model(middle, sigma_mid)) / sigma_mid
            x = x + slope * (sigma_next - sigma_hat)
        trace.append(x)
    return x


def k_sample_dpm_2_ancestral(
    model: Callable[[Array, float], Array],
    x: ArrayLike,
    sigmas: Sequence[float] | Array,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise: Sequence[Array] | Array | None = None,
    trace: list[Array] | None = None,
) -> Array:
    """k-diffusion's `sample_dpm_2_ancestral`: DPM-Solver-2 down to sigma_down, then noise back up.

    Args: as of `k_sample_dpm_2`, with
        eta: 0 is `sample_dpm_2` without churn.
        s_noise: a factor on the noise.
        noise: `noise[i]` is the standard normal array added after step i, where sigmas[i + 1] > 0.
    """
    x = np.asarray(x, np.float64)
    trace = [] if trace is None else trace
    for i in range(len(sigmas) - 1):
        sigma, sigma_next = float(sigmas[i]), float(sigmas[i + 1])
        sigma_down, sigma_up = ancestral_levels(sigma, sigma_next, eta)
        slope = (x - model(x, sigma)) / sigma
        if sigma_down == 0:
            x = x + slope * (sigma_down - sigma)
        else:
            sigma_mid = math.exp(0.5 * (math.log(sigma) + math.log(sigma_down)))
            middle = x + slope * (sigma_mid - sigma)
            trace.append(middle)
            slope = (middle - model(middle, sigma_mid)) / sigma_mid
            x = x + slope * (sigma_down - sigma)
        # The published code adds noise only in the branch above, that is, not where sigma_down is
        # 0; with sigma_next > 0 that would leave less noise in x than the next level claims.
        if sigma_next > 0 and sigma_up > 0:
            if noise is None:
                raise ValueError("an ancestral step needs noise")
            x = x + noise[i] * s_noise * sigma_up
        trace.append(x)
    return x


def k_sample_euler(
    model: Callable[[Array, float], Array],
    x: ArrayLike,
    sigmas: Sequence[float] | Array,
    s_churn: float = 0.0,
    s_noise: float = 1.0,
    noise: Sequence[Array] | Array | None = None,
) -> Array:
    """k-diffusion's `sample_euler`. Args: as of `k_sample_dpm_2`."""
    sample: Array = np.asarray(x, np.float64)
    num_steps = len(sigmas) - 1
    for i in range(num_steps):
        sigma_hat = sigmas[i] * (1 + min(s_churn / num_steps, math.sqrt(2) - 1))
        if noise is not None:
            sample = sample + noise[i] * s_noise * math.sqrt(sigma_hat**2 - sigmas[i] ** 2)
        sample = sample + (sample - model(sample, sigma_hat)) / sigma_hat * (
            sigmas[i + 1] - sigma_hat
        )
    return sample


def k_sample_euler_ancestral(
    model: Callable[[Array, float], Array],
    x: ArrayLike,
    sigmas: Sequence[float] | Array,
    eta: float,
    s_noise: float,
    noise: Array,
) -> Array:
    """k-diffusion's `sample_euler_ancestral`. Args: as of `k_sample_dpm_2_ancestral`."""
    sample: Array = np.asarray(x, np.float64)
    for i in range(len(sigmas) - 1):
        down, up = ancestral_levels(float(sigmas[i]), float(sigmas[i + 1]), eta)
        sample = sample + (sample - model(sample, sigmas[i])) / sigmas[i] * (down - sigmas[i])
        sample = sample + noise[i] * s_noise * up
    return sample


def k_sample_heun(
    model: Callable[[Array, float], Array],
    x: ArrayLike,
    sigmas: Sequence[float] | Array,
    s_churn: float = 0.0,
    noise: Sequence[Array] | Array | None = None,
) -> Array:
    """k-diffusion's `sample_heun`: the mean of the slopes at both ends; Euler to 0.

    Args: as of `k_sample_dpm_2`. The slope `(x - denoised) / sigma` is the velocity of a rectified
    flow as well.
    """
    x = np.asarray(x, np.float64)
    num_steps = len(sigmas) - 1
    for i in range(num_steps):
        sigma, sigma_next = float(sigmas[i]), float(sigmas[i + 1])
        sigma_hat = sigma * (1 + min(s_churn / num_steps, math.sqrt(2) - 1))
        if noise is not None:
            x = x + noise[i] * math.sqrt(sigma_hat**2 - sigma**2)
        slope = (x - model(x, sigma_hat)) / sigma_hat
        euler = x + slope * (sigma_next - sigma_hat)
        if sigma_next > 0:
            slope_next = (euler - model(euler, sigma_next)) / sigma_next
            x = x + (slope + slope_next) / 2 * (sigma_next - sigma_hat)
        else:
            x = euler
    return x


def k_sample_dpmpp(
    model: Callable[[Array, float], Array],
    x: Array,
    sigmas: Sequence[float] | Array,
    eta: float,
    s_noise: float,
    noise: Array,
    *,
    sde: bool,
) -> Array:
    """k-diffusion's `sample_dpmpp_2s_ancestral`, or `sample_dpmpp_sde` with r = 1/2.

    Args: as of `k_sample_dpm_2_ancestral`, with
        noise: [N, 2, ...], of each step the noise of its first draw, which 2S has none of, and of
            its second.
    """
    for i in range(len(sigmas) - 1):
        sigma, sigma_next = float(sigmas[i]), float(sigmas[i + 1])
        down, up = ancestral_levels(sigma, sigma_next, eta)
        denoised = model(x, sigma)
        if sigma_next == 0:
            return denoised
        t = -math.log(sigma)
        middle = math.exp(-(t + 0.5 * (-math.log(sigma_next if sde else down) - t)))
        to, first = ancestral_levels(sigma, middle, eta) if sde else (middle, 0.0)
        x_2 = to / sigma * x - math.expm1(math.log(to) + t) * denoised
        x_2 = x_2 + noise[i][0] * s_noise * first
        x = down / sigma * x - math.expm1(math.log(down) + t) * model(x_2, middle)
        x = x + noise[i][1] * s_noise * up
    return x


def k_sample_dpmpp_2m(
    model: Callable[[Array, float], Array],
    x: ArrayLike,
    sigmas: Sequence[float] | Array,
    noise: Sequence[Array] | Array | None = None,
) -> Array:
    """k-diffusion's `sample_dpmpp_2m`, in t = -log(sigma). Args: as of `k_sample_dpm_2`."""
    del noise
    x = np.asarray(x, np.float64)
    old: Array | None = None
    t = [-math.log(sigma) if sigma > 0 else math.inf for sigma in sigmas]
    for i in range(len(sigmas) - 1):
        denoised = model(x, float(sigmas[i]))
        h = t[i + 1] - t[i]
        slope = denoised
        if old is not None and sigmas[i + 1] > 0:
            r = (t[i] - t[i - 1]) / h
            slope = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * old
        x = sigmas[i + 1] / sigmas[i] * x - math.expm1(-h) * slope
        old = denoised
    return x


def k_sample_dpmpp_2m_sde(
    model: Callable[[Array, float], Array],
    x: ArrayLike,
    sigmas: Sequence[float] | Array,
    noise: Sequence[Array] | Array,
    eta: float = 1.0,
    s_noise: float = 1.0,
    solver: str = "midpoint",
) -> Array:
    """k-diffusion's `sample_dpmpp_2m_sde`. Args: as of `k_sample_dpm_2_ancestral`."""
    x, h_last = np.asarray(x, np.float64), 0.0
    old: Array | None = None
    for i in range(len(sigmas) - 1):
        denoised = model(x, float(sigmas[i]))
        if sigmas[i + 1] == 0:
            return denoised
        h = math.log(sigmas[i] / sigmas[i + 1])
        eta_h = eta * h
        x = sigmas[i + 1] / sigmas[i] * math.exp(-eta_h) * x - math.expm1(-h - eta_h) * denoised
        if old is not None:
            r = h_last / h
            if solver == "heun":
                factor = -math.expm1(-h - eta_h) / (-h - eta_h) + 1
            else:
                factor = -0.5 * math.expm1(-h - eta_h)
            x = x + factor / r * (denoised - old)
        x = x + noise[i] * sigmas[i + 1] * math.sqrt(-math.expm1(-2 * eta_h)) * s_noise
        old, h_last = denoised, h
    return x


def k_sample_dpmpp_3m_sde(
    model: Callable[[Array, float], Array],
    x: ArrayLike,
    sigmas: Sequence[float] | Array,
    noise: Sequence[Array] | Array,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Array:
    """k-diffusion's `sample_dpmpp_3m_sde`. Args: as of `k_sample_dpm_2_ancestral`."""
    sample: Array = np.asarray(x, np.float64)
    noise = np.asarray(noise, np.float64)
    denoised_1: Any = 0.0
    denoised_2: Any = 0.0
    h_1 = h_2 = math.nan
    for i in range(len(sigmas) - 1):
        denoised = model(sample, float(sigmas[i]))
        if sigmas[i + 1] == 0:
            return denoised
        h = math.log(sigmas[i] / sigmas[i + 1])
        h_eta = h * (eta + 1)
        sample = math.exp(-h_eta) * sample - math.expm1(-h_eta) * denoised
        phi_2 = math.expm1(-h_eta) / h_eta + 1
        if i > 1:
            r0, r1 = h_1 / h, h_2 / h
            d1_0, d1_1 = (denoised - denoised_1) / r0, (denoised_1 - denoised_2) / r1
            d1 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1)
            d2 = (d1_0 - d1_1) / (r0 + r1)
            sample = sample + phi_2 * d1 - (phi_2 / h_eta - 0.5) * d2
        elif i > 0:
            sample = sample + phi_2 * (denoised - denoised_1) / (h_1 / h)
        sample = sample + noise[i] * sigmas[i + 1] * math.sqrt(-math.expm1(-2 * h * eta)) * s_noise
        denoised_1, denoised_2 = denoised, denoised_1
        h_1, h_2 = h, h_1
    return sample
