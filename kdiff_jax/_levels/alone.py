"""Noise levels by themselves: no training schedule, and a network that receives sigma."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
from jax.typing import ArrayLike

from kdiff_jax._arrays import Array, common_namespace
from kdiff_jax._checks import check_kind, check_sigmas, shown
from kdiff_jax._levels.protocol import Noise
from kdiff_jax._levels.spacing import SIGMA_GRIDS, GridOptions, shaped_sigmas
from kdiff_jax._levels.split import Split, variance_split
from kdiff_jax._levels.units import input_scale_at, unit_variance

_KINDS: set[type] = set()  # those that were found to be kinds of Noise


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SigmasAlone:
    """What `noise=None` means: `x = x0 + sigma * eps`, and the network receives sigma."""

    flow = False
    zero_terminal_snr = False

    def finite(self) -> SigmasAlone:
        return self

    def alpha_at(self, sigma: Array) -> Array:
        xp, sigma = common_namespace(sigma)
        return xp.ones_like(sigma)

    def timestep_at(self, sigma: ArrayLike | Sequence[float]) -> Array:
        return common_namespace(sigma)[1]

    def units(self, sigma: Array) -> tuple[None, Array, Array]:
        return None, sigma, input_scale_at(sigma)

    def unit_variance(self, sigma: Array) -> tuple[Array, Array]:
        return unit_variance(sigma)

    def split(self, s0: Array, s1: Array, eta: Array) -> Split:
        return variance_split(s0, s1, eta)

    def grid_levels(self, num_steps: int, options: GridOptions) -> tuple[Array, Array]:
        ends = options.sigma_min, options.sigma_max
        sigmas = shaped_sigmas(options.grid, num_steps, *ends, options.rho)
        return sigmas, sigmas

    def given_timesteps(self, timesteps: ArrayLike | Sequence[float]) -> tuple[Array, Array]:
        raise ValueError(
            f"noise = None has no training timesteps, so timesteps = {shown(timesteps)} mean no "
            "levels; give sigmas=[...], or a noise schedule."
        )

    def given_sigmas(self, sigmas: ArrayLike | Sequence[float]) -> tuple[Array, Array]:
        levels = check_sigmas("sigmas", sigmas)
        return levels, levels

    def check_options(self, options: GridOptions) -> None:
        ends = {"sigma_min": options.sigma_min, "sigma_max": options.sigma_max}
        if options.verbatim:
            ends = {}
        elif options.grid not in SIGMA_GRIDS:
            raise ValueError(
                f"noise = None has no training timesteps, which grid={options.grid!r} and "
                "timesteps= need; give sigmas=[...], or sigma_min, sigma_max and one of "
                f"{', '.join(SIGMA_GRIDS)}."
            )
        elif options.grid == "linear_quadratic":
            del ends["sigma_min"]
        if missing := [name for name, value in ends.items() if value is None]:
            raise ValueError(
                f"noise = None has no noise levels of training for grid={options.grid!r} to run "
                f"between; give {' and '.join(missing)}, or sigmas=[...]."
            )
        spaced = options.timestep_spacing != "linspace" or options.steps_offset != 0
        if spaced or options.round_timesteps:
            raise ValueError(
                f"timestep_spacing={options.timestep_spacing!r}, steps_offset = "
                f"{options.steps_offset} and round_timesteps={options.round_timesteps} are about "
                "training timesteps, and noise = None has none; leave them out."
            )


def kind_of(noise: Noise | None) -> Noise:
    """The noise levels of training that a caller gave; None means sigmas alone."""
    if noise is None:
        return SigmasAlone()
    # Once a type: to ask an object for a protocol takes as long as to make the levels.
    if type(noise) not in _KINDS:
        remedy = "kd.noise_schedule(...), kd.flow_schedule(...), or None for sigmas alone"
        # hasattr, since isinstance sees nothing behind a __getattr__ from Python 3.12 on.
        kept = all(hasattr(noise, name) for name in vars(Noise) if name[0] != "_")
        _KINDS.add(type(check_kind("noise", noise, object if kept else Noise, remedy)))
    return noise
