"""The levels that `set_timesteps` of the schedulers with a beta schedule prepares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

import kdiff_jax as kd
from kdiff_jax._levels.spacing import GridName

# A scheduler_config.json: every value that JSON has.
Config = Mapping[str, Any]
GRID_FLAGS: dict[str, GridName] = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
}


def grid_of(config: Config) -> GridName | None:
    """The grid that a config names; None where it takes the levels of its spacing."""
    chosen = [grid for flag, grid in GRID_FLAGS.items() if config.get(flag)]
    return chosen[0] if chosen else None


def spaced_levels(
    noise: kd.NoiseSchedule, num_steps: int | None, config: Config, rounded: bool = False
) -> kd.Levels:
    """The levels of a timestep spacing or of a grid; a Karras grid may have whole timesteps."""
    grid = grid_of(config)
    return kd.levels(
        noise,
        num_steps,
        timestep_spacing=config["timestep_spacing"],
        steps_offset=config["steps_offset"],
        grid=grid,
        round_timesteps=rounded and grid == "karras",
    )


def ddim_levels(noise: kd.NoiseSchedule, num_steps: int | None, config: Config) -> kd.Levels:
    """Whole timesteps from noise of unit variance; to t = 0 where the last alpha is not one."""
    spaced = spaced_levels(noise, num_steps, config)
    timesteps = np.round(spaced.timesteps)
    if np.any(np.diff(timesteps) == 0):
        raise ValueError(
            f"num_inference_steps = {num_steps} is more than the {noise.num_train_timesteps} whole "
            "timesteps that there are; take fewer steps."
        )
    ends = not config["set_alpha_to_one"]
    count = len(timesteps)
    if ends and timesteps[-1] > 0:
        timesteps = np.append(timesteps, 0)
    elif ends:
        # diffusers goes from t = 0 to t = 0 there, which leaves the sample as it is.
        count -= 1
        if count == 0 or config["clip_sample"] or config["thresholding"]:
            raise ValueError(
                "set_alpha_to_one = false with a last timestep of 0 has a last step that only "
                "clips; pass set_alpha_to_one=True, or a steps_offset above 0 (leading)."
            )
    levels = kd.levels(noise, timesteps=timesteps).end_at(count)
    return replace(levels, init_noise_sigma=np.hypot(1, levels.sigmas[0]))
