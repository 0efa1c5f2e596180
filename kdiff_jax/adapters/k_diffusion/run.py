"""What the samplers share: the levels of a grid, the noise of a noise_sampler, and the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

import kdiff_jax as kd
from kdiff_jax._arrays import is_traced
from kdiff_jax._checks import check_vector
from kdiff_jax.adapters.k_diffusion.checks import check_extra_args, check_sample
from kdiff_jax.adapters.k_diffusion.models import (
    Callback,
    DiscreteDenoiser,
    Model,
    as_denoiser,
)

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


def drawn(
    noise_sampler: NoiseSampler | None,
    key: jax.Array | None,
    sigmas: Sigmas,
    count: int,
    x: ArrayLike,
) -> list[jax.Array] | None:
    """The noise that the noise_sampler gives for the first steps; None where there is a key."""
    if (noise_sampler is None) == (key is None):
        given = "neither key nor noise_sampler" if key is None else "both key and noise_sampler"
        raise ValueError(
            f"this run draws noise and was given {given}; pass key=jax.random.key(seed), or "
            "noise_sampler(sigma, sigma_next)."
        )
    if noise_sampler is None:
        return None
    # Called from here and not in the loop, where a sampler with a state would be called once.
    came = [noise_sampler(sigmas[i], sigmas[i + 1]) for i in range(count)]
    draws = [check_sample("what noise_sampler returned", z).astype(float) for z in came]
    for z in draws:
        if z.shape != jnp.shape(x):
            raise ValueError(
                f"noise_sampler returned shape {z.shape} for a sample of shape {jnp.shape(x)}; "
                "return unit Gaussian noise of the sample's shape."
            )
    return draws


def run(
    model: Model,
    x: ArrayLike,
    schedule: kd.Schedule,
    extra_args: dict[str, Any] | None,
    callback: Callback | None,
    disable: bool | None,
    key: jax.Array | None = None,
    noise: list[jax.Array] | None = None,
) -> jax.Array:
    """The sample after the last row, and a callback that has seen all of them."""
    extra_args = check_extra_args(extra_args)
    noise_fn = None
    if noise is not None:
        # A run whose one step ends at 0 reads none.
        noise_fn = kd.given_noise(jnp.stack(noise or [jnp.zeros(jnp.shape(x))]))
    out = kd.sample(
        as_denoiser(model, schedule.sigmas, callback),
        extra_args,
        schedule,
        jnp.asarray(x),
        key,
        noise_fn=noise_fn,
        progress=disable is False,
    )
    if callback is not None and not is_traced(out):
        jax.block_until_ready(out)
        jax.effects_barrier()
    return out
