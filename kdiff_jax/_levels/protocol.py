"""The one protocol of the three kinds of noise levels: a beta schedule, a flow, sigmas alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jax.typing import ArrayLike

from kdiff_jax._arrays import Array
from kdiff_jax._levels.spacing import GridOptions
from kdiff_jax._levels.split import Split


@runtime_checkable
class Noise(Protocol):
    """What `kd.levels` and the tables need to know of the levels that a network was trained on.

    Kept by `NoiseSchedule`, `FlowSchedule` and `SigmasAlone`. Numbers are float64 NumPy arrays on
    the host, or traced ones; sigma is in the units of `Levels.sigmas`.
    """

    @property
    def flow(self) -> bool:
        """Whether alpha + sigma is 1, instead of alpha."""

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether the highest level holds no signal, or next to none."""

    def finite(self) -> Noise:
        """The same levels, the highest one with a sigma that a sample can have."""

    def alpha_at(self, sigma: Array) -> Array:
        """What x0 is weighted by at a level: `x = alpha * x0 + sigma * eps`."""

    def timestep_at(self, sigma: ArrayLike | Sequence[float]) -> Array:
        """The timestep that the network receives at a level."""

    def units(self, sigma: Array) -> tuple[Array | None, Array, Array | None]:
        """alpha, sigma and input_scale of rows at these levels; None where they are 1."""

    def unit_variance(self, sigma: Array) -> tuple[Array, Array]:
        """alpha and sigma of a latent-consistency run: of unit variance, or on the flow's line."""

    def grid_levels(self, num_steps: int, options: GridOptions) -> tuple[Array, Array]:
        """The N levels that the options ask for, descending, and their timesteps."""

    def given_timesteps(self, timesteps: ArrayLike | Sequence[float]) -> tuple[Array, Array]:
        """The levels of timesteps that a caller chose, and the timesteps; checked."""

    def given_sigmas(self, sigmas: ArrayLike | Sequence[float]) -> tuple[Array, Array]:
        """Levels that a caller chose, and their timesteps; checked."""

    def check_options(self, options: GridOptions) -> None:
        """Refuses the options that these levels have no meaning for."""

    def split(self, s0: Array, s1: Array, eta: Array) -> Split:
        """sigma_down, sigma_up and keep of ancestral steps from s0 to s1."""
