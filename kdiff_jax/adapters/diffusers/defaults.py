"""The parameters of diffusers' schedulers that are honoured, with their defaults."""

from __future__ import annotations

from kdiff_jax.adapters.diffusers.levels import Config

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
HEUN_KEYS: Config = {**DPM2_KEYS, "clip_sample": False, "clip_sample_range": 1.0}
SINGLESTEP_KEYS: Config = {
    **{
        key: value
        for key, value in EULER_KEYS.items()
        if key not in ("timestep_spacing", "steps_offset", "rescale_betas_zero_snr")
    },
    "solver_order": 2,
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "lower_order_final": False,
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
    "final_sigmas_type": "zero",
    "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
}
MULTISTEP_KEYS: Config = {
    **EULER_KEYS,
    **SINGLESTEP_KEYS,
    "lower_order_final": True,
    "euler_at_final": False,
    "use_lu_lambdas": False,
}
UNIPC_KEYS: Config = {
    **EULER_KEYS,
    **{key: value for key, value in SINGLESTEP_KEYS.items() if key != "algorithm_type"},
    "solver_type": "bh2",
    "lower_order_final": True,
    "disable_corrector": [],
    "shift_terminal": None,
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
