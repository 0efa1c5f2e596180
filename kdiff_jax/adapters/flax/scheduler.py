"""A scheduler of the Flax contract: a config, and the methods that pipelines call."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from kdiff_jax._checks import check_batch, check_int, check_kind
from kdiff_jax._noise.keyed import sample_keys
from kdiff_jax.adapters import diffusers as kd_diffusers
from kdiff_jax.adapters.diffusers.read import read_file
from kdiff_jax.adapters.flax import run
from kdiff_jax.adapters.flax.run import SchedulerOutput, SchedulerState

FILE = "scheduler_config.json"
HUB_KEYS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
ZERO_SNR = ("rescale_betas_zero_snr", "rescale_zero_terminal_snr")
# Samplers that call the network twice a step.
TWO_ROWS = ("heun", "dpm2", "dpm2_ancestral")


class SchedulerConfig(dict[str, Any]):
    """A config whose keys are attributes too."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"the config has no key {name!r}")


class FlaxScheduler:
    """A scheduler of the Flax contract; its classes differ in the sampler that they name."""

    config_name = FILE
    has_state = True
    _deprecated_kwargs = ()

    def __init__(self, config: Any = None, *, dtype: DTypeLike = jnp.float32, **keys: Any) -> None:
        config = check_kind("config", config or {}, Mapping, "a dict; from_pretrained reads files")
        name: Any = type(self).__name__.removeprefix("Flax")
        given = {"_class_name": name, **_set(config)}
        self.dtype = jnp.dtype(dtype)
        self.sampler = kd_diffusers.from_config(given, name, **_set(keys))
        self._denoise = self.sampler.denoiser(_output)
        found = {k: v for k, v in self.sampler.to_config().items() if v or k not in ZERO_SNR}
        kept = {k: v for k, v in given.items() if k[0] != "_" and k not in ZERO_SNR}
        self.config = SchedulerConfig(kept | found, _class_name=f"Flax{found['_class_name']}")
        # maxdiffusion looks for the next scheduler in the package that this names.
        self.config.__module__ = type(self).__module__

    @classmethod
    def from_config(cls, config: Any, return_unused_kwargs: bool = False, **keys: Any) -> Any:
        """A scheduler of this class."""
        scheduler = cls(config, **keys)
        return (scheduler, {}) if return_unused_kwargs else scheduler

    @classmethod
    def from_pretrained(
        cls, path: Any, subfolder: str = "", return_unused_kwargs: bool = False, **keys: Any
    ) -> Any:
        """A scheduler and its state, from a folder or a name on the hub."""
        hub = {k: keys.pop(k) for k in HUB_KEYS if k in keys}
        place = Path(path, subfolder or "")
        if not Path(path).exists():
            client = importlib.import_module("huggingface_hub")
            place = client.hf_hub_download(str(path), FILE, subfolder=subfolder or None, **hub)
        scheduler = cls(read_file(place), **keys)
        made = scheduler, scheduler.create_state()
        return (*made, {}) if return_unused_kwargs else made

    def to_json_string(self) -> str:
        """The config as JSON."""
        return json.dumps(self.config, indent=2, sort_keys=True, default=str) + "\n"

    def save_config(self, save_directory: str | Path, **_: Any) -> None:
        """Writes the config into a folder."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        (Path(save_directory) / FILE).write_text(self.to_json_string(), encoding="utf-8")

    save_pretrained = save_config

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    def create_state(self, common: Any = None, key: jax.Array | None = None) -> SchedulerState:
        """The state before `set_timesteps`."""
        abar = getattr(self.sampler.noise, "alphas_cumprod", None)
        if common is None and abar is not None:
            alphas = abar / np.append(1.0, abar[:-1])
            common = run.SchedulerCommon(*map(jnp.float32, (alphas, 1 - alphas, abar)))
        timesteps = jnp.arange(len(self), dtype=jnp.int32)[::-1]
        return SchedulerState(common, jnp.float32(1), timesteps, jnp.int32(-1), key)

    def set_timesteps(
        self, state: SchedulerState, num_inference_steps: int, shape: Any = (), **flow: Any
    ) -> SchedulerState:
        """The state at the start of a run that calls the network num_inference_steps times."""
        count = check_int("num_inference_steps", num_inference_steps, 1)
        steps = (count + 1) // 2 if self.sampler.name in TWO_ROWS else count
        # Tables are filled on the host, also where a pipeline is compiled.
        with jax.ensure_compile_time_eval():
            schedule = self.sampler.schedule(steps, **flow)
            told = jnp.pad(schedule.rows.timestep, (0, count - len(schedule)), "edge")
            timesteps = jnp.rint(told).astype(jnp.int32)
        changes = {"timesteps": timesteps, "step_index": jnp.int32(-1), "schedule": schedule}
        state = state.replace(num_inference_steps=count, history=None, **changes)
        return state.sized(shape) if shape else state

    def scale_model_input(
        self, state: SchedulerState, sample: jax.Array, timestep: ArrayLike | None = None
    ) -> jax.Array:
        """The sample as the network takes it: as it is, but before the first row of some grids."""
        schedule = state.schedule
        if schedule is None or schedule.rows.input_scale is None or timestep is None:
            return sample
        factor = run.scales(schedule)[0] * schedule.rows.input_scale[0]
        first = run.row_number(state, timestep) == 0
        return sample * jnp.where(first, factor, 1).astype(sample.dtype)

    def step(
        self,
        state: SchedulerState,
        model_output: jax.Array,
        timestep: ArrayLike,
        sample: jax.Array,
        key: jax.Array | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput:
        """One call of the network taken in: the sample for the next one, and the state."""
        if state.schedule is None:
            raise ValueError("the state has no timesteps; call set_timesteps(state, n) first.")
        sample, model_output = check_batch("sample", sample), check_batch("output", model_output)
        if model_output.shape != sample.shape:
            raise ValueError(
                f"model_output has shape {model_output.shape} and sample {sample.shape}; expected "
                "the same: cut off learned variances."
            )
        if state.history is None:
            state = state.sized(sample.shape)
        key = state.key if key is None else key
        keys = None if key is None else sample_keys(key, len(sample))
        return run.advanced(self._denoise, state, (model_output, timestep, sample), keys)

    def add_noise(
        self, state: SchedulerState, original_samples: jax.Array, noise: jax.Array, timesteps: Any
    ) -> jax.Array:
        """Clean samples brought to training timesteps, with unit variance."""
        at = _of_each(timesteps, original_samples)
        noised = self.sampler.noise.add_noise(original_samples, noise, at)
        return noised.astype(original_samples.dtype)

    def get_velocity(
        self, state: SchedulerState, sample: jax.Array, noise: jax.Array, timesteps: ArrayLike
    ) -> jax.Array:
        """What a network that predicts velocities is trained to say."""
        return self.sampler.noise.velocity(sample, noise, _of_each(timesteps, sample))


def _set(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that are set: in a yml of maxdiffusion "" is none."""
    return {k: v for k, v in config.items() if not (isinstance(v, str) and v == "")}


def _output(model_output: jax.Array, x: jax.Array, timestep: jax.Array) -> jax.Array:
    """The network of a denoiser, whose output is known already."""
    return model_output


def _of_each(timesteps: ArrayLike, sample: jax.Array) -> jax.Array:
    """[B] timesteps from one or [B]."""
    return jnp.broadcast_to(jnp.ravel(jnp.asarray(timesteps)), sample.shape[:1])
