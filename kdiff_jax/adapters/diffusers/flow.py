"""Flow-matching configs of diffusers: their shift, and the levels that `set_timesteps` takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jax.typing import ArrayLike

import kdiff_jax as kd
from kdiff_jax._arrays import common_namespace
from kdiff_jax._checks import check_choice, check_number
from kdiff_jax.adapters.diffusers.levels import Config, grid_of


def flow_keys(config: Config) -> Config | None:
    """The keys of a flow in the words of flow-matching configs; None for a beta schedule."""
    if "shift" in config:
        return config
    if not config.get("use_flow_sigmas"):
        return None
    same = ("num_train_timesteps", "use_dynamic_shifting", "time_shift_type")
    shift_terminal = config.get("shift_terminal")
    return {
        **{key: config[key] for key in same},
        "shift": config["flow_shift"],
        "shift_terminal": shift_terminal,
    }


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
        if "base_shift" not in config:
            raise ValueError(
                f"image_seq_len = {image_seq_len} given, and the config has no base_shift and "
                "max_shift to take a shift from; pass mu=..., the logarithm of the shift."
            )
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


def solver_flow_levels(
    config: Config,
    num_inference_steps: int | None,
    sigmas: Sequence[float] | np.ndarray | None,
    mu: ArrayLike | None,
    image_seq_len: int | None,
) -> kd.Levels:
    """The levels that `use_flow_sigmas` of DPM-Solver and UniPC prepares; whole timesteps.

    Of UniPC, which begins at 1 - 1e-6, those of WanPipeline; DPM-Solver begins at 1 - 1 / T.
    """
    flow = flow_of(flow_keys(config) or {}, mu, image_seq_len)
    train, starts_at_1 = flow.num_train_timesteps, "disable_corrector" in config
    if sigmas is not None:
        if not starts_at_1:
            raise ValueError(
                "sigmas given to a DPM-Solver sampler, whose set_timesteps takes none; give "
                "num_inference_steps, or take kd.levels(sampler.noise, sigmas=...)."
            )
        given = flow.given_sigmas(sigmas)[0]
        if num_inference_steps not in (None, len(given)):
            raise ValueError(
                f"num_inference_steps = {num_inference_steps} and sigmas holds {len(given)} "
                "levels; leave one out, or make them agree."
            )
    elif num_inference_steps is None:
        raise ValueError("num_inference_steps is missing; give it, or sigmas=[...].")
    elif starts_at_1:
        given = np.linspace(1, 1 / train, num_inference_steps + 1)[:-1]
    else:
        given = 1 - np.linspace(1, 1 / train, num_inference_steps + 1)[:0:-1]
    xp, moved = common_namespace(flow.shifted(given))
    if starts_at_1:
        moved = xp.minimum(moved, 1 - 1e-6)
    levels = kd.levels(flow, sigmas=moved)
    timesteps = xp.floor(moved * train)
    return replace(levels, timesteps=timesteps, init_noise_sigma=np.ones(()))


def check_flow_config(config: Config) -> kd.Levels:
    """The values of a flow, checked when its config is read; levels of two steps."""
    keys = flow_keys(config) or {}
    check_choice("time_shift_type", keys["time_shift_type"], ("exponential", "linear"))
    check_number("shift" if "shift" in config else "flow_shift", keys["shift"], above=0)
    mu = 1.0 if keys["use_dynamic_shifting"] else None
    levels_of = flow_levels if "shift" in config else solver_flow_levels
    return levels_of(config, 2, None, mu, None)
