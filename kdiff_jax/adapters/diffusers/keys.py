"""Facts about diffusers' schedulers: which sampler is which class, and the keys of configs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import kdiff_jax as kd
from kdiff_jax.adapters.diffusers.levels import Config, ddim_levels, spaced_levels

SamplerName = Literal["euler", "euler_ancestral", "ddim", "dpm2", "dpm2_ancestral", "lcm"]
ClassName = Literal[
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DDIMScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LCMScheduler",
]


@dataclass(frozen=True)
class Method:
    """A sampler of this library, and the class of diffusers that it is there.

    Attributes:
      build: the sampler, a function of levels.
      class_name: the class of diffusers, of a config with a beta schedule.
      keys: the parameters of that class, and its defaults.
      ours: keys that are honoured here and that the class has not; written back where set.
      levels: the levels of N steps, a function of the noise schedule, N and the config.
      clips: "" or what clips the estimate of x0: "both" halves of a prediction, or "denoised" only,
        beside the epsilon of the network.
      distilled: whether it runs on the distillation grid of a latent-consistency network, whose
        boundary scaling belongs to the denoiser.
      flow_class_name: the class of diffusers that a flow-matching config is written for.
    """

    build: Callable[[kd.Levels], kd.Schedule]
    class_name: ClassName
    keys: Config
    ours: Config = field(default_factory=dict)
    levels: Callable[[kd.NoiseSchedule, int | None, Config], kd.Levels] = spaced_levels
    clips: Literal["", "both", "denoised"] = ""
    distilled: bool = False
    flow_class_name: str = "FlowMatchEulerDiscreteScheduler"


EULER_ANCESTRAL_KEYS: Config = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
}
EULER_KEYS: Config = {
    **EULER_ANCESTRAL_KEYS,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
DDIM_KEYS: Config = {
    **EULER_ANCESTRAL_KEYS,
    "clip_sample": True,
    "set_alpha_to_one": True,
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "clip_sample_range": 1.0,
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
}
DPM2_KEYS: Config = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "linear",
    "trained_betas": None,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
    "steps_offset": 0,
}
LCM_KEYS: Config = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "original_inference_steps": 50,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "prediction_type": "epsilon",
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "timestep_scaling": 10.0,
    "rescale_betas_zero_snr": False,
}
ZERO_SNR: Config = {"rescale_betas_zero_snr": False}

# A sampler is a name in SamplerName and a line here.
_rounded = functools.partial(spaced_levels, rounded=True)
METHODS: dict[SamplerName, Method] = {
    "euler": Method(kd.euler, "EulerDiscreteScheduler", EULER_KEYS),
    "euler_ancestral": Method(
        functools.partial(kd.euler, eta=1.0),
        "EulerAncestralDiscreteScheduler",
        EULER_ANCESTRAL_KEYS,
    ),
    "ddim": Method(kd.euler, "DDIMScheduler", DDIM_KEYS, levels=ddim_levels, clips="denoised"),
    "dpm2": Method(kd.dpm2, "KDPM2DiscreteScheduler", DPM2_KEYS, ZERO_SNR, _rounded),
    "dpm2_ancestral": Method(
        kd.dpm2_ancestral, "KDPM2AncestralDiscreteScheduler", DPM2_KEYS, ZERO_SNR, _rounded
    ),
    "lcm": Method(
        kd.lcm,
        "LCMScheduler",
        LCM_KEYS,
        clips="both",
        distilled=True,
        flow_class_name="FlowMatchLCMScheduler",
    ),
}

FLOW_KEYS: Config = {
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": False,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "shift_terminal": None,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "time_shift_type": "exponential",
}
# The flow-matching classes that can be read, and the sampler that a class means by itself.
FLOW_CLASSES: dict[str, SamplerName | None] = {
    "FlowMatchEulerDiscreteScheduler": "euler",
    "FlowMatchHeunDiscreteScheduler": None,
    "FlowMatchLCMScheduler": "lcm",
}
# Names in a config of ours the one of the samplers that share a class.
SAMPLER_KEY = "kdiff_jax_sampler"
# Of FlowMatchEulerDiscreteScheduler: fresh noise in every step, which is LCM on a flow.
STOCHASTIC_KEY = "stochastic_sampling"

# What a key must be for its config to be read; any other value changes what is sampled.
REQUIRED: Mapping[str, tuple[object, ...]] = {
    "interpolation_type": (None, "linear"),
    "timestep_type": (None, "discrete"),
    "final_sigmas_type": (None, "zero"),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "use_flow_sigmas": (None, False),
    "use_lu_lambdas": (None, False),
    "snr_shift_scale": (None, 1.0),
}
FLOW_REQUIRED: Mapping[str, tuple[object, ...]] = {
    "invert_sigmas": (None, False),
    "scale_factors": (None, []),
}

# The classes that cannot be read, by how their names begin.
NO_BETA_SCHEDULE = {
    "FlowMatch": "flow matching",
    "FlowMap": "a flow map",
    "LTXEulerAncestralRF": "rectified flow",
    "RectifiedFlow": "rectified flow",
    "Helios": "flow matching",
    "Piflow": "flow matching",
    "MiniMaxH3": "flow matching",
    "SCM": "a trigonometric flow",
    "EDM": "EDM",
    "CosineDPMSolver": "a cosine schedule in EDM form",
    "CMStochasticIterative": "a consistency model in EDM form",
    "ConsistencyDecoder": "a consistency decoder",
    "CogVideoX": "a process with shifted noise levels",
    "KarrasVe": "a variance-exploding process",
    "ScoreSde": "a score SDE",
    "IPNDM": "fixed angles",
    "DDPMWuerstchen": "a continuous cosine process",
    "VQDiffusion": "discrete tokens",
    "Amused": "discrete tokens",
    "BlockRefinement": "discrete tokens",
    "DiscreteDDIM": "discrete tokens",
    "EntropyBound": "discrete tokens",
}
