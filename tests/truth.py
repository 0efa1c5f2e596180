"""A float64 truth for the samplers, which the recordings of diffusers are compared with.

Nothing here comes from `kdiff_jax`: the noise levels, the grids and the steps are written again, in
NumPy float64, from the papers' own formulas, in the form in which they were published (derivatives
in sigma space for DPM-Solver-2, the consistency function for LCM).

    cases = load_cases()                      # what tests/golden/generate.py recorded
    truth = replay(cases[0])                  # truth.samples: float64, one after each evaluation
    floor = replay(cases[0], round32=True)    # the same with every float32 value rounded
    relative_error(cases[0].samples, truth.samples)

References:
    Karras et al. 2022, Elucidating the Design Space of Diffusion-Based Generative Models: eq. 5
        (the grid), Algorithm 2 (churn).
    Lu et al. 2022, DPM-Solver: Algorithm 1 (DPM-Solver-2, midpoint at the geometric mean).
    Luo et al. 2023, Latent Consistency Models: Algorithm 3 (multistep sampling), section 4.3 (the
        skipped grid); Song et al. 2023, Consistency Models: eq. 5 and appendix C (c_skip, c_out).
    Lin et al. 2023, Common Diffusion Noise Schedules and Sample Steps are Flawed: Algorithm 1
        (zero terminal SNR), table 2 (linspace, leading, trailing).
    Nichol and Dhariwal 2021, Improved Denoising Diffusion Probabilistic Models: eq. 17 (cosine).
    Salimans and Ho 2022, Progressive Distillation: appendix D (v prediction).
    Saharia et al. 2022, Imagen: section 2.3 (dynamic thresholding).
    Lee et al. 2024, Beta Sampling is All You Need: the quantiles of Beta(0.6, 0.6).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from recordings import ANCESTRAL, LCM, Array, Case, network
from scipy.special import betaincinv

Config = Mapping[str, Any]
Model = Callable[[Array, float], Array]

SIGMA_DATA = 0.5

_DEFAULTS: Config = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "trained_betas": None,
    "prediction_type": "epsilon",
    "steps_offset": 0,
}
_KDPM2_DEFAULTS: Config = {
    **_DEFAULTS,
    "beta_schedule": "linear",
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "timestep_spacing": "linspace",
}
_LCM_DEFAULTS: Config = {
    **_DEFAULTS,
    "beta_schedule": "scaled_linear",
    "original_inference_steps": 50,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "timestep_scaling": 10.0,
    "rescale_betas_zero_snr": False,
}


# --- noise levels of training ----------------------------------------------------------------


def _with_defaults(config: Config) -> dict[str, Any]:
    defaults = _LCM_DEFAULTS if config["_class_name"] == LCM else _KDPM2_DEFAULTS
    return {**defaults, **config}


def alphas_cumprod(config: Config) -> Array:
    """abar_t = prod_{s <= t} (1 - beta_s), [T]."""
    config = _with_defaults(config)
    count, first, last = (config[k] for k in ("num_train_timesteps", "beta_start", "beta_end"))
    if config["trained_betas"] is not None:
        betas = np.asarray(config["trained_betas"], np.float64)
    elif config["beta_schedule"] == "linear":
        betas = np.linspace(first, last, count)
    elif config["beta_schedule"] == "scaled_linear":
        betas = np.linspace(math.sqrt(first), math.sqrt(last), count) ** 2
    elif config["beta_schedule"] == "squaredcos_cap_v2":
        target = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * (math.pi / 2)) ** 2
        betas = np.minimum(1 - target[1:] / target[:-1], 0.999)
    else:
        raise ValueError(config["beta_schedule"])
    product = np.cumprod(1 - betas)
    if config.get("rescale_betas_zero_snr"):
        root = np.sqrt(product)
        product = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return product


def training_sigmas(config: Config) -> Array:
    """sigma_t = sqrt((1 - abar_t) / abar_t), [T], ascending."""
    product = alphas_cumprod(config)
    return np.sqrt((1 - product) / product)


# --- inference grids -------------------------------------------------------------------------


def spaced_timesteps(spacing: str, num_train: int, num_steps: int, offset: int = 0) -> Array:
    """Lin et al. 2023, table 2; one step always starts at the noisiest level. Descending, [N]."""
    if num_steps == 1:
        return np.array([num_train - 1.0])
    if spacing == "linspace":
        return np.linspace(0, num_train - 1, num_steps)[::-1]
    if spacing == "leading":
        return np.arange(num_steps, dtype=np.float64)[::-1] * (num_train // num_steps) + offset
    if spacing == "trailing":
        # arange may give one value too many; which way a tie rounds is up to its float error.
        return np.round(np.arange(num_train, 0, -num_train / num_steps)[:num_steps]) - 1
    raise ValueError(spacing)


def timestep_at(sigma: float, levels: Array) -> float:
    """The training timestep of a noise level: linear in log sigma, clamped to [0, T - 1]."""
    return float(np.interp(math.log(sigma), np.log(levels), np.arange(len(levels))))


def sigma_grid(
    config: Config, num_steps: int, *, round_timesteps: bool = True
) -> tuple[Array, Array]:
    """Noise levels [N + 1], the closing 0 included, and the timesteps [N] of the first N.

    `round_timesteps`: as diffusers does, round the timesteps on a Karras grid (and only there).
    """
    config = _with_defaults(config)
    levels = training_sigmas(config)
    timesteps = spaced_timesteps(
        config["timestep_spacing"], len(levels), num_steps, config["steps_offset"]
    )
    sigmas = np.interp(timesteps, np.arange(len(levels)), levels)
    high, low = sigmas[0], sigmas[-1]
    ramp = np.linspace(0, 1, num_steps)
    if config["use_karras_sigmas"]:
        sigmas = (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    elif config["use_exponential_sigmas"]:
        sigmas = high ** (1 - ramp) * low**ramp
    elif config["use_beta_sigmas"]:
        sigmas = low + betaincinv(0.6, 0.6, 1 - ramp) * (high - low)
    if any(config[f"use_{name}_sigmas"] for name in ("karras", "exponential", "beta")):
        timesteps = np.array([timestep_at(sigma, levels) for sigma in sigmas])
        if config["use_karras_sigmas"] and round_timesteps:
            timesteps = np.round(timesteps)
    return np.append(sigmas, 0.0), timesteps


def _part(count: int, strength: float) -> int:
    # The product is rounded first: 50 * 0.58 is 28.999999999999996 in binary.
    return math.floor(round(count * strength, 9))


def lcm_timesteps(config: Config, call: Config) -> Array:
    """Luo et al. 2023, section 4.3: evenly chosen from the top of the distillation grid. [N]."""
    config = _with_defaults(config)
    strength = 1.0 if call.get("strength") is None else call["strength"]
    if call.get("timesteps") is not None:
        given: Array = np.asarray(call["timesteps"])
        return given[len(given) - _part(len(given), strength) :]
    original = call.get("original_inference_steps") or config["original_inference_steps"]
    skip = config["num_train_timesteps"] // original
    grid = np.arange(1, _part(original, strength) + 1) * skip - 1
    chosen = np.floor(np.linspace(0, len(grid), call["num_inference_steps"], endpoint=False))
    taken: Array = grid[::-1][chosen.astype(np.int64)]
    return taken


def ancestral_levels(sigma: float, sigma_next: float, eta: float = 1.0) -> tuple[float, float]:
    """sigma_down and sigma_up of an ancestral step, with sigma_down^2 + sigma_up^2 = sigma_next^2.

    Published: `sigma_up = min(sigma_next, eta sqrt(sigma_next^2 (sigma^2 - sigma_next^2)) / sigma)`
    and sigma_down from the sum of squares. With squaredcos_cap_v2 sigma / sigma_next passes 1e3;
    then the second difference cancels, even in float64, so both are written as factors here.
    """
    ratio = sigma_next / sigma
    kept = 1 - eta**2 + (eta * ratio) ** 2  # (sigma_down / sigma_next)^2
    if kept <= 0:
        return 0.0, sigma_next
    return sigma_next * math.sqrt(kept), sigma_next * eta * math.sqrt((1 - ratio) * (1 + ratio))


# --- the samplers ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Truth:
    """The truth of one run; R, E and N as in `Case`."""

    samples: Array  # [E, B, ...] float64, after every evaluation
    timesteps: Array  # [R] float64, whole table
    sigmas: Array  # [N + 1] float64; empty for LCM
    init_noise_sigma: float


def replay(case: Case, *, round32: bool = False) -> Truth:
    """The truth of a recorded case: `trajectory` with its network and its noise."""
    return trajectory(
        case.config,
        case.call,
        lambda x, timestep: network(case.network, x, timestep),
        case.initial,
        case.noise,
        round32=round32,
    )


def trajectory(
    config: Config,
    call: Config,
    model: Model,
    x: ArrayLike,
    noise: ArrayLike = (),
    *,
    round32: bool = False,
    round_timesteps: bool = True,
) -> Truth:
    """Runs the sampler that `config["_class_name"]` names, in float64.

    Args:
        config: a diffusers scheduler config; missing keys take that scheduler's defaults.
        call: `num_inference_steps`; for LCM that or `timesteps`, and `original_inference_steps`,
            `strength`; `begin_index` in outer steps. None is as good as absent.
        model: `model(x, timestep) -> out`, where `x` is already scaled to unit variance.
        x: the sample at the noise level of the first row, [B, ...].
        noise: the arrays for the rows that draw noise, in order.
        round32: round to float32 what any float32 program has to hold: the network's input, its
            output and the state. The error of that is one that no such program can avoid.
        round_timesteps: see `sigma_grid`.
    """

    def rounded(value: ArrayLike) -> Array:
        value = np.asarray(value)
        return np.asarray(value.astype(np.float32) if round32 else value, np.float64)

    def rounded_model(x: Array, timestep: float) -> Array:
        return rounded(model(rounded(x), float(rounded(timestep))))

    config = _with_defaults(config)
    fresh = iter(np.asarray(noise, np.float64))
    run = _lcm if config["_class_name"] == LCM else _dpm2
    begin = call.get("begin_index") or 0
    start = np.asarray(x, np.float64)
    return run(config, call, rounded_model, start, fresh, begin, rounded, round_timesteps)


def _dpm2(
    config: Config,
    call: Config,
    model: Model,
    x: Array,
    noise: Iterator[Array],
    begin: int,
    rounded: Callable[[ArrayLike], Array],
    round_timesteps: bool,
) -> Truth:
    """DPM-Solver-2 in sigma space, x = x0 + sigma eps; ancestral at eta = 1."""
    levels = training_sigmas(config)
    num_steps = call["num_inference_steps"]
    sigmas, grid_timesteps = sigma_grid(config, num_steps, round_timesteps=round_timesteps)
    ancestral = config["_class_name"] == ANCESTRAL

    def derivative(x: Array, sigma: float, timestep: float) -> Array:
        out = model(x / math.sqrt(1 + sigma**2), timestep)
        if config["prediction_type"] == "epsilon":
            denoised = x - sigma * out
        elif config["prediction_type"] == "v_prediction":
            denoised = x / (1 + sigma**2) - sigma / math.sqrt(1 + sigma**2) * out
        else:
            denoised = out
        return (x - denoised) / sigma

    samples, timesteps = [], []
    for i in range(num_steps):
        sigma, sigma_next, timestep = sigmas[i], sigmas[i + 1], grid_timesteps[i]
        timesteps.append(timestep)
        if sigma_next == 0:  # Euler: there is no geometric mean with 0
            if i >= begin:
                x = rounded(x - sigma * derivative(x, sigma, timestep))
                samples.append(x)
            continue
        sigma_down, sigma_up = ancestral_levels(sigma, sigma_next, eta=1.0 if ancestral else 0.0)
        sigma_mid = math.sqrt(sigma * sigma_down)
        timestep_mid = timestep_at(sigma_mid, levels)
        timesteps.append(timestep_mid)
        if i >= begin:
            middle = rounded(x + derivative(x, sigma, timestep) * (sigma_mid - sigma))
            x = x + derivative(middle, sigma_mid, timestep_mid) * (sigma_down - sigma)
            x = rounded(x + next(noise) * sigma_up if ancestral else x)
            samples += [middle, x]
    high = float(sigmas.max())
    leading = config["timestep_spacing"] == "leading"
    return Truth(
        np.array(samples), np.array(timesteps), sigmas, math.hypot(high, 1) if leading else high
    )


def _lcm(
    config: Config,
    call: Config,
    model: Model,
    x: Array,
    noise: Iterator[Array],
    begin: int,
    rounded: Callable[[ArrayLike], Array],
    round_timesteps: bool,
) -> Truth:
    """Multistep consistency sampling: x0 = f(x, t), then sqrt(abar_s) x0 + sqrt(1 - abar_s) z."""
    del round_timesteps  # LCM has integer timesteps only
    product = alphas_cumprod(config)
    timesteps = lcm_timesteps(config, call)
    samples = []
    for i in range(begin, len(timesteps)):
        t = timesteps[i]
        alpha, sigma = math.sqrt(product[t]), math.sqrt(1 - product[t])
        out = model(x, float(t))
        if config["prediction_type"] == "epsilon":
            predicted = (x - sigma * out) / alpha
        elif config["prediction_type"] == "v_prediction":
            predicted = alpha * x - sigma * out
        else:
            predicted = out
        if config["thresholding"]:
            flat = predicted.reshape(len(predicted), -1)
            bound = np.quantile(np.abs(flat), config["dynamic_thresholding_ratio"], axis=1)
            bound = np.clip(bound, 1, config["sample_max_value"])[:, np.newaxis]
            predicted = (np.clip(flat, -bound, bound) / bound).reshape(predicted.shape)
        elif config["clip_sample"]:
            predicted = np.clip(
                predicted, -config["clip_sample_range"], config["clip_sample_range"]
            )
        scaled = float(t) * config["timestep_scaling"]
        c_skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
        c_out = scaled / math.sqrt(scaled**2 + SIGMA_DATA**2)
        x = c_skip * x + c_out * predicted
        if i + 1 < len(timesteps):
            after = product[timesteps[i + 1]]
            x = math.sqrt(after) * x + math.sqrt(1 - after) * next(noise)
        x = rounded(x)
        samples.append(x)
    return Truth(np.array(samples), timesteps.astype(np.float64), np.zeros(0), 1.0)
