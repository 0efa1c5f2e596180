"""k-diffusion's ancestral samplers, whose noise is independent from step to step, and LCM."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

import kdiff_jax as kd
from kdiff_jax._arrays import common_namespace, is_traced
from kdiff_jax._checks import check_number
from kdiff_jax._denoise.prediction import as_leaf
from kdiff_jax._table.lcm import noise_factors
from kdiff_jax.adapters.k_diffusion.denoisers import Callback
from kdiff_jax.adapters.k_diffusion.models import Model
from kdiff_jax.adapters.k_diffusion.run import NoiseSampler, Sigmas, call_of


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
    call = call_of(model, x, sigmas, extra_args, callback, disable, key, noise_sampler)
    return call.run_noisy(kd.dpm2_ancestral(call.levels, eta, s_noise))


def sample_euler_ancestral(
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
    """Ancestral Euler: `kd.euler(kd.levels(noise, sigmas=...), eta, s_noise)`.

    Args:
      model, x, sigmas, extra_args, callback, disable: as of `sample_dpm_2`.
      eta, s_noise: as of `kd.euler`.
      noise_sampler, key: as of `sample_dpm_2_ancestral`.

    Returns:
      [B, ...] float32 (float64 where x is), at the last of the sigmas.

    Raises:
      ValueError: as for `sample_dpm_2_ancestral`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from kdiff_jax.adapters import k_diffusion as K
      >>> def model(x, sigma):
      ...     return x / (1 + sigma[:, None] ** 2)
      >>> sigmas, key = K.get_sigmas_karras(10, 0.03, 14.6), jax.random.key(0)
      >>> x = sigmas[0] * jax.random.normal(key, (2, 8))
      >>> K.sample_euler_ancestral(model, x, sigmas, eta=0.7, key=key).shape
      (2, 8)

    Source: `sample_euler_ancestral` of k-diffusion.
    """
    call = call_of(model, x, sigmas, extra_args, callback, disable, key, noise_sampler)
    return call.run_noisy(kd.euler(call.levels, eta, s_noise))


def sample_dpmpp_2s_ancestral(
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
    """Ancestral DPM-Solver++ 2S: `kd.dpmpp_2s_ancestral(levels, eta, s_noise)`.

    Args:
      model, x, sigmas, extra_args, callback, disable: as of `sample_dpm_2`.
      eta, s_noise: as of `kd.dpmpp_2s_ancestral`.
      noise_sampler, key: as of `sample_dpm_2_ancestral`.

    Returns:
      [B, ...] float32 (float64 where x is), at the last of the sigmas.

    Raises:
      ValueError: as for `sample_dpm_2_ancestral`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from kdiff_jax.adapters import k_diffusion as K
      >>> def model(x, sigma):
      ...     return x / (1 + sigma[:, None] ** 2)
      >>> sigmas, key = K.get_sigmas_karras(10, 0.03, 14.6), jax.random.key(0)
      >>> x = sigmas[0] * jax.random.normal(key, (2, 8))
      >>> K.sample_dpmpp_2s_ancestral(model, x, sigmas, eta=0.7, key=key).shape
      (2, 8)

    Source: `sample_dpmpp_2s_ancestral` of k-diffusion.
    """
    call = call_of(model, x, sigmas, extra_args, callback, disable, key, noise_sampler)
    return call.run_noisy(kd.dpmpp_2s_ancestral(call.levels, eta, s_noise))


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
    noise_clip_std: ArrayLike = 0.0,
    *,
    key: jax.Array | None = None,
) -> jax.Array:
    """Latent-consistency sampling in k-diffusion's units: `x_next = D + sigma_next * s_noise * z`.

    Args:
      model, x, sigmas, extra_args, callback, disable: as of `sample_dpm_2`; the boundary scaling
        of a consistency model belongs to the model, as in user interfaces.
      noise_sampler: as of `sample_dpm_2`; called for each step that does not end at 0.
      s_noise, s_noise_end: as of `kd.lcm`.
      noise_clip_std: where it is not 0, noise is clipped at so many of its standard deviations, as
        by `kd.clipped_noise`.
      key: one key, or [B] keys; needed without a noise_sampler.

    Returns:
      [B, ...] float32 (float64 where x is), at the last of the sigmas.

    Raises:
      ValueError: as for `sample_dpm_2_ancestral`; s_noise, s_noise_end or
        noise_clip_std negative.

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
    call = call_of(model, x, sigmas, extra_args, callback, disable, key, noise_sampler)
    levels = call.levels
    factors = noise_factors(s_noise, s_noise_end, levels.num_steps)
    clip = as_leaf("noise_clip_std", check_number("noise_clip_std", noise_clip_std, at_least=0))
    _, reached, factors = common_namespace(levels.sigmas[1:], factors)
    # Euler's table with noise in place of epsilon: the estimate of x0, and up to the next level.
    schedule = kd.euler(levels)
    weight = jnp.asarray(reached * factors, schedule.sigmas.dtype)
    rows = replace(schedule.rows, epsilon_weight=None, noise_weight=weight)
    schedule = replace(schedule, rows=rows)
    return call.run_noisy(
        schedule, clip=clip if is_traced(noise_clip_std) or noise_clip_std != 0 else None
    )
