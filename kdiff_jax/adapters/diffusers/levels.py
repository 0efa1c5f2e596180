"""The levels that `set_timesteps` of the schedulers with a beta schedule prepares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

import kdiff_jax as kd
from kdiff_jax._arrays import Array
from kdiff_jax._levels.spacing import GridName

# A scheduler_config.json: every value that JSON has.
Config = Mapping[str, Any]
GRID_FLAGS: dict[str, GridName] = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
    "use_lu_lambdas": "exponential",  # even steps in log(alpha / sigma)
}


# The sigma that stands for alpha = 0, within what the path of kd.brownian_noise spans.
NO_SIGNAL = 2.0**16


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
    _check_apart(timesteps, num_steps, noise)
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
    if config["rescale_betas_zero_snr"] and timesteps[0] == noise.num_train_timesteps - 1:
        # Its alpha is 0 there, where that of Euler is 2**-12, of sigma = 4096.
        levels = replace(levels, sigmas=np.append(NO_SIGNAL, levels.sigmas[1:]))
    return replace(levels, init_noise_sigma=np.hypot(1, levels.sigmas[0]))


def tcd_levels(levels: kd.Levels) -> kd.Levels:
    """Levels on a distillation grid as TCD runs them: to t = 0, with the noise of that level."""
    timesteps = levels.timesteps
    # From t = 0 to t = 0, TCD leaves the sample as it is.
    inner = timesteps[timesteps > 0]
    if not len(inner):
        raise ValueError(
            f"timesteps = {timesteps.tolist()} leave TCD no step, for it ends at t = 0; give one "
            "above 0."
        )
    noise = levels.noise
    assert isinstance(noise, kd.NoiseSchedule)
    return kd.lcm_levels(noise, timesteps=[*inner, 0]).end_at(len(inner))


def solver_levels(noise: kd.NoiseSchedule, num_steps: int | None, config: Config) -> kd.Levels:
    """Whole timesteps from noise of unit variance, of DPM-Solver and UniPC.

    A spacing has N + 1 timesteps, and of them the last is left out; a grid runs over all levels
    of training, and timesteps between two whole ones are cut off or, of some, rounded.
    """
    assert num_steps is not None
    grid = grid_of(config)
    if grid is None:
        levels = _solver_spacing(noise, num_steps, config)
    else:
        levels = kd.levels(noise, num_steps, grid=grid)
        rounds = config.get("use_karras_sigmas") or config.get("use_lu_lambdas")
        if "euler_at_final" in config and config["beta_schedule"] == "squaredcos_cap_v2":
            rounds = False  # DPMSolverMultistep alone makes this exception
        # What rounding took from a whole timestep is given back.
        timesteps = np.round(levels.timesteps) if rounds else np.floor(levels.timesteps + 1e-6)
        levels = replace(levels, timesteps=timesteps)
        if skips_last(config):
            if num_steps < 2:
                raise ValueError(
                    f"num_inference_steps = {num_steps} with final_sigmas_type = 'sigma_min' has "
                    "no step on a grid, which ends at that level; take at least 2."
                )
            # diffusers goes from the last level to itself, which leaves the sample as it is.
            levels = levels.end_at(num_steps - 1)
    return replace(levels, init_noise_sigma=np.hypot(1, levels.sigmas[0]))


def skips_last(config: Config) -> bool:
    """Whether the last step of diffusers begins where it ends, so that it is left out here."""
    return config.get("final_sigmas_type") == "sigma_min" and grid_of(config) is not None


def _solver_spacing(noise: kd.NoiseSchedule, num_steps: int, config: Config) -> kd.Levels:
    count = noise.num_train_timesteps
    spacing = config.get("timestep_spacing", "linspace")
    if spacing == "trailing":
        timesteps = kd.levels(noise, num_steps, timestep_spacing=spacing).timesteps
    elif spacing == "leading":
        timesteps = np.arange(num_steps, 0, -1) * float(count // (num_steps + 1))
        timesteps += config["steps_offset"]
    else:
        timesteps = np.round(np.linspace(0, count - 1, num_steps + 1))[:0:-1]
    ends = config["final_sigmas_type"] == "sigma_min"
    timesteps = np.append(timesteps, 0) if ends else timesteps
    _check_apart(timesteps, num_steps, noise)
    return kd.levels(noise, timesteps=timesteps).end_at(num_steps)


def _check_apart(timesteps: Array, num_steps: int | None, noise: kd.NoiseSchedule) -> None:
    if np.any(np.diff(timesteps) == 0):
        raise ValueError(
            f"num_inference_steps = {num_steps} is more than the {noise.num_train_timesteps} whole "
            "timesteps that there are; take fewer steps."
        )
