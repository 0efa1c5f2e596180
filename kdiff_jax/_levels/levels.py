"""Levels: the noise levels of a run as a value, to be cut, turned over or churned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import jax
import numpy as np
from jax.typing import ArrayLike

from kdiff_jax._arrays import Array, common_namespace, is_traced
from kdiff_jax._checks import (
    check_int,
    check_number,
    equal_or_refused,
    one_per_step,
    plural,
    share,
)
from kdiff_jax._levels.protocol import Noise


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Levels:
    """The noise levels that a run visits, and the timesteps that the network receives.

    Made by `kd.levels` and `kd.lcm_levels`; every sampler is a function of it. Numbers are float64
    NumPy arrays on the host, or traced ones.

    Attributes:
      sigmas: [N + 1] where each step starts, and where the run ends: 0 for a whole run.
      timesteps: [N] what the network receives where each step starts.
      noise: the noise levels of training.
      init_noise_sigma: the standard deviation that initial noise is given.
      raised: None, or [N] the levels that churn raises each step to.
      added: None, or [N + 1] the weight of the noise that raises them, and what the end adds.
      end_timestep: None, or [1] the timestep of the level above 0 that the run ends at.
      first_step: the steps of the whole run before these; static.
      closes: whether the run ends at 0; static.
      zero_terminal_snr: whether the first level may hold no signal; static.

    Example:
      >>> import kdiff_jax as kd
      >>> kd.levels(kd.noise_schedule("scaled_linear"), 4).timesteps.tolist()
      [999.0, 666.0, 333.0, 0.0]
    """

    sigmas: Array
    timesteps: Array
    noise: Noise
    init_noise_sigma: Array
    raised: Array | None = None
    added: Array | None = None
    end_timestep: Array | None = None
    first_step: int = field(default=0, metadata={"static": True})
    closes: bool = field(default=True, metadata={"static": True})
    zero_terminal_snr: bool = field(default=False, metadata={"static": True})

    @property
    def num_steps(self) -> int:
        """N, the steps from a level to the next."""
        return int(self.sigmas.shape[-1]) - 1

    @property
    def starts(self) -> Array:
        """[N] the level that each step starts at: raised where there is churn."""
        return self.sigmas[:-1] if self.raised is None else self.raised

    @property
    def inner(self) -> tuple[Array, Array]:
        """Where the steps that end above 0 start and end, [M] each: all but a closing step."""
        inner = self.num_steps - self.closes
        return self.starts[:inner], self.sigmas[1 : inner + 1]

    def start_at(self, step: int) -> Levels:
        """The rest of the run from a step on, for image to image.

        Noise the image to the first row's level with `kd.add_noise(schedule[0], x0, eps)`. Rows go
        on counting as in the whole run, so the noise of each is what it is there. The first step
        of a multistep sampler is of first order, as it must be: nothing came before it.

        Args:
          step: the steps to drop, from 0 to N - 1.

        Returns:
          Levels of N - step steps; init_noise_sigma is `sqrt(alpha^2 + sigma^2)` of the first.

        Raises:
          ValueError: a step that is no integer, negative, or leaves nothing.

        Example:
          >>> import kdiff_jax as kd
          >>> levels = kd.levels(kd.noise_schedule(), 10).start_at(4)
          >>> levels.num_steps, kd.dpm2(levels).num_rows
          (6, 11)

        Source: `begin_index` of diffusers' schedulers, `start_at_step` of ComfyUI.
        """
        step = check_int("step", step, 0)
        if step >= self.num_steps:
            raise ValueError(
                f"step = {step} is past the end of a run of {self.num_steps} steps; expected at "
                f"most {self.num_steps - 1}."
            )
        if step == 0:
            return self
        start = self.sigmas[step]
        return self._part(step, None, self._init_noise_sigma(start))

    def start_at_strength(self, strength: float) -> Levels:
        """The last `floor(N * strength)` of the N steps, for image to image.

        What the image-to-image pipelines of Stable Diffusion run in diffusers. Exactly N steps
        below a strength are `kd.levels(..., N, strength=strength)`.

        Args:
          strength: in (0, 1]; 1 keeps every step, and with few steps a small one leaves none.

        Returns:
          Levels, as from `start_at`.

        Raises:
          ValueError: a strength outside (0, 1], or one that leaves no step.

        Example:
          >>> import kdiff_jax as kd
          >>> kd.levels(kd.noise_schedule(), 25).start_at_strength(0.3).num_steps
          7

        Source: `get_timesteps` of diffusers' StableDiffusionImg2ImgPipeline.
        """
        kept = share(self.num_steps, strength)
        if kept < 1:
            raise ValueError(
                f"strength = {strength} leaves none of {self.num_steps} outer steps; raise it to "
                f"at least {1 / self.num_steps}, or take more steps."
            )
        return self.start_at(self.num_steps - kept)

    def end_at(self, step: int) -> Levels:
        """The run up to a step, which ends above 0 with a sample that still holds noise.

        `start_at(step)` of the same levels continues it: for one-step samplers the two are
        together the whole run. A multistep run goes on with its own rows, and the State. With
        churn the last row adds the noise that the next step starts from.

        Args:
          step: the steps to keep, from 1 to N; N is the whole run.

        Returns:
          Levels of `step` steps, the last of `sigmas` above 0.

        Raises:
          ValueError: a step that is no integer, below 1, or above N.

        Example:
          >>> import kdiff_jax as kd
          >>> levels = kd.levels(kd.noise_schedule(), 10)
          >>> first, rest = levels.end_at(4), levels.start_at(4)
          >>> float(first.sigmas[-1]) == float(rest.sigmas[0]) > 0
          True

        Source: `denoising_end` of diffusers' Stable Diffusion XL, `end_at_step` of ComfyUI.
        """
        step = check_int("step", step, 1)
        if step > self.num_steps:
            raise ValueError(
                f"step = {step} is past the end of a run of {self.num_steps} steps; expected at "
                f"most {self.num_steps}."
            )
        return self if step == self.num_steps else self._part(None, step, self.init_noise_sigma)

    def reversed(self) -> Levels:
        """The levels turned over, for inversion: from an image up to the noise that it comes from.

        From the lowest level above 0 to the highest; with a deterministic sampler, `kd.sample`
        takes an image up to its noise. There and back, DPM2 errs by an order of `1/N^3`, although
        either way is of second order, and Euler (DDIM inversion) by `1/N`. With another `cond` on
        the way back the image is edited.

        The closing step of a run, from its lowest level to 0, has no inverse: an image is taken
        for a sample at that level. Flat areas lack even that noise; `kd.add_noise(up[0], x0, eps)`
        makes the image a sample of that level.

        Returns:
          Levels of N - 1 steps (N where the run ended above 0), ascending, without a 0.

        Raises:
          ValueError: levels with churn, or of a single step that closes at 0.

        Example:
          >>> import jax, jax.numpy as jnp, kdiff_jax as kd
          >>> levels = kd.levels(kd.noise_schedule("scaled_linear"), 25, grid="karras")
          >>> down, up = kd.dpm2(levels), kd.dpm2(levels.reversed())
          >>> denoise = kd.denoiser(lambda params, x, timestep: params * x)
          >>> x0 = jnp.linspace(-1, 1, 8).reshape(1, 8)
          >>> noise = kd.sample(denoise, jnp.float32(0.9), up, x0)
          >>> back = kd.sample(denoise, jnp.float32(0.9), down, noise)
          >>> bool(jnp.max(jnp.abs(back - x0)) < 0.05)
          True

        Source: Song et al. 2020 (arXiv:2010.02502), section 4.3; `DDIMInverseScheduler` of
        diffusers, which tells the network the timestep that a step goes to, here the one it leaves.
        """
        if self.raised is not None:
            raise ValueError(
                "these levels have churn, whose noise no way back can find; leave churned(...) out."
            )
        if self.closes and self.num_steps < 2:
            raise ValueError(
                "the run has one step, which closes at 0 and has no inverse; take at least 2."
            )
        if self.closes:
            sigmas, timesteps = self.sigmas[-2::-1], self.timesteps[:0:-1]
        else:
            sigmas = self.sigmas[::-1]
            lowest = self.end_timestep
            lowest = self.noise.timestep_at(sigmas[:1]) if lowest is None else lowest
            xp, lowest, timesteps = common_namespace(lowest, self.timesteps[:0:-1])
            timesteps = xp.concatenate([lowest, timesteps])
        return Levels(
            sigmas,
            timesteps,
            self.noise,
            self._init_noise_sigma(sigmas[0]),
            end_timestep=self.timesteps[:1],
            closes=False,
            # A run up ends at the level without a signal; turned over once more, it begins there.
            zero_terminal_snr=self.ascends and self.noise.zero_terminal_snr,
        )

    @np.errstate(over="ignore")
    def churned(
        self,
        s_churn: ArrayLike | Sequence[float],
        s_tmin: ArrayLike = 0.0,
        s_tmax: ArrayLike = math.inf,
        s_noise: ArrayLike | Sequence[float] = 1.0,
    ) -> Levels:
        """Levels with churn: each step starts from a raised level, by noise that is added to it.

            gamma  = min(s_churn / N, sqrt(2) - 1) where s_tmin <= sigma <= s_tmax, else 0
            raised = sigma * (1 + gamma)
            added  = s_noise * sigma * sqrt(gamma (2 + gamma))

        The row before a step adds its noise; that of the first step is part of the initial sample,
        by `init_noise_sigma`. N is the number of these levels: churn a run before it is cut, or
        after, as s_churn is meant. A raised level beyond the training range has the last timestep.

        Args:
          s_churn: scalar or [N], how much noise the steps take up and remove again.
          s_tmin, s_tmax: the noise levels between which there is churn, both included.
          s_noise: scalar or [N], multiplies the noise. All four may be traced.

        Returns:
          Levels for a deterministic sampler with alpha = 1; its table has a noise column, also
          where s_churn is 0, so that the tables of a sweep share an executable.

        Raises:
          ValueError: one of them negative, or of another shape; s_tmin above s_tmax; levels of a
            rectified flow, ascending ones, or with churn already.

        Example:
          >>> import kdiff_jax as kd
          >>> levels = kd.levels(kd.noise_schedule(), sigmas=[8.0, 2.0, 0.5]).churned(0.75)
          >>> schedule = kd.dpm2(levels)
          >>> schedule[0].sigma.item(), schedule.init_noise_sigma.item()
          (10.0, 10.0)

        Source: Karras et al. 2022 (arXiv:2206.00364), Algorithm 2; `sample_dpm_2` of k-diffusion.
        """
        count = self.num_steps
        churn = one_per_step("s_churn", s_churn, count)
        if self.noise.flow:
            raise ValueError(
                f"s_churn = {churn} on a rectified flow: the noise that churn adds would take "
                "the sample off the line alpha + sigma = 1 that the network knows; leave it out, "
                "or take kd.dpm2_ancestral, whose noise stays on the line."
            )
        if self.raised is not None:
            raise ValueError("these levels have churn already; churn the levels before it.")
        if self.ascends:
            raise ValueError(
                "these levels ascend (inversion), and churn is for a run down; leave churned(...) "
                "out."
            )
        low = check_number("s_tmin", s_tmin, at_least=0)
        unbounded = isinstance(s_tmax, (float, np.floating)) and s_tmax == math.inf
        high = math.inf if unbounded else check_number("s_tmax", s_tmax, at_least=0)
        if not is_traced(low, high) and low > high:
            raise ValueError(
                f"s_tmin = {low} is above s_tmax = {high}, so no level has churn; swap them, or "
                "leave churned(...) out."
            )
        factor = one_per_step("s_noise", s_noise, count)
        xp, levels, churn, low, high, factor, timesteps = common_namespace(
            self.sigmas[:-1], churn, low, high, factor, self.timesteps
        )
        inside = (low <= levels) & (levels <= high)
        gamma = xp.where(inside, xp.clip(churn / count, 0, math.sqrt(2) - 1), 0)
        # sqrt has no slope at 0, so its input is masked: a step without churn has no gradient.
        square = xp.where(gamma > 0, gamma * (2 + gamma), 1)
        added = xp.where(gamma > 0, factor * levels * xp.sqrt(square), 0)
        raised = levels * (1 + gamma)
        xp, added, end = common_namespace(added, np.zeros(1))
        added = xp.concatenate([added, end])
        timesteps = xp.where(raised > levels, self.noise.timestep_at(raised), timesteps)
        return replace(self, timesteps=timesteps, raised=raised, added=added)

    @property
    def ascends(self) -> bool:
        """Whether these are reversed levels, which run up."""
        ends = self.sigmas[0], self.sigmas[-1]
        return not self.closes and not is_traced(*ends) and bool(ends[0] < ends[1])

    def _init_noise_sigma(self, sigma: Array) -> Array:
        xp, alpha, sigma = common_namespace(self.noise.alpha_at(sigma), sigma)
        return xp.hypot(alpha, sigma)

    def _part(self, start: int | None, stop: int | None, init_noise_sigma: Array) -> Levels:
        steps, end = slice(start, stop), None if stop is None else stop + 1
        return replace(
            self,
            sigmas=self.sigmas[start:end],
            timesteps=self.timesteps[steps],
            init_noise_sigma=init_noise_sigma,
            raised=None if self.raised is None else self.raised[steps],
            added=None if self.added is None else self.added[start:end],
            end_timestep=self.end_timestep if stop is None else self.timesteps[stop:end],
            first_step=self.first_step + (start or 0),
            closes=self.closes and stop is None,
        )

    def __repr__(self) -> str:
        if not hasattr(self.sigmas, "shape"):
            return "Levels(...)"
        if is_traced(self.sigmas) or not isinstance(self.sigmas, (np.ndarray, jax.Array)):
            return f"Levels({plural(self.num_steps, 'step')}, traced)"
        if self.sigmas.ndim > 1:
            return f"Levels({list(self.sigmas.shape[:-1])} of {plural(self.num_steps, 'step')})"
        levels = [f"{float(level):.4g}" for level in self.sigmas]
        ends = [levels[0], levels[-2], "0"] if self.closes else [levels[0], levels[-1]]
        churn = "" if self.raised is None else ", churned"
        count = plural(self.num_steps, "step")
        return f"Levels({count}, sigma {' .. '.join(dict.fromkeys(ends))}{churn})"

    __eq__ = equal_or_refused
