"""k-diffusion's samplers: each builds its table, and `kd.sample` runs it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

import kdiff_jax as kd
from kdiff_jax._arrays import common_namespace, is_traced
from kdiff_jax._table.lcm import noise_factors
from kdiff_jax.adapters.k_diffusion.checks import check_plain_arguments, check_sample
from kdiff_jax.adapters.k_diffusion.models import Callback, Model
from kdiff_jax.adapters.k_diffusion.run import NoiseSampler, Sigmas, drawn, levels_of, run


def sample_dpm_2(
    model: Model,
    x: ArrayLike,
    sigmas: Sigmas,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    s_churn: ArrayLike = 0.0,
    s_tmin: ArrayLike = 0.0,
    s_tmax: ArrayLike = math.inf,
    s_noise: ArrayLike = 1.0,
    *,
    key: jax.Array | None = None,
    noise_sampler: NoiseSampler | None = None,
) -> jax.Array:
    """DPM-Solver-2 with churn: `kd.dpm2(kd.levels(noise, sigmas=...).churned(...))`.

    Before the step from sigma, noise raises the sample to `sigma * (1 + gamma)`, with
    `gamma = min(s_churn / N, sqrt(2) - 1)` where `s_tmin <= sigma <= s_tmax`; that of the first
    step is added to x here, so x is handed in at `sigmas[0]`.

    Args:
      model: `model(x, sigma, **extra_args) -> denoised`, sigma [B]; a wrapper of this module, or
        any pure function of that contract. Keep one function: a fresh one compiles again.
      x: [B, ...] the sample at `sigmas[0]`.
      sigmas: [N + 1] descending noise levels, used verbatim.
      extra_args: a dict of pytrees of arrays, handed to the model: weights, conditions.
      callback: called in each step after its first evaluation with a dict of x, i, sigma,
        sigma_hat and denoised.
      disable: False shows a progress bar.
      s_churn, s_tmin, s_tmax, s_noise: as of `levels.churned`.
      key: one key, or [B] keys, one a sample; needed where s_churn is not the number 0.
      noise_sampler: `noise_sampler(sigma, sigma_next) -> [B, ...]`, in place of a key; called
        for each of the N steps in turn, before the first one runs.

    Returns:
      [B, ...] float32 (float64 where x is), at the last of the sigmas.

    Raises:
      ValueError: as for `kd.levels` and `levels.churned`; churn without key and noise_sampler, or
        both of them; extra_args that hold something else than arrays.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from kdiff_jax.adapters import k_diffusion as K
      >>> def model(x, sigma, gain):
      ...     return gain * x / (1 + sigma[:, None] ** 2)
      >>> sigmas, key = K.get_sigmas_karras(10, 0.03, 14.6), jax.random.key(0)
      >>> x = sigmas[0] * jax.random.normal(key, (2, 8))
      >>> K.sample_dpm_2(model, x, sigmas, {"gain": 1.0}, s_churn=2.0, key=key).shape
      (2, 8)

    Source: `sample_dpm_2` of k-diffusion.
    """
    check_plain_arguments(model, callback, disable, noise_sampler)
    x, levels = check_sample("x", x), levels_of(model, sigmas)
    churned = levels.churned(s_churn, s_tmin, s_tmax, s_noise)
    if not (is_traced(s_churn) or np.ndim(s_churn) or s_churn != 0):
        return run(model, x, kd.dpm2(levels), extra_args, callback, disable)
    schedule = kd.dpm2(churned)
    x = kd.init(schedule, x).sample
    noise = drawn(noise_sampler, key, sigmas, levels.num_steps, x)
    if noise is not None:
        z, noise = noise[0], [*noise[1:], noise[0]]
    elif key is not None:
        # The row before the first draws it: no other row has that index.
        before = replace(schedule[0], index=jnp.int32(-1))
        z = kd.row_noise(key, before, x.shape)
    assert churned.added is not None
    x = x + jnp.asarray(churned.added[0], x.dtype) * z.astype(x.dtype)
    return run(model, x, schedule, extra_args, callback, disable, key, noise)


def sample_dpm_2_ancestral(
    model: Model,
    x: ArrayLike,
    sigmas: Sigmas,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: ArrayLike = 1.0,
    s_noise: ArrayLike = 1.0,
    noise_sampler: NoiseSampler | None = None,
    *,
    key: jax.Array | None = None,
) -> jax.Array:
    """Ancestral DPM-Solver-2: `kd.dpm2_ancestral(kd.levels(noise, sigmas=...), eta, s_noise)`.

    Args:
      model, x, sigmas, extra_args, callback, disable: as of `sample_dpm_2`.
      eta, s_noise: as of `kd.dpm2_ancestral`.
      noise_sampler: as of `sample_dpm_2`; called for each step that does not end at 0.
      key: one key, or [B] keys; needed without a noise_sampler.

    Returns:
      [B, ...] float32 (float64 where x is), at the last of the sigmas.

    Raises:
      ValueError: as for `kd.levels` and `kd.dpm2_ancestral`, an eta beyond its bound included;
        neither key nor noise_sampler, or both; extra_args that hold something else than arrays.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from kdiff_jax.adapters import k_diffusion as K
      >>> def model(x, sigma):
      ...     return x / (1 + sigma[:, None] ** 2)
      >>> sigmas, key = K.get_sigmas_karras(10, 0.03, 14.6), jax.random.key(0)
      >>> x = sigmas[0] * jax.random.normal(key, (2, 8))
      >>> K.sample_dpm_2_ancestral(model, x, sigmas, eta=0.7, key=key).shape
      (2, 8)

    Source: `sample_dpm_2_ancestral` of k-diffusion.
    """
    check_plain_arguments(model, callback, disable, noise_sampler)
    x, levels = check_sample("x", x), levels_of(model, sigmas)
    schedule = kd.dpm2_ancestral(levels, eta, s_noise)
    noise = drawn(noise_sampler, key, sigmas, len(levels.inner[0]), x)
    return run(model, x, schedule, extra_args, callback, disable, key, noise)


def sample_lcm(
    model: Model,
    x: ArrayLike,
    sigmas: Sigmas,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    noise_sampler: NoiseSampler | None = None,
    s_noise: ArrayLike = 1.0,
    s_noise_end: ArrayLike | None = None,
    *,
    key: jax.Array | None = None,
) -> jax.Array:
    """Latent-consistency sampling in k-diffusion's units: `x_next = D + sigma_next * s_noise * z`.

    Args:
      model, x, sigmas, extra_args, callback, disable: as of `sample_dpm_2`; the boundary scaling
        of a consistency model belongs to the model, as in user interfaces.
      noise_sampler: as of `sample_dpm_2`; called for each step that does not end at 0.
      s_noise, s_noise_end: as of `kd.lcm`.
      key: one key, or [B] keys; needed without a noise_sampler.

    Returns:
      [B, ...] float32 (float64 where x is), at the last of the sigmas.

    Raises:
      ValueError: as for `sample_dpm_2_ancestral`; s_noise or s_noise_end negative.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from kdiff_jax.adapters import k_diffusion as K
      >>> def model(x, sigma):
      ...     return x / (1 + sigma[:, None] ** 2)
      >>> sigmas, key = K.get_sigmas_exponential(4, 0.03, 14.6), jax.random.key(0)
      >>> x = sigmas[0] * jax.random.normal(key, (2, 8))
      >>> K.sample_lcm(model, x, sigmas, key=key).shape
      (2, 8)

    Source: `sample_lcm` of ComfyUI, a sampler of k-diffusion's form that k-diffusion has not.
    """
    check_plain_arguments(model, callback, disable, noise_sampler)
    x, levels = check_sample("x", x), levels_of(model, sigmas)
    factors = noise_factors(s_noise, s_noise_end, levels.num_steps)
    _, reached, factors = common_namespace(levels.sigmas[1:], factors)
    # Euler's table with noise in place of epsilon: the estimate of x0, and up to the next level.
    schedule = kd.euler(levels)
    weight = jnp.asarray(reached * factors, schedule.sigmas.dtype)
    rows = replace(schedule.rows, epsilon_weight=None, noise_weight=weight)
    noise = drawn(noise_sampler, key, sigmas, len(levels.inner[0]), x)
    return run(model, x, replace(schedule, rows=rows), extra_args, callback, disable, key, noise)
