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
from kdiff_jax._levels.noise_schedule import (
    NoiseSchedule as NoiseSchedule,
    noise_schedule as noise_schedule,
)
from kdiff_jax._levels.flow import FlowSchedule as FlowSchedule, flow_schedule as flow_schedule
from kdiff_jax._levels.levels import Levels as Levels
from kdiff_jax._levels.build import levels as levels
from kdiff_jax._levels.lcm_levels import lcm_levels as lcm_levels
from kdiff_jax._levels.grids import (
    beta_sigmas as beta_sigmas,
    exponential_sigmas as exponential_sigmas,
    karras_sigmas as karras_sigmas,
    kl_optimal_sigmas as kl_optimal_sigmas,
    laplace_sigmas as laplace_sigmas,
    linear_quadratic_sigmas as linear_quadratic_sigmas,
    polyexponential_sigmas as polyexponential_sigmas,
    vp_sigmas as vp_sigmas,
)
from kdiff_jax._levels.timestep_grids import beta_timesteps as beta_timesteps
from kdiff_jax._levels.align_your_steps import align_your_steps_sigmas as align_your_steps_sigmas
from kdiff_jax._table.row import Row as Row
from kdiff_jax._table.schedule import Schedule as Schedule
from kdiff_jax._table.euler import euler as euler
from kdiff_jax._table.dpm2 import dpm2 as dpm2, dpm2_ancestral as dpm2_ancestral
from kdiff_jax._table.heun import heun as heun
from kdiff_jax._table.dpmpp_singlestep import (
    dpmpp_2s_ancestral as dpmpp_2s_ancestral,
    dpmpp_sde as dpmpp_sde,
)
from kdiff_jax._table.dpmpp_multistep import dpmpp_2m as dpmpp_2m, dpmpp_3m as dpmpp_3m
from kdiff_jax._table.unipc import unipc as unipc
from kdiff_jax._table.lcm import lcm as lcm
from kdiff_jax._table.tcd import tcd as tcd
from kdiff_jax._table.stack import stack as stack
from kdiff_jax._denoise.prediction import Prediction as Prediction
from kdiff_jax._denoise.network import Denoiser as Denoiser, denoiser as denoiser
from kdiff_jax._denoise.continuous import continuous as continuous, edm_denoiser as edm_denoiser
from kdiff_jax._denoise.clip import clipped as clipped, thresholded as thresholded
from kdiff_jax._denoise.consistency import consistency as consistency
from kdiff_jax._denoise.guidance import guided as guided
from kdiff_jax._denoise.cfg_plus_plus import cfg_plus_plus as cfg_plus_plus
from kdiff_jax._denoise.projected import projected as projected
from kdiff_jax._denoise.autoguided import autoguided as autoguided
from kdiff_jax._denoise.guidance_embedding import guidance_embedding as guidance_embedding
from kdiff_jax._denoise.inpaint import inpainted as inpainted
from kdiff_jax._noise.keyed import (
    add_noise as add_noise,
    initial_sample as initial_sample,
    row_noise as row_noise,
)
from kdiff_jax._noise.given import given_noise as given_noise
from kdiff_jax._noise.brownian import brownian_noise as brownian_noise
from kdiff_jax._noise.clipped import clipped_noise as clipped_noise
from kdiff_jax._noise.slerp import slerp as slerp
from kdiff_jax._run.state import State as State, init as init
from kdiff_jax._run.step import step as step
from kdiff_jax._run.sample import sample as sample
from kdiff_jax._run.transition import (
    log_prob as log_prob,
    log_ratio as log_ratio,
    transition as transition,
)
import kdiff_jax._run.export as _export  # noqa: F401 - tells jax.export of the types above

__version__ = "0.2.0"

# "as" makes a name public to type checkers; so a name is one line here, in reading order.
__all__ = [name for name in globals() if not name.startswith("_")]

# A module, as the adapters are; it imports matplotlib when it is called.
import kdiff_jax.plot as plot  # noqa: F401
