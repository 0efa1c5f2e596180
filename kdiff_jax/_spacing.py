"""Inference grids: which noise levels a run visits, as (sigmas, timesteps) of its N steps."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import betaincinv

from kdiff_jax._checks import (
    check_choice,
    check_int,
    check_number,
    check_vector,
    common_namespace,
    is_traced,
    share,
)
from kdiff_jax._noise_schedule import NoiseSchedule

SPACINGS = ("linspace", "leading", "trailing")
GRIDS = (None, "karras", "exponential", "beta")


class Grid(NamedTuple):
    """The N noise levels of a run, descending, without the closing 0; values or traced."""

    sigmas: Any
    timesteps: Any
    init_noise_sigma: Any


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


def karras_sigmas(num_steps: int, sigma_min: Any, sigma_max: Any, rho: Any) -> Any:
    """`(max^(1/rho) + i/(N-1) (min^(1/rho) - max^(1/rho)))^rho`: Karras et al. 2022, eq. 5."""
    _, low, high, rho, ramp = common_namespace(
        sigma_min, sigma_max, rho, np.linspace(0, 1, num_steps)
    )
    first, last = high ** (1 / rho), low ** (1 / rho)
    return (first + ramp * (last - first)) ** rho


def exponential_sigmas(num_steps: int, sigma_min: Any, sigma_max: Any) -> Any:
    """Evenly spaced in log sigma: `get_sigmas_exponential` of k-diffusion."""
    xp, low, high, ramp = common_namespace(sigma_min, sigma_max, np.linspace(0, 1, num_steps))
    return xp.exp(xp.log(high) + ramp * (xp.log(low) - xp.log(high)))


def beta_sigmas(num_steps: int, sigma_min: Any, sigma_max: Any) -> Any:
    """Quantiles of Beta(0.6, 0.6) laid over sigma: Lee et al. 2024 (arXiv:2407.12173).

    The quantiles depend on N alone and are always taken on the host: JAX has no betaincinv.
    """
    quantiles = betaincinv(0.6, 0.6, 1 - np.linspace(0, 1, num_steps))
    _, low, high, quantiles = common_namespace(sigma_min, sigma_max, quantiles)
    return low + quantiles * (high - low)


def inference_grid(
    noise: NoiseSchedule,
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
) -> Grid:
    """The grid that the arguments of a k-diffusion schedule ask for."""
    check_choice("timestep_spacing", timestep_spacing, SPACINGS)
    check_choice("grid", grid, GRIDS)
    check_int("steps_offset", steps_offset, 0)
    if noise.zero_terminal_snr:
        raise ValueError(
            "the noise schedule has zero terminal SNR (rescale_zero_terminal_snr=True), so sigma "
            "is infinite at its last timestep and x0 + sigma * eps does not exist there; build it "
            "without the rescaling, or use lcm_schedule with v_prediction or sample."
        )
    if not is_traced(rho) and rho != 7.0 and grid != "karras":
        raise ValueError(f"rho = {rho} shapes a Karras grid only, got grid={grid!r}; drop rho.")
    given = {"grid": grid, "sigma_min": sigma_min, "sigma_max": sigma_max}
    if timesteps is not None or sigmas is not None:
        given |= {"timesteps": timesteps, "sigmas": sigmas}
        named = [name for name, value in given.items() if value is not None]
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} were given, and each makes a grid; give one.")
        if timesteps is not None:
            levels, steps = _verbatim_timesteps(noise, timesteps)
        else:
            levels, steps = _verbatim_sigmas(noise, sigmas)
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
        if grid is None and (sigma_min is not None or sigma_max is not None):
            raise ValueError(
                f"sigma_min = {sigma_min} and sigma_max = {sigma_max} bound the grids 'karras', "
                "'exponential' and 'beta' only; name one with grid=..., or drop them."
            )
        steps = spaced_timesteps(
            noise.num_train_timesteps, num_steps, timestep_spacing, steps_offset
        )
        levels = noise.sigma_at(steps)
        if grid is not None:
            levels = _shaped_sigmas(grid, levels, rho, sigma_min, sigma_max)
            steps = noise.timestep_at(levels)
    if round_timesteps:
        steps = steps.round()
    xp, start = common_namespace(levels[0])
    return Grid(levels, steps, xp.sqrt(start**2 + 1) if timestep_spacing == "leading" else start)


def _shaped_sigmas(grid: str, levels: Any, rho: Any, sigma_min: Any, sigma_max: Any) -> Any:
    low = levels[-1] if sigma_min is None else check_number("sigma_min", sigma_min, above=0)
    high = levels[0] if sigma_max is None else check_number("sigma_max", sigma_max, above=0)
    rho = check_number("rho", rho, above=0)
    num_steps = levels.shape[0]
    if num_steps > 1 and not is_traced(low, high) and not low < high:
        raise ValueError(
            f"sigma_min = {low} is not below sigma_max = {high}; the grid runs down from "
            "sigma_max to sigma_min (what is not given comes from the training range)."
        )
    if grid == "karras":
        return karras_sigmas(num_steps, low, high, rho)
    if grid == "exponential":
        return exponential_sigmas(num_steps, low, high)
    return beta_sigmas(num_steps, low, high)


def _verbatim_timesteps(noise: NoiseSchedule, timesteps: Any) -> tuple[Any, Any]:
    if is_traced(timesteps):
        return noise.sigma_at(timesteps), timesteps
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


def _verbatim_sigmas(noise: NoiseSchedule, sigmas: Any) -> tuple[Any, Any]:
    if is_traced(sigmas):
        return sigmas, noise.timestep_at(sigmas)
    levels = check_vector("sigmas", sigmas)
    # k-diffusion's grids carry their closing 0, diffusers' do not: both say the same grid.
    levels = levels[:-1] if levels[-1] == 0 else levels
    if levels.size == 0 or levels.min() <= 0 or np.any(np.diff(levels) >= 0):
        raise ValueError(
            f"sigmas = {np.asarray(sigmas).tolist()} is no grid; expected strictly descending "
            "positive noise levels (a closing 0 may end them)."
        )
    return levels, noise.timestep_at(levels)


def lcm_timesteps(
    num_train_timesteps: int,
    num_steps: int | None,
    original_steps: int,
    timesteps: Sequence[int] | np.ndarray | None,
    strength: float,
) -> np.ndarray:
    """The timesteps of a latent-consistency run, descending, [N] int64.

    The distillation grid is `(1 .. floor(O * strength)) * (T // O) - 1`; of it, from the top, N
    are taken at `floor(linspace(0, len, N, endpoint=False))`. Timesteps that were given lose
    their first ones instead, to the share `strength`.

    Source: Luo et al. 2023 (arXiv:2310.04378), Algorithm 3; `LCMScheduler.set_timesteps`.
    """
    if (num_steps is None) == (timesteps is None):
        raise ValueError(
            f"num_steps = {num_steps} and timesteps = {timesteps}; give exactly one of them."
        )
    if timesteps is not None:
        steps = _custom_lcm_timesteps(num_train_timesteps, timesteps)
        kept = share(len(steps), strength)
        if kept < 1:
            raise ValueError(
                f"strength = {strength} leaves none of {len(steps)} timesteps; raise it to at "
                f"least {1 / len(steps)}, or give more timesteps."
            )
        return steps[len(steps) - kept :]
    original_steps = check_int("original_steps", original_steps, 1)
    if original_steps > num_train_timesteps:
        raise ValueError(
            f"original_steps = {original_steps} is more than num_train_timesteps = "
            f"{num_train_timesteps}; the distillation grid holds whole timesteps: lower it."
        )
    num_steps = check_int("num_steps", num_steps, 1)
    length = share(original_steps, strength)
    if num_steps > length:
        raise ValueError(
            f"num_steps = {num_steps} is more than the {length} timesteps that original_steps = "
            f"{original_steps} at strength = {strength} holds; take fewer steps, more strength or "
            "a finer original_steps."
        )
    origin = np.arange(1, length + 1) * (num_train_timesteps // original_steps) - 1
    chosen = np.floor(np.linspace(0, length, num_steps, endpoint=False)).astype(np.int64)
    return origin[::-1][chosen]


def _custom_lcm_timesteps(num_train_timesteps: int, timesteps: Any) -> np.ndarray:
    last = num_train_timesteps - 1
    steps = check_vector("timesteps", timesteps)
    if np.any(steps != np.round(steps)):
        raise ValueError(f"timesteps = {steps.tolist()} are not all whole; round them yourself.")
    if steps.min() < 0 or steps.max() > last:
        raise ValueError(
            f"timesteps = {steps.tolist()} leave [0, {last}], the training timesteps; keep inside."
        )
    if np.any(np.diff(steps) >= 0):
        raise ValueError(f"timesteps = {steps.tolist()} are not strictly descending; sort them.")
    return steps.astype(np.int64)
