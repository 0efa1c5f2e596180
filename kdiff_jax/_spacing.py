"""Inference grids: which noise levels a run visits, as (sigmas, timesteps) of its N steps."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from kdiff_jax._checks import (
    check_choice,
    check_int,
    check_sigmas,
    check_vector,
    common_namespace,
    is_traced,
)
from kdiff_jax._flow import FlowSchedule, check_flow_grid, flow_levels
from kdiff_jax._grids import (
    beta_sigmas,
    exponential_sigmas,
    karras_sigmas,
    kl_optimal_sigmas,
    laplace_sigmas,
    linear_quadratic_sigmas,
    polyexponential_sigmas,
    vp_sigmas,
)
from kdiff_jax._noise_schedule import NoiseSchedule, finite_sigmas
from kdiff_jax._timestep_grids import TIMESTEP_GRIDS, grid_timesteps

SPACINGS = ("linspace", "leading", "trailing")
# Grids between two levels, by the formula; and those of _timestep_grids, by the training table.
BETWEEN_ENDS = {
    "exponential": exponential_sigmas,
    "vp": vp_sigmas,
    "beta": beta_sigmas,
    "kl_optimal": kl_optimal_sigmas,
    "laplace": laplace_sigmas,
}
SIGMA_GRIDS = ("karras", "polyexponential", "linear_quadratic", *BETWEEN_ENDS)
GRIDS = (None, *SIGMA_GRIDS, *TIMESTEP_GRIDS)


class Grid(NamedTuple):
    """The N noise levels of a run, descending, without the closing 0; values or traced."""

    sigmas: Any
    timesteps: Any
    init_noise_sigma: Any
    timestep_at: Callable[[Any], Any]  # what the network is told of a level between them
    zero_terminal_snr: bool
    flow: bool  # alpha + sigma is 1, as on a rectified flow, instead of alpha

    def alpha_at(self, sigma: Any) -> Any:
        """What x0 is weighted by at a level: `x = alpha * x0 + sigma * eps`."""
        xp, sigma = common_namespace(sigma)
        return 1 - sigma if self.flow else xp.ones_like(sigma)

    def input_scale_at(self, sigma: Any) -> Any:
        """What the sample is multiplied by before the network sees it."""
        xp, sigma = common_namespace(sigma)
        return xp.ones_like(sigma) if self.flow else 1 / xp.sqrt(1 + sigma**2)


def spaced_timesteps(
    num_train_timesteps: int, num_steps: int, timestep_spacing: str, steps_offset: int
) -> np.ndarray:
    """Training timesteps spread over [0, T - 1], descending, [N] float64.

    linspace: N values from T - 1 down to 0; leading: `i * (T // N) + steps_offset`; trailing:
    `round(T - i * T / N) - 1`; a single step is always T - 1.

    Source: Lin et al. 2023 (arXiv:2305.08891), table 2; `set_timesteps` of diffusers.
    """
    last = num_train_timesteps - 1
    check_choice("timestep_spacing", timestep_spacing, SPACINGS)
    num_steps = check_int("num_steps", num_steps, 1)
    steps_offset = check_int("steps_offset", steps_offset, 0)
    if timestep_spacing != "linspace" and num_steps > num_train_timesteps:
        raise ValueError(
            f"num_steps = {num_steps} is more than num_train_timesteps = {num_train_timesteps}, "
            f"and timestep_spacing={timestep_spacing!r} takes whole timesteps; take fewer steps "
            "or timestep_spacing='linspace'."
        )
    stride = num_train_timesteps // num_steps
    first = steps_offset + ((num_steps - 1) * stride if num_steps > 1 else 0)
    if timestep_spacing == "leading" and first > last:
        raise ValueError(
            f"steps_offset = {steps_offset} puts the first of {num_steps} leading timesteps at "
            f"{first}, past the last training timestep {last}; take a smaller offset."
        )
    if num_steps == 1:
        return np.array([float(last)])
    if timestep_spacing == "linspace":
        return np.linspace(last, 0, num_steps)
    if timestep_spacing == "leading":
        return np.arange(num_steps)[::-1] * float(stride) + steps_offset
    # The cut to N matters: for 62 of N = 1..1000 rounding lets arange run one value too far.
    descent = np.arange(num_train_timesteps, 0, -num_train_timesteps / num_steps)[:num_steps]
    return np.round(descent) - 1


def inference_grid(
    noise: NoiseSchedule | FlowSchedule | None,
    num_steps: int | None,
    *,
    timestep_spacing: str,
    steps_offset: int,
    grid: str | None,
    rho: Any,
    sigma_min: Any,
    sigma_max: Any,
    timesteps: Sequence[float] | np.ndarray | None,
    sigmas: Sequence[float] | np.ndarray | None,
    round_timesteps: bool,
    discard_penultimate: bool,
) -> Grid:
    """The grid that the arguments of a k-diffusion schedule ask for."""
    check_choice("timestep_spacing", timestep_spacing, SPACINGS)
    check_choice("grid", grid, GRIDS)
    check_int("steps_offset", steps_offset, 0)
    ends = {"sigma_min": sigma_min, "sigma_max": sigma_max}
    given = {"grid": grid, **ends, "timesteps": timesteps, "sigmas": sigmas}
    given |= {"discard_penultimate": discard_penultimate or None}
    named = [name for name, value in given.items() if value is not None]
    _check_together(given, rho, timestep_spacing, steps_offset)
    if noise is None:
        _check_without_noise(given, timestep_spacing, steps_offset, round_timesteps)
    elif isinstance(noise, FlowSchedule):
        check_flow_grid(grid, sigma_min, sigma_max, timestep_spacing, steps_offset)
        if round_timesteps:
            raise ValueError(
                "round_timesteps=True is about training timesteps, which are whole; a rectified "
                "flow has none and its network is told T * sigma: leave it out."
            )
    else:
        noise = finite_sigmas(noise)
    if timesteps is not None or sigmas is not None:
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} were given, and each makes a grid; give one.")
        levels, steps = _verbatim(noise, timesteps, sigmas)
        if num_steps is not None and check_int("num_steps", num_steps, 1) != len(levels):
            raise ValueError(
                f"num_steps = {num_steps} and {named[0]} holds {len(levels)} steps; leave "
                "num_steps out, or make them agree."
            )
    else:
        if num_steps is None:
            raise ValueError(
                "num_steps is missing; give it, or timesteps=[...] or sigmas=[...] to use verbatim."
            )
        # The last one before the 0 is dropped again, so that N stays N.
        count = check_int("num_steps", num_steps, 1) + bool(discard_penultimate)
        try:
            levels, steps = _levels(noise, count, grid, rho, ends, timestep_spacing, steps_offset)
        except ValueError as error:
            if count == num_steps:
                raise
            raise ValueError(f"discard_penultimate=True builds {count} steps: {error}") from None
        levels, steps = levels[:num_steps], steps[:num_steps]
    if round_timesteps:
        steps = steps.round()
    xp, start = common_namespace(levels[0])
    init_noise_sigma = xp.sqrt(start**2 + 1) if timestep_spacing == "leading" else start
    return Grid(
        levels,
        steps,
        init_noise_sigma,
        _itself if noise is None else noise.timestep_at,
        zero_terminal_snr=isinstance(noise, NoiseSchedule) and noise.zero_terminal_snr,
        flow=isinstance(noise, FlowSchedule),
    )


def _itself(sigma: Any) -> Any:
    return sigma


def _check_together(
    given: dict[str, Any], rho: Any, timestep_spacing: str, steps_offset: int
) -> None:
    grid, low, high = given["grid"], given["sigma_min"], given["sigma_max"]
    shapes = grid in ("karras", "polyexponential")
    # 7, Karras' own, may be passed along with any grid.
    if not shapes and rho is not None and (is_traced(rho) or rho != 7):
        raise ValueError(
            f"rho = {rho} shapes the grids 'karras' and 'polyexponential' only, got "
            f"grid={grid!r}; drop rho."
        )
    bounded = grid in SIGMA_GRIDS or given["timesteps"] is not None or given["sigmas"] is not None
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
    if grid in TIMESTEP_GRIDS and (timestep_spacing != "linspace" or steps_offset != 0):
        raise ValueError(
            f"timestep_spacing={timestep_spacing!r} and steps_offset = {steps_offset} were given "
            f"to grid={grid!r}, which has timesteps of its own; drop them, or the grid."
        )


def _check_without_noise(
    given: dict[str, Any], timestep_spacing: str, steps_offset: int, round_timesteps: bool
) -> None:
    if given["sigmas"] is None and given["grid"] not in SIGMA_GRIDS:
        raise ValueError(
            f"noise = None has no training timesteps, which grid={given['grid']!r} and timesteps= "
            f"need; give sigmas=[...], or sigma_min, sigma_max and one of {', '.join(SIGMA_GRIDS)}."
        )
    needed = ("sigma_max",) if given["grid"] == "linear_quadratic" else ("sigma_min", "sigma_max")
    missing = [name for name in needed if given[name] is None]
    if given["sigmas"] is None and missing:
        raise ValueError(
            f"noise = None has no noise levels of training for grid={given['grid']!r} to run "
            f"between; give {' and '.join(missing)}, or sigmas=[...]."
        )
    if timestep_spacing != "linspace" or steps_offset != 0 or round_timesteps:
        raise ValueError(
            f"timestep_spacing={timestep_spacing!r}, steps_offset = {steps_offset} and "
            f"round_timesteps={round_timesteps} are about training timesteps, and noise = None "
            "has none; leave them out."
        )


def _levels(
    noise: NoiseSchedule | FlowSchedule | None,
    num_steps: int,
    grid: str | None,
    rho: Any,
    ends: dict[str, Any],
    timestep_spacing: str,
    steps_offset: int,
) -> tuple[Any, Any]:
    low, high = ends["sigma_min"], ends["sigma_max"]
    if noise is None:
        levels = _shaped_sigmas(str(grid), num_steps, low, high, rho)
        return levels, levels
    if isinstance(noise, FlowSchedule):
        if grid is None:
            levels = flow_levels(noise, num_steps, timestep_spacing)
            return levels, noise.timestep_at(levels)
        if low is None and grid != "linear_quadratic":
            low = flow_levels(noise, num_steps, timestep_spacing)[-1]
        levels = _shaped_sigmas(grid, num_steps, low, 1.0 if high is None else high, rho)
        return levels, noise.timestep_at(levels)
    count = noise.num_train_timesteps
    if grid in TIMESTEP_GRIDS:
        steps = grid_timesteps(str(grid), count, num_steps)
        # Fractional ones take their level log-linearly, as ComfyUI does and timestep_at inverts.
        xp, steps, at, table = common_namespace(steps, np.arange(count), noise.sigmas)
        return xp.exp(xp.interp(steps, at, xp.log(table))), steps
    steps = spaced_timesteps(count, num_steps, timestep_spacing, steps_offset)
    levels = noise.sigma_at(steps)
    if grid is None:
        return levels, steps
    low, high = levels[-1] if low is None else low, levels[0] if high is None else high
    levels = _shaped_sigmas(grid, num_steps, low, high, rho)
    return levels, noise.timestep_at(levels)


def _shaped_sigmas(grid: str, num_steps: int, low: Any, high: Any, rho: Any) -> Any:
    if grid == "linear_quadratic":
        levels = linear_quadratic_sigmas(num_steps, high)
    elif grid == "karras":
        levels = karras_sigmas(num_steps, low, high, 7.0 if rho is None else rho)
    elif grid == "polyexponential":
        levels = polyexponential_sigmas(num_steps, low, high, 1.0 if rho is None else rho)
    else:
        levels = BETWEEN_ENDS[grid](num_steps, low, high)
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    if not is_traced(levels) and np.any(np.diff(levels.astype(dtype)) >= 0):
        raise ValueError(
            f"grid={grid!r} between sigma = {levels[0]:.6g} and {levels[-1]:.6g} has steps too "
            f"small for {dtype} at num_steps = {num_steps}; take fewer steps or a smaller rho."
        )
    return levels


def _verbatim(
    noise: NoiseSchedule | FlowSchedule | None, timesteps: Any, sigmas: Any
) -> tuple[Any, Any]:
    if sigmas is not None:
        return verbatim_sigmas(noise, sigmas)
    assert noise is not None
    if is_traced(timesteps):
        return noise.sigma_at(timesteps), timesteps
    if isinstance(noise, FlowSchedule):
        return verbatim_sigmas(noise, noise.sigma_at(check_vector("timesteps", timesteps)))
    steps = check_vector("timesteps", timesteps)
    last = noise.num_train_timesteps - 1
    if steps.min() < 0 or steps.max() > last:
        raise ValueError(
            f"timesteps span [{steps.min()}, {steps.max()}]; expected them in [0, {last}], the "
            "training timesteps."
        )
    if np.any(np.diff(steps) >= 0):
        raise ValueError(f"timesteps = {steps.tolist()} are not strictly descending; sort them.")
    return noise.sigma_at(steps), steps


def verbatim_sigmas(noise: NoiseSchedule | FlowSchedule | None, sigmas: Any) -> tuple[Any, Any]:
    """Given levels, checked, and what the network is told of them."""
    levels = sigmas if is_traced(sigmas) else check_sigmas("sigmas", sigmas)
    if noise is None:
        return levels, levels
    if isinstance(noise, NoiseSchedule):
        return levels, finite_sigmas(noise).timestep_at(levels)
    if not is_traced(levels) and levels[0] > 1:
        raise ValueError(
            f"sigmas begin at {levels[0]}, which is no level of a rectified flow; expected them "
            "in (0, 1]."
        )
    return levels, noise.timestep_at(levels)
