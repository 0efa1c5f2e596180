"""Rectified flow: noise levels on the straight line `x = (1 - sigma) * x0 + sigma * eps`.

The network predicts the velocity `v = eps - x0` of that line. alpha + sigma = 1 replaces alpha = 1
in the tables; sigma is what the papers call t, and the network receives `T * sigma`.

Liu et al. 2022 (arXiv:2209.03003); Lipman et al. 2022 (arXiv:2210.02747); Esser et al. 2024
(arXiv:2403.03206), section 5.3.2 and equation 23, for the shift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kdiff_jax._arrays import Array, common_namespace, is_traced
from kdiff_jax._checks import (
    check_int,
    check_number,
    check_sigmas,
    check_within,
    plural,
)
from kdiff_jax._levels.shift import check_terminal, dynamic_shift
from kdiff_jax._levels.spacing import TIMESTEP_GRIDS, GridOptions, check_flow_options, shaped_sigmas
from kdiff_jax._levels.split import Split, flow_split
from kdiff_jax._levels.timestep_grids import flow_grid
from kdiff_jax._levels.training import clean_and_noise, flow_timesteps, inside_or_nan


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FlowSchedule:
    """The noise levels of a rectified flow, `x = (1 - sigma) x0 + sigma eps`, sigma in (0, 1].

    Takes the place of a `NoiseSchedule` in `kd.levels`. Made by `kd.flow_schedule`.

    Attributes:
      shift: how much later in the noise the steps are taken; 1 is evenly.
      sigma_min: where a "linspace" grid ends before it is shifted.
      shift_terminal: None, or the level that a shifted grid is stretched to end at.
      num_train_timesteps: T; the network receives `T * sigma`; static.

    Example:
      >>> import kdiff_jax as kd
      >>> kd.flow_schedule(shift=3.0)
      FlowSchedule(shift 3, 1000 timesteps)
    """

    shift: Array | float
    sigma_min: Array | float | None
    shift_terminal: Array | float | None = None
    num_train_timesteps: int = field(default=1000, metadata={"static": True})

    def sigma_at(self, timestep: ArrayLike | Sequence[float]) -> Array:
        """Sigma at a timestep: `timestep / T`, whatever the shift.

        Args:
          timestep: any shape, in [0, T].

        Returns:
          The same shape: float64 NumPy for values, a traced array for traced ones.

        Example:
          >>> import kdiff_jax as kd
          >>> float(kd.flow_schedule(shift=3.0).sigma_at(250.0))
          0.25

        Source: `ModelSamplingDiscreteFlow` of ComfyUI, `set_timesteps` of diffusers.
        """
        last = self.num_train_timesteps
        timestep = check_within("timestep", timestep, 0, last, "the timesteps of this flow")
        return common_namespace(timestep)[1] / last

    def timestep_at(self, sigma: ArrayLike | Sequence[float]) -> Array:
        """The timestep that the network receives at a noise level: `T * sigma`, whatever the shift.

        Args:
          sigma: any shape, in [0, 1].

        Returns:
          The same shape: float64 NumPy for values, a traced array for traced ones.

        Example:
          >>> import kdiff_jax as kd
          >>> float(kd.flow_schedule(shift=3.0).timestep_at(0.25))
          250.0

        Source: `_sigma_to_t` of diffusers' FlowMatchEulerDiscreteScheduler.
        """
        sigma = check_within("sigma", sigma, 0, 1, "the levels of a flow")
        return common_namespace(sigma)[1] * self.num_train_timesteps

    def shifted(self, sigmas: ArrayLike | Sequence[float]) -> Array:
        """Noise levels moved by the shift: `shift * s / (1 + (shift - 1) * s)`.

        With a shift_terminal they are then stretched from 1 down, so that the last becomes it:
        `1 - (1 - s) * (1 - shift_terminal) / (1 - s[-1])`.

        Args:
          sigmas: [N] levels in (0, 1], descending; `kd.levels(flow, sigmas=)` takes the result.

        Returns:
          [N] levels: float64 NumPy for values, a traced array for traced ones.

        Example:
          >>> import numpy as np, kdiff_jax as kd
          >>> kd.flow_schedule(shift=3.0).shifted([1.0, 0.5]).tolist()
          [1.0, 0.75]

        Source: Esser et al. 2024 (arXiv:2403.03206), equation 23; `stretch_shift_to_terminal` of
        diffusers' FlowMatchEulerDiscreteScheduler.
        """
        sigmas = check_within("sigmas", sigmas, 0, 1, "so they are no grid of a flow")
        xp, shift, s = common_namespace(self.shift, sigmas)
        # 1 + (shift - 1) * s in another form: 1 stays 1 in floats too, with a shift below 1.
        levels = shift * s / (shift * s + (1 - s))
        if self.shift_terminal is None:
            return levels
        xp, levels, terminal = common_namespace(levels, self.shift_terminal)
        # A grid of nothing but pure noise has no end to stretch.
        gap = 1 - levels[..., -1:]
        scale = (1 - terminal) / xp.where(gap > 0, gap, 1)
        return 1 - (1 - levels) * scale

    def add_noise(self, x0: ArrayLike, eps: ArrayLike, timesteps: ArrayLike) -> jax.Array:
        """Clean data brought to a level, for training: `(1 - s) x0 + s eps`, `s = timestep / T`.

        Args:
          x0: [B, ...] clean samples; a NumPy array of pixels in [0, 255] warns.
          eps: the shape of x0, unit Gaussian noise.
          timesteps: [B] in [0, T], whole or fractional. Under jit a sample whose timestep lies
            outside is NaN, since a trace cannot raise.

        Returns:
          [B, ...] noised samples, float32 (float64 where x0 is).

        Raises:
          ValueError: shapes that do not fit, timesteps out of range.

        Example:
          >>> import jax.numpy as jnp, kdiff_jax as kd
          >>> flow = kd.flow_schedule()
          >>> flow.add_noise(jnp.zeros((2, 1)), jnp.ones((2, 1)), jnp.array([250, 1000])).tolist()
          [[0.25], [1.0]]

        Source: Liu et al. 2022 (arXiv:2209.03003), equation 1; `scale_noise` of diffusers.
        """
        x0, eps = _pair(x0, eps)
        last = self.num_train_timesteps
        timesteps = flow_timesteps(timesteps, last, x0)
        sigma = inside_or_nan(timesteps, last, timesteps / last)
        sigma = sigma.reshape(sigma.shape + (1,) * (x0.ndim - 1))
        return (1 - sigma) * x0 + sigma * eps

    def velocity(
        self, x0: ArrayLike, eps: ArrayLike, timesteps: ArrayLike | None = None
    ) -> jax.Array:
        """What a flow_prediction network is trained to predict, at every level: `eps - x0`.

        Args and errors as for `add_noise`; timesteps, as a NoiseSchedule takes them, do nothing.

        Returns:
          [B, ...] velocities, float32 (float64 where x0 is).

        Example:
          >>> import jax.numpy as jnp, kdiff_jax as kd
          >>> kd.flow_schedule().velocity(jnp.ones((1, 2)), jnp.zeros((1, 2))).tolist()
          [[-1.0, -1.0]]

        Source: Liu et al. 2022 (arXiv:2209.03003), equation 1.
        """
        x0, eps = _pair(x0, eps)
        if timesteps is not None:
            flow_timesteps(timesteps, self.num_train_timesteps, x0)
        return eps - x0

    @property
    def flow(self) -> bool:
        """True: alpha + sigma is 1 in its tables."""
        return True

    @property
    def zero_terminal_snr(self) -> bool:
        """False: a flow network is trained at the level without a signal."""
        return False

    def finite(self) -> FlowSchedule:
        """Itself: no level of a flow is infinite."""
        return self

    def alpha_at(self, sigma: Array) -> Array:
        """What x0 is weighted by at a level: `1 - sigma`."""
        return 1 - common_namespace(sigma)[1]

    def units(self, sigma: Array) -> tuple[Array, Array, None]:
        """alpha, sigma and input_scale (None: 1) of the rows of a table."""
        return self.alpha_at(sigma), sigma, None

    def unit_variance(self, sigma: Array) -> tuple[Array, Array]:
        """alpha and sigma in a latent-consistency table: those of the line."""
        return self.alpha_at(sigma), sigma

    def split(self, s0: Array, s1: Array, eta: Array) -> Split:
        """sigma_down, sigma_up and keep of ancestral steps from s0 to s1."""
        return flow_split(s0, s1, eta)

    def check_options(self, options: GridOptions) -> None:
        """Refuses what counts along training timesteps, and levels that the line does not have."""
        check_flow_options(options)

    def grid_levels(self, num_steps: int, options: GridOptions) -> tuple[Array, Array]:
        """The N levels that the options of `kd.levels` ask for, and their timesteps."""
        grid, low, high = options.grid, options.sigma_min, options.sigma_max
        if grid is None:
            sigmas = self.spaced(num_steps, options.timestep_spacing)
        elif grid in TIMESTEP_GRIDS:
            steps = self.num_train_timesteps
            lowest = replace(self, shift_terminal=None).shifted(1 / steps)
            sigmas = self.shifted(flow_grid(grid, steps, num_steps, lowest))
        else:
            low = self._lowest(num_steps, options.timestep_spacing) if low is None else low
            high = 1.0 if high is None else high
            sigmas = shaped_sigmas(grid, num_steps, low, high, options.rho)
        return sigmas, self.timestep_at(sigmas)

    def _lowest(self, num_steps: int, timestep_spacing: str) -> Array:
        """Where a shaped grid ends: at the last level of its spacing, shifted once."""
        steps = self.num_train_timesteps
        if timestep_spacing == "trailing" or self.shift_terminal is not None or steps == 1:
            return self.spaced(num_steps, timestep_spacing)[-1]
        return self.shifted(1 / steps)

    def spaced(self, num_steps: int, timestep_spacing: str = "linspace") -> Array:
        """The N levels of a spacing, descending from 1, shifted; [N].

        linspace: from 1 to sigma_min; trailing: `1 - i / N`, which FluxPipeline passes.
        """
        if timestep_spacing == "trailing":
            return self.shifted(1 - np.arange(num_steps) / num_steps)
        if self.num_train_timesteps == 1 and num_steps > 1:
            raise ValueError(
                "timestep_spacing = 'linspace' ends at 1 / num_train_timesteps, which is 1 here; "
                "take 'trailing', or sigmas=[...]."
            )
        _, lowest, ramp = common_namespace(self.sigma_min, np.linspace(0, 1, num_steps))
        return self.shifted((1 - ramp) + ramp * lowest)

    def given_timesteps(self, timesteps: ArrayLike | Sequence[float]) -> tuple[Array, Array]:
        """The levels of timesteps that a caller chose, and the timesteps."""
        return self.given_sigmas(check_sigmas("timesteps", timesteps) / self.num_train_timesteps)

    def given_sigmas(self, sigmas: ArrayLike | Sequence[float]) -> tuple[Array, Array]:
        """Levels that a caller chose, and the timesteps that the network receives."""
        levels = check_sigmas("sigmas", sigmas)
        if is_traced(levels):
            levels = jnp.where(levels[0] <= 1, levels, np.nan)
        elif levels[0] > 1:
            raise ValueError(
                f"sigmas begin at {levels[0]}, which is no level of a rectified flow; expected "
                "them in (0, 1]."
            )
        return levels, self.timestep_at(levels)

    def __repr__(self) -> str:
        shift = "traced" if is_traced(self.shift) else f"{float(self.shift):.4g}"
        return f"FlowSchedule(shift {shift}, {plural(self.num_train_timesteps, 'timestep')})"


def flow_schedule(
    shift: ArrayLike = 1.0,
    *,
    mu: ArrayLike | None = None,
    image_seq_len: int | None = None,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
    base_image_seq_len: int = 256,
    max_image_seq_len: int = 4096,
    shift_terminal: ArrayLike | None = None,
    num_train_timesteps: int = 1000,
) -> FlowSchedule:
    """The noise levels of a rectified flow, shifted by a number or by the size of the image.

    `sigma' = shift * sigma / (1 + (shift - 1) * sigma)`; of a dynamic shift `shift = exp(mu)`, and
    mu runs through (base_image_seq_len, base_shift) and (max_image_seq_len, max_shift).

    Args:
      shift: positive; 3 for Stable Diffusion 3. May be traced.
      mu: in place of shift, its logarithm. May be traced.
      image_seq_len: in place of both, the tokens of an image: mu is linear in it, as for FLUX.1
        dev, whose 1024 x 1024 pixels are 4096 tokens.
      base_shift, max_shift, base_image_seq_len, max_image_seq_len: the two points of that line.
      shift_terminal: stretch every shifted grid so that its last level is this one, in (0, 1).
      num_train_timesteps: T; the network receives `T * sigma`, with T = 1 sigma itself.

    Returns:
      A FlowSchedule. Its "linspace" grid runs from 1 to `sigma_min` and is then shifted:
      `sigma_min` is `1 / T` of a dynamic shift, and of a fixed one the level that the shift makes
      of it, so that the end is shifted twice. That is how diffusers does it. A grid that has a
      name ends at `1 / T`, shifted once, as in ComfyUI.

    Raises:
      ValueError: more than one of shift, mu and image_seq_len; a shift that is not positive, a
        shift_terminal outside (0, 1), a T that is no positive integer, two sequence lengths
        that are one.

    Example:
      >>> import kdiff_jax as kd
      >>> flow = kd.flow_schedule(shift=3.0)
      >>> schedule = kd.dpm2(kd.levels(flow, 28))
      >>> schedule.num_rows, schedule.rows.timestep[0].item()
      (55, 1000.0)
      >>> round(float(kd.flow_schedule(image_seq_len=4096).shift), 4)
      3.1582

    Source: Esser et al. 2024 (arXiv:2403.03206), section 5.3.2; `calculate_shift` of diffusers'
    FluxPipeline, FlowMatchEulerDiscreteScheduler.
    """
    num_train_timesteps = check_int("num_train_timesteps", num_train_timesteps, 1)
    check_within("shift", check_number("shift", shift, above=0), 1e-35, 1e35, "the range of shifts")
    given = {"mu": mu, "image_seq_len": image_seq_len}
    named = [name for name, value in given.items() if value is not None]
    if named and (is_traced(shift) or shift != 1):
        named.insert(0, "shift")
    if len(named) > 1:
        raise ValueError(f"{' and '.join(named)} were given, and each is a shift; give one.")
    points = base_shift, max_shift, base_image_seq_len, max_image_seq_len
    line = dynamic_shift(1 if image_seq_len is None else image_seq_len, *points)
    mu = mu if image_seq_len is None else line
    terminal = check_terminal(shift_terminal)
    lowest = 1 / num_train_timesteps
    if mu is not None:
        name = "mu" if image_seq_len is None else "mu from image_seq_len, base_shift, max_shift"
        xp, mu = common_namespace(check_number(name, mu))
        check_within(name, mu, -80, 80, "where the logarithm of a shift can lie")
        return FlowSchedule(xp.exp(mu), lowest, terminal, num_train_timesteps)
    fixed = FlowSchedule(check_number("shift", shift, above=0), None)
    return FlowSchedule(fixed.shift, fixed.shifted(lowest), terminal, num_train_timesteps)


def _pair(x0: ArrayLike, eps: ArrayLike) -> tuple[jax.Array, jax.Array]:
    x0, eps = clean_and_noise(x0, eps)
    if x0.ndim < 1 or x0.shape != eps.shape:
        raise ValueError(f"x0 {x0.shape} and eps {eps.shape} differ; expected [B, ...] both.")
    return x0, eps
