"""Reading a scheduler config of diffusers: where it lies, its values, and whose it is."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdiff_jax._checks import check_choice
from kdiff_jax.adapters._diffusers_flow import FLOW_CLASSES
from kdiff_jax.adapters._diffusers_keys import CLASS_NAMES, NO_BETA_SCHEDULE


def sampler_name(class_name: Any, sampler: str | None) -> str:
    if sampler is not None:
        check_choice("sampler", sampler, CLASS_NAMES)
    for prefix, what in NO_BETA_SCHEDULE.items():
        if (
            class_name not in FLOW_CLASSES
            and isinstance(class_name, str)
            and class_name.startswith(prefix)
        ):
            raise ValueError(
                f"_class_name = {class_name!r} is {what}, which has no beta schedule; it is not "
                "supported. Expected a variance-preserving scheduler (DDIM, DDPM, PNDM, Euler, "
                "DPMSolver, KDPM2, LCM, ...)."
            )
    if sampler is None:
        for name, known in CLASS_NAMES.items():
            if class_name == known:
                return name
        raise ValueError(
            f"_class_name = {class_name!r} does not say which sampler to build; pass sampler="
            f"{options(CLASS_NAMES)} to sample this checkpoint with it."
        )
    if class_name is not None and not str(class_name).endswith("Scheduler"):
        raise ValueError(
            f"_class_name = {class_name!r} is no scheduler; expected a scheduler_config.json, "
            "which lies in a checkpoint's folder scheduler/."
        )
    return sampler


def read(path: str | os.PathLike[str]) -> Mapping[str, Any]:
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


def plain(key: str, value: Any) -> Any:
    """NumPy and tuples as the plain values that JSON gives back, so that a config round-trips."""
    if key == "trained_betas" and value is not None:
        return np.asarray(value, np.float64).tolist()
    return value.item() if isinstance(value, (np.generic, np.ndarray)) else value


def options(values: Any) -> str:
    return " or ".join(repr(value) for value in values)
