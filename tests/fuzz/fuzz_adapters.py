"""The adapters for the fuzzer: a valid call, and what it may accept."""

import inspect
import types
from pathlib import Path
from typing import Any

import fuzz_values as fv
import jax
import numpy as np
from fuzz_calls import HIGH, LOW, NOT_NEGATIVE, POSITIVE, SIGMAS, TO_INFINITY, Argument, Call, N, X
from fuzz_denoise import DTYPE, FUNCTION, KEY, NETWORK
from fuzz_values import an, anything, count, either, flag, number, numbers, one_of, optional

from kdiff_jax.adapters import diffusers as kd_diffusers
from kdiff_jax.adapters import k_diffusion as kd_k

MODEL: Argument = (
    kd_k.DiscreteEpsDDPMDenoiser(lambda x, t: 0.1 * x, fv.NOISE.alphas_cumprod),
    callable,
)


CONFIG = {
    "_class_name": "KDPM2DiscreteScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
FLOW_CONFIG = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
SAMPLER = kd_diffusers.from_config(CONFIG)
LCM_SAMPLER = kd_diffusers.from_config(CONFIG, "lcm")
FLOW_SAMPLER = kd_diffusers.from_config(FLOW_CONFIG, sampler="dpm2")
SAMPLERS = ("euler", "euler_ancestral", "ddim", "dpm2", "dpm2_ancestral", "lcm")
FRACTION = number(0, 1, above=True)


def _run_of(config: dict[str, Any], sampler: str | None = None) -> Any:
    """A config in every function that reads it, and what its samplers are called with."""

    def run(**keys: Any) -> Any:
        read = kd_diffusers.from_config({**config, **keys}, sampler)  # type: ignore[arg-type]
        denoise = read.denoiser(fv.network)
        return read.schedule(3), jax.tree.leaves(denoise)

    return run


BETA_KEYS: dict[str, Argument] = {
    "_class_name": ("KDPM2DiscreteScheduler", optional(an(str))),
    "num_train_timesteps": (1000, count()),
    "beta_start": (0.00085, number(0, 1, above=True)),
    "beta_end": (0.012, number(0, 1, above=True)),
    "beta_schedule": ("linear", one_of("linear", "scaled_linear", "squaredcos_cap_v2")),
    "trained_betas": (None, optional(numbers(0, 1))),
    "prediction_type": ("v_prediction", one_of("epsilon", "v_prediction", "sample")),
    "timestep_spacing": ("linspace", one_of("linspace", "leading", "trailing")),
    "steps_offset": (0, count(0)),
    "rescale_betas_zero_snr": (False, flag),
    # Of another solver, and not read.
    "skip_prk_steps": (True, anything),
}
CLIP_KEYS: dict[str, Argument] = {
    "set_alpha_to_one": (True, flag),
    "clip_sample": (True, flag),
    "clip_sample_range": (1.0, POSITIVE),
    "thresholding": (False, flag),
    # Read where thresholding is true.
    "dynamic_thresholding_ratio": (0.995, number()),
    "sample_max_value": (1.0, number()),
}
THRESHOLD_KEYS: dict[str, Argument] = {
    "dynamic_thresholding_ratio": (0.995, FRACTION),
    "sample_max_value": (1.0, number(1)),
}
KARRAS_KEYS: dict[str, Argument] = {
    "use_karras_sigmas": (False, flag),
    "use_exponential_sigmas": (False, flag),
    "use_beta_sigmas": (False, flag),
}
LCM_KEYS: dict[str, Argument] = {
    "original_inference_steps": (50, count()),
    "timestep_scaling": (10.0, POSITIVE),
}
FLOW_KEYS: dict[str, Argument] = {
    "num_train_timesteps": (1000, count()),
    "shift": (3.0, POSITIVE),
    "use_dynamic_shifting": (False, flag),
    "base_shift": (0.5, optional(number())),
    "max_shift": (1.15, optional(number())),
    "base_image_seq_len": (256, count()),
    "max_image_seq_len": (4096, count()),
    "shift_terminal": (None, optional(number(0, 1))),
    "time_shift_type": ("exponential", one_of("exponential", "linear")),
}
LATENT = types.SimpleNamespace(
    apply_model=lambda x, t: x, alphas_cumprod=np.asarray(fv.NOISE.alphas_cumprod)
)
CONFIG_CALLS = [
    Call(
        "from_config",
        kd_diffusers.from_config,
        {
            "config": (CONFIG, either(an(dict), an(str), an(Path))),
            "sampler": (None, one_of(None, *SAMPLERS)),
        },
    ),
    Call("config", _run_of(CONFIG), {**BETA_KEYS, **KARRAS_KEYS}),
    Call("config of ddim", _run_of(CONFIG, "ddim"), {**BETA_KEYS, **CLIP_KEYS}),
    Call("config of lcm", _run_of(CONFIG, "lcm"), {**BETA_KEYS, **CLIP_KEYS, **LCM_KEYS}),
    Call(
        "config that thresholds", _run_of({**CONFIG, "thresholding": True}, "ddim"), THRESHOLD_KEYS
    ),
    Call("config of a flow", _run_of(FLOW_CONFIG), {**FLOW_KEYS, **KARRAS_KEYS}),
    Call(
        "DiffusersSampler.schedule",
        SAMPLER.schedule,
        {
            "num_inference_steps": (3, optional(count())),
            "timesteps": (None, optional(numbers(0))),
            "strength": (None, optional(FRACTION)),
            "sigmas": (None, optional(SIGMAS)),
            "original_inference_steps": (None, optional(count())),
            "mu": (None, optional(number())),
            "image_seq_len": (None, optional(count())),
        },
    ),
    Call(
        "DiffusersSampler.levels of lcm",
        LCM_SAMPLER.levels,
        {
            "num_inference_steps": (3, optional(count())),
            "timesteps": (None, optional(numbers(0))),
            "strength": (None, optional(FRACTION)),
            "original_inference_steps": (None, optional(count())),
        },
    ),
    Call(
        "DiffusersSampler.levels of a flow",
        FLOW_SAMPLER.levels,
        {
            "num_inference_steps": (3, optional(count())),
            "sigmas": (None, optional(SIGMAS)),
            "mu": (None, optional(number())),
        },
    ),
    Call(
        "DiffusersSampler.denoiser",
        SAMPLER.denoiser,
        {"model_fn": NETWORK, "dtype": DTYPE},
    ),
]
K_CALLS = [
    *(
        Call(
            name,
            getattr(kd_k, name),
            {"model": (LATENT, an(types.SimpleNamespace)), "quantize": (False, flag)},
        )
        for name in ("CompVisDenoiser", "CompVisVDenoiser")
    ),
    *(
        Call(
            name,
            getattr(kd_k, name),
            {
                "model": ((lambda x, t: x), callable),
                "alphas_cumprod": (fv.NOISE.alphas_cumprod, numbers(0, 1)),
                "quantize": (False, flag),
            },
        )
        for name in ("DiscreteEpsDDPMDenoiser", "DiscreteVDDPMDenoiser")
    ),
    Call(
        "sigma_to_t",
        MODEL[0].sigma_to_t,
        {"sigma": (3.0, numbers(0)), "quantize": (None, optional(flag))},
    ),
    Call("t_to_sigma", MODEL[0].t_to_sigma, {"t": (3.0, numbers())}),
    Call("get_sigmas", MODEL[0].get_sigmas, {"n": (3, optional(count()))}),
    Call("append_zero", kd_k.append_zero, {"sigmas": ([2.0, 1.0], numbers())}),
    Call(
        "get_ancestral_step",
        kd_k.get_ancestral_step,
        {
            "sigma_from": (2.0, numbers(0)),
            "sigma_to": (1.0, numbers(0)),
            "eta": (1.0, numbers(0)),
        },
    ),
    Call(
        "get_sigmas_exponential",
        kd_k.get_sigmas_exponential,
        {"n": N, "sigma_min": LOW, "sigma_max": HIGH},
    ),
    Call(
        "get_sigmas_karras",
        kd_k.get_sigmas_karras,
        {"n": N, "sigma_min": LOW, "sigma_max": HIGH, "rho": (7.0, POSITIVE)},
    ),
    Call(
        "get_sigmas_polyexponential",
        kd_k.get_sigmas_polyexponential,
        {"n": N, "sigma_min": LOW, "sigma_max": HIGH, "rho": (1.0, POSITIVE)},
    ),
    Call(
        "get_sigmas_vp",
        kd_k.get_sigmas_vp,
        {
            "n": N,
            "beta_d": (19.9, number()),
            "beta_min": (0.1, number()),
            "eps_s": (1e-3, number()),
        },
    ),
    Call("VDenoiser", kd_k.VDenoiser, {"inner_model": ((lambda x, t: x), callable)}),
    Call(
        "OpenAIDenoiser",
        kd_k.OpenAIDenoiser,
        {
            "model": ((lambda x, t: x), callable),
            "diffusion": (LATENT, lambda value: hasattr(value, "alphas_cumprod")),
            "quantize": (False, flag),
            "has_learned_sigmas": (True, flag),
        },
    ),
    Call(
        "BrownianTreeNoiseSampler",
        kd_k.BrownianTreeNoiseSampler,
        {
            "x": X,
            "sigma_min": LOW,
            "sigma_max": HIGH,
            "seed": (3, either(count(0, 2**32), numbers(0), an(type(fv.KEY)))),
        },
    ),
    Call(
        "clipped_noise",
        fv.kd.clipped_noise,
        {"bound": (2.5, numbers(0)), "noise_fn": (None, optional(callable))},
    ),
    Call("to_d", kd_k.to_d, {"x": X, "sigma": (2.0, numbers(0)), "denoised": X}),
]
SAMPLE_ARGUMENTS: dict[str, Argument] = {
    "model": MODEL,
    "x": X,
    "noise_clip_std": (0.0, NOT_NEGATIVE),
    "r": (0.5, number(0.5, 0.5)),
    "solver_type": ("midpoint", one_of("midpoint", "heun")),
    "sigmas": ([3.0, 1.0, 0.0], SIGMAS),
    "extra_args": (None, optional(an(dict))),
    "callback": FUNCTION,
    "disable": (True, optional(flag)),
    "s_noise": (1.0, numbers(0)),
    "key": KEY,
    "noise_sampler": FUNCTION,
    "eta": (1.0, numbers(0)),
    "s_churn": (0.0, numbers(0)),
    "s_tmin": (0.0, NOT_NEGATIVE),
    "s_tmax": (50.0, TO_INFINITY),
    "s_noise_end": (None, optional(numbers(0))),
}
K_CALLS += [
    Call(
        name,
        getattr(kd_k, name),
        {
            argument: SAMPLE_ARGUMENTS[argument]
            for argument in inspect.signature(getattr(kd_k, name)).parameters
        },
        slow=True,
    )
    for name in dir(kd_k)
    if name.startswith("sample_")
    and "args" not in inspect.signature(getattr(kd_k, name)).parameters
]
ADAPTER_CALLS = [*CONFIG_CALLS, *K_CALLS]
