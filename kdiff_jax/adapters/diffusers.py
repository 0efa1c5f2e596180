"""Scheduler configs of diffusers, read and written without diffusers.

A config's keys fall into three groups.

Honoured, where the target sampler has them (missing ones take the target's defaults):
  every sampler  num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas,
                 prediction_type, timestep_spacing, steps_offset, rescale_betas_zero_snr
  DPM2 (both)    use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas
  LCM            original_inference_steps, clip_sample, clip_sample_range, thresholding,
                 dynamic_thresholding_ratio, sample_max_value, timestep_scaling;
                 set_alpha_to_one, steps_offset and timestep_spacing are kept and written back,
                 and have no effect in LCM, here as in diffusers.
DPM2 of diffusers has no rescale_betas_zero_snr: here it is honoured as its Euler scheduler does, by
a last sigma of 4096, and written back where it is true. An epsilon network is refused with it.

A flow-matching config (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler,
FlowMatchLCMScheduler) has keys of its own, honoured for every sampler: num_train_timesteps, shift,
use_dynamic_shifting with base_shift, max_shift, base_image_seq_len, max_image_seq_len and
time_shift_type, shift_terminal, and the three use_..._sigmas. Refused: invert_sigmas and
scale_factors; ignored: stochastic_sampling, which is what sampler="lcm" does.

Refused by name, because they would change the noise levels, the timesteps or the meaning of the
network's output: interpolation_type other than "linear", timestep_type "continuous",
final_sigmas_type other than "zero", a sigma_min or sigma_max that is not null, use_flow_sigmas,
use_lu_lambdas, snr_shift_scale, an unsupported beta_schedule or prediction_type; and the other
classes without a beta schedule: EDM and the like.

Ignored: every other key is another solver's own business (clip_sample, thresholding and
variance_type for DPM2, algorithm_type, solver_order, skip_prk_steps, ...).
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from kdiff_jax._checks import check_choice, check_int
from kdiff_jax._denoise import Denoise, clipped, consistency, denoiser, thresholded
from kdiff_jax._dpm2 import dpm2_ancestral_schedule, dpm2_schedule
from kdiff_jax._lcm import lcm_schedule
from kdiff_jax._noise_schedule import noise_schedule
from kdiff_jax._schedule import Schedule
from kdiff_jax._spacing import SPACINGS
from kdiff_jax.adapters._diffusers_flow import (
    FLOW_CLASS_NAMES,
    FLOW_CLASSES,
    FLOW_DEFAULTS,
    FLOW_REQUIRED,
    SAMPLER_KEY,
    check_flow_config,
    flow_of,
    flow_run,
)
from kdiff_jax.adapters._diffusers_keys import (
    CLASS_NAMES,
    DEFAULTS,
    GRID_FLAGS,
    OURS,
    REQUIRED,
)
from kdiff_jax.adapters._diffusers_read import options, plain, read, sampler_name


@dataclass(frozen=True)
class DiffusersSampler:
    """A scheduler config as a sampler of this library; made by `from_config`.

    Attributes:
      name: "dpm2", "dpm2_ancestral" or "lcm".
      config: every parameter of the scheduler class, in its own words; and for DPM2
        rescale_betas_zero_snr where it is true.
    """

    name: str
    config: Mapping[str, Any]

    @property
    def flow(self) -> bool:
        """Whether it is a flow-matching config."""
        return "use_dynamic_shifting" in self.config

    @cached_property
    def noise(self) -> Any:
        """The noise levels of training, for training, sweeps and schedules of one's own.

        A NoiseSchedule; of a flow-matching config a FlowSchedule, unshifted where the shift is
        dynamic.
        """
        if self.flow:
            unshifted = {"use_dynamic_shifting": False, "shift": 1.0}
            dynamic = self.config["use_dynamic_shifting"]
            return flow_of({**self.config, **unshifted} if dynamic else self.config)
        keys = ("beta_schedule", "num_train_timesteps", "beta_start", "beta_end", "trained_betas")
        return noise_schedule(
            **{key: self.config[key] for key in keys},
            rescale_zero_terminal_snr=bool(self.config.get("rescale_betas_zero_snr")),
        )

    def schedule(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Sequence[int] | np.ndarray | None = None,
        original_inference_steps: int | None = None,
        strength: float | None = None,
        sigmas: Sequence[float] | np.ndarray | None = None,
        mu: Any = None,
        image_seq_len: int | None = None,
    ) -> Schedule:
        """The run that the scheduler's `set_timesteps` would prepare.

        Args:
          num_inference_steps: N.
          timesteps: LCM only, whole training timesteps in place of N.
          original_inference_steps: LCM only, in place of the config's.
          strength: LCM only, in (0, 1]; for DPM2 take `schedule.start_at(step)`.
          sigmas: flow matching only, levels in place of N, which the shift still moves, as
            set_timesteps does: Flux and Stable Diffusion 3 pass `1 - i / N`.
          mu, image_seq_len: of a dynamic shift exactly one of them, otherwise none: the shift's
            logarithm (the shift itself where time_shift_type is "linear"), or the tokens of an
            image, from which mu follows. mu may be traced.

        Returns:
          A Schedule; a Karras grid has its timesteps rounded, as diffusers rounds them.

        Raises:
          ValueError: as for `dpm2_schedule` and `lcm_schedule`; LCM's arguments for DPM2.

        Example:
          >>> from kdiff_jax.adapters import diffusers as kd_diffusers
          >>> config = {"_class_name": "KDPM2DiscreteScheduler", "beta_schedule": "scaled_linear"}
          >>> kd_diffusers.from_config(config).schedule(num_inference_steps=25).num_rows
          49

        Source: `set_timesteps` of the schedulers of diffusers.
        """
        flow_only = {"sigmas": sigmas, "mu": mu, "image_seq_len": image_seq_len}
        others = {
            "timesteps": timesteps,
            "original_inference_steps": original_inference_steps,
            "strength": strength,
        }
        if self.flow:
            _refuse(others, "a flow-matching sampler", "Take sigmas=..., or schedule.start_at.")
            return flow_run(self.name, self.config, num_inference_steps, **flow_only)
        _refuse(flow_only, "a sampler with a beta schedule", "Flow matching takes them.")
        if self.name == "lcm":
            return lcm_schedule(
                self.noise,
                num_inference_steps,
                original_steps=(
                    self.config["original_inference_steps"]
                    if original_inference_steps is None
                    else original_inference_steps
                ),
                timesteps=timesteps,
                strength=1.0 if strength is None else strength,
            )
        _refuse(
            others,
            f"a {self.name} sampler; only lcm takes them",
            "Take schedule.start_at(step) for image-to-image, kd.dpm2_schedule(sampler.noise, "
            "timesteps=...) for timesteps of your own.",
        )
        build = dpm2_schedule if self.name == "dpm2" else dpm2_ancestral_schedule
        chosen = [flag for flag in GRID_FLAGS if self.config[flag]]
        return build(
            self.noise,
            num_inference_steps,
            timestep_spacing=self.config["timestep_spacing"],
            steps_offset=self.config["steps_offset"],
            grid=chosen[0].split("_")[1] if chosen else None,
            round_timesteps=chosen == ["use_karras_sigmas"],
        )

    def denoiser(self, model_fn: Callable[..., Any], dtype: Any = None) -> Denoise:
        """The network as this scheduler reads it: prediction type, clipping, boundary scaling.

        Args:
          model_fn: as for `kd.denoiser`.
          dtype: as for `kd.denoiser`.

        Returns:
          A denoiser for `kd.sample`.

        Raises:
          ValueError: as for `kd.denoiser`.

        Example:
          >>> from kdiff_jax.adapters import diffusers as kd_diffusers
          >>> sampler = kd_diffusers.from_config({"_class_name": "LCMScheduler"})
          >>> denoise = sampler.denoiser(lambda params, x, timestep: x)

        Source: the first lines of `step` of the three schedulers of diffusers.
        """
        if self.flow:
            return denoiser(model_fn, "flow_prediction", dtype)
        denoise: Denoise = denoiser(model_fn, self.config["prediction_type"], dtype)
        if self.name != "lcm":
            return denoise
        if self.config["thresholding"]:
            denoise = thresholded(
                denoise, self.config["dynamic_thresholding_ratio"], self.config["sample_max_value"]
            )
        elif self.config["clip_sample"]:
            denoise = clipped(denoise, self.config["clip_sample_range"])
        return consistency(denoise, self.config["timestep_scaling"])

    def to_config(self) -> dict[str, Any]:
        """The config as JSON-serialisable values, as diffusers writes and reads them.

        Returns:
          `_class_name` and every parameter; `from_config` of it is equal to this sampler. DPM2 on a
          flow has no class of its own, so a key more says which sampler it is.

        Example:
          >>> from kdiff_jax.adapters import diffusers as kd_diffusers
          >>> sampler = kd_diffusers.from_config({"_class_name": "LCMScheduler"})
          >>> kd_diffusers.from_config(sampler.to_config()) == sampler
          True
        """
        if self.flow:
            return {
                "_class_name": FLOW_CLASS_NAMES[self.name],
                SAMPLER_KEY: self.name,
                **self.config,
            }
        return {"_class_name": CLASS_NAMES[self.name], **self.config}


def _refuse(arguments: Mapping[str, Any], whom: str, instead: str) -> None:
    if given := [name for name, value in arguments.items() if value is not None]:
        raise ValueError(f"{', '.join(given)} given to {whom}. {instead}")


def from_config(
    config: Mapping[str, Any] | str | os.PathLike[str], sampler: str | None = None
) -> DiffusersSampler:
    """A sampler from a diffusers scheduler config: a dict, a JSON file or a checkpoint folder.

    Args:
      config: the config; or the path of a file, of a folder with `scheduler_config.json`, or of
        a checkpoint folder with `scheduler/scheduler_config.json`.
      sampler: "dpm2", "dpm2_ancestral" or "lcm"; by default what `_class_name` says. Most
        checkpoints carry another scheduler's config, so this is the common call. A flow-matching
        config gives each of them on a flow.

    Returns:
      A DiffusersSampler: `.schedule`, `.denoiser`, `.noise`, `.to_config`.

    Raises:
      ValueError: no such file, no JSON, an unknown class without sampler, a class without a beta
        schedule, keys that would change the result and are not supported, values out of range.

    Example:
      >>> from kdiff_jax.adapters import diffusers as kd_diffusers
      >>> config = {"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear",
      ...           "timestep_spacing": "leading", "steps_offset": 1, "skip_prk_steps": True}
      >>> kd_diffusers.from_config(config, sampler="dpm2").schedule(25).num_steps
      25

    Source: `SchedulerMixin.from_pretrained` and `ConfigMixin.from_config` of diffusers.
    """
    if not isinstance(config, Mapping):
        config = read(config)
    class_name = config.get("_class_name")
    flow = class_name in FLOW_CLASSES
    if flow and sampler is None:
        sampler = config.get(SAMPLER_KEY, "lcm" if class_name == FLOW_CLASS_NAMES["lcm"] else None)
    name = sampler_name(class_name, sampler)
    for key, allowed in (FLOW_REQUIRED if flow else REQUIRED).items():
        if config.get(key) not in allowed:
            raise ValueError(
                f"{key} = {config[key]!r} in the config of {class_name} changes the noise levels "
                f"or timesteps and is not supported; expected {options(allowed)}."
            )
    ours = {} if flow else OURS[name]
    defaults = FLOW_DEFAULTS if flow else DEFAULTS[name] | ours
    values = {key: plain(key, config.get(key, default)) for key, default in defaults.items()}
    for key, default in defaults.items():
        if isinstance(default, bool) and not isinstance(values[key], bool):
            raise ValueError(f"{key} = {values[key]!r} is no truth value; expected true or false.")
    if values.get("rescale_betas_zero_snr") and values["prediction_type"] == "epsilon":
        raise ValueError(
            "prediction_type='epsilon' with rescale_betas_zero_snr=true divides by zero at the "
            "last training timestep, where no signal is left; expected v_prediction or sample."
        )
    for key, default in ours.items():
        if values[key] == default:
            del values[key]
    chosen = [flag for flag in GRID_FLAGS if values.get(flag)]
    if len(chosen) > 1:
        raise ValueError(f"{' and '.join(chosen)} are both true, and each makes a grid; keep one.")
    result = DiffusersSampler(name, values)
    _check_values(result)
    return result


def _check_values(sampler: DiffusersSampler) -> None:
    # A config is checked whole when it is read, not when the first image is asked for.
    config = sampler.config
    if sampler.flow:
        return check_flow_config(config)
    check_choice(
        "prediction_type", config["prediction_type"], ("epsilon", "v_prediction", "sample")
    )
    check_choice("timestep_spacing", config["timestep_spacing"], SPACINGS)
    check_int("steps_offset", config["steps_offset"], 0)
    sampler.denoiser(_no_network)
    last = sampler.noise.num_train_timesteps - 1
    if sampler.name == "lcm":
        sampler.schedule(num_inference_steps=1)
    elif config["timestep_spacing"] == "leading" and config["steps_offset"] > last:
        raise ValueError(f"steps_offset = {config['steps_offset']} is past T - 1 = {last}.")


def _no_network(params: Any, x: Any, timestep: Any) -> Any:
    return x
