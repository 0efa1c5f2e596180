"""`kd.levels`: which noise levels a run visits, by spacing, by a grid, or one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jax.typing import ArrayLike

from kdiff_jax._arrays import Array, common_namespace, is_traced
from kdiff_jax._checks import (
    LARGEST_COUNT,
    as_the_table_rounds,
    check_flag,
    check_int,
    check_strength,
)
from kdiff_jax._levels.alone import kind_of
from kdiff_jax._levels.flow import FlowSchedule
from kdiff_jax._levels.levels import Levels
from kdiff_jax._levels.noise_schedule import NoiseSchedule
from kdiff_jax._levels.protocol import Noise
from kdiff_jax._levels.spacing import GridName, GridOptions, TimestepSpacing, check_options


def levels(
    noise: NoiseSchedule | FlowSchedule | None,
    num_steps: int | None = None,
    *,
    grid: GridName | None = None,
    timestep_spacing: TimestepSpacing = "linspace",
    steps_offset: int = 0,
    rho: ArrayLike | None = None,
    sigma_min: ArrayLike | None = None,
    sigma_max: ArrayLike | None = None,
    timesteps: ArrayLike | Sequence[float] | None = None,
    sigmas: ArrayLike | Sequence[float] | None = None,
    round_timesteps: bool = False,
    discard_penultimate: bool = False,
    strength: float = 1.0,
) -> Levels:
    """The noise levels of a run of N steps: by spacing, by a grid, or one by one.

    `sigmas[0] > ... > sigmas[N - 1] > sigmas[N] = 0`; every sampler fills its table from them.

    Args:
      noise: the noise levels of training, from `kd.noise_schedule`; one with zero terminal SNR
        ends in abar = 2**-24, a sigma of 4096, as in diffusers' Euler. A rectified flow from
        `kd.flow_schedule`. None: the network receives sigma as its timestep.
      num_steps: N; left out where timesteps or sigmas are given.
      grid: None takes the sigmas of the timesteps of `timestep_spacing`. "karras",
        "exponential", "polyexponential", "vp", "beta", "kl_optimal" and "laplace" run from the
        first to the last of them in their own spacing, "linear_quadratic" from the first to 0:
        see `kd.karras_sigmas` and so on, whose result with other parameters goes into sigmas.
        "normal", "simple", "sgm_uniform", "ddim_uniform" and "beta_timesteps" have timesteps of
        their own, as in ComfyUI: even ones from T - 1 to 0, `T - 1 - floor(i T / N)`, even ones
        without the last 0, `1 + i (T // N)`, and `kd.beta_timesteps`. On a rectified flow timestep
        t of these is the level `(t + 1) / T`, shifted, and even ones run from 1 to `1 / T` shifted,
        and are shifted again, as in ComfyUI. It has no "vp" and "laplace"; the others run from 1
        down to the last level of its spacing.
      timestep_spacing: "linspace" (N values from T - 1 to 0), "leading" or "trailing"; "leading"
        also makes init_noise_sigma `sqrt(sigma_max^2 + 1)` instead of sigma_max. A rectified flow
        has "linspace" (1 to its sigma_min) and "trailing" (`1 - i / N`), then shifted.
      steps_offset: added to the timesteps of "leading".
      rho: the exponent of a Karras (7 by default) or polyexponential (1) grid.
      sigma_min, sigma_max: ends of a grid in place of those of the timestep spacing; needed where
        noise is None. These three may be traced, for sweeps and gradients.
      timesteps: training timesteps, strictly descending, whole or fractional, used verbatim.
      sigmas: noise levels, strictly descending, used verbatim; a closing 0 may end them. Levels
        far above those of training warn: the network is told the last timestep at each of them.
        May be traced, under jit without the 0: their count is a shape, and cannot depend on it.
      round_timesteps: round the timesteps of grid points, not of midpoints, as diffusers does on
        a Karras grid; the sigmas stay, so the network receives a timestep that is slightly off.
      discard_penultimate: build the grid of N + 1 steps and leave out its last level before 0, as
        ComfyUI does for DPM2; N steps are left.
      strength: in (0, 1], for image to image: exactly N steps below it, the last N of
        `floor(N / strength)`. `levels.start_at_strength` keeps `N * strength` of N instead.

    Returns:
      Levels, float64 on the host, or traced where an argument is. Traced levels that are not
      strictly descending and positive (a 0 at their end, ends in the wrong order, timesteps
      out of range) cannot be refused, and all of them are NaN.

    Raises:
      ValueError: noise that is none; N that is no positive integer, unknown names, two grids at
        once, leading or trailing with N > T, an offset past T - 1, ends in the wrong order, lists
        that do not descend, levels that the float of the tables cannot hold or tell apart, a
        strength outside (0, 1] or with a list; noise=None with anything that needs training
        timesteps; rounding, "vp" or "laplace" on a rectified flow.

    Example:
      >>> import kdiff_jax as kd
      >>> noise = kd.noise_schedule("scaled_linear")
      >>> kd.levels(noise, 25, grid="karras")
      Levels(25 steps, sigma 14.61 .. 0.02917 .. 0)
      >>> kd.levels(noise, 20, strength=0.3).num_steps
      20
      >>> kd.levels(None, 20, grid="karras", sigma_min=0.002, sigma_max=80.0)
      Levels(20 steps, sigma 80 .. 0.002 .. 0)

    Source: Lin et al. 2023 (arXiv:2305.08891), table 2, for the spacings; `set_timesteps` of
    diffusers; the schedulers and `denoise` of ComfyUI's KSampler; each grid names its own.
    """
    kind = kind_of(noise)
    check_flag("discard_penultimate", discard_penultimate)
    lists = {"timesteps": timesteps, "sigmas": sigmas}
    given = {name: value for name, value in lists.items() if value is not None}
    options = GridOptions(
        grid,
        timestep_spacing,
        check_int("steps_offset", steps_offset, 0),
        rho,
        sigma_min,
        sigma_max,
        round_timesteps,
        verbatim=bool(given),
    )
    check_options(options)
    kind.check_options(options)
    kind = kind.finite()
    if given:
        _check_one_grid(options, given, discard_penultimate, strength)
        name, values = next(iter(given.items()))
        verbatim = kind.given_sigmas if name == "sigmas" else kind.given_timesteps
        return _whole_run(kind, options, name, *_counted(verbatim(values), num_steps, name))
    if num_steps is None:
        raise ValueError(
            "num_steps is missing; give it, or timesteps=[...] or sigmas=[...] to use verbatim."
        )
    num_steps = check_int("num_steps", num_steps, 1)
    total = _steps_in_all(num_steps, strength)
    # The last level before the 0 is dropped again, so that N stays N.
    count = total + bool(discard_penultimate)
    try:
        built = kind.grid_levels(count, options)
    except ValueError as error:
        if count == num_steps:
            raise
        causes = [f"strength = {strength}"] if total > num_steps else []
        causes += ["discard_penultimate=True"] if discard_penultimate else []
        builds = "builds" if len(causes) == 1 else "build"
        raise ValueError(f"{' and '.join(causes)} {builds} {count} steps: {error}") from None
    whole = _whole_run(kind, options, f"noise = {kind!r}", *(part[:total] for part in built))
    return whole.start_at(total - num_steps)


def _steps_in_all(num_steps: int, strength: float) -> int:
    """The steps of the run of which exactly N lie below a strength."""
    # Rounded first: 29 / 0.58 is 50.00000000000001 in binary, and others fall short.
    steps = round(num_steps / check_strength(strength), 9)
    if steps > LARGEST_COUNT:
        raise ValueError(
            f"strength = {strength} and num_steps = {num_steps} make a run of {steps:.3g} steps; "
            "raise the strength."
        )
    return math.floor(steps)


def _whole_run(
    noise: Noise, options: GridOptions, what: str, sigmas: Array, timesteps: Array
) -> Levels:
    sigmas = as_the_table_rounds(what, sigmas)
    xp, sigmas, timesteps, end = common_namespace(sigmas, timesteps, np.zeros(1))
    if options.round_timesteps:
        timesteps = timesteps.round()
    start = sigmas[0]
    return Levels(
        xp.concatenate([sigmas, end]),
        timesteps,
        noise,
        xp.sqrt(start**2 + 1) if options.timestep_spacing == "leading" else start,
        zero_terminal_snr=noise.zero_terminal_snr,
    )


def _check_one_grid(
    options: GridOptions, given: Mapping[str, object], discard: bool, strength: float
) -> None:
    others = {
        "grid": options.grid,
        "sigma_min": options.sigma_min,
        "sigma_max": options.sigma_max,
        **given,
        "discard_penultimate": True if discard else None,
    }
    named = [name for name, value in others.items() if value is not None]
    if len(named) > 1:
        raise ValueError(f"{' and '.join(named)} were given, and each makes a grid; give one.")
    if is_traced(strength) or check_strength(strength) != 1:
        raise ValueError(
            f"strength = {strength} was given with {named[0]}, which are all levels of the run; "
            "leave it out, and cut with levels.start_at_strength(strength)."
        )


def _counted(
    verbatim: tuple[Array, Array], num_steps: int | None, name: str
) -> tuple[Array, Array]:
    count = verbatim[0].shape[0]
    if num_steps is not None and check_int("num_steps", num_steps, 1) != count:
        raise ValueError(
            f"num_steps = {num_steps} and {name} holds {count} steps; leave num_steps out, or "
            "make them agree."
        )
    return verbatim
