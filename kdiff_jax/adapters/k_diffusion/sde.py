"""k-diffusion's samplers of the SDE, whose noise follows one Brownian path."""

from __future__ import annotations

from typing import Any

import jax
from jax.typing import ArrayLike

import kdiff_jax as kd
from kdiff_jax._arrays import is_traced
from kdiff_jax._checks import check_choice, check_number, shown
from kdiff_jax._table.dpmpp_multistep import Solver
from kdiff_jax.adapters.k_diffusion.denoisers import Callback
from kdiff_jax.adapters.k_diffusion.models import Model
from kdiff_jax.adapters.k_diffusion.run import NoiseSampler, Sigmas, call_of


def sample_dpmpp_sde(
    model: Model,
    x: ArrayLike,
    sigmas: Sigmas,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: ArrayLike = 1.0,
    s_noise: ArrayLike = 1.0,
    noise_sampler: NoiseSampler | None = None,
    r: ArrayLike = 1 / 2,
    *,
    key: jax.Array | None = None,
) -> jax.Array:
    """DPM-Solver++ SDE: `kd.dpmpp_sde(levels, eta, s_noise)` on a Brownian path.

    Args:
      model, x, sigmas, extra_args, callback, disable: as of `sample_dpm_2`.
      eta, s_noise: as of `kd.dpmpp_sde`.
      noise_sampler: as of `sample_dpm_2_ancestral`; called twice for a step, for the way to its
        midpoint and for the whole of it.
      r: where the midpoint of a step lies in log sigma; 1/2 is the one there is.
      key: one key, or [B] keys; needed without a noise_sampler. Each is one Brownian path, that of
        `kd.brownian_noise()`, so that runs with other sigmas see the same.

    Returns:
      [B, ...] float32 (float64 where x is), at the last of the sigmas.

    Raises:
      ValueError: as for `sample_dpm_2_ancestral`; another r.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from kdiff_jax.adapters import k_diffusion as K
      >>> def model(x, sigma):
      ...     return x / (1 + sigma[:, None] ** 2)
      >>> sigmas, key = K.get_sigmas_karras(10, 0.03, 14.6), jax.random.key(0)
      >>> x = sigmas[0] * jax.random.normal(key, (2, 8))
      >>> K.sample_dpmpp_sde(model, x, sigmas, key=key).shape
      (2, 8)

    Source: `sample_dpmpp_sde` of k-diffusion.
    """
    if is_traced(r) or check_number("r", r) != 0.5:
        raise ValueError(
            f"r = {shown(r)} is another midpoint than that of kd.dpmpp_sde, 1/2; leave it out."
        )
    call = call_of(model, x, sigmas, extra_args, callback, disable, key, noise_sampler)
    schedule = kd.dpmpp_sde(call.levels, eta, s_noise)
    return call.run_noisy(schedule, path=True, midpoints=True)


def sample_dpmpp_2m_sde(
    model: Model,
    x: ArrayLike,
    sigmas: Sigmas,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: ArrayLike = 1.0,
    s_noise: ArrayLike = 1.0,
    noise_sampler: NoiseSampler | None = None,
    solver_type: Solver = "midpoint",
    *,
    key: jax.Array | None = None,
) -> jax.Array:
    """DPM-Solver++ 2M SDE: `kd.dpmpp_2m(levels, eta, s_noise, solver_type)` on a Brownian path.

    Args:
      model, x, sigmas, extra_args, callback, disable: as of `sample_dpm_2`.
      eta, s_noise: as of `kd.dpmpp_2m`.
      noise_sampler: as of `sample_dpm_2_ancestral`.
      solver_type: "midpoint" or "heun".
      key: one key, or [B] keys; needed without a noise_sampler. Each is one Brownian path, that of
        `kd.brownian_noise()`, so that runs with other sigmas see the same.

    Returns:
      [B, ...] float32 (float64 where x is), at the last of the sigmas.

    Raises:
      ValueError: as for `sample_dpm_2_ancestral`; another solver_type.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from kdiff_jax.adapters import k_diffusion as K
      >>> def model(x, sigma):
      ...     return x / (1 + sigma[:, None] ** 2)
      >>> sigmas, key = K.get_sigmas_karras(10, 0.03, 14.6), jax.random.key(0)
      >>> x = sigmas[0] * jax.random.normal(key, (2, 8))
      >>> K.sample_dpmpp_2m_sde(model, x, sigmas, key=key).shape
      (2, 8)

    Source: `sample_dpmpp_2m_sde` of k-diffusion.
    """
    check_choice("solver_type", solver_type, ("midpoint", "heun"))
    call = call_of(model, x, sigmas, extra_args, callback, disable, key, noise_sampler)
    return call.run_noisy(kd.dpmpp_2m(call.levels, eta, s_noise, solver_type), path=True)


def sample_dpmpp_3m_sde(
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
    """DPM-Solver++ 3M SDE: `kd.dpmpp_3m(levels, eta, s_noise)` on a Brownian path.

    Args:
      model, x, sigmas, extra_args, callback, disable: as of `sample_dpm_2`.
      eta, s_noise: as of `kd.dpmpp_3m`.
      noise_sampler: as of `sample_dpm_2_ancestral`.
      key: one key, or [B] keys; needed without a noise_sampler. Each is one Brownian path, that of
        `kd.brownian_noise()`, so that runs with other sigmas see the same.

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
      >>> K.sample_dpmpp_3m_sde(model, x, sigmas, key=key).shape
      (2, 8)

    Source: `sample_dpmpp_3m_sde` of k-diffusion.
    """
    call = call_of(model, x, sigmas, extra_args, callback, disable, key, noise_sampler)
    return call.run_noisy(kd.dpmpp_3m(call.levels, eta, s_noise), path=True)
