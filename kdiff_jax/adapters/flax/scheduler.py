"""A scheduler of the Flax contract: a config, and the methods that pipelines call."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, ensure_compile_time_eval

from kdiff_jax._checks import check_batch, check_int, check_kind
from kdiff_jax._noise.keyed import sample_keys
from kdiff_jax.adapters import diffusers as kd_diffusers
from kdiff_jax.adapters.diffusers.read import read_file
from kdiff_jax.adapters.diffusers.values import DEFAULTED_KEY
from kdiff_jax.adapters.flax import run

ZERO_SNR = ("rescale_betas_zero_snr", "rescale_zero_terminal_snr")
# Samplers that call the network twice a step.
TWO_ROWS = ("heun", "dpm2", "dpm2_ancestral")


class SchedulerConfig(dict[str, Any]):
    """A config, a dict whose keys are attributes too."""


class FlaxScheduler:
    """A scheduler of the Flax contract; its classes differ in the sampler that they name.

    Args:
      config: None, or the config of any scheduler, a dict.
      dtype: read by pipelines; the arithmetic is in float32.
      keys: keys of the config in place of its own, those of the class of diffusers with that name.
        "" is no value.

    Attributes:
      config: the config, a dict whose keys are attributes too; keys of other classes are kept.
      sampler: the DiffusersSampler that fills the tables.

    Raises:
      ValueError: as for `kdiff_jax.adapters.diffusers.from_config`; a key that no part reads.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from kdiff_jax.adapters import flax as kd_flax
      >>> scheduler = kd_flax.FlaxKDPM2DiscreteScheduler(beta_schedule="scaled_linear")
      >>> state = scheduler.create_state()
      >>> state = scheduler.set_timesteps(state, num_inference_steps=9, shape=(2, 4, 8, 8))
      >>> sample = jax.random.normal(jax.random.key(0), (2, 4, 8, 8)) * state.init_noise_sigma
      >>> for t in state.timesteps:
      ...     out = 0.1 * scheduler.scale_model_input(state, sample, t)
      ...     sample, state = scheduler.step(state, out, t, sample).to_tuple()
      >>> sample.shape, state.timesteps.shape
      ((2, 4, 8, 8), (9,))

    Source: `FlaxDDIMScheduler` and its neighbours in maxdiffusion and in diffusers 0.35.
    """

    config_name = "scheduler_config.json"
    has_state = True
    _deprecated_kwargs = ()

    def __init__(self, config: Any = None, *, dtype: Any = jnp.float32, **keys: Any) -> None:
        config = check_kind("config", config or {}, dict, "a dict; from_pretrained reads files")
        name: Any = type(self).__name__.removeprefix("Flax")
        given = {"_class_name": name, **_set(config)}
        self.dtype = jnp.dtype(dtype)
        self.sampler = kd_diffusers.from_config(given, name, **_set(keys))
        self._denoise = self.sampler.denoiser(_output)
        whole = given | self.sampler.to_config()
        own = {k: v for k, v in whole.items() if k[0] != "_" and (v or k not in ZERO_SNR)}
        self.config = SchedulerConfig(own, _class_name="Flax" + whole["_class_name"])
        # maxdiffusion looks for the next scheduler in the package that __module__ names.
        self.config.__dict__.update(self.config, __module__=type(self).__module__)

    @classmethod
    def from_config(cls, config: Any, **keys: Any) -> Any:
        """A scheduler of this class from the config of any: `cls(config, **keys)`."""
        return cls(config, **keys)

    @classmethod
    def from_pretrained(cls, path: Any, subfolder: Any = "", **keys: Any) -> tuple[Any, Any]:
        """A scheduler and its state, `(scheduler, state)`, from where a checkpoint lies.

        Args:
          path: a folder, a file, or, where huggingface_hub is installed, the name of a repository
            on the Hugging Face hub.
          subfolder: the folder in it, often "scheduler".
          keys: as for the class; and cache_dir, force_download, local_files_only, revision and
            token for the hub.
        """
        hub_keys = ("cache_dir", "force_download", "local_files_only", "revision", "token")
        hub = {k: keys.pop(k) for k in hub_keys if k in keys}
        place = Path(path, subfolder or "")
        if not Path(path).exists() and find_spec("huggingface_hub"):
            from huggingface_hub import hf_hub_download

            place = hf_hub_download(str(path), cls.config_name, subfolder=subfolder or None, **hub)
        scheduler = cls(read_file(place), **keys)
        return scheduler, scheduler.create_state()

    def to_json_string(self) -> str:
        """The config as JSON, which `from_config` reads again."""
        return json.dumps(self.config, indent=2, sort_keys=True, default=str) + "\n"

    def save_config(self, save_directory: str | Path, **_: Any) -> None:
        """Writes `scheduler_config.json` into a folder, which is made."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        Path(save_directory, self.config_name).write_text(self.to_json_string(), encoding="utf-8")

    save_pretrained = save_config

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.sampler!r})"

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])

    def create_state(self, common: Any = None, key: Any = None) -> run.SchedulerState:
        """The state before `set_timesteps`.

        Args:
          common: alphas, betas and alphas_cumprod of training in place of the config's, for those
            who read them; the tables are those of the config.
          key: the key of fresh noise, as in `kd.sample`. None: each sample has one of its own, the
            signs of its first 64 numbers at the first call.

        Returns:
          A SchedulerState, a pytree.
        """
        abar = getattr(self.sampler.noise, "alphas_cumprod", None)
        if common is None and abar is not None:
            alphas = abar / np.append(1.0, abar[:-1])
            common = run.SchedulerCommon(*map(jnp.float32, (alphas, 1 - alphas, abar)))
        timesteps = jnp.arange(len(self), dtype=jnp.int32)[::-1]
        fields = common, jnp.float32(1), timesteps, jnp.int32(-1), key
        return run.SchedulerState(*fields, made_by=self.to_json_string())

    def set_timesteps(
        self, state: run.SchedulerState, num_inference_steps: int, shape: Any = (), **flow: Any
    ) -> run.SchedulerState:
        """The state at the start of a run that calls the network num_inference_steps times.

        A sampler of two calls a step makes (n + 1) // 2 steps; where n is even, its last call
        changes nothing. The timesteps are whole numbers, since pipelines cast them to int32.

        Args:
          state: from `create_state`, or of any run.
          num_inference_steps: n, a Python integer. Under jit, shapes alone may be traced around it.
          shape: the shape of the sample, for a loop that is compiled; () where the loop is not.
          flow: mu or image_seq_len, where the config of a flow has a dynamic shift.

        Returns:
          A SchedulerState with n timesteps.

        Raises:
          ValueError: as for `DiffusersSampler.schedule`.
        """
        count = check_int("num_inference_steps", num_inference_steps, 1)
        steps = (count + 1) // 2 if self.sampler.name in TWO_ROWS else count
        # Tables are filled on the host, also where a pipeline is compiled.
        with ensure_compile_time_eval():
            schedule = self.sampler.schedule(steps, **flow)
            told = jnp.rint(jnp.pad(schedule.rows.timestep, (0, count - len(schedule)), "edge"))
        changes = {"timesteps": told.astype(jnp.int32), "schedule": schedule, "history": None}
        state = state.replace(step_index=jnp.int32(-1), num_inference_steps=count, **changes)
        return state.sized(shape) if shape else state

    def scale_model_input(self, state: Any, sample: Array, timestep: Any = None) -> Array:
        """The sample as the network takes it: as it is, but before the first row of some grids.

        There pure noise has `init_noise_sigma` of the table, and a sample hypot(1, sigma): a
        factor of 0.9977 for Stable Diffusion with timestep_spacing "linspace".
        """
        schedule = state.schedule
        if schedule is None or schedule.rows.input_scale is None or timestep is None:
            return sample
        factor = run.scales(schedule)[0] * schedule.rows.input_scale[0]
        first = run.row_number(state, timestep) == 0
        return sample * jnp.where(first, factor, 1).astype(sample.dtype)

    def step(
        self,
        state: run.SchedulerState,
        model_output: Array,
        timestep: Any,
        sample: Array,
        key: Array | None = None,
        return_dict: bool = True,
    ) -> Any:
        """One call of the network taken in: the sample for the next one, and the state.

            x = scale[i] * sample;   prev_sample = x_next / scale[i + 1]

        Row i is counted. That of the first call is the one with its timestep, and its step is of
        first order: image to image.

        Args:
          state: from `set_timesteps` or the call before.
          model_output: [B, ...] what the network said of the scaled sample.
          timestep: a number of `state.timesteps`.
          sample: [B, ...] the sample before the call; the result has its dtype.
          key: one key or [B] keys for the noise of this step; the same at every call.
          return_dict: whether the result has names: a SchedulerOutput, which is a tuple too.

        Returns:
          `prev_sample` and `state`.

        Raises:
          ValueError: a state before `set_timesteps`; arrays that are none, or of other shapes; a
            key that is none.
        """
        if state.schedule is None:
            raise ValueError("the state has no timesteps; call set_timesteps(state, n) first.")
        sample = check_batch("sample", sample)
        if state.history is None:
            state = state.sized(sample.shape)
        key = state.key if key is None else key
        keys = None if key is None else sample_keys(key, len(sample))
        call = check_batch("model_output", model_output), timestep, sample
        output = run.advanced(self._denoise, state, call, keys)
        return output if return_dict else output.to_tuple()

    def add_noise(self, state: Any, original_samples: Array, noise: Array, timesteps: Any) -> Array:
        """Clean samples brought to training timesteps, one or [B]: `a_t x0 + s_t eps`."""
        at = jnp.broadcast_to(jnp.asarray(timesteps), len(original_samples))
        noised = self.sampler.noise.add_noise(original_samples, noise, at)
        return noised.astype(original_samples.dtype)

    def get_velocity(self, state: Any, sample: Array, noise: Array, timesteps: Any) -> Array:
        """What a network that predicts velocities is trained to say: `a_t eps - s_t x0`."""
        at = jnp.broadcast_to(jnp.asarray(timesteps), len(sample))
        return self.sampler.noise.velocity(sample, noise, at)


def _set(config: dict[str, Any]) -> dict[str, Any]:
    """The keys that are set: in a yml of maxdiffusion "" is none, and others are no defaults."""
    set_ = {k: v for k, v in config.items() if not (isinstance(v, str) and v == "")}
    return {k: v for k, v in set_.items() if k != DEFAULTED_KEY}


def _output(model_output: Array, x: Array, timestep: Array) -> Array:
    """The network of a denoiser, whose output is known already."""
    return model_output
