"""Facts about diffusers' schedulers: their parameters, and what cannot be read, by name."""

from typing import Any

CLASS_NAMES = {
    "dpm2": "KDPM2DiscreteScheduler",
    "dpm2_ancestral": "KDPM2AncestralDiscreteScheduler",
    "lcm": "LCMScheduler",
}

DPM2_DEFAULTS: dict[str, Any] = {
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
# What these samplers have here and their classes in diffusers have not; written back where set.
OURS: dict[str, dict[str, Any]] = {
    "dpm2": {"rescale_betas_zero_snr": False},
    "dpm2_ancestral": {"rescale_betas_zero_snr": False},
    "lcm": {},
}
# The ancestral class of diffusers has the same parameters under the same defaults.
DEFAULTS: dict[str, dict[str, Any]] = {
    "dpm2": DPM2_DEFAULTS,
    "dpm2_ancestral": DPM2_DEFAULTS,
    "lcm": {
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
    },
}
GRID_FLAGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")

# What a key must be for its config to be read; any other value changes what is sampled.
REQUIRED: dict[str, tuple[Any, ...]] = {
    "interpolation_type": (None, "linear"),
    "timestep_type": (None, "discrete"),
    "final_sigmas_type": (None, "zero"),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "use_flow_sigmas": (None, False),
    "use_lu_lambdas": (None, False),
    "snr_shift_scale": (None, 1.0),
}
NO_BETA_SCHEDULE = {
    "FlowMatch": "flow matching",
    "FlowMap": "a flow map",
    "LTXEulerAncestralRF": "rectified flow",
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
