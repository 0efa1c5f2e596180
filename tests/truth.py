"""A float64 truth for the samplers, and the recordings of diffusers that it is compared with.

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
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv

Array = NDArray[Any]
Config = Mapping[str, Any]
Model = Callable[[Array, float], Array]

RECORDINGS = Path(__file__).parent / "golden" / "recordings.npz"
KDPM2 = "KDPM2DiscreteScheduler"
ANCESTRAL = "KDPM2AncestralDiscreteScheduler"
LCM = "LCMScheduler"
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


# --- the network of the recordings -----------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Network:
    """A fixed smooth network that mixes the elements of a sample: see `network`.

    Every number is a float32 value, so that all precisions evaluate the same function.
    """

    weight: Array  # [n, n], n the number of elements of one sample
    bias: Array  # [n]
    linear: float
    linear_slope: float
    gain: float
    gain_slope: float
    frequency: float
    phase: float
    num_train_timesteps: int


def network(net: Network, x: Array, timestep: float) -> Array:
    """`(linear + linear_slope e^2) x + (gain + gain_slope e) tanh(x W + bias cos(w t + phase))`.

    `e = 1 - (t + 1) / T` is 0 at the noisiest training timestep, so that an epsilon network with
    `linear = 1` and `gain = 0` answers almost its input there, as a trained one does.
    """
    flat = x.reshape(x.shape[0], -1)
    early = 1 - (timestep + 1) / net.num_train_timesteps
    wave = math.cos(net.frequency * timestep + net.phase)
    hidden = np.tanh(flat @ net.weight.astype(np.float64) + wave * net.bias.astype(np.float64))
    linear = net.linear + net.linear_slope * early**2
    gain = net.gain + net.gain_slope * early
    return (linear * flat + gain * hidden).reshape(x.shape)


# --- the recordings --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """One run of a diffusers scheduler.

    A table has R rows, one for each evaluation of the network from the noisiest level on: 2N - 1
    for the two DPM2 schedulers, N for LCM. `call["begin_index"]` counts outer steps, so a run has
    `E = R - first_row` evaluations.
    """

    name: str  # "dpm2/000", "dpm2_ancestral/000", "lcm/000"
    config: dict[str, Any]  # what diffusers writes to scheduler_config.json
    # num_inference_steps, timesteps, original_inference_steps, strength: None where not passed;
    # begin_index: in outer steps, 0 unless the run starts in the middle.
    call: dict[str, Any]
    network: Network
    initial: Array  # [B, ...] float32, already at the noise level of the first row
    # [B, ...] float32: for image-to-image, what diffusers' add_noise was given (its answer is
    # `initial`). Otherwise None.
    clean: Array | None
    clean_noise: Array | None
    noise_rows: tuple[int, ...]  # the rows (of the whole table) that draw noise, in order
    noise: Array  # [len(noise_rows), B, ...] float32
    timesteps: Array  # [R] float64, exactly as diffusers has them, whole table
    sigmas: Array  # [N + 1] float32, the closing 0 included; empty for LCM
    init_noise_sigma: float
    samples: Array  # [E, B, ...] float32: diffusers' sample after every evaluation

    @property
    def first_row(self) -> int:
        """The first row that the run evaluates."""
        begin: int = self.call["begin_index"]
        return begin if self.config["_class_name"] == LCM else 2 * begin


def load_cases(path: Path = RECORDINGS) -> list[Case]:
    """Every recorded case, in a fixed order."""
    with np.load(path) as stored:
        header = json.loads(stored["header"].tobytes())
        floats, doubles = stored["float32"], stored["float64"]
        weights = {n: (stored[f"weight_{n}"], stored[f"bias_{n}"]) for n in header["network_sizes"]}

    taken = {"float32": 0, "float64": 0}

    def take(pool: str, shape: Sequence[int]) -> Array:
        start, stop = taken[pool], taken[pool] + math.prod(shape)
        taken[pool] = stop
        values: Array = {"float32": floats, "float64": doubles}[pool][start:stop]
        return values.reshape(shape)

    cases = []
    for record in header["cases"]:
        shape = record["shape"]
        weight, bias = weights[math.prod(shape[1:])]
        cases.append(
            Case(
                name=record["name"],
                config=record["config"],
                call=record["call"],
                network=Network(weight, bias, **record["network"]),
                initial=take("float32", shape),
                clean=take("float32", shape) if record["from_clean"] else None,
                clean_noise=take("float32", shape) if record["from_clean"] else None,
                noise_rows=tuple(record["noise_rows"]),
                noise=take("float32", [len(record["noise_rows"]), *shape]),
                timesteps=take("float64", [record["num_rows"]]),
                sigmas=take("float32", [record["num_sigmas"]]),
                init_noise_sigma=record["init_noise_sigma"],
                samples=take("float32", [record["num_evaluations"], *shape]),
            )
        )
    return cases


def load_versions(path: Path = RECORDINGS) -> dict[str, str]:
    """The versions of the packages that made the recordings."""
    with np.load(path) as stored:
        versions: dict[str, str] = json.loads(stored["header"].tobytes())["versions"]
        return versions


def relative_error(samples: ArrayLike, truth: Array) -> float:
    """The worst over all evaluations of max |sample - truth| / max |truth|. NaN if any is NaN."""
    difference = np.abs(np.asarray(samples, np.float64) - truth).reshape(len(truth), -1).max(axis=1)
    return float((difference / np.abs(truth).reshape(len(truth), -1).max(axis=1)).max())


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


# --- the published algorithms of k-diffusion -------------------------------------------------


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
