"""From a scheduler config of diffusers to a sampler: where it lies, which it means, its values."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from kdiff_jax._checks import check_choice, shown
from kdiff_jax._levels.spacing import SPACINGS
from kdiff_jax.adapters.diffusers.flow import check_flow_config
from kdiff_jax.adapters.diffusers.keys import (
    FLOW_CLASSES,
    FLOW_KEYS,
    FLOW_REQUIRED,
    METHODS,
    NO_BETA_SCHEDULE,
    SAMPLER_KEY,
    STOCHASTIC_KEY,
    ClassName,
    FlowClassName,
    SamplerName,
)
from kdiff_jax.adapters.diffusers.levels import GRID_FLAGS, Config
from kdiff_jax.adapters.diffusers.sampler import DiffusersSampler
from kdiff_jax.adapters.diffusers.values import (
    ZERO_SNR_KEY,
    canonical,
    check_required,
    truth,
    value_of,
)

# A scheduler config has a kilobyte; with a million trained_betas, 25 megabytes.
LARGEST_FILE = 2**26


def from_config(
    config: Config | str | os.PathLike[str],
    sampler: SamplerName | ClassName | FlowClassName | None = None,
    **overrides: Any,
) -> DiffusersSampler:
    """A sampler from a diffusers scheduler config: a dict, a JSON file or a checkpoint folder.

    Args:
      config: the config; or the path of a file, of a folder with `scheduler_config.json`, or of
        a checkpoint folder with `scheduler/scheduler_config.json`.
      sampler: "euler", "euler_ancestral", "ddim", "heun", "dpm2", "dpm2_ancestral", "dpmpp_2s",
        "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m", "dpmpp_3m", "unipc", "lcm" or "tcd", or the
        class of diffusers that it is ("DDIMScheduler"); by default the one that `_class_name` is.
        Most checkpoints carry another scheduler's config, so this is the common call. A
        flow-matching config gives each of them on a flow that is defined there.
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
        config = read_file(config)
    overrides = canonical(overrides)
    config = _of_flow_sigmas({**canonical(config), **overrides}, sampler)
    if config.get("_class_name") is None and isinstance(sampler, str) and sampler in FLOW_CLASSES:
        # `scheduler.config` names the class only where the scheduler was read from a checkpoint.
        config, sampler = {**config, "_class_name": sampler}, None
    flow, name = _is_flow(config), _sampler_name(config, sampler)
    method = METHODS[name]
    ours = {} if flow else method.ours
    keys = FLOW_KEYS if flow else {**method.keys, **ours}
    required = FLOW_REQUIRED if flow else method.required
    chooses = [STOCHASTIC_KEY] if flow and sampler is None else []
    _check_overrides(name, overrides, [*keys, *required, *chooses])
    check_required(config, required)
    values = _values_of(config, keys)
    if not flow:
        values = _solver_values(name, values, overrides, named=sampler == name)
        # Of two samplers of one class, the order that the config has.
        name = "dpmpp_3m" if name == "dpmpp_2m" and values["solver_order"] == 3 else name
    for key, default in ours.items():
        if values[key] == default:
            del values[key]
    result = DiffusersSampler(name, values)
    _check_whole(result)
    return result


def read_file(path: str | os.PathLike[str]) -> Config:
    """A config from a JSON file, a folder of it, or a checkpoint folder."""
    try:
        root = Path(path)
    except TypeError:
        raise ValueError(
            f"config is a {type(path).__name__}; pass a dict, a file or a checkpoint folder."
        ) from None
    places = [root, root / "scheduler_config.json", root / "scheduler" / "scheduler_config.json"]
    try:
        file = next((place for place in places if place.is_file()), None)
    except OSError:  # a name that is too long, as a config written out is
        file = None
    if file is None:
        raise ValueError(
            f"config: no scheduler config at {_cut(root)}; expected a JSON file, or a folder with "
            "scheduler_config.json or scheduler/scheduler_config.json."
        )
    try:
        with file.open("rb") as stream:
            text = stream.read(LARGEST_FILE + 1)
        if len(text) > LARGEST_FILE:
            raise ValueError(f"it is larger than {LARGEST_FILE} bytes")
        config = json.loads(text)
    except OSError as error:
        raise ValueError(f"config: {file} cannot be read ({error}); pass another file.") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"config: {file} is no JSON ({_cut(error)}); expected a scheduler config."
        ) from None
    if not isinstance(config, dict):
        raise ValueError(
            f"config: {file} holds a {type(config).__name__}; expected one JSON object."
        )
    return config


def _cut(text: object) -> str:
    """What may be of any length, in a message."""
    return str(text)[:200]


def _of_flow_sigmas(config: Config, sampler: str | None) -> Config:
    """A flow-matching config with use_flow_sigmas, as the solver that the caller names reads it."""
    name = _of_class(sampler) or sampler
    method = METHODS[name] if isinstance(name, str) and name in METHODS else None
    if not (method and "flow_shift" in method.keys):
        return config
    if _is_flow(config) and config.get("use_flow_sigmas"):
        return {**config, "_class_name": method.class_name}
    return config


def _is_flow(config: Config) -> bool:
    """Whether a config is that of a flow-matching class that can be read."""
    class_name = config.get("_class_name")
    return isinstance(class_name, str) and class_name in FLOW_CLASSES


def _sampler_name(config: Config, sampler: str | None) -> SamplerName:
    """The sampler that the caller names, or else the one that the config's class is."""
    class_name, flow = config.get("_class_name"), _is_flow(config)
    if sampler is None:
        sampler = config.get(SAMPLER_KEY)
        if flow and sampler is None:
            stochastic = truth(STOCHASTIC_KEY, config.get(STOCHASTIC_KEY) or False)
            sampler = "lcm" if stochastic else FLOW_CLASSES[str(class_name)]
    if isinstance(sampler, str):
        of_flow = FLOW_CLASSES.get(sampler)
        if of_flow and not flow:
            raise ValueError(
                f"sampler = {sampler!r} reads configs of flow matching, and this one is of "
                f"{shown(class_name)}; give it such a config: "
                f"{{'_class_name': {sampler!r}, 'shift': 3.0}}."
            )
        sampler = of_flow or _of_class(sampler) or sampler
    if sampler is not None:
        check_choice("sampler", sampler, METHODS)
    if not flow and isinstance(class_name, str):
        _check_beta_schedule(class_name)
    if sampler is None:
        if found := _of_class(class_name):
            return found
        raise ValueError(
            f"_class_name = {shown(class_name)} does not name a sampler of this library; pass "
            f"sampler='dpm2' to sample this checkpoint with it, or another of {', '.join(METHODS)}."
        )
    if class_name is not None and not str(class_name).endswith("Scheduler"):
        raise ValueError(
            f"_class_name = {shown(class_name)} is no scheduler; expected a scheduler_config.json, "
            "which lies in a checkpoint's folder scheduler/."
        )
    name: SamplerName = check_choice("sampler", sampler, METHODS)
    return name


def _of_class(class_name: object) -> SamplerName | None:
    """The sampler that a class of diffusers is."""
    found = (
        name
        for name, method in METHODS.items()
        if method.own_class and method.class_name == class_name
    )
    return next(found, None)


def _check_beta_schedule(class_name: str) -> None:
    for prefix, what in NO_BETA_SCHEDULE.items():
        if class_name.startswith(prefix):
            raise ValueError(
                f"_class_name = {shown(class_name)} is {what}, which has no beta schedule; it is "
                "not supported; expected a variance-preserving scheduler (DDIM, DDPM, PNDM, Euler, "
                "DPMSolver, KDPM2, LCM, ...)."
            )


def _check_overrides(name: SamplerName, overrides: Config, known: Iterable[str]) -> None:
    """Refuses an override that no part of this sampler reads."""
    if unknown := sorted(set(overrides) - set(known)):
        raise ValueError(
            f"{' and '.join(unknown)} given to from_config, and a {name} sampler of this config "
            f"reads no such key; expected {', '.join(known)}."
        )


def _values_of(config: Config, defaults: Config) -> dict[str, Any]:
    """Every key of the defaults with its value, plain and of its type; one grid at most."""
    values = {key: value_of(key, config.get(key, was), was) for key, was in defaults.items()}
    if values.get(ZERO_SNR_KEY) and values["prediction_type"] == "epsilon":
        raise ValueError(
            "prediction_type='epsilon' with rescale_betas_zero_snr=true divides by zero at the "
            "last training timestep, where no signal is left; expected v_prediction or sample."
        )
    chosen = [flag for flag in GRID_FLAGS if values.get(flag)]
    if len(chosen) > 1:
        raise ValueError(f"{' and '.join(chosen)} are both true, and each makes a grid; keep one.")
    return values


def _solver_values(
    name: SamplerName, values: dict[str, Any], overrides: Config, named: bool
) -> dict[str, Any]:
    """The values with what the sampler's name decides, and with one word for each setting."""
    method = METHODS[name]
    fixed = method.fixed if named else {}
    for key, value in fixed.items():
        if overrides.get(key, value) != value:
            raise ValueError(
                f"{key} = {shown(overrides[key])} given to from_config with sampler={name!r}, "
                f"whose {key} is {value}; leave one of them out."
            )
    values = {**values, **fixed}
    for key, allowed in method.options.items():
        value = values[key] = method.aliases.get((key, values[key]), values[key])
        if value not in allowed:
            expected = ", ".join(repr(option) for option in allowed)
            raise ValueError(
                f"{key} = {shown(value)} is not supported by a {name} sampler; expected {expected}."
            )
    return values


def _check_solver(name: SamplerName, config: Config) -> None:
    """Refuses keys of DPM-Solver and UniPC that do not go together."""
    flow, ends_low = config.get("use_flow_sigmas"), config.get("final_sigmas_type") == "sigma_min"
    grid = next((flag for flag in GRID_FLAGS if config.get(flag)), None)
    wrong = ""
    if flow and config["prediction_type"] != "flow_prediction":
        wrong = f"prediction_type = {config['prediction_type']!r}; pass 'flow_prediction'"
    elif flow and grid:
        wrong = f"{grid} = true, which is a grid of the beta schedule; keep one"
    elif flow and ends_low:
        wrong = "final_sigmas_type = 'sigma_min', a level of the beta schedule; pass 'zero'"
    if wrong:
        raise ValueError(f"use_flow_sigmas = true does not go with {wrong}.")
    if config.get("shift_terminal") is not None and not flow:
        raise ValueError(
            f"shift_terminal = {config['shift_terminal']} is the end of a flow; pass "
            "use_flow_sigmas=True with it."
        )
    if ends_low and grid and name in ("unipc", "dpmpp_2s"):
        raise ValueError(
            f"final_sigmas_type = 'sigma_min' with {grid} = true: the last step of diffusers' "
            f"{METHODS[name].class_name} would begin where it ends; expected 'zero', or no grid."
        )
    if name == "unipc" and not ends_low and not config["lower_order_final"]:
        raise ValueError(
            "lower_order_final = false with final_sigmas_type = 'zero': a last step of second "
            "order to sigma = 0 is infinitely long, its result infinite; expected true."
        )


def _check_whole(sampler: DiffusersSampler) -> None:
    # A config is checked whole when it is read, not when the first image is sampled.
    config = sampler.config
    if sampler.flow_class:
        METHODS[sampler.name].build(check_flow_config(config))
        return
    _check_solver(sampler.name, config)
    if sampler.flow:
        check_flow_config(config)
    else:
        check_choice(
            "prediction_type", config["prediction_type"], ("epsilon", "v_prediction", "sample")
        )
    spacing = config.get("timestep_spacing", "linspace")
    check_choice("timestep_spacing", spacing, SPACINGS)
    sampler.denoiser(_no_network)
    last = sampler.noise.num_train_timesteps - 1
    if METHODS[sampler.name].distilled:
        sampler.levels(num_inference_steps=1)
    elif spacing == "leading" and config["steps_offset"] > last:
        raise ValueError(f"steps_offset = {config['steps_offset']} is past T - 1 = {last}.")


def _no_network(params: Any, x: jax.Array, timestep: jax.Array) -> jax.Array:
    return x
