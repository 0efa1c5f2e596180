"""The keys of a config: their spellings, and values of the type that each key has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from kdiff_jax._checks import check_int, check_number, check_vector, shown
from kdiff_jax.adapters.diffusers.levels import Config

# maxdiffusion has its own name for a key, and keeps the older class names of diffusers.
ZERO_SNR_KEY, ZERO_SNR_OF_MAXDIFFUSION = "rescale_betas_zero_snr", "rescale_zero_terminal_snr"
# In the config of a live scheduler: the keys that its class filled in. As in diffusers, another
# class has its own defaults there, as it has where a file does not have the key.
DEFAULTED_KEY = "_use_default_values"


def canonical(config: Config) -> dict[str, Any]:
    """A config in diffusers' own words: keys and class names of maxdiffusion are translated."""
    result = dict(config)
    class_name = result.get("_class_name")
    if class_name is not None and not isinstance(class_name, str):
        raise ValueError(f"_class_name = {shown(class_name)} is no name; expected a string.")
    if class_name is not None:
        result["_class_name"] = class_name.removeprefix("Flax")
    if ZERO_SNR_OF_MAXDIFFUSION in result:
        other = truth(ZERO_SNR_OF_MAXDIFFUSION, result.pop(ZERO_SNR_OF_MAXDIFFUSION))
        if truth(ZERO_SNR_KEY, result.get(ZERO_SNR_KEY, other)) != other:
            raise ValueError(
                f"{ZERO_SNR_KEY} = {not other} and {ZERO_SNR_OF_MAXDIFFUSION} = {other} are two "
                "names of one setting and differ; keep one of them."
            )
        result[ZERO_SNR_KEY] = other
    defaulted = result.pop(DEFAULTED_KEY, ())
    if not isinstance(defaulted, (list, tuple)):
        raise ValueError(f"{DEFAULTED_KEY} = {shown(defaulted)} is no list; expected names.")
    return {key: value for key, value in result.items() if key not in defaulted}


def value_of(key: str, value: Any, default: Any) -> Any:
    """The value of a key as JSON gives it back, of the type that its default has; or refused."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    if isinstance(default, bool):
        return truth(key, value)
    if isinstance(default, int):
        return check_int(key, value, 0 if key == "steps_offset" else 1)
    if isinstance(default, str):
        if not isinstance(value, str):
            raise ValueError(f"{key} = {shown(value)} is no name; expected {default!r}, or so.")
        return value
    if isinstance(default, list):
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{key} = {shown(value)} is no list; expected numbers of steps.")
        return [check_int(key, step, 0) for step in value]
    # Those that diffusers declares as `float | None`.
    if value is None and (default is None or key in ("base_shift", "max_shift")):
        return None
    return check_vector(key, value).tolist() if key == "trained_betas" else check_number(key, value)


def truth(key: str, value: Any) -> bool:
    """True or false, and nothing that Python takes for one of them."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{key} = {shown(value)} is no truth value; expected true or false.")
    return bool(value)


_ADVICE = {
    "use_flow_sigmas": " (for another sampler on these levels: "
    "kd.euler(kd_diffusers.from_config(config).levels(N)))"
}


def check_required(config: Config, required: Mapping[str, tuple[object, ...]]) -> None:
    """Refuses keys whose value changes what is sampled and is not supported."""
    for key, allowed in required.items():
        value = config.get(key)
        if not any(_same(value, option) for option in allowed):
            raise ValueError(
                f"{key} = {shown(value)} in the config of {shown(config.get('_class_name'))} "
                "changes what is sampled and is not supported by this sampler; expected "
                f"{options(allowed)}{_ADVICE.get(key, '')}."
            )


def _same(value: Any, option: object) -> bool:
    """Equal and of one kind: 0 is not False, and an array is no number."""
    number = isinstance(option, float) and isinstance(value, (int, float))
    kind = not isinstance(value, bool) if number else type(value) is type(option)
    return kind and bool(value == option)


def options(values: Iterable[object]) -> str:
    """`'a' or 'b'`, for a message."""
    return " or ".join(repr(value) for value in values)
