"""Noise levels and grids for the fuzzer: a valid call, and what it may accept."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import fuzz_values as fv
import jax.numpy as jnp
import numpy as np
from fuzz_values import an, count, either, flag, number, numbers, one_of, optional

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
TO_INFINITY = either(NOT_NEGATIVE, lambda v: isinstance(v, (float, np.floating)) and v == np.inf)
SIGMAS = numbers(0)
# Any shape, an empty one too; beyond the ends of training the end holds.
ANYWHERE = numbers(empty=True, infinite=True)
LOOKED_UP = numbers(0, empty=True)
POSITIVE_OR_INFINITE = numbers(0, above=True, empty=True, infinite=True)
SAMPLES = numbers(nan=True)
X: Argument = (fv.SAMPLE, SAMPLES)

LEVEL_CALLS = [
    Call(
        "noise_schedule",
        kd.noise_schedule,
        {
            "beta_schedule": ("linear", one_of("linear", "scaled_linear", "squaredcos_cap_v2")),
            "num_train_timesteps": (20, count()),
            "beta_start": (1e-4, optional(number(0, 1, above=True))),
            "beta_end": (0.02, optional(number(0, 1, above=True))),
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
            "s_churn": (1.0, numbers(0)),
            "s_tmin": (0.0, NOT_NEGATIVE),
            "s_tmax": (50.0, TO_INFINITY),
            "s_noise": (1.0, numbers(0)),
        },
    ),
    Call("NoiseSchedule.sigma_at", fv.NOISE.sigma_at, {"timestep": (3, ANYWHERE)}),
    Call("NoiseSchedule.timestep_at", fv.NOISE.timestep_at, {"sigma": (3.0, POSITIVE_OR_INFINITE)}),
    Call("FlowSchedule.sigma_at", fv.FLOW.sigma_at, {"timestep": (3, numbers(empty=True))}),
    Call("FlowSchedule.timestep_at", fv.FLOW.timestep_at, {"sigma": (0.5, LOOKED_UP)}),
    Call("FlowSchedule.shifted", fv.FLOW.shifted, {"sigmas": (0.5, numbers(0, 1, empty=True))}),
]
LEVEL_CALLS += [
    Call(
        f"{kind}.{method}",
        getattr(noise, method),
        {"x0": X, "eps": X, "timesteps": (times, accepts)},
    )
    for kind, method, noise, times, accepts in (
        ("NoiseSchedule", "add_noise", fv.NOISE, jnp.asarray([3, 999]), numbers(0)),
        ("NoiseSchedule", "velocity", fv.NOISE, jnp.asarray([3, 999]), numbers(0)),
        ("FlowSchedule", "add_noise", fv.FLOW, jnp.asarray([3.0, 999.0]), numbers(0)),
        ("FlowSchedule", "velocity", fv.FLOW, jnp.asarray([3.0, 999.0]), optional(numbers(0))),
    )
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
            "num_steps": N,
            "sigma_min": (0.03, optional(POSITIVE)),
            "sigma_max": (14.6, optional(POSITIVE)),
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
