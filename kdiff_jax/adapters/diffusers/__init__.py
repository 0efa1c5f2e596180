"""Scheduler configs of diffusers, read and written without diffusers.

A config's keys fall into three groups.

Honoured, where the target sampler has them (missing ones take the target's defaults):
  every sampler  num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas,
                 prediction_type, timestep_spacing, steps_offset, rescale_betas_zero_snr
  all but the ancestral Euler, DDIM, LCM and TCD
                 use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas
  Heun           clip_sample, clip_sample_range
  DPM-Solver, UniPC
                 solver_order, solver_type, final_sigmas_type, lower_order_final, thresholding,
                 dynamic_thresholding_ratio, sample_max_value, use_flow_sigmas, flow_shift,
                 use_dynamic_shifting, time_shift_type
  DPMSolverMultistep
                 algorithm_type (dpmsolver++, sde-dpmsolver++), euler_at_final, use_lu_lambdas
  UniPC          disable_corrector, shift_terminal
  DDIM           set_alpha_to_one, clip_sample, clip_sample_range, thresholding,
                 dynamic_thresholding_ratio, sample_max_value
  LCM            original_inference_steps, clip_sample, clip_sample_range, thresholding,
                 dynamic_thresholding_ratio, sample_max_value, timestep_scaling;
                 set_alpha_to_one, steps_offset and timestep_spacing are kept and written back,
                 and have no effect in LCM, here as in diffusers.
  TCD            original_inference_steps; the other keys of LCM have no effect, here as there.

maxdiffusion's name of rescale_betas_zero_snr, rescale_zero_terminal_snr, is read too, and its class
names, which begin with Flax. DPM2 and Heun of diffusers have no rescale_betas_zero_snr: here it is
honoured as its Euler scheduler does, by a last sigma of 4096, and written back where it is true. An
epsilon network is refused with it.

"dpmpp_2s" is DPMSolverSinglestep of order 1 or 2: every second of its levels is a midpoint; it has
no timestep_spacing, steps_offset and rescale_betas_zero_snr. Of DPMSolverMultistep, solver_order 3
is "dpmpp_3m" and any other "dpmpp_2m"; a caller who gives one of these names sets the order.
"dpmpp_2s_ancestral" and "dpmpp_sde" read the keys of Euler.

A flow-matching config (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler,
FlowMatchLCMScheduler) has keys of its own, honoured for every sampler: num_train_timesteps, shift,
use_dynamic_shifting with base_shift, max_shift, base_image_seq_len, max_image_seq_len and
time_shift_type, shift_terminal, and the three `use_..._sigmas`. Refused: invert_sigmas and
scale_factors. stochastic_sampling, true, means LCM where no sampler is named.

Refused by name, because they would change the noise levels, the timesteps or the meaning of the
network's output: interpolation_type other than "linear", timestep_type "continuous", a sigma_min or
sigma_max that is not null, snr_shift_scale, an unsupported beta_schedule or prediction_type; where
they are not honoured, final_sigmas_type other than "zero", use_flow_sigmas and use_lu_lambdas; and
the other classes without a beta schedule: EDM and the like. Of DPM-Solver also lambda_min_clipped,
learned variances, "dpmsolver" and "sde-dpmsolver", and singlestep order 3 and SDE; of UniPC
predict_x0 = false, solver_p, "bh1" and orders other than 2; with use_flow_sigmas a grid,
"sigma_min" and a prediction_type other than "flow_prediction".

With use_flow_sigmas, a flow-matching config is read by DPM-Solver and UniPC as their own, as in
diffusers. The keys in `_use_default_values` (the config of a live scheduler) count as missing.

A key that is read has the type that JSON gives it: "false" is no truth value, 1e9 no count.

Ignored: every other key, which belongs to another solver (clip_sample, thresholding and
variance_type for Euler and DPM2, algorithm_type there, skip_prk_steps, ...). As an override
of `from_config` such a key is refused: nothing would come of it.
"""

from kdiff_jax.adapters.diffusers.read import from_config
from kdiff_jax.adapters.diffusers.sampler import DiffusersSampler

__all__ = ["DiffusersSampler", "from_config"]
