"""Flow-matching configs of diffusers: their shift, and the levels that `set_timesteps` takes."""

from collections.abc import Callable, Mapping
from typing import Any

from kdiff_jax._checks import check_choice, check_int, check_number, check_vector, common_namespace
from kdiff_jax._dpm2 import dpm2_ancestral_schedule, dpm2_schedule
from kdiff_jax._flow import FlowSchedule, flow_levels, flow_schedule
from kdiff_jax._grids import beta_sigmas, exponential_sigmas, karras_sigmas
from kdiff_jax._lcm import lcm_schedule
from kdiff_jax._schedule import Schedule
from kdiff_jax.adapters._diffusers_keys import GRID_FLAGS

# One class of diffusers has every key of these; no class of it is DPM2 on a flow.
FLOW_CLASS_NAMES = {
    "dpm2": "FlowMatchEulerDiscreteScheduler",
    "dpm2_ancestral": "FlowMatchEulerDiscreteScheduler",
    "lcm": "FlowMatchLCMScheduler",
}
FLOW_CLASSES = (*FLOW_CLASS_NAMES.values(), "FlowMatchHeunDiscreteScheduler")
# Says in a config of ours which of the samplers that share a class it is.
SAMPLER_KEY = "kdiff_jax_sampler"

FLOW_DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": False,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "shift_terminal": None,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "time_shift_type": "exponential",
}
FLOW_REQUIRED: dict[str, tuple[Any, ...]] = {
    "invert_sigmas": (None, False),
    "scale_factors": (None, []),
}

GRIDS: dict[str, Callable[..., Any]] = {
    "use_karras_sigmas": lambda n, low, high: karras_sigmas(n, low, high, 7.0),
    "use_exponential_sigmas": exponential_sigmas,
    "use_beta_sigmas": beta_sigmas,
}
BUILDERS: dict[str, Callable[..., Schedule]] = {
    "dpm2": dpm2_schedule,
    "dpm2_ancestral": dpm2_ancestral_schedule,
    "lcm": lcm_schedule,
}


def flow_of(config: Mapping[str, Any], mu: Any = None, image_seq_len: Any = None) -> FlowSchedule:
    """The noise levels of a flow-matching config, shifted as it says."""
    terminal = config["shift_terminal"] or None
    kept = {
        "shift_terminal": terminal,
        "num_train_timesteps": config["num_train_timesteps"],
    }
    given = {"mu": mu, "image_seq_len": image_seq_len}
    named = [name for name, value in given.items() if value is not None]
    if not config["use_dynamic_shifting"]:
        if named:
            raise ValueError(
                f"{' and '.join(named)} given, and the config says use_dynamic_shifting = false, "
                f"so its shift is {config['shift']}; leave it out, or set the key to true."
            )
        return flow_schedule(config["shift"], **kept)
    if len(named) != 1:
        raise ValueError(
            f"the config says use_dynamic_shifting = true and {' and '.join(named) or 'no shift'} "
            "was given; pass exactly one of mu=... and image_seq_len=..., the tokens of an image."
        )
    if image_seq_len is not None:
        points = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
        line = {key: config[key] for key in points}
        flow = flow_schedule(image_seq_len=image_seq_len, **line, **kept)
        if config["time_shift_type"] == "exponential":
            return flow
        xp, shift = common_namespace(flow.shift)
        mu = xp.log(shift)
    if config["time_shift_type"] == "linear":
        xp, mu = common_namespace(check_number("mu", mu, above=0))
        mu = xp.log(mu)
    return flow_schedule(mu=mu, **kept)


def flow_run(
    name: str,
    config: Mapping[str, Any],
    num_inference_steps: int | None,
    sigmas: Any,
    mu: Any,
    image_seq_len: int | None,
) -> Schedule:
    """The run of the levels that `set_timesteps` of the flow-matching schedulers prepares."""
    flow = flow_of(config, mu, image_seq_len)
    if sigmas is None:
        if num_inference_steps is None:
            raise ValueError("num_inference_steps is missing; give it, or sigmas=[...].")
        levels = flow_levels(flow, num_inference_steps, "linspace")
    else:
        sigmas = check_vector("sigmas", sigmas)
        if num_inference_steps not in (None, len(sigmas)):
            raise ValueError(
                f"num_inference_steps = {num_inference_steps} and sigmas holds {len(sigmas)} "
                "levels; leave one out, or make them agree."
            )
        levels = flow.shifted(sigmas)
    for flag in GRID_FLAGS:
        if config[flag]:
            levels = GRIDS[flag](len(levels), levels[-1], levels[0])
    return BUILDERS[name](flow, sigmas=levels)


def check_flow_config(config: Mapping[str, Any]) -> None:
    """The values of a flow-matching config, checked when it is read."""
    check_choice("time_shift_type", config["time_shift_type"], ("exponential", "linear"))
    check_number("shift", config["shift"], above=0)
    for key in ("base_image_seq_len", "max_image_seq_len"):
        check_int(key, config[key], 1)
    mu = 1.0 if config["use_dynamic_shifting"] else None
    flow_run("dpm2", config, 2, None, mu, None)
