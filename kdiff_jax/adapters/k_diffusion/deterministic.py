"""k-diffusion's samplers of the ODE: with churn, or without noise."""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.typing import ArrayLike

import kdiff_jax as kd
from kdiff_jax.adapters.k_diffusion.denoisers import Callback
from kdiff_jax.adapters.k_diffusion.models import Model
from kdiff_jax.adapters.k_diffusion.run import NoiseSampler, Sigmas, call_of


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
    call = call_of(model, x, sigmas, extra_args, callback, disable, key, noise_sampler)
    return call.run_churned(kd.dpm2, s_churn, s_tmin, s_tmax, s_noise)


def sample_euler(
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
    """Euler's method with churn: `kd.euler(kd.levels(noise, sigmas=...).churned(...))`.

    Args:
      model, x, sigmas, extra_args, callback, disable: as of `sample_dpm_2`.
      s_churn, s_tmin, s_tmax, s_noise, key, noise_sampler: as of `sample_dpm_2`.

    Returns:
      [B, ...] float32 (float64 where x is), at the last of the sigmas.

    Raises:
      ValueError: as for `sample_dpm_2`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from kdiff_jax.adapters import k_diffusion as K
      >>> def model(x, sigma):
      ...     return x / (1 + sigma[:, None] ** 2)
      >>> sigmas, key = K.get_sigmas_karras(10, 0.03, 14.6), jax.random.key(0)
      >>> x = sigmas[0] * jax.random.normal(key, (2, 8))
      >>> K.sample_euler(model, x, sigmas, s_churn=2.0, key=key).shape
      (2, 8)

    Source: `sample_euler` of k-diffusion.
    """
    call = call_of(model, x, sigmas, extra_args, callback, disable, key, noise_sampler)
    return call.run_churned(kd.euler, s_churn, s_tmin, s_tmax, s_noise)


def sample_heun(
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
    """Heun's method with churn: `kd.heun(kd.levels(noise, sigmas=...).churned(...))`.

    Args:
      model, x, sigmas, extra_args, callback, disable: as of `sample_dpm_2`.
      s_churn, s_tmin, s_tmax, s_noise, key, noise_sampler: as of `sample_dpm_2`.

    Returns:
      [B, ...] float32 (float64 where x is), at the last of the sigmas.

    Raises:
      ValueError: as for `sample_dpm_2`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from kdiff_jax.adapters import k_diffusion as K
      >>> def model(x, sigma):
      ...     return x / (1 + sigma[:, None] ** 2)
      >>> sigmas, key = K.get_sigmas_karras(10, 0.03, 14.6), jax.random.key(0)
      >>> x = sigmas[0] * jax.random.normal(key, (2, 8))
      >>> K.sample_heun(model, x, sigmas, s_churn=2.0, key=key).shape
      (2, 8)

    Source: `sample_heun` of k-diffusion.
    """
    call = call_of(model, x, sigmas, extra_args, callback, disable, key, noise_sampler)
    return call.run_churned(kd.heun, s_churn, s_tmin, s_tmax, s_noise)


def sample_dpmpp_2m(
    model: Model,
    x: ArrayLike,
    sigmas: Sigmas,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
) -> jax.Array:
    """DPM-Solver++ 2M: `kd.dpmpp_2m(kd.levels(noise, sigmas=...))`.

    Args:
      model, x, sigmas, extra_args, callback, disable: as of `sample_dpm_2`.

    Returns:
      [B, ...] float32 (float64 where x is), at the last of the sigmas.

    Raises:
      ValueError: as for `kd.levels`; extra_args that hold something else than arrays.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from kdiff_jax.adapters import k_diffusion as K
      >>> def model(x, sigma):
      ...     return x / (1 + sigma[:, None] ** 2)
      >>> sigmas, key = K.get_sigmas_karras(10, 0.03, 14.6), jax.random.key(0)
      >>> x = sigmas[0] * jax.random.normal(key, (2, 8))
      >>> K.sample_dpmpp_2m(model, x, sigmas).shape
      (2, 8)

    Source: `sample_dpmpp_2m` of k-diffusion.
    """
    call = call_of(model, x, sigmas, extra_args, callback, disable)
    return call.run(kd.dpmpp_2m(call.levels))
