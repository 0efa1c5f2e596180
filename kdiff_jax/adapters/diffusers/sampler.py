"""A scheduler config as a sampler of this library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike, DTypeLike

import kdiff_jax as kd
from kdiff_jax._checks import check_int
from kdiff_jax._denoise.prediction import Denoise
from kdiff_jax.adapters.diffusers.flow import (
    flow_keys,
    flow_levels,
    flow_of,
    solver_flow_levels,
)
from kdiff_jax.adapters.diffusers.keys import METHODS, SAMPLER_KEY, SamplerName
from kdiff_jax.adapters.diffusers.levels import Config, tcd_levels


@dataclass(frozen=True)
class DiffusersSampler:
    """A scheduler config as a sampler of this library; made by `from_config`.

    Attributes:
      name: a SamplerName, "euler" to "tcd".
      config: every parameter of the scheduler class, in its own words; and for DPM2 and Heun
        rescale_betas_zero_snr where it is true.

    Example:
      >>> from kdiff_jax.adapters import diffusers as kd_diffusers
      >>> sampler = kd_diffusers.from_config({"_class_name": "EulerDiscreteScheduler"})
      >>> sampler.name, sampler.config["timestep_spacing"]
      ('euler', 'linspace')
    """

    name: SamplerName
    config: Config

    @property
    def flow(self) -> bool:
        """Whether it is a flow-matching config, or one with use_flow_sigmas."""
        return flow_keys(self.config) is not None

    @property
    def flow_class(self) -> bool:
        """Whether it is a config of a flow-matching class, which any sampler reads."""
        return "shift" in self.config

    @cached_property
    def noise(self) -> kd.NoiseSchedule | kd.FlowSchedule:
        """The noise levels of training, for training, sweeps and levels of one's own.

        A NoiseSchedule; of a flow-matching config a FlowSchedule, unshifted where the shift is
        dynamic.
        """
        if flow := flow_keys(self.config):
            unshifted = {"use_dynamic_shifting": False, "shift": 1.0}
            return flow_of({**flow, **unshifted} if flow["use_dynamic_shifting"] else flow)
        keys = ("beta_schedule", "num_train_timesteps", "beta_start", "beta_end", "trained_betas")
        return kd.noise_schedule(
            **{key: self.config[key] for key in keys},
            rescale_zero_terminal_snr=bool(self.config.get("rescale_betas_zero_snr")),
        )

    def levels(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Sequence[int] | np.ndarray | None = None,
        original_inference_steps: int | None = None,
        strength: float | None = None,
        sigmas: Sequence[float] | np.ndarray | None = None,
        mu: ArrayLike | None = None,
        image_seq_len: int | None = None,
    ) -> kd.Levels:
        """The levels that the scheduler's `set_timesteps` would prepare.

        For a run from an image on, with churn or reversed: cut, churn or reverse them, and hand
        them to a sampler of `kd`.

        Args:
          num_inference_steps: N.
          timesteps: LCM and TCD only, whole training timesteps in place of N.
          original_inference_steps: LCM and TCD only, in place of the config's. TCD then takes its
            timesteps from all those of training, as in diffusers.
          strength: LCM and TCD only, in (0, 1]; for others take `levels(N).start_at(step)`.
          sigmas: flow matching and UniPC with use_flow_sigmas only, levels in place of N, which the
            shift still moves, as set_timesteps does. The pipelines of Flux, LTX and Qwen-Image
            pass `np.linspace(1, 1 / N, N)`; that of Stable Diffusion 3 passes none.
          mu, image_seq_len: of a dynamic shift exactly one of them, otherwise none: the shift's
            logarithm (the shift itself where time_shift_type is "linear"), or the tokens of an
            image, from which mu follows. mu may be traced.

        Returns:
          Levels, with the timesteps that diffusers tells the network: of a Karras grid of DPM2,
          and of all levels of DPM-Solver and UniPC, whole ones.

        Raises:
          ValueError: as for `kd.levels` and `kd.lcm_levels`; LCM's arguments for DPM2.

        Example:
          >>> import kdiff_jax as kd
          >>> from kdiff_jax.adapters import diffusers as kd_diffusers
          >>> config = {"_class_name": "KDPM2DiscreteScheduler", "beta_schedule": "scaled_linear"}
          >>> levels = kd_diffusers.from_config(config).levels(25)
          >>> kd.dpm2(levels.start_at(10)).num_steps
          15

        Source: `set_timesteps` of the schedulers of diffusers.
        """
        of_flow = {"sigmas": sigmas, "mu": mu, "image_seq_len": image_seq_len}
        of_lcm = {
            "timesteps": timesteps,
            "original_inference_steps": original_inference_steps,
            "strength": strength,
        }
        steps = {
            "num_inference_steps": num_inference_steps,
            "original_inference_steps": original_inference_steps,
        }
        for key, value in steps.items():
            if value is not None:
                check_int(key, value, 1)
        noise = self.noise
        if isinstance(noise, kd.FlowSchedule):
            _refuse(of_lcm, "a flow-matching sampler", "Take sigmas=..., or levels(...).start_at.")
            levels_of = flow_levels if self.flow_class else solver_flow_levels
            return levels_of(self.config, num_inference_steps, sigmas, mu, image_seq_len)
        _refuse(
            of_flow, "a sampler with a beta schedule", "Flow matching takes them: leave them out."
        )
        if num_inference_steps is None and timesteps is None:
            raise ValueError(
                "num_inference_steps = None and timesteps = None; give num_inference_steps, or "
                "timesteps where the sampler is lcm or tcd."
            )
        method = METHODS[self.name]
        if method.distilled:
            original_steps = original_inference_steps or self.config["original_inference_steps"]
            if method.distilled == "tcd" and original_inference_steps is not None:
                check_int("num_inference_steps", num_inference_steps or 1, 1, original_steps)
                original_steps = noise.num_train_timesteps
            levels = kd.lcm_levels(
                noise,
                num_inference_steps,
                original_steps=original_steps,
                timesteps=timesteps,
                strength=1.0 if strength is None else strength,
            )
            return tcd_levels(levels) if method.distilled == "tcd" else levels
        _refuse(
            of_lcm,
            f"a {self.name} sampler; only lcm takes them",
            "Take sampler.levels(...).start_at(step) for image-to-image, kd.levels(sampler.noise, "
            "timesteps=...) for timesteps of your own.",
        )
        return method.levels(noise, num_inference_steps, self.config)

    def schedule(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Sequence[int] | np.ndarray | None = None,
        original_inference_steps: int | None = None,
        strength: float | None = None,
        sigmas: Sequence[float] | np.ndarray | None = None,
        mu: ArrayLike | None = None,
        image_seq_len: int | None = None,
    ) -> kd.Schedule:
        """The run that the scheduler's `set_timesteps` would prepare: its sampler over `levels`.

        Args and Raises: as of `levels`.

        Returns:
          A Schedule: the table of the sampler of that name in `kd` ("euler_ancestral" and "ddim":
          `kd.euler`), with the orders that DPM-Solver and UniPC have in their first and last steps.
          DDIM with an eta is `kd.euler(sampler.levels(N), eta)`, TCD with another
          `kd.tcd(sampler.levels(N), gamma)`.

        Example:
          >>> from kdiff_jax.adapters import diffusers as kd_diffusers
          >>> config = {"_class_name": "KDPM2DiscreteScheduler", "beta_schedule": "scaled_linear"}
          >>> kd_diffusers.from_config(config).schedule(num_inference_steps=25).num_rows
          49

        Source: `set_timesteps` of the schedulers of diffusers.
        """
        levels = self.levels(
            num_inference_steps,
            timesteps=timesteps,
            original_inference_steps=original_inference_steps,
            strength=strength,
            sigmas=sigmas,
            mu=mu,
            image_seq_len=image_seq_len,
        )
        method = METHODS[self.name]
        if method.table is None or self.flow_class:
            return method.build(levels)
        return method.table(levels, self.config)

    def denoiser(
        self, model_fn: Callable[..., jax.Array], dtype: DTypeLike | None = None
    ) -> Denoise:
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

        Source: the first lines of `step` of the schedulers of diffusers.
        """
        if self.flow_class:
            return kd.denoiser(model_fn, "flow_prediction", dtype)
        denoise: Denoise = kd.denoiser(model_fn, self.config["prediction_type"], dtype)
        method = METHODS[self.name]
        if method.clips:
            clips = self._clipped(denoise)
            keeps = method.clips == "denoised" and clips is not denoise
            denoise = _KeepsEpsilon(denoise, clips) if keeps else clips
        if method.distilled == "lcm":
            return kd.consistency(denoise, self.config["timestep_scaling"])
        return denoise

    def _clipped(self, denoise: Denoise) -> Denoise:
        wrap: Callable[..., Denoise] = kd.clipped
        keys: tuple[str, ...] = ("clip_sample_range",)
        if self.config.get("thresholding"):
            wrap, keys = kd.thresholded, ("dynamic_thresholding_ratio", "sample_max_value")
        elif not self.config.get("clip_sample"):
            return denoise
        try:
            return wrap(denoise, *(self.config[key] for key in keys))
        except ValueError as error:
            raise ValueError(f"{' or '.join(keys)} in the config: {error}") from None

    def to_config(self) -> dict[str, Any]:
        """The config as JSON-serialisable values, as diffusers writes and reads them.

        Returns:
          `_class_name` and every parameter; `from_config` of it is equal to this sampler. DPM2 on a
          flow, DPM++ 2S ancestral and SDE have no class of their own: a key more names the sampler.

        Example:
          >>> from kdiff_jax.adapters import diffusers as kd_diffusers
          >>> sampler = kd_diffusers.from_config({"_class_name": "LCMScheduler"})
          >>> kd_diffusers.from_config(sampler.to_config()) == sampler
          True
        """
        method = METHODS[self.name]
        name = method.flow_class_name if self.flow_class else method.class_name
        beside = {SAMPLER_KEY: self.name} if self.flow_class or not method.own_class else {}
        return {"_class_name": name, **beside, **self.config}

    def __repr__(self) -> str:
        keys = ["beta_schedule", "prediction_type"]
        if self.flow:
            keys = ["shift" if self.flow_class else "flow_shift"]
        values = ", ".join(f"{key}={self.config[key]!r}" for key in keys)
        return f"DiffusersSampler({self.name!r}, {values})"


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class _KeepsEpsilon:
    """DDIM of diffusers: a clipped estimate of x0 beside the epsilon of the network."""

    denoise: Denoise
    clips: Any

    def __call__(self, params: Any, x: jax.Array, row: kd.Row, cond: Any = None) -> kd.Prediction:
        prediction = self.denoise(params, x, row, cond)
        clips = replace(self.clips, denoise=lambda *_: prediction)
        return kd.Prediction(clips(params, x, row, cond).denoised, prediction.epsilon)


def _refuse(arguments: Mapping[str, object], whom: str, instead: str) -> None:
    if given := [name for name, value in arguments.items() if value is not None]:
        raise ValueError(f"{', '.join(given)} given to {whom}. {instead}")
