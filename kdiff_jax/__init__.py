"""Diffusion samplers for JAX: a sampler is a table, a step is one line, a trajectory one scan."""

from kdiff_jax._brownian import brownian_noise as brownian_noise
from kdiff_jax._denoise import Denoiser as Denoiser
from kdiff_jax._denoise import Prediction as Prediction
from kdiff_jax._denoise import clipped as clipped
from kdiff_jax._denoise import consistency as consistency
from kdiff_jax._denoise import denoiser as denoiser
from kdiff_jax._denoise import thresholded as thresholded
from kdiff_jax._dpm2 import dpm2_ancestral_schedule as dpm2_ancestral_schedule
from kdiff_jax._dpm2 import dpm2_schedule as dpm2_schedule
from kdiff_jax._euler import euler_schedule as euler_schedule
from kdiff_jax._flow import FlowSchedule as FlowSchedule
from kdiff_jax._flow import flow_schedule as flow_schedule
from kdiff_jax._grids import align_your_steps_sigmas as align_your_steps_sigmas
from kdiff_jax._grids import beta_sigmas as beta_sigmas
from kdiff_jax._grids import exponential_sigmas as exponential_sigmas
from kdiff_jax._grids import karras_sigmas as karras_sigmas
from kdiff_jax._grids import kl_optimal_sigmas as kl_optimal_sigmas
from kdiff_jax._grids import laplace_sigmas as laplace_sigmas
from kdiff_jax._grids import linear_quadratic_sigmas as linear_quadratic_sigmas
from kdiff_jax._grids import polyexponential_sigmas as polyexponential_sigmas
from kdiff_jax._grids import vp_sigmas as vp_sigmas
from kdiff_jax._guidance import guidance_embedding as guidance_embedding
from kdiff_jax._guidance import guided as guided
from kdiff_jax._img2img import img2img_schedule as img2img_schedule
from kdiff_jax._img2img import slerp as slerp
from kdiff_jax._inpaint import inpainted as inpainted
from kdiff_jax._inversion import inversion_schedule as inversion_schedule
from kdiff_jax._lcm import lcm_schedule as lcm_schedule
from kdiff_jax._noise import add_noise as add_noise
from kdiff_jax._noise import given_noise as given_noise
from kdiff_jax._noise import initial_sample as initial_sample
from kdiff_jax._noise import row_noise as row_noise
from kdiff_jax._noise_schedule import NoiseSchedule as NoiseSchedule
from kdiff_jax._noise_schedule import noise_schedule as noise_schedule
from kdiff_jax._precondition import continuous as continuous
from kdiff_jax._precondition import edm_denoiser as edm_denoiser
from kdiff_jax._row import Row as Row
from kdiff_jax._row import State as State
from kdiff_jax._sample import sample as sample
from kdiff_jax._schedule import Schedule as Schedule
from kdiff_jax._stack import stack as stack
from kdiff_jax._step import init as init
from kdiff_jax._step import step as step
from kdiff_jax._timestep_grids import beta_timesteps as beta_timesteps

__version__ = "0.1.0"
