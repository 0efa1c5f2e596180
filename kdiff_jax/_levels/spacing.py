"""The options of `kd.levels`: the names of its grids, evenly spaced timesteps, shaped levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jax.typing import ArrayLike

from kdiff_jax._arrays import Array, is_traced
from kdiff_jax._checks import check_choice, check_flag, check_number
from kdiff_jax._levels.grids import (
    beta_sigmas,
    exponential_sigmas,
    karras_sigmas,
    kl_optimal_sigmas,
    laplace_sigmas,
    linear_quadratic_sigmas,
    polyexponential_sigmas,
    vp_sigmas,
)

TimestepSpacing = Literal["linspace", "leading", "trailing"]
# Grids between two levels, by formula: the files grids.py and timestep_grids.py.
SigmaGrid = Literal[
    "karras",
    "polyexponential",
    "linear_quadratic",
    "exponential",
    "vp",
    "beta",
    "kl_optimal",
    "laplace",
]
TimestepGrid = Literal["normal", "simple", "sgm_uniform", "ddim_uniform", "beta_timesteps"]
GridName = SigmaGrid | TimestepGrid
SPACINGS = get_args(TimestepSpacing)
SIGMA_GRIDS = get_args(SigmaGrid)
TIMESTEP_GRIDS = get_args(TimestepGrid)


@dataclass(frozen=True)
class GridOptions:
    """The options of `kd.levels` that choose a grid, as its caller gave them."""

    grid: GridName | None
    timestep_spacing: TimestepSpacing
    steps_offset: int
    rho: ArrayLike | None
    sigma_min: ArrayLike | None
    sigma_max: ArrayLike | None
    round_timesteps: bool
    verbatim: bool


def spaced_timesteps(num_train_timesteps: int, num_steps: int, options: GridOptions) -> np.ndarray:
    """Training timesteps spread over [0, T - 1], descending, [N] float64.

    linspace: N values from T - 1 down to 0; leading: `i * (T // N) + steps_offset`; trailing:
    `round(T - i * T / N) - 1`; a single step is always T - 1.

    Source: Lin et al. 2023 (arXiv:2305.08891), table 2; `set_timesteps` of diffusers.
    """
    last = num_train_timesteps - 1
    spacing, steps_offset = options.timestep_spacing, options.steps_offset
    if spacing != "linspace" and num_steps > num_train_timesteps:
        raise ValueError(
            f"num_steps = {num_steps} is more than num_train_timesteps = {num_train_timesteps}, "
            f"and timestep_spacing={spacing!r} takes whole timesteps; take fewer steps "
            "or timestep_spacing='linspace'."
        )
    stride = num_train_timesteps // num_steps
    first = steps_offset + (num_steps - 1) * stride
    if spacing == "leading" and first > last:
        raise ValueError(
            f"steps_offset = {steps_offset} puts the first of {num_steps} leading timesteps at "
            f"{first}, past the last training timestep {last}; take a smaller offset."
        )
    if num_steps == 1:
        return np.array([float(last)])
    if spacing == "linspace":
        return np.linspace(last, 0, num_steps)
    if spacing == "leading":
        return np.arange(num_steps)[::-1] * float(stride) + steps_offset
    # The cut to N matters: for 62 of N = 1..1000 rounding lets arange run one value too far.
    descent = np.arange(num_train_timesteps, 0, -num_train_timesteps / num_steps)[:num_steps]
    return np.round(descent) - 1


def shaped_sigmas(
    grid: str | None,
    num_steps: int,
    low: ArrayLike | None,
    high: ArrayLike | None,
    rho: ArrayLike | None,
) -> Array:
    """The levels of a grid between two ends, [N]."""
    assert grid is not None
    assert high is not None
    if grid == "linear_quadratic":
        levels = linear_quadratic_sigmas(num_steps, high)  # it runs into its closing 0
    elif low is None:
        raise AssertionError(f"grid={grid!r} has no lower end; noise levels give it one.")
    elif grid == "karras":
        levels = karras_sigmas(num_steps, low, high, 7.0 if rho is None else rho)
    elif grid == "polyexponential":
        levels = polyexponential_sigmas(num_steps, low, high, 1.0 if rho is None else rho)
    else:
        between = {
            "exponential": exponential_sigmas,
            "vp": vp_sigmas,
            "beta": beta_sigmas,
            "kl_optimal": kl_optimal_sigmas,
            "laplace": laplace_sigmas,
        }
        levels = between[grid](num_steps, low, high)
    return levels


def check_options(options: GridOptions) -> None:
    """Refuses unknown names, and options that shape another grid than the chosen one."""
    grid, low, high = options.grid, options.sigma_min, options.sigma_max
    check_choice("timestep_spacing", options.timestep_spacing, SPACINGS)
    check_choice("grid", grid, (None, *SIGMA_GRIDS, *TIMESTEP_GRIDS))
    check_flag("round_timesteps", options.round_timesteps)
    ends = {"rho": options.rho, "sigma_min": low, "sigma_max": high}
    for name, number in ends.items():
        if number is not None:
            check_number(name, number, above=0)
    shapes = grid in ("karras", "polyexponential")
    # 7, Karras' own, may be passed along with any grid.
    if not shapes and options.rho is not None and (is_traced(options.rho) or options.rho != 7):
        raise ValueError(
            f"rho = {options.rho} shapes the grids 'karras' and 'polyexponential' only, got "
            f"grid={grid!r}; drop rho."
        )
    bounded = grid in SIGMA_GRIDS or options.verbatim
    if not bounded and (low is not None or high is not None):
        raise ValueError(
            f"sigma_min = {low} and sigma_max = {high} bound the grids {', '.join(SIGMA_GRIDS)} "
            f"only, got grid={grid!r}; name one of them with grid=..., or drop the ends."
        )
    if grid == "linear_quadratic" and low is not None:
        raise ValueError(
            f"sigma_min = {low} was given to grid='linear_quadratic', which runs into its closing "
            "0; drop it."
        )
    spaced = options.timestep_spacing != "linspace" or options.steps_offset != 0
    if grid in TIMESTEP_GRIDS and spaced:
        raise ValueError(
            f"timestep_spacing={options.timestep_spacing!r} and steps_offset = "
            f"{options.steps_offset} were given to grid={grid!r}, which has timesteps of its own; "
            "drop them, or the grid."
        )


def check_flow_options(options: GridOptions) -> None:
    """Refuses what counts along training timesteps, and levels that the line does not have."""
    grid, spacing = options.grid, options.timestep_spacing
    if grid in ("vp", "laplace"):
        raise ValueError(
            f"grid = {grid!r} is laid out for noise over signal, which has no bound, and the "
            "levels of a rectified flow end at 1; take 'karras', 'exponential', 'polyexponential', "
            "'beta', 'kl_optimal' or 'linear_quadratic', or sigmas=[...]."
        )
    if spacing == "leading" or options.steps_offset:
        raise ValueError(
            f"timestep_spacing = {spacing!r} and steps_offset = {options.steps_offset} with a "
            "rectified flow, whose training timesteps are no list to count along; take 'linspace' "
            "or 'trailing', without an offset."
        )
    for name, end in (("sigma_min", options.sigma_min), ("sigma_max", options.sigma_max)):
        if end is not None and not is_traced(end) and check_number(name, end, above=0) > 1:
            raise ValueError(f"{name} = {end} is no level of a rectified flow; take (0, 1].")
    if options.round_timesteps:
        raise ValueError(
            "round_timesteps=True is about training timesteps, which are whole; a rectified flow "
            "has none and its network receives T * sigma: leave it out."
        )
