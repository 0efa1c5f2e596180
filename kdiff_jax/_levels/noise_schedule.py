"""The noise levels that a network was trained on: betas, alphas_cumprod, sigma <-> timestep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kdiff_jax._arrays import Array, common_namespace, is_traced
from kdiff_jax._checks import (
    as_array,
    as_numbers,
    check_flag,
    check_int,
    check_sigmas,
    check_vector,
    check_within,
    equal_or_refused,
    plural,
    shown,
    traced_vector,
)
from kdiff_jax._levels.betas import BetaSchedule, betas_of, noise_of
from kdiff_jax._levels.spacing import TIMESTEP_GRIDS, GridOptions, shaped_sigmas, spaced_timesteps
from kdiff_jax._levels.split import Split, variance_split
from kdiff_jax._levels.timestep_grids import grid_timesteps
from kdiff_jax._levels.training import clean_and_noise, inside_or_nan, warn_above_training
from kdiff_jax._levels.units import input_scale_at, unit_variance


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NoiseSchedule:
    """The training noise levels of a variance-preserving diffusion, `x_t = a_t x0 + s_t eps`.

    With `abar = alphas_cumprod`: `a_t = sqrt(abar_t)`, `s_t = sqrt(1 - abar_t)` and
    `sigma_t = s_t / a_t`. Both tables are float64 on the host: whatever is built from them is
    rounded once. Made by `kd.noise_schedule`.

    Attributes:
      alphas_cumprod: [T] float64, the share of the variance that is signal, falling.
      sigmas: [T] float64, noise over signal, rising; infinite at the end of a schedule with zero
        terminal signal-to-noise ratio.
      zero_terminal_snr: whether it was built that way; static.

    Example:
      >>> import kdiff_jax as kd
      >>> kd.noise_schedule("scaled_linear")
      NoiseSchedule(1000 timesteps, sigma 0.02917 .. 14.61)
    """

    alphas_cumprod: np.ndarray
    sigmas: np.ndarray
    zero_terminal_snr: bool = field(default=False, metadata={"static": True})

    @property
    def num_train_timesteps(self) -> int:
        """T, the number of training timesteps."""
        return self.sigmas.shape[-1]

    def sigma_at(self, timestep: ArrayLike | Sequence[float]) -> Array:
        """Sigma at training timesteps, whole or fractional: linear in sigma between neighbours.

        Args:
          timestep: any shape, in [0, T - 1]; beyond the ends the end's value holds.

        Returns:
          The same shape: float64 NumPy for values, a traced array for traced ones.

        Example:
          >>> import kdiff_jax as kd
          >>> noise = kd.noise_schedule("scaled_linear")
          >>> round(float(noise.sigma_at(999)), 4)
          14.6146

        Source: the interpolation in `set_timesteps` of diffusers' KDPM2DiscreteScheduler.
        """
        timestep = check_within("timestep", timestep, -np.inf, np.inf, "the numbers")
        count = self.num_train_timesteps
        xp, t, grid, table = common_namespace(timestep, np.arange(count), self.sigmas)
        # Zero terminal SNR: an infinite end, which no product with 0 may meet.
        beyond = xp.isinf(table[-1]) & (t > count - 2)
        return xp.where(beyond, np.inf, xp.interp(t, grid, xp.where(xp.isinf(table), 0, table)))

    def timestep_at(self, sigma: ArrayLike | Sequence[float]) -> Array:
        """The fractional training timestep of a noise level: linear in log sigma.

        Args:
          sigma: any shape, positive; outside the training range the nearest end's timestep.

        Returns:
          The same shape, in [0, T - 1]: float64 NumPy for values, traced for traced ones.

        Raises:
          ValueError: a sigma that is not positive: log sigma does not exist there.

        Example:
          >>> import kdiff_jax as kd
          >>> noise = kd.noise_schedule("scaled_linear")
          >>> round(float(noise.timestep_at(noise.sigmas[500])), 6)
          500.0

        Source: `_sigma_to_t` of diffusers' KDPM2DiscreteScheduler.
        """
        if is_traced(sigma, self.sigmas):
            log_table = (jnp if is_traced(self.sigmas) else np).log(self.sigmas)
            _, traced, log_table, grid = common_namespace(
                sigma, log_table, np.arange(self.num_train_timesteps)
            )
            # NaN for what the host refuses, and numbers in place of an infinite end.
            log = jnp.where(traced > 0, jnp.log(jnp.where(traced > 0, traced, 1)), np.nan)
            return jnp.interp(jnp.minimum(log, 1e30), jnp.minimum(log_table, 1e30), grid)
        levels = as_numbers("sigma", sigma)
        if not np.all(levels > 0):
            raise ValueError(
                f"sigma = {shown(sigma)} is not positive everywhere; a noise level to look up must "
                "be: leave out the closing 0 of a grid."
            )
        return np.interp(
            np.log(levels),
            np.log(self.sigmas),
            np.arange(self.num_train_timesteps),
        )

    def add_noise(self, x0: ArrayLike, eps: ArrayLike, timesteps: ArrayLike) -> jax.Array:
        """Clean data brought to training timesteps, for training: `a_t x0 + s_t eps`.

        Args:
          x0: [B, ...] clean samples; a NumPy array of pixels in [0, 255] warns.
          eps: the shape of x0, unit Gaussian noise.
          timesteps: [B] integers in [0, T - 1]. Under jit a sample whose timestep lies outside is
            NaN, since a trace cannot raise.

        Returns:
          [B, ...] noised samples, float32 (float64 where x0 is).

        Raises:
          ValueError: shapes that do not fit, timesteps that are not integers or out of range.

        Example:
          >>> import jax, jax.numpy as jnp, kdiff_jax as kd
          >>> noise = kd.noise_schedule("linear", beta_start=1e-4, beta_end=0.02)
          >>> x0, eps = jnp.zeros((2, 4)), jnp.ones((2, 4))
          >>> [f"{v:.4f}" for v in noise.add_noise(x0, eps, jnp.array([0, 999]))[:, 0].tolist()]
          ['0.0100', '1.0000']

        Source: Ho et al. 2020 (arXiv:2006.11239), equation 4; `add_noise` of diffusers.
        """
        alpha, sigma, x0, eps = self._at(x0, eps, timesteps)
        return alpha * x0 + sigma * eps

    def velocity(self, x0: ArrayLike, eps: ArrayLike, timesteps: ArrayLike) -> jax.Array:
        """What a v_prediction network is trained to predict: `a_t eps - s_t x0`.

        Args and errors as for `add_noise`.

        Returns:
          [B, ...] velocities, float32 (float64 where x0 is).

        Example:
          >>> import jax.numpy as jnp, kdiff_jax as kd
          >>> noise = kd.noise_schedule("linear", beta_start=1e-4, beta_end=0.02)
          >>> noise.velocity(jnp.ones((1, 4)), jnp.zeros((1, 4)), jnp.array([999])).shape
          (1, 4)

        Source: Salimans and Ho 2022 (arXiv:2202.00512), section 4; `get_velocity` of diffusers.
        """
        alpha, sigma, x0, eps = self._at(x0, eps, timesteps)
        return alpha * eps - sigma * x0

    def _at(self, x0: ArrayLike, eps: ArrayLike, timesteps: ArrayLike) -> tuple[jax.Array, ...]:
        x0, eps = clean_and_noise(x0, eps)
        timesteps = as_array("timesteps", timesteps)
        if x0.ndim < 1 or x0.shape != eps.shape or timesteps.shape != x0.shape[:1]:
            raise ValueError(
                f"x0 {x0.shape}, eps {eps.shape} and timesteps {timesteps.shape} do not fit; "
                "expected [B, ...], the same, and [B]: one timestep a sample."
            )
        if not jnp.issubdtype(timesteps.dtype, jnp.integer):
            raise ValueError(
                f"timesteps are {timesteps.dtype}; expected integers in "
                f"[0, {self.num_train_timesteps - 1}], the training timesteps."
            )
        last = self.num_train_timesteps - 1
        if not is_traced(timesteps) and timesteps.size:
            # A gather clamps what lies outside, which would be another noise level unseen.
            low, high = int(timesteps.min()), int(timesteps.max())
            if low < 0 or high > last:
                raise ValueError(f"timesteps span [{low}, {high}]; expected them in [0, {last}].")
        alpha, sigma = unit_variance(self.sigmas)
        shape = timesteps.shape + (1,) * (x0.ndim - 1)

        def at(table: Array) -> jax.Array:
            values = jnp.asarray(table, x0.dtype)[timesteps]
            return inside_or_nan(timesteps, last, values).reshape(shape)

        return at(alpha), at(sigma), x0, eps

    @property
    def flow(self) -> bool:
        """False: alpha is 1 in its tables, not alpha + sigma."""
        return False

    def finite(self) -> NoiseSchedule:
        """The same levels, but with a last one that `x0 + sigma * eps` can have.

        `abar = 2**-24` in place of 0 is a sigma of 4096, as diffusers' EulerDiscreteScheduler has
        it. Where the level before the last is there already, a quarter of its abar, so that sigma
        still rises.
        """
        if not self.zero_terminal_snr:
            return self
        xp, abar, sigmas = common_namespace(self.alphas_cumprod, self.sigmas)
        before = abar[-2:-1]
        floor = xp.where(before > 2.0**-24, 2.0**-24, before / 4)
        last = xp.sqrt((1 - floor) / floor)
        return replace(
            self,
            alphas_cumprod=xp.concatenate([abar[:-1], floor]),
            sigmas=xp.concatenate([sigmas[:-1], last]),
        )

    def alpha_at(self, sigma: Array) -> Array:
        """What x0 is weighted by in `x0 + sigma * eps`: 1."""
        xp, sigma = common_namespace(sigma)
        return xp.ones_like(sigma)

    def units(self, sigma: Array) -> tuple[None, Array, Array]:
        """alpha (None: 1), sigma and input_scale of the rows of a table."""
        return None, sigma, input_scale_at(sigma)

    def unit_variance(self, sigma: Array) -> tuple[Array, Array]:
        """alpha and sigma in a latent-consistency table: `sqrt(abar)` and `sqrt(1 - abar)`."""
        return unit_variance(sigma)

    def split(self, s0: Array, s1: Array, eta: Array) -> Split:
        """sigma_down, sigma_up and keep of ancestral steps from s0 to s1."""
        return variance_split(s0, s1, eta)

    def check_options(self, options: GridOptions) -> None:
        """Every option of `kd.levels` means something here."""

    def grid_levels(self, num_steps: int, options: GridOptions) -> tuple[Array, Array]:
        """The N levels that the options of `kd.levels` ask for, and their timesteps."""
        count = self.num_train_timesteps
        if options.grid in TIMESTEP_GRIDS:
            timesteps = grid_timesteps(str(options.grid), count, num_steps)
            # Fractional ones have their level log-linearly, as in ComfyUI; timestep_at inverts it.
            xp, timesteps, at, table = common_namespace(timesteps, np.arange(count), self.sigmas)
            return xp.exp(xp.interp(timesteps, at, xp.log(table))), timesteps
        timesteps = spaced_timesteps(count, num_steps, options)
        sigmas = self.sigma_at(timesteps)
        if options.grid is None:
            return sigmas, timesteps
        low = sigmas[-1] if options.sigma_min is None else options.sigma_min
        high = sigmas[0] if options.sigma_max is None else options.sigma_max
        sigmas = shaped_sigmas(options.grid, num_steps, low, high, options.rho)
        return sigmas, self._timesteps_of(sigmas)

    def _timesteps_of(self, levels: Array) -> Array:
        """The timesteps of levels to visit; a warning where no training level is near."""
        noise = self.finite()
        if not is_traced(levels, noise.sigmas):
            warn_above_training(float(levels[0]), float(noise.sigmas[-1]))
        return noise.timestep_at(levels)

    def given_timesteps(self, timesteps: ArrayLike | Sequence[float]) -> tuple[Array, Array]:
        """The levels of timesteps that a caller chose, whole or fractional, and the timesteps."""
        if is_traced(timesteps):
            traced = traced_vector("timesteps", timesteps)
            inside = (traced[0] <= self.num_train_timesteps - 1) & (traced[-1] >= 0)
            traced = jnp.where(inside & jnp.all(jnp.diff(traced) < 0), traced, np.nan)
            return self.sigma_at(traced), traced
        steps = check_vector("timesteps", timesteps)
        last = self.num_train_timesteps - 1
        if steps.min() < 0 or steps.max() > last:
            raise ValueError(
                f"timesteps span [{steps.min()}, {steps.max()}]; expected them in [0, {last}], the "
                "training timesteps."
            )
        if np.any(np.diff(steps) >= 0):
            raise ValueError(
                f"timesteps = {steps.tolist()} are not strictly descending; sort them."
            )
        return self.sigma_at(steps), steps

    def given_sigmas(self, sigmas: ArrayLike | Sequence[float]) -> tuple[Array, Array]:
        """Levels that a caller chose, and the timesteps that the network receives."""
        levels = check_sigmas("sigmas", sigmas)
        return levels, self._timesteps_of(levels)

    def __repr__(self) -> str:
        count = plural(self.num_train_timesteps, "timestep")
        if is_traced(self.sigmas):
            return f"NoiseSchedule({count}, traced)"
        low, high = float(self.sigmas[0]), float(self.sigmas[-1])
        return f"NoiseSchedule({count}, sigma {low:.4g} .. {high:.4g})"

    __eq__ = equal_or_refused


def noise_schedule(
    beta_schedule: BetaSchedule = "scaled_linear",
    num_train_timesteps: int = 1000,
    beta_start: float | None = None,
    beta_end: float | None = None,
    trained_betas: Sequence[float] | np.ndarray | None = None,
    rescale_zero_terminal_snr: bool = False,
) -> NoiseSchedule:
    """The noise levels of training, `abar_t = prod_{s <= t} (1 - beta_s)`, built in float64.

    `linear`: beta from beta_start to beta_end; `scaled_linear`: sqrt(beta) linear between their
    square roots; `squaredcos_cap_v2`: `abar(u) = cos(pi/2 (u + 0.008) / 1.008)^2`, beta at most
    0.999, beta_start and beta_end without effect.

    Args:
      beta_schedule: the name of the schedule.
      num_train_timesteps: T.
      beta_start, beta_end: the first beta and the last, in (0, 1). None: 1e-4 and 0.02 of
        "linear", as DDPM has them, 0.00085 and 0.012 of "scaled_linear", Stable Diffusion's.
      trained_betas: [T] betas given one by one, in (0, 1); they replace the named schedule.
      rescale_zero_terminal_snr: shift and scale sqrt(abar) so that the last one is exactly 0.
        DPM2 and Euler, which need a finite sigma there, take it as 2**-24.

    Returns:
      A NoiseSchedule.

    Raises:
      ValueError: an unknown name, a T that is no positive integer, betas outside (0, 1), traced,
        or of another length than T; levels that do not rise, or that no float32 can hold.

    Example:
      >>> import kdiff_jax as kd
      >>> noise = kd.noise_schedule("squaredcos_cap_v2", num_train_timesteps=100)
      >>> noise.alphas_cumprod.shape, noise.alphas_cumprod.dtype
      ((100,), dtype('float64'))

    Source: Ho et al. 2020 (linear), Rombach et al. 2022 (scaled_linear), Nichol and Dhariwal 2021
    (squaredcos_cap_v2), Lin et al. 2023 (arXiv:2305.08891), Algorithm 1 (zero terminal SNR).
    """
    num_train_timesteps = check_int("num_train_timesteps", num_train_timesteps, 1)
    rescale_zero_terminal_snr = check_flag("rescale_zero_terminal_snr", rescale_zero_terminal_snr)
    betas = betas_of(beta_schedule, num_train_timesteps, beta_start, beta_end, trained_betas)
    alphas_cumprod, sigmas = noise_of(betas, rescale_zero_terminal_snr)
    return NoiseSchedule(alphas_cumprod, sigmas, rescale_zero_terminal_snr)
