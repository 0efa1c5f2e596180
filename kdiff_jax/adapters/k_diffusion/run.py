"""What the samplers share: their arguments, the levels of a grid, the noise, and the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

import kdiff_jax as kd
from kdiff_jax._arrays import common_namespace, is_traced
from kdiff_jax._checks import check_vector
from kdiff_jax._noise.given import NoiseFn
from kdiff_jax._run.check import parameters_of
from kdiff_jax.adapters.k_diffusion.checks import (
    check_extra_args,
    check_plain_arguments,
    check_sample,
)
from kdiff_jax.adapters.k_diffusion.continuous import ContinuousDenoiser
from kdiff_jax.adapters.k_diffusion.denoisers import Callback, as_denoiser
from kdiff_jax.adapters.k_diffusion.models import DiscreteDenoiser, Model

Sigmas = np.ndarray | jax.Array | Sequence[float]
# noise_sampler(sigma, sigma_next) -> [B, ...]
NoiseSampler = Callable[[Any, Any], ArrayLike]


def levels_of(model: Model, sigmas: Sigmas) -> kd.Levels:
    """The levels of a grid, with the wrapper's timesteps; a plain model receives sigma alone."""
    noise = model.noise if isinstance(model, DiscreteDenoiser) else None
    if is_traced(sigmas):  # the last one cannot be inspected
        return kd.levels(noise, sigmas=sigmas[:-1])
    values = check_vector("sigmas", sigmas)
    if len(values) < 2:
        raise ValueError(f"sigmas = {values.tolist()} holds no step; pass at least two levels.")
    levels = kd.levels(noise, sigmas=values)
    # A grid that ends above 0 has a level for every step, and one more where it ends.
    return levels if values[-1] == 0 else levels.end_at(len(values) - 1)


def call_of(
    model: Model,
    x: ArrayLike,
    sigmas: Sigmas,
    extra_args: dict[str, Any] | None,
    callback: Callback | None,
    disable: bool | None,
    key: jax.Array | None = None,
    noise_sampler: NoiseSampler | None = None,
) -> Call:
    """The arguments of a sampler, checked."""
    check_plain_arguments(model, callback, disable, noise_sampler)
    x, levels = check_sample("x", x), levels_of(model, sigmas)
    extra_args = check_extra_args(extra_args)
    if not isinstance(model, (DiscreteDenoiser, ContinuousDenoiser)):
        advice = "pass model(x, sigma, **extra_args) -> denoised, or a wrapper of this module."
        parameters_of("model", model, 2, advice, extra_args)
    return Call(model, x, sigmas, levels, extra_args, callback, disable, key, noise_sampler)


@dataclass(frozen=True, eq=False)
class Call:
    """A call of a sampler: what all of them take. Made by `call_of`."""

    model: Model
    x: jax.Array
    sigmas: Sigmas
    levels: kd.Levels
    extra_args: dict[str, Any]
    callback: Callback | None
    disable: bool | None
    key: jax.Array | None
    noise_sampler: NoiseSampler | None

    def run(self, schedule: kd.Schedule, noise_fn: NoiseFn | None = None) -> jax.Array:
        """The sample after the last row, and a callback that has seen all of them."""
        out = kd.sample(
            as_denoiser(self.model, schedule.sigmas, self.callback),
            self.extra_args,
            schedule,
            self.x,
            self.key,
            noise_fn=noise_fn,
            progress=self.disable is False,
        )
        if self.callback is not None and not is_traced(out):
            jax.block_until_ready(out)
            jax.effects_barrier()
        return out

    def run_noisy(
        self,
        schedule: kd.Schedule,
        *,
        path: bool = False,
        midpoints: bool = False,
        clip: ArrayLike | None = None,
    ) -> jax.Array:
        """A run with noise in every step that does not end at 0.

        With path, a key means increments of a Brownian path, not noise of each row; with midpoints
        a step draws twice, on the way to its midpoint and from its start.
        """
        self._check_one_source()
        noise_fn: NoiseFn | None = None
        if self.noise_sampler is not None:
            count = len(self.levels.inner[0])
            steps = [(self.sigmas[i], self.sigmas[i + 1]) for i in range(count)]
            if midpoints:
                both = [((s0, (s0 * s1) ** 0.5), (s0, s1)) for s0, s1 in steps]
                steps = [step for pair in both for step in pair]
            noise = jnp.stack(self._drawn(steps) or [jnp.zeros(self.x.shape)] * 2)
            shape = (-1, 2, *self.x.shape) if midpoints else noise.shape
            noise_fn = kd.given_noise(noise.reshape(shape))
        elif path:
            noise_fn = self._path()
        if clip is not None:
            noise_fn = kd.clipped_noise(clip, noise_fn)
        return self.run(schedule, noise_fn)

    def run_churned(
        self,
        table: Callable[[kd.Levels], kd.Schedule],
        s_churn: ArrayLike,
        s_tmin: ArrayLike,
        s_tmax: ArrayLike,
        s_noise: ArrayLike,
    ) -> jax.Array:
        """A deterministic sampler; with churn where s_churn is not the number 0."""
        churned = self.levels.churned(s_churn, s_tmin, s_tmax, s_noise)
        if not (is_traced(s_churn) or np.ndim(s_churn) or s_churn != 0):
            return self.run(table(self.levels))
        self._check_one_source()
        schedule = table(churned)
        x, noise_fn = kd.init(schedule, self.x).sample, None
        if self.noise_sampler is not None:
            count = self.levels.num_steps
            z, *noise = self._drawn([(self.sigmas[i], self.sigmas[i + 1]) for i in range(count)])
            noise_fn = kd.given_noise(jnp.stack([*noise, z]))
        elif self.key is not None:
            # The row before the first draws it: no other row has that index.
            z = kd.row_noise(self.key, replace(schedule[0], index=jnp.int32(-1)), x.shape)
        assert churned.added is not None
        x = x + jnp.asarray(churned.added[0], x.dtype) * z.astype(x.dtype)
        return replace(self, x=x).run(schedule, noise_fn)

    def _check_one_source(self) -> None:
        if (self.noise_sampler is None) == (self.key is None):
            neither = self.key is None
            given = "neither key nor noise_sampler" if neither else "both key and noise_sampler"
            raise ValueError(
                f"this run draws noise and was given {given}; pass key=jax.random.key(seed), or "
                "noise_sampler(sigma, sigma_next)."
            )

    def _drawn(self, steps: Sequence[tuple[Any, Any]]) -> list[jax.Array]:
        """What the noise_sampler gives for these steps, before the run."""
        assert self.noise_sampler is not None
        # Called from here and not in the loop, where a sampler with a state would be called once.
        came = [self.noise_sampler(*step) for step in steps]
        draws = [check_sample("what noise_sampler returned", z).astype(float) for z in came]
        for z in draws:
            if z.shape != self.x.shape:
                raise ValueError(
                    f"noise_sampler returned shape {z.shape} for a sample of shape "
                    f"{self.x.shape}; return unit Gaussian noise of the sample's shape."
                )
        return draws

    def _path(self) -> NoiseFn:
        """A Brownian path that is the same for all levels within those of `kd.brownian_noise`."""
        sigmas = self.levels.sigmas[:-1] if self.levels.closes else self.levels.sigmas
        xp, low, high = common_namespace(sigmas[-1], sigmas[0])
        return kd.brownian_noise(xp.minimum(low, 1e-5), xp.maximum(high, 1e5))
