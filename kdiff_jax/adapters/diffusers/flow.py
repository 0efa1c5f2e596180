"""Flow-matching configs of diffusers: their shift, and the levels that `set_timesteps` takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jax.typing import ArrayLike

import kdiff_jax as kd
from kdiff_jax._checks import check_choice, check_number
from kdiff_jax.adapters.diffusers.levels import Config, grid_of


def flow_of(
    config: Config, mu: ArrayLike | None = None, image_seq_len: int | None = None
) -> kd.FlowSchedule:
    """The noise levels of a flow-matching config, with its shift."""
    terminal = config["shift_terminal"] or None
    steps = config["num_train_timesteps"]
    given = {"mu": mu, "image_seq_len": image_seq_len}
    named = [name for name, value in given.items() if value is not None]
    if not config["use_dynamic_shifting"]:
        if named:
            raise ValueError(
                f"{' and '.join(named)} given, and the config has use_dynamic_shifting = false, "
                f"so its shift is {config['shift']}; leave it out, or set the key to true."
            )
        return kd.flow_schedule(config["shift"], shift_terminal=terminal, num_train_timesteps=steps)
    if len(named) != 1:
        raise ValueError(
            f"the config has use_dynamic_shifting = true and {' and '.join(named) or 'no shift'} "
            "was given; pass exactly one of mu=... and image_seq_len=..., the tokens of an image."
        )
    if image_seq_len is not None:
        points = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
        line = {key: config[key] for key in points}
        mu = np.log(kd.flow_schedule(image_seq_len=image_seq_len, **line).shift)
    linear = config["time_shift_type"] == "linear"
    flow = kd.flow_schedule(
        mu=0.0 if linear else mu, shift_terminal=terminal, num_train_timesteps=steps
    )
    # mu is the shift itself there, but the levels of a dynamic shift.
    return replace(flow, shift=check_number("mu", mu, above=0)) if linear else flow


def flow_levels(
    config: Config,
    num_inference_steps: int | None,
    sigmas: Sequence[float] | np.ndarray | None,
    mu: ArrayLike | None,
    image_seq_len: int | None,
) -> kd.Levels:
    """The levels that `set_timesteps` of the flow-matching schedulers prepares."""
    flow = flow_of(config, mu, image_seq_len)
    if sigmas is None:
        if num_inference_steps is None:
            raise ValueError("num_inference_steps is missing; give it, or sigmas=[...].")
        levels = kd.levels(flow, num_inference_steps)
    else:
        # Without the closing 0 that they may end in; beyond 1 the shift would not refuse them.
        given = flow.given_sigmas(sigmas)[0]
        if num_inference_steps not in (None, len(given)):
            raise ValueError(
                f"num_inference_steps = {num_inference_steps} and sigmas holds {len(given)} "
                "levels; leave one out, or make them agree."
            )
        levels = kd.levels(flow, sigmas=flow.shifted(given))
    grid = grid_of(config)
    if grid is None:
        return levels
    # diffusers lays a grid between the shifted ends.
    low, high = levels.sigmas[-2], levels.sigmas[0]
    return kd.levels(flow, levels.num_steps, grid=grid, sigma_min=low, sigma_max=high)


def check_flow_config(config: Config) -> None:
    """The values of a flow-matching config, checked when it is read."""
    check_choice("time_shift_type", config["time_shift_type"], ("exponential", "linear"))
    check_number("shift", config["shift"], above=0)
    mu = 1.0 if config["use_dynamic_shifting"] else None
    flow_levels(config, 2, None, mu, None)
