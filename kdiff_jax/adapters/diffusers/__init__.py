"""Scheduler configs of diffusers, read and written without diffusers.

A config's keys fall into three groups.

Honoured, where the target sampler has them (missing ones take the target's defaults):
  every sampler  num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas,
                 prediction_type, timestep_spacing, steps_offset, rescale_betas_zero_snr
  Euler, DPM2    use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas
  DDIM           set_alpha_to_one, clip_sample, clip_sample_range, thresholding,
                 dynamic_thresholding_ratio, sample_max_value
  LCM            original_inference_steps, clip_sample, clip_sample_range, thresholding,
                 dynamic_thresholding_ratio, sample_max_value, timestep_scaling;
                 set_alpha_to_one, steps_offset and timestep_spacing are kept and written back,
                 and have no effect in LCM, here as in diffusers.
maxdiffusion's name of the last one, rescale_zero_terminal_snr, is read too, and its class names,
which begin with Flax. DPM2 of diffusers has no rescale_betas_zero_snr: here it is honoured as its
Euler scheduler does, by a last sigma of 4096, and written back where it is true. An epsilon network
is refused with it.

A flow-matching config (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler,
FlowMatchLCMScheduler) has keys of its own, honoured for every sampler: num_train_timesteps, shift,
use_dynamic_shifting with base_shift, max_shift, base_image_seq_len, max_image_seq_len and
time_shift_type, shift_terminal, and the three use_..._sigmas. Refused: invert_sigmas and
scale_factors. stochastic_sampling, true, means LCM where no sampler is named.

Refused by name, because they would change the noise levels, the timesteps or the meaning of the
network's output: interpolation_type other than "linear", timestep_type "continuous",
final_sigmas_type other than "zero", a sigma_min or sigma_max that is not null, use_flow_sigmas,
use_lu_lambdas, snr_shift_scale, an unsupported beta_schedule or prediction_type; and the other
classes without a beta schedule: EDM and the like.

A key that is read has the type that JSON gives it: "false" is no truth value, 1e9 no count.

Ignored: every other key, which belongs to another solver (clip_sample, thresholding and
variance_type for Euler and DPM2, algorithm_type, solver_order, skip_prk_steps, ...). As an override
of `from_config` such a key is refused: nothing would come of it.
"""

from kdiff_jax.adapters.diffusers.read import from_config
from kdiff_jax.adapters.diffusers.sampler import DiffusersSampler

__all__ = ["DiffusersSampler", "from_config"]
