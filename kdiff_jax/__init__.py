"""Diffusion samplers for JAX: noise -> levels -> table -> denoise -> sample.

A sampler is a table, a step is one line of arithmetic, a trajectory one scan:

    noise    = kd.noise_schedule("scaled_linear")      the noise levels of training
    levels   = kd.levels(noise, 25, grid="karras")     the ones that a run visits
    schedule = kd.dpm2(levels)                         a sampler: a function of levels
    denoise  = kd.denoiser(model_fn)                   a network: a function of rows
    x        = kd.initial_sample(schedule, key, shape)
    x0       = kd.sample(denoise, params, schedule, x, key)
"""

# ruff: noqa: I001 - in reading order
from kdiff_jax._levels.noise_schedule import NoiseSchedule, noise_schedule
from kdiff_jax._levels.flow import FlowSchedule, flow_schedule
from kdiff_jax._levels.levels import Levels
from kdiff_jax._levels.build import levels
from kdiff_jax._levels.lcm_levels import lcm_levels
from kdiff_jax._levels.grids import (
    beta_sigmas,
    exponential_sigmas,
    karras_sigmas,
    kl_optimal_sigmas,
    laplace_sigmas,
    linear_quadratic_sigmas,
    polyexponential_sigmas,
    vp_sigmas,
)
from kdiff_jax._levels.timestep_grids import beta_timesteps
from kdiff_jax._levels.align_your_steps import align_your_steps_sigmas
from kdiff_jax._table.row import Row
from kdiff_jax._table.schedule import Schedule
from kdiff_jax._table.euler import euler
from kdiff_jax._table.dpm2 import dpm2, dpm2_ancestral
from kdiff_jax._table.lcm import lcm
from kdiff_jax._table.stack import stack
from kdiff_jax._denoise.prediction import Prediction
from kdiff_jax._denoise.network import Denoiser, denoiser
from kdiff_jax._denoise.continuous import continuous, edm_denoiser
from kdiff_jax._denoise.clip import clipped, thresholded
from kdiff_jax._denoise.consistency import consistency
from kdiff_jax._denoise.guidance import guided
from kdiff_jax._denoise.guidance_embedding import guidance_embedding
from kdiff_jax._denoise.inpaint import inpainted
from kdiff_jax._noise.keyed import add_noise, initial_sample, row_noise
from kdiff_jax._noise.given import given_noise
from kdiff_jax._noise.brownian import brownian_noise
from kdiff_jax._noise.slerp import slerp
from kdiff_jax._run.state import State, init
from kdiff_jax._run.step import step
from kdiff_jax._run.sample import sample

__version__ = "0.2.0"

# Written out, in reading order, so that type checkers see what is public.
__all__ = [  # noqa: RUF022
    "NoiseSchedule",
    "noise_schedule",
    "FlowSchedule",
    "flow_schedule",
    "Levels",
    "levels",
    "lcm_levels",
    "beta_sigmas",
    "exponential_sigmas",
    "karras_sigmas",
    "kl_optimal_sigmas",
    "laplace_sigmas",
    "linear_quadratic_sigmas",
    "polyexponential_sigmas",
    "vp_sigmas",
    "beta_timesteps",
    "align_your_steps_sigmas",
    "Row",
    "Schedule",
    "euler",
    "dpm2",
    "dpm2_ancestral",
    "lcm",
    "stack",
    "Prediction",
    "Denoiser",
    "denoiser",
    "continuous",
    "edm_denoiser",
    "clipped",
    "thresholded",
    "consistency",
    "guided",
    "guidance_embedding",
    "inpainted",
    "add_noise",
    "initial_sample",
    "row_noise",
    "given_noise",
    "brownian_noise",
    "slerp",
    "State",
    "init",
    "step",
    "sample",
]
