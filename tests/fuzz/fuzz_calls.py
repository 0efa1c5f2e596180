"""The core's public functions for the fuzzer: a valid call, and what it may accept."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import fuzz_values as fv
import jax.numpy as jnp
import numpy as np
from fuzz_values import an, anything, count, either, flag, number, numbers, one_of, optional

import kdiff_jax as kd

# An argument: a valid value, and which others may be accepted.
Argument = tuple[Any, fv.Accepts]


@dataclass(frozen=True)
class Call:
    """A public function, its arguments, and how seldom it is drawn since it compiles."""

    name: str
    function: Callable[..., Any]
    arguments: Mapping[str, Argument]
    slow: bool = False


GRIDS = (
    *(None, "karras", "polyexponential", "linear_quadratic", "exponential", "vp", "beta"),
    *("kl_optimal", "laplace", "normal", "simple", "sgm_uniform", "ddim_uniform", "beta_timesteps"),
)
NOISES = an(kd.NoiseSchedule, kd.FlowSchedule)
N: Argument = (3, count())
LOW: Argument = (0.03, number(0, above=True))
HIGH: Argument = (14.6, number(0, above=True))
POSITIVE = number(0, above=True)
NOT_NEGATIVE = number(0)
SIGMAS = numbers(0)
SAMPLES = numbers(nan=True)
S_NOISE: Argument = (1.0, numbers(0))
RUN: Argument = (fv.LEVELS, an(kd.Levels))
TABLE: Argument = (fv.NOISY, an(kd.Schedule))
X: Argument = (fv.SAMPLE, SAMPLES)


def _key(value: Any) -> bool:
    dtype = getattr(value, "dtype", None)
    return dtype is not None and (str(dtype).startswith("key") or dtype == np.uint32)


KEYS: Argument = (fv.KEY, _key)
NETWORK: Argument = (fv.network, callable)


def _shape(value: Any) -> bool:
    entries = list(value) if isinstance(value, (list, tuple, range)) else []
    return len(entries) > 0 and all(count(0)(entry) for entry in entries)


LEVEL_CALLS = [
    Call(
        "noise_schedule",
        kd.noise_schedule,
        {
            "beta_schedule": ("linear", one_of("linear", "scaled_linear", "squaredcos_cap_v2")),
            "num_train_timesteps": (20, count()),
            "beta_start": (1e-4, number(0, 1, above=True)),
            "beta_end": (0.02, number(0, 1, above=True)),
            "trained_betas": (None, optional(numbers(0, 1))),
            "rescale_zero_terminal_snr": (False, flag),
        },
    ),
    Call(
        "flow_schedule",
        kd.flow_schedule,
        {
            "shift": (3.0, optional(POSITIVE)),
            "shift_terminal": (None, optional(number(0, 1))),
            "num_train_timesteps": (1000, count()),
        },
    ),
    Call(
        "flow_schedule by size",
        kd.flow_schedule,
        {
            "image_seq_len": (1024, optional(POSITIVE)),
            "base_shift": (0.5, number()),
            "max_shift": (1.15, number()),
            "base_image_seq_len": (256, POSITIVE),
            "max_image_seq_len": (4096, POSITIVE),
        },
    ),
    Call("flow_schedule by mu", kd.flow_schedule, {"mu": (0.5, optional(number()))}),
    Call(
        "levels",
        kd.levels,
        {
            "noise": (fv.NOISE, optional(NOISES)),
            "num_steps": N,
            "grid": ("karras", one_of(*GRIDS)),
            "timestep_spacing": ("linspace", one_of("linspace", "leading", "trailing")),
            "steps_offset": (0, count(0)),
            "rho": (None, optional(POSITIVE)),
            "sigma_min": (None, optional(POSITIVE)),
            "sigma_max": (None, optional(POSITIVE)),
            "timesteps": (None, optional(numbers(0))),
            "sigmas": (None, optional(SIGMAS)),
            "round_timesteps": (False, flag),
            "discard_penultimate": (False, flag),
            "strength": (1.0, number(0, 1, above=True)),
        },
    ),
    Call(
        "levels on a flow",
        kd.levels,
        {
            "noise": (fv.FLOW, optional(NOISES)),
            "num_steps": N,
            "grid": (None, one_of(*GRIDS)),
            "sigma_max": (None, optional(POSITIVE)),
            "strength": (1.0, number(0, 1, above=True)),
        },
    ),
    Call(
        "levels given",
        kd.levels,
        {
            "noise": (None, optional(NOISES)),
            "sigmas": ([10.0, 1.0], SIGMAS),
            "num_steps": (None, optional(count())),
        },
    ),
    Call(
        "levels of timesteps",
        kd.levels,
        {"noise": (fv.NOISE, NOISES), "timesteps": ([999, 400], numbers(0))},
    ),
    Call(
        "lcm_levels",
        kd.lcm_levels,
        {
            "noise": (fv.NOISE, NOISES),
            "num_steps": (2, optional(count())),
            "original_steps": (50, count()),
            "timesteps": (None, optional(numbers(0))),
            "sigmas": (None, optional(SIGMAS)),
            "strength": (1.0, number(0, 1, above=True)),
        },
    ),
    Call("Levels.start_at", fv.LEVELS.start_at, {"step": (1, count(0))}),
    Call("Levels.end_at", fv.LEVELS.end_at, {"step": (1, count(0))}),
    Call(
        "Levels.start_at_strength",
        fv.LEVELS.start_at_strength,
        {"strength": (0.7, number(0, 1, above=True))},
    ),
    Call(
        "Levels.churned",
        fv.LEVELS.churned,
        {
            "s_churn": (1.0, NOT_NEGATIVE),
            "s_tmin": (0.0, NOT_NEGATIVE),
            "s_tmax": (50.0, either(NOT_NEGATIVE, lambda v: v == np.inf)),
            "s_noise": (1.0, NOT_NEGATIVE),
        },
    ),
    Call("NoiseSchedule.sigma_at", fv.NOISE.sigma_at, {"timestep": (3, numbers())}),
    Call("NoiseSchedule.timestep_at", fv.NOISE.timestep_at, {"sigma": (3.0, numbers(0))}),
    Call("FlowSchedule.sigma_at", fv.FLOW.sigma_at, {"timestep": (3, numbers())}),
    Call("FlowSchedule.timestep_at", fv.FLOW.timestep_at, {"sigma": (0.5, numbers(0))}),
    Call("FlowSchedule.shifted", fv.FLOW.shifted, {"sigmas": (0.5, numbers(0, 1))}),
]
LEVEL_CALLS += [
    Call(
        f"{kind}.{method}",
        getattr(noise, method),
        {"x0": X, "eps": X, "timesteps": (times, numbers(0))},
    )
    for kind, noise, times in (
        ("NoiseSchedule", fv.NOISE, jnp.asarray([3, 999])),
        ("FlowSchedule", fv.FLOW, jnp.asarray([3.0, 999.0])),
    )
    for method in ("add_noise", "velocity")
]

BOUNDS: dict[str, Argument] = {"num_steps": N, "sigma_min": LOW, "sigma_max": HIGH}
GRID_CALLS = [
    Call("karras_sigmas", kd.karras_sigmas, {**BOUNDS, "rho": (7.0, POSITIVE)}),
    Call("polyexponential_sigmas", kd.polyexponential_sigmas, {**BOUNDS, "rho": (1.0, POSITIVE)}),
    Call("exponential_sigmas", kd.exponential_sigmas, BOUNDS),
    Call("kl_optimal_sigmas", kd.kl_optimal_sigmas, BOUNDS),
    Call(
        "beta_sigmas", kd.beta_sigmas, {**BOUNDS, "alpha": (0.6, POSITIVE), "beta": (0.6, POSITIVE)}
    ),
    Call(
        "laplace_sigmas",
        kd.laplace_sigmas,
        {**BOUNDS, "mu": (0.0, number()), "beta": (0.5, POSITIVE)},
    ),
    Call(
        "linear_quadratic_sigmas",
        kd.linear_quadratic_sigmas,
        {
            "num_steps": N,
            "sigma_max": HIGH,
            "threshold_noise": (0.025, number()),
            "linear_steps": (None, optional(count(0))),
        },
    ),
    Call(
        "vp_sigmas",
        kd.vp_sigmas,
        {
            **BOUNDS,
            "beta_d": (19.9, number()),
            "beta_min": (0.1, number()),
            "eps_s": (1e-3, number()),
        },
    ),
    Call(
        "beta_timesteps",
        kd.beta_timesteps,
        {
            "num_steps": N,
            "num_train_timesteps": (1000, count()),
            "alpha": (0.6, POSITIVE),
            "beta": (0.6, POSITIVE),
        },
    ),
    Call(
        "align_your_steps_sigmas",
        kd.align_your_steps_sigmas,
        {"num_steps": N, "table": ([14.6, 3.0, 0.03], optional(SIGMAS))},
    ),
]

TABLE_CALLS = [
    Call(
        "euler", kd.euler, {"levels": RUN, "eta": (None, optional(numbers(0))), "s_noise": S_NOISE}
    ),
    Call("dpm2", kd.dpm2, {"levels": RUN}),
    Call(
        "dpm2_ancestral",
        kd.dpm2_ancestral,
        {"levels": RUN, "eta": (1.0, numbers(0)), "s_noise": S_NOISE},
    ),
    Call(
        "lcm",
        kd.lcm,
        {"levels": RUN, "s_noise": S_NOISE, "s_noise_end": (None, optional(numbers(0)))},
    ),
    Call(
        "stack",
        kd.stack,
        {
            "schedules": (
                [fv.SCHEDULE, fv.NOISY],
                lambda v: (
                    isinstance(v, (list, tuple))
                    and bool(v)
                    and all(isinstance(e, kd.Schedule) for e in v)
                ),
            )
        },
        slow=True,
    ),
    Call(
        "Schedule.pad",
        fv.NOISY.pad,
        {"num_rows": (7, count()), "columns": (None, optional(an(list, tuple, set)))},
        slow=True,
    ),
    Call("Schedule.rows_at", fv.NOISY.rows_at, {"i": (jnp.asarray([0, 1]), numbers(0))}, slow=True),
    Call("Schedule[i]", fv.NOISY.__getitem__, {"i": (1, either(count(-10), an(slice)))}, slow=True),
    Call("Schedule.from_json", kd.Schedule.from_json, {"text": (fv.NOISY.to_json(), an())}),
    Call("Levels ==", lambda other: bool(other == fv.LEVELS), {"other": (1, lambda v: True)}),
]

DENOISE: Argument = (fv.DENOISE, callable)
NOISE_FN = optional(callable)
DENOISE_CALLS = [
    Call(
        "denoiser",
        kd.denoiser,
        {
            "model_fn": NETWORK,
            "prediction_type": (
                "epsilon",
                one_of("epsilon", "v_prediction", "sample", "flow_prediction"),
            ),
            "dtype": (None, optional(an(type, str, np.dtype, jnp.dtype))),
        },
    ),
    Call(
        "edm_denoiser",
        kd.edm_denoiser,
        {
            "model_fn": NETWORK,
            "sigma_data": (0.5, POSITIVE),
            "dtype": (None, optional(an(type, str))),
            "c_noise": ("log_sigma", one_of("log_sigma", "sigma", "angle")),
        },
    ),
    Call(
        "continuous",
        kd.continuous,
        {"denoise": DENOISE, "c_noise": ("log_sigma", one_of("log_sigma", "sigma", "angle"))},
    ),
    Call("clipped", kd.clipped, {"denoise": DENOISE, "clip_range": (1.0, POSITIVE)}),
    Call(
        "thresholded",
        kd.thresholded,
        {"denoise": DENOISE, "ratio": (0.995, number(0, 1)), "sample_max_value": (1.0, POSITIVE)},
    ),
    Call(
        "consistency",
        kd.consistency,
        {"denoise": DENOISE, "timestep_scaling": (10.0, POSITIVE), "sigma_data": (0.5, POSITIVE)},
    ),
    Call(
        "guided",
        kd.guided,
        {
            "denoise": DENOISE,
            "scale": (2.0, numbers()),
            "uncond": (jnp.zeros((2, 1)), anything),
            "per_step": (False, flag),
            "interval": (None, optional(numbers())),
            "rescale": (None, optional(number(0, 1))),
            "rescale_of": (
                None,
                one_of(None, "epsilon", "v_prediction", "sample", "flow_prediction"),
            ),
            "batched": (True, flag),
        },
    ),
    Call(
        "cfg_plus_plus",
        kd.cfg_plus_plus,
        {
            "denoise": DENOISE,
            "scale": (0.6, numbers()),
            "uncond": (jnp.zeros((2, 1)), anything),
            "batched": (True, flag),
        },
    ),
    Call(
        "projected",
        kd.projected,
        {
            "denoise": DENOISE,
            "scale": (2.0, numbers()),
            "uncond": (jnp.zeros((2, 1)), anything),
            "eta": (0.0, numbers()),
            "norm_threshold": (None, optional(POSITIVE)),
            "batched": (True, flag),
        },
    ),
    Call(
        "autoguided",
        kd.autoguided,
        {"denoise": DENOISE, "scale": (2.0, numbers()), "weak": (None, optional(callable))},
    ),
    Call(
        "guidance_embedding",
        kd.guidance_embedding,
        {"w": (jnp.ones(2), numbers()), "dim": (8, count(1))},
        slow=True,
    ),
    Call(
        "inpainted",
        kd.inpainted,
        {
            "denoise": DENOISE,
            "known": X,
            "mask": (jnp.ones((2, 4)), numbers(0, 1)),
            "noise": (fv.SAMPLE, optional(SAMPLES)),
        },
    ),
    Call(
        "Denoiser()",
        lambda **kw: fv.DENOISE(kw["params"], kw["x"], kw["row"]),
        {"params": (jnp.float32(0.1), anything), "x": X, "row": (fv.ROW, an(kd.Row))},
    ),
    Call("add_noise", kd.add_noise, {"row": (fv.ROW, an(kd.Row)), "x0": X, "eps": X}, slow=True),
    Call(
        "initial_sample",
        kd.initial_sample,
        {"schedule": TABLE, "key": KEYS, "shape": ((2, 4), _shape)},
        slow=True,
    ),
    Call(
        "row_noise",
        kd.row_noise,
        {"key": KEYS, "row": (fv.ROW, an(kd.Row)), "shape": ((2, 4), _shape)},
        slow=True,
    ),
    Call("given_noise", kd.given_noise, {"noise": (jnp.ones((5, 2, 4)), SAMPLES)}),
    Call(
        "brownian_noise",
        kd.brownian_noise,
        {"sigma_min": (1e-3, POSITIVE), "sigma_max": (100.0, POSITIVE), "depth": (10, count())},
    ),
    Call("slerp", kd.slerp, {"first": X, "second": X, "fraction": (0.5, numbers())}, slow=True),
    Call("init", kd.init, {"schedule": TABLE, "x": (fv.SAMPLE, either(SAMPLES, an(kd.State)))}),
    Call(
        "step",
        kd.step,
        {
            "state": (fv.STATE, an(kd.State)),
            "row": (fv.ROW, an(kd.Row)),
            "prediction": (fv.PREDICTION, an(kd.Prediction)),
            "key": (fv.KEY, optional(KEYS[1])),
            "noise": (None, optional(SAMPLES)),
        },
        slow=True,
    ),
    Call(
        "sample",
        kd.sample,
        {
            "denoise": DENOISE,
            "params": (jnp.float32(0.1), anything),
            "schedule": TABLE,
            "x": (fv.SAMPLE, either(SAMPLES, an(kd.State))),
            "key": (fv.KEY, optional(KEYS[1])),
            "cond": (None, anything),
            "noise_fn": (None, NOISE_FN),
            "save_fn": (None, NOISE_FN),
            "progress": (False, either(flag, callable)),
            "unroll": (1, count()),
            "remat": ("none", one_of("none", "rows", "segments")),
        },
        slow=True,
    ),
]

CORE_CALLS = [*LEVEL_CALLS, *GRID_CALLS, *TABLE_CALLS, *DENOISE_CALLS]
