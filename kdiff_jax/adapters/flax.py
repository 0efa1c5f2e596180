"""The Flax schedulers of maxdiffusion and diffusers (up to 0.39), on the tables of this library.

Their pipelines call `create_state`, `set_timesteps`, `scale_model_input` and `step` of an object
that holds a config, and carry a state from call to call. The sample that they carry has unit
variance at every level: `init_noise_sigma` is 1.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

import kdiff_jax as kd
from kdiff_jax._arrays import state_dtype
from kdiff_jax._checks import check_batch, check_int, check_kind
from kdiff_jax._denoise.prediction import Denoise
from kdiff_jax._noise.keyed import sample_keys
from kdiff_jax.adapters import diffusers as kd_diffusers
from kdiff_jax.adapters.diffusers.read import read_file

FILE = "scheduler_config.json"
# Samplers that call the network twice a step.
TWO_ROWS = ("heun", "dpm2", "dpm2_ancestral")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FlaxSchedulerCommon:
    """The noise levels of training, [T] each, as pipelines read them."""

    alphas: jax.Array
    betas: jax.Array
    alphas_cumprod: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FlaxSchedulerState:
    """What a scheduler hands from one call to the next, an immutable pytree."""

    common: Any
    init_noise_sigma: jax.Array
    timesteps: jax.Array
    step_index: jax.Array
    key: Any = None
    last_sample: jax.Array | None = None
    history: kd.State | None = None
    key_words: jax.Array | None = None
    scale: jax.Array | None = None
    schedule: kd.Schedule | None = None
    num_inference_steps: int | None = field(default=None, metadata={"static": True})

    def replace(self, **changes: Any) -> FlaxSchedulerState:
        """The state with these fields in place of its own."""
        return replace(self, **changes)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FlaxSchedulerOutput:
    """What `step` returns: the sample for the next call, and the state for it."""

    prev_sample: jax.Array
    state: FlaxSchedulerState

    def to_tuple(self) -> tuple[jax.Array, FlaxSchedulerState]:
        """`(prev_sample, state)`."""
        return self.prev_sample, self.state


class SchedulerConfig(dict[str, Any]):
    """A config whose keys are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the config has no key {name!r}") from None


class FlaxScheduler:
    """A scheduler of the Flax contract; its classes differ in the sampler that they name."""

    config_name = FILE
    has_state = True
    _deprecated_kwargs: tuple[str, ...] = ()

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        dtype: DTypeLike = jnp.float32,
        **overrides: Any,
    ) -> None:
        check_kind("config", config or {}, Mapping, "a dict; from_pretrained takes a folder")
        name: Any = type(self).__name__.removeprefix("Flax")
        # A yml of maxdiffusion has "" where nothing is set.
        given = {k: v for k, v in {"_class_name": name, **(config or {})}.items() if v != ""}
        own = {k: v for k, v in overrides.items() if v != ""}
        self.dtype = jnp.dtype(dtype)
        self.sampler = kd_diffusers.from_config(given, name, **own)
        self._denoise = self.sampler.denoiser(_output)
        found = self.sampler.to_config()
        found["_class_name"] = "Flax" + found["_class_name"]
        kept = {k: v for k, v in given.items() if k[0] != "_" and k not in ZERO_SNR}
        self.config = SchedulerConfig(
            kept | {k: v for k, v in found.items() if v or k not in ZERO_SNR}
        )
        # maxdiffusion looks for the next scheduler in the package that this names.
        self.config.__module__ = type(self).__module__

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], return_unused_kwargs: bool = False, **overrides: Any
    ) -> Any:
        """A scheduler of this class from the config of any: a dict."""
        scheduler = cls(config, **overrides)
        return (scheduler, {}) if return_unused_kwargs else scheduler

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        **overrides: Any,
    ) -> tuple[Any, ...]:
        """A scheduler and its state, from a folder, a file, or a name on the Hugging Face hub."""
        hub = {k: overrides.pop(k) for k in HUB_KEYS if k in overrides}
        path = Path(pretrained_model_name_or_path)
        if path.exists():
            path = path / (subfolder or "")
        else:
            client = importlib.import_module("huggingface_hub")
            name = str(pretrained_model_name_or_path)
            path = client.hf_hub_download(name, FILE, subfolder=subfolder, **hub)
        scheduler = cls(read_file(path), **overrides)
        made = scheduler, scheduler.create_state()
        return (*made, {}) if return_unused_kwargs else made

    def to_json_string(self) -> str:
        """The config as JSON."""
        return json.dumps(self.config, indent=2, sort_keys=True) + "\n"

    def save_config(self, save_directory: str | os.PathLike[str], **_: Any) -> None:
        """Writes `scheduler_config.json` into a folder, which is made."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        (Path(save_directory) / FILE).write_text(self.to_json_string(), encoding="utf-8")

    save_pretrained = save_config

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    def create_state(self, common: Any = None, key: jax.Array | None = None) -> FlaxSchedulerState:
        """The state before `set_timesteps`."""
        with jax.ensure_compile_time_eval():
            abar = getattr(self.sampler.noise, "alphas_cumprod", None)
            if common is None and abar is not None:
                alphas = abar / np.append(1.0, abar[:-1])
                arrays = (jnp.asarray(values, jnp.float32) for values in (alphas, 1 - alphas, abar))
                common = FlaxSchedulerCommon(*arrays)
            timesteps = jnp.arange(len(self) - 1, -1, -1, jnp.int32)
            return FlaxSchedulerState(common, jnp.float32(1), timesteps, jnp.int32(-1), key)

    def set_timesteps(
        self,
        state: FlaxSchedulerState,
        num_inference_steps: int,
        shape: tuple[int, ...] = (),
        *,
        mu: ArrayLike | None = None,
        image_seq_len: int | None = None,
    ) -> FlaxSchedulerState:
        """The state at the start of a run that calls the network num_inference_steps times."""
        count = check_int("num_inference_steps", num_inference_steps, 1)
        steps = (count + 1) // 2 if self.sampler.name in TWO_ROWS else count
        # Tables are filled on the host, also where a pipeline calls this under jit or pmap.
        with jax.ensure_compile_time_eval():
            schedule = self.sampler.schedule(steps, mu=mu, image_seq_len=image_seq_len)
            rows, end = jax.device_get((schedule.rows, schedule.sigmas[-1]))
            timesteps = np.rint(np.pad(rows.timestep, (0, count - len(schedule)), "edge"))
            scale = np.ones(count + 1, rows.sigma.dtype)
            if rows.input_scale is not None:
                scale[: len(schedule)] = 1 / rows.input_scale
                scale[len(schedule) :] = np.hypot(1, end)
            scale[0] = jax.device_get(schedule.init_noise_sigma)
            state = state.replace(
                timesteps=jnp.asarray(timesteps, jnp.int32),
                step_index=jnp.int32(-1),
                scale=jnp.asarray(scale),
                schedule=schedule,
                num_inference_steps=count,
            )
        blank = jnp.zeros(shape, jnp.float32) if shape else None
        draws = blank is not None and schedule.rows.noise_weight is not None
        return state.replace(
            last_sample=blank,
            history=None if blank is None else kd.init(schedule, blank),
            key_words=_sign_words(blank) if draws else None,
        )

    def scale_model_input(
        self, state: FlaxSchedulerState, sample: jax.Array, timestep: ArrayLike | None = None
    ) -> jax.Array:
        """The sample as the network takes it: as it is, but for the first row of some grids."""
        if state.schedule is None or state.schedule.rows.input_scale is None or timestep is None:
            return sample
        i = _row_number(state, timestep)
        factor = state.scale[0] * state.schedule.rows.input_scale[0]
        return sample * jnp.where(i == 0, factor, 1).astype(sample.dtype)

    def step(
        self,
        state: FlaxSchedulerState,
        model_output: jax.Array,
        timestep: ArrayLike,
        sample: jax.Array,
        key: jax.Array | None = None,
        return_dict: bool = True,
    ) -> FlaxSchedulerOutput | tuple[jax.Array, FlaxSchedulerState]:
        """One call of the network taken in: the sample for the next one."""
        if state.schedule is None:
            raise ValueError("the state has no timesteps; call set_timesteps(state, n) first.")
        sample = check_batch("sample", sample)
        model_output = check_batch("model_output", model_output)
        if model_output.shape != sample.shape:
            raise ValueError(
                f"model_output has shape {model_output.shape} and sample {sample.shape}; expected "
                "the same: cut off learned variances."
            )
        key = state.key if key is None else key
        if state.schedule.rows.noise_weight is None:
            key = None
        elif key is not None:
            key = sample_keys(key, len(sample))
        after = _advanced(self._denoise, state, model_output, jnp.asarray(timestep), sample, key)
        return FlaxSchedulerOutput(*after) if return_dict else after

    def add_noise(
        self,
        state: FlaxSchedulerState,
        original_samples: jax.Array,
        noise: jax.Array,
        timesteps: ArrayLike,
    ) -> jax.Array:
        """Clean samples brought to training timesteps, with unit variance."""
        del state
        at = _of_each(original_samples, timesteps)
        noised = self.sampler.noise.add_noise(original_samples, noise, at)
        return noised.astype(original_samples.dtype)

    def get_velocity(
        self,
        state: FlaxSchedulerState,
        sample: jax.Array,
        noise: jax.Array,
        timesteps: ArrayLike,
    ) -> jax.Array:
        """What a network that predicts velocities is trained to say."""
        del state
        return self.sampler.noise.velocity(sample, noise, _of_each(sample, timesteps))


ZERO_SNR = ("rescale_betas_zero_snr", "rescale_zero_terminal_snr")
HUB_KEYS = ("cache_dir", "force_download", "local_files_only", "revision", "token")


def _output(model_output: jax.Array, x: jax.Array, timestep: jax.Array) -> jax.Array:
    """The network of a denoiser, of which the output is known already."""
    return model_output


def _of_each(sample: jax.Array, timesteps: ArrayLike) -> jax.Array:
    """[B] timesteps from one or [B]."""
    return jnp.broadcast_to(jnp.ravel(jnp.asarray(timesteps)), sample.shape[:1])


def _begins(rows: kd.Row) -> jax.Array:
    """[R] whether a row is the first of its step."""
    return jnp.diff(rows.step, prepend=-1) != 0


def _row_number(state: FlaxSchedulerState, timestep: ArrayLike) -> jax.Array:
    """The row of a call: the first one's by its timestep, from then on by counting."""
    assert state.schedule is not None
    begins = _begins(state.schedule.rows)
    t = jnp.ravel(jnp.asarray(timestep))[:1].astype(jnp.float32)
    distance = jnp.abs(state.timesteps[: len(begins)].astype(jnp.float32) - t)
    nearest = distance == jnp.min(distance)
    # Of rows with one timestep, one that begins a step: the last, for what the others leave
    # undone; but the first of a whole run.
    fits = jnp.where(jnp.any(nearest & begins), nearest & begins, nearest)
    last = len(begins) - 1 - jnp.argmax(fits[::-1]).astype(jnp.int32)
    by_value = jnp.where(nearest[0], 0, last)
    return jnp.where(state.step_index < 0, by_value, state.step_index)


def _sign_words(sample: jax.Array) -> jax.Array:
    """[B, 2] uint32, the signs of the first 64 numbers of each sample."""
    first = sample.reshape(len(sample), -1)[:, :64] < 0
    bits = jnp.pad(first, ((0, 0), (0, 64 - first.shape[1]))).astype(jnp.uint32)
    places = jnp.arange(32, dtype=jnp.uint32)[None, None]
    return jnp.sum(bits.reshape(-1, 2, 32) << places, -1, dtype=jnp.uint32)


@jax.jit
def _advanced(
    denoise: Denoise,
    state: FlaxSchedulerState,
    model_output: jax.Array,
    timestep: jax.Array,
    sample: jax.Array,
    keys: jax.Array | None,
) -> tuple[jax.Array, FlaxSchedulerState]:
    """The next sample and state."""
    schedule, scale = state.schedule, state.scale
    assert schedule is not None and scale is not None
    i, last = _row_number(state, timestep), len(schedule) - 1
    row = schedule[jnp.minimum(i, last)]
    scale = scale.astype(state_dtype(sample))
    x = scale[i] * sample.astype(scale.dtype)
    prediction = denoise(model_output, x, row)
    # The first call, of a counter that a pipeline set to 0 too. Where it is in the middle of a run
    # it makes a step of first order: the D of earlier rows are its own, and the sample at the
    # start of its step is the one that its prediction comes from.
    first, denoised = state.step_index <= 0, prediction.denoised
    lands = ~_begins(schedule.rows)[jnp.minimum(i, last)]
    start = schedule[jnp.maximum(i - 1, 0)]
    anchor = start.alpha.astype(x.dtype) * denoised
    anchor += start.sigma.astype(x.dtype) * prediction.epsilon
    fresh = {"anchor": jnp.where(lands, anchor, x), "denoised_1": denoised, "denoised_2": denoised}
    begun = kd.init(schedule, x)
    begun = replace(begun, **{k: v for k, v in fresh.items() if getattr(begun, k) is not None})
    if state.history is not None:
        kept = replace(state.history, sample=x)
        begun = jax.tree.map(lambda new, old: jnp.where(first, new, old), begun, kept)
    words = None
    if schedule.rows.noise_weight is not None and keys is None:
        words = _sign_words(sample)
        words = words if state.key_words is None else jnp.where(first, words, state.key_words)
        # maxdiffusion sets another implementation, whose noise depends on the neighbours.
        keys = jax.random.wrap_key_data(words, impl="threefry2x32")
    history = kd.step(begun, row, prediction, key=keys)
    after = (history.sample / scale[i + 1]).astype(sample.dtype)
    if len(state.timesteps) > len(schedule):
        after = jnp.where(i > last, sample, after)
    held = sample if state.last_sample is None else sample.astype(state.last_sample.dtype)
    words = state.key_words if words is None else words
    return after, state.replace(
        step_index=i + 1, last_sample=held, history=history, key_words=words
    )


class FlaxKDPM2DiscreteScheduler(FlaxScheduler):
    """DPM2."""


class FlaxKDPM2AncestralDiscreteScheduler(FlaxScheduler):
    """Ancestral DPM2."""


class FlaxLCMScheduler(FlaxScheduler):
    """LCM, for latent consistency models."""


class FlaxTCDScheduler(FlaxScheduler):
    """TCD, for trajectory consistency models."""


class FlaxEulerDiscreteScheduler(FlaxScheduler):
    """Euler."""


class FlaxEulerAncestralDiscreteScheduler(FlaxScheduler):
    """Ancestral Euler."""


class FlaxHeunDiscreteScheduler(FlaxScheduler):
    """Heun."""


class FlaxDDIMScheduler(FlaxScheduler):
    """DDIM, eta = 0."""


class FlaxDPMSolverMultistepScheduler(FlaxScheduler):
    """DPM++ 2M; 3M with solver_order=3, SDE with algorithm_type="sde-dpmsolver++"."""


class FlaxDPMSolverSinglestepScheduler(FlaxScheduler):
    """DPM++ 2S."""


class FlaxUniPCMultistepScheduler(FlaxScheduler):
    """UniPC."""


class FlaxFlowMatchEulerDiscreteScheduler(FlaxScheduler):
    """Euler on a rectified flow."""


class FlaxFlowMatchHeunDiscreteScheduler(FlaxScheduler):
    """Heun on a rectified flow."""


class FlaxFlowMatchLCMScheduler(FlaxScheduler):
    """LCM on a rectified flow."""


def register(module: ModuleType) -> None:
    """Puts these classes into maxdiffusion or diffusers, where configs name them."""
    mixin = getattr(module, "FlaxSchedulerMixin", object)
    place = {"__module__": f"{module.__name__}.schedulers.kdiff_jax"}
    for scheduler in FlaxScheduler.__subclasses__():
        if scheduler.__module__ == __name__:
            name = scheduler.__name__
            setattr(module, name, type(name, (scheduler, mixin), place))
