"""What `kd.sample` refuses before it traces anything."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from kdiff_jax._checks import brought
from kdiff_jax._denoise.cfg_plus_plus import CfgPlusPlus, check_rows
from kdiff_jax._denoise.consistency import Consistency
from kdiff_jax._denoise.inpaint import Inpainted
from kdiff_jax._denoise.prediction import brief, layers_of, prediction_type_of
from kdiff_jax._table.check import is_known
from kdiff_jax._table.schedule import Schedule

# How networks name what a denoiser has a row in place of.
_TIMES = ("t", "time", "times", "timestep", "timesteps")


def check_denoise(denoise: Any) -> None:
    """A denoiser, as far as its signature shows it, and not the network itself."""
    advice = (
        "expected denoise(params, x, row, cond): pass kd.denoiser(model_fn) of a network "
        "model_fn(params, x, timestep)."
    )
    if not callable(denoise):
        raise ValueError(f"denoise is {brought(denoise)}; {advice}")
    if prediction_type_of(denoise) is None:
        names = parameters_of("denoise", denoise, 4, advice)
        if len(names) > 2 and names[2] in _TIMES:
            raise ValueError(f"denoise takes ({', '.join(names)}), as a network does; {advice}")


def parameters_of(
    name: str, function: Any, count: int, advice: str, keywords: Iterable[str] = ()
) -> list[str]:
    """The names of a function's parameters; one that cannot be called with `count` is refused."""
    if inspect.isclass(function) or prediction_type_of(function) is not None:
        raise ValueError(f"{name} is {brought(function)}; {advice}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions of C have none
        return []
    try:
        signature.bind(*[None] * count, **dict.fromkeys(keywords))
    except TypeError:
        raise ValueError(f"{name} takes {signature}; {advice}") from None
    return list(signature.parameters)


def check_lengths(denoise: Any, noise_fn: Any, schedule: Schedule, shape: tuple[int, ...]) -> None:
    """Refuses guidance scales and noise, one a step, that end before the run does."""
    check_run = getattr(noise_fn, "check_run", None)
    if check_run is not None:
        check_run(schedule, shape)
    for layer in layers_of(denoise):
        if getattr(layer, "per_step", False) and is_known(schedule.rows.step):
            needs = int(np.max(jax.device_get(schedule.rows.step))) + 1
            if layer.scale.shape[0] < needs:
                raise ValueError(
                    f"scale has shape {layer.scale.shape} with per_step=True, and the run goes "
                    f"to step {needs - 1}; pass one a step of the whole run, [{needs}]."
                )


def warn_of_midpoints(denoise: Any, schedule: Schedule) -> None:
    """Warns of `kd.consistency` in a solver of second order: what it returns has no slope."""
    if not any(isinstance(layer, Consistency) for layer in layers_of(denoise)):
        return
    columns = schedule.rows.anchor_weight, schedule.rows.denoised_weight_1
    known = [weights for weights in columns if weights is not None and is_known(weights)]
    if any(np.any(weights) for weights in jax.device_get(known)):
        warnings.warn(
            "denoise has kd.consistency in it, which returns the end of a trajectory, and the "
            "schedule has midpoints or earlier estimates, from which a solver takes a slope; take "
            "kd.lcm, or the denoiser without kd.consistency.",
            stacklevel=3,
        )


def check_cfg_plus_plus(denoise: Any, schedule: Schedule) -> None:
    """Refuses CFG++ where not both of its halves reach the step as they are."""
    outside: list[Any] = []
    for layer in layers_of(denoise):
        if isinstance(layer, CfgPlusPlus):
            check_rows(schedule.rows)
            if outside:
                raise ValueError(
                    f"kd.cfg_plus_plus inside of {brief(outside[0])}, which makes epsilon from D, "
                    "or mixes it once more; wrap kd.cfg_plus_plus around it."
                )
        if not isinstance(layer, Inpainted):
            outside.append(layer)
