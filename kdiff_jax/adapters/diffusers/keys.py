"""Facts about diffusers' schedulers: which sampler is which class, and the keys of configs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import kdiff_jax as kd
from kdiff_jax._levels.spacing import GridName

# A scheduler_config.json: every value that JSON has.
Config = Mapping[str, Any]
SamplerName = Literal["dpm2", "dpm2_ancestral", "lcm"]


@dataclass(frozen=True)
class Method:
    """A sampler of this library, and the class of diffusers that it is there.

    Attributes:
      build: the sampler, a function of levels.
      class_name: the class of diffusers, of a config with a beta schedule.
      keys: the parameters of that class, and its defaults.
      ours: keys that are honoured here and that the class has not; written back where set.
      distilled: whether it runs on the distillation grid of a latent-consistency network, whose
        boundary scaling belongs to the denoiser.
      flow_class_name: the class of diffusers that a flow-matching config is written for.
    """

    build: Callable[[kd.Levels], kd.Schedule]
    class_name: str
    keys: Config
    ours: Config = field(default_factory=dict)
    distilled: bool = False
    flow_class_name: str = "FlowMatchEulerDiscreteScheduler"


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
METHODS: dict[SamplerName, Method] = {
    "dpm2": Method(kd.dpm2, "KDPM2DiscreteScheduler", DPM2_KEYS, ZERO_SNR),
    "dpm2_ancestral": Method(
        kd.dpm2_ancestral, "KDPM2AncestralDiscreteScheduler", DPM2_KEYS, ZERO_SNR
    ),
    "lcm": Method(
        kd.lcm,
        "LCMScheduler",
        LCM_KEYS,
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
    "FlowMatchEulerDiscreteScheduler": None,
    "FlowMatchHeunDiscreteScheduler": None,
    "FlowMatchLCMScheduler": "lcm",
}
# Names in a config of ours the one of the samplers that share a class.
SAMPLER_KEY = "kdiff_jax_sampler"

GRID_FLAGS: dict[str, GridName] = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
}


def grid_of(config: Config) -> GridName | None:
    """The grid that a config names; None where it takes the levels of its spacing."""
    chosen = [grid for flag, grid in GRID_FLAGS.items() if config.get(flag)]
    return chosen[0] if chosen else None


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
