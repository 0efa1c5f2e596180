"""From a scheduler config of diffusers to a sampler: where it lies, which it means, its values."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdiff_jax._checks import check_choice, check_int
from kdiff_jax._levels.spacing import SPACINGS
from kdiff_jax.adapters.diffusers.flow import check_flow_config
from kdiff_jax.adapters.diffusers.keys import (
    FLOW_CLASSES,
    FLOW_KEYS,
    FLOW_REQUIRED,
    GRID_FLAGS,
    METHODS,
    NO_BETA_SCHEDULE,
    REQUIRED,
    SAMPLER_KEY,
    Config,
    SamplerName,
)
from kdiff_jax.adapters.diffusers.sampler import DiffusersSampler


def from_config(
    config: Config | str | os.PathLike[str],
    sampler: SamplerName | None = None,
    **overrides: Any,
) -> DiffusersSampler:
    """A sampler from a diffusers scheduler config: a dict, a JSON file or a checkpoint folder.

    Args:
      config: the config; or the path of a file, of a folder with `scheduler_config.json`, or of
        a checkpoint folder with `scheduler/scheduler_config.json`.
      sampler: "dpm2", "dpm2_ancestral" or "lcm"; by default the one that `_class_name` is. Most
        checkpoints carry another scheduler's config, so this is the common call. A flow-matching
        config gives each of them on a flow.
      overrides: keys of the sampler's config in place of those that are read, as diffusers takes
        them: `use_karras_sigmas=True`.

    Returns:
      A DiffusersSampler: `.levels`, `.schedule`, `.denoiser`, `.noise`, `.to_config`.

    Raises:
      ValueError: no such file, no JSON, an unknown class without sampler, a class without a beta
        schedule, keys that would change the result and are not supported, values out of range,
        an override that is no key of this sampler.

    Example:
      >>> from kdiff_jax.adapters import diffusers as kd_diffusers
      >>> config = {"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear",
      ...           "timestep_spacing": "leading", "steps_offset": 1, "skip_prk_steps": True}
      >>> sampler = kd_diffusers.from_config(config, sampler="dpm2", use_karras_sigmas=True)
      >>> sampler
      DiffusersSampler('dpm2', beta_schedule='scaled_linear', prediction_type='epsilon')
      >>> sampler.schedule(25).num_steps
      25

    Source: `SchedulerMixin.from_pretrained` and `ConfigMixin.from_config` of diffusers.
    """
    if not isinstance(config, Mapping):
        config = _read_file(config)
    flow, name = _is_flow(config), _sampler_name(config, sampler)
    ours = {} if flow else METHODS[name].ours
    keys = FLOW_KEYS if flow else {**METHODS[name].keys, **ours}
    required = FLOW_REQUIRED if flow else REQUIRED
    _check_overrides(name, overrides, [*keys, *required])
    config = {**config, **overrides}
    _check_required(config, required)
    values = _values_of(config, keys)
    for key, default in ours.items():
        if values[key] == default:
            del values[key]
    result = DiffusersSampler(name, values)
    _check_whole(result)
    return result


def _read_file(path: str | os.PathLike[str]) -> Config:
    """A config from a JSON file, a folder of it, or a checkpoint folder."""
    try:
        root = Path(path)
    except TypeError:
        raise ValueError(
            f"config is a {type(path).__name__}; pass a dict, a file or a checkpoint folder."
        ) from None
    places = [root, root / "scheduler_config.json", root / "scheduler" / "scheduler_config.json"]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise ValueError(
            f"no scheduler config at {root}; expected a JSON file, or a folder with "
            "scheduler_config.json or scheduler/scheduler_config.json."
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON ({error}); expected a scheduler config.") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds a {type(config).__name__}; expected one JSON object.")
    return config


def _is_flow(config: Config) -> bool:
    """Whether a config is that of a flow-matching class that can be read."""
    class_name = config.get("_class_name")
    return isinstance(class_name, str) and class_name in FLOW_CLASSES


def _sampler_name(config: Config, sampler: SamplerName | None) -> SamplerName:
    """The sampler that the caller names, or else the one that the config's class is."""
    class_name, flow = config.get("_class_name"), _is_flow(config)
    if flow and sampler is None:
        sampler = config.get(SAMPLER_KEY, FLOW_CLASSES[str(class_name)])
    if sampler is not None:
        check_choice("sampler", sampler, METHODS)
    if not flow and isinstance(class_name, str):
        _check_beta_schedule(class_name)
    if sampler is None:
        for name, method in METHODS.items():
            if class_name == method.class_name:
                return name
        raise ValueError(
            f"_class_name = {class_name!r} does not name a sampler of this library; pass sampler="
            f"{_options(METHODS)} to sample this checkpoint with it."
        )
    if class_name is not None and not str(class_name).endswith("Scheduler"):
        raise ValueError(
            f"_class_name = {class_name!r} is no scheduler; expected a scheduler_config.json, "
            "which lies in a checkpoint's folder scheduler/."
        )
    return sampler


def _check_beta_schedule(class_name: str) -> None:
    for prefix, what in NO_BETA_SCHEDULE.items():
        if class_name.startswith(prefix):
            raise ValueError(
                f"_class_name = {class_name!r} is {what}, which has no beta schedule; it is not "
                "supported. Expected a variance-preserving scheduler (DDIM, DDPM, PNDM, Euler, "
                "DPMSolver, KDPM2, LCM, ...)."
            )


def _check_overrides(name: SamplerName, overrides: Config, known: Iterable[str]) -> None:
    """Refuses an override that no part of this sampler reads."""
    if unknown := sorted(set(overrides) - set(known)):
        raise ValueError(
            f"{' and '.join(unknown)} given to from_config, and a {name} sampler of this config "
            f"reads no such key; expected {', '.join(known)}."
        )


def _check_required(config: Config, required: Mapping[str, tuple[object, ...]]) -> None:
    """Refuses keys whose value changes what is sampled and is not supported."""
    for key, allowed in required.items():
        if config.get(key) not in allowed:
            raise ValueError(
                f"{key} = {config[key]!r} in the config of {config.get('_class_name')} changes the "
                f"noise levels or timesteps and is not supported; expected {_options(allowed)}."
            )


def _values_of(config: Config, defaults: Config) -> dict[str, Any]:
    """Every key of the defaults with its value, plain; truth values and the grids are checked."""
    values = {key: _plain(key, config.get(key, default)) for key, default in defaults.items()}
    for key, default in defaults.items():
        if isinstance(default, bool) and not isinstance(values[key], bool):
            raise ValueError(f"{key} = {values[key]!r} is no truth value; expected true or false.")
    if values.get("rescale_betas_zero_snr") and values["prediction_type"] == "epsilon":
        raise ValueError(
            "prediction_type='epsilon' with rescale_betas_zero_snr=true divides by zero at the "
            "last training timestep, where no signal is left; expected v_prediction or sample."
        )
    chosen = [flag for flag in GRID_FLAGS if values.get(flag)]
    if len(chosen) > 1:
        raise ValueError(f"{' and '.join(chosen)} are both true, and each makes a grid; keep one.")
    return values


def _plain(key: str, value: Any) -> Any:
    """NumPy and tuples as the plain values that JSON gives back, so that a config round-trips."""
    if key == "trained_betas" and value is not None:
        return np.asarray(value, np.float64).tolist()
    return value.item() if isinstance(value, (np.generic, np.ndarray)) else value


def _options(values: Iterable[object]) -> str:
    """`'a' or 'b'`, for a message."""
    return " or ".join(repr(value) for value in values)


def _check_whole(sampler: DiffusersSampler) -> None:
    # A config is checked whole when it is read, not when the first image is sampled.
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
    if METHODS[sampler.name].distilled:
        sampler.levels(num_inference_steps=1)
    elif config["timestep_spacing"] == "leading" and config["steps_offset"] > last:
        raise ValueError(f"steps_offset = {config['steps_offset']} is past T - 1 = {last}.")


def _no_network(params: Any, x: jax.Array, timestep: jax.Array) -> jax.Array:
    return x
