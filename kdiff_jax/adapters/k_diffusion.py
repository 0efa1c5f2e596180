"""k-diffusion's names, in its argument order: its samplers, grids and model wrappers.

    from kdiff_jax.adapters import k_diffusion as K

    model = K.DiscreteEpsDDPMDenoiser(network, alphas_cumprod)
    x = K.sample_dpm_2(model, x, K.get_sigmas_karras(25, 0.03, 14.6), extra_args={"params": params})

Each sampler builds its table and calls `kd.sample`: one compiled loop, so a model is a pure
function, and what changes from call to call goes into extra_args.

What differs from k-diffusion:
  noise      comes from `key=`, or from a noise_sampler that is called for every step before the
             run; nothing is drawn from a global generator. An ancestral step has its noise wherever
             sigma_next > 0, also where k-diffusion's sigma_down rounds to 0 and it drops it.
  eta        beyond what a step allows is refused with the bound, where k-diffusion stops short.
  disable    False shows a bar (tqdm); None, the default, and True do not.
  callback   is called from inside the compiled program, in order, with the same dict; it needs one
             device, and the function is kept: another one compiles again.
  sigmas     may be traced (to be optimised); then the last one is taken for the closing 0. A grid
             that ends above 0 is a part of a run, and ends there.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kdiff_jax._checks import check_vector, common_namespace, is_traced
from kdiff_jax._churn import churned, may_churn
from kdiff_jax._denoise import per_sample
from kdiff_jax._dpm2 import dpm2_ancestral_schedule, dpm2_schedule
from kdiff_jax._euler import euler_schedule
from kdiff_jax._lcm import noise_factors
from kdiff_jax._noise import given_noise, row_noise
from kdiff_jax._sample import sample
from kdiff_jax._schedule import Schedule
from kdiff_jax._step import check_sample
from kdiff_jax.adapters._k_diffusion_grids import append_zero as append_zero
from kdiff_jax.adapters._k_diffusion_grids import get_ancestral_step as get_ancestral_step
from kdiff_jax.adapters._k_diffusion_grids import get_sigmas_exponential as get_sigmas_exponential
from kdiff_jax.adapters._k_diffusion_grids import get_sigmas_karras as get_sigmas_karras
from kdiff_jax.adapters._k_diffusion_grids import (
    get_sigmas_polyexponential as get_sigmas_polyexponential,
)
from kdiff_jax.adapters._k_diffusion_grids import get_sigmas_vp as get_sigmas_vp
from kdiff_jax.adapters._k_diffusion_grids import to_d as to_d
from kdiff_jax.adapters._k_diffusion_models import CompVisDenoiser as CompVisDenoiser
from kdiff_jax.adapters._k_diffusion_models import CompVisVDenoiser as CompVisVDenoiser
from kdiff_jax.adapters._k_diffusion_models import DiscreteDenoiser, as_denoiser
from kdiff_jax.adapters._k_diffusion_models import (
    DiscreteEpsDDPMDenoiser as DiscreteEpsDDPMDenoiser,
)
from kdiff_jax.adapters._k_diffusion_models import DiscreteVDDPMDenoiser as DiscreteVDDPMDenoiser

# model(x, sigma, **extra_args) -> denoised
Model = Callable[..., Any]
# noise_sampler(sigma, sigma_next) -> [B, ...]
NoiseSampler = Callable[[Any, Any], Any]


def sample_dpm_2(
    model: Model,
    x: ArrayLike,
    sigmas: ArrayLike | Sequence[float],
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], Any] | None = None,
    disable: bool | None = None,
    s_churn: Any = 0.0,
    s_tmin: Any = 0.0,
    s_tmax: Any = math.inf,
    s_noise: Any = 1.0,
    *,
    key: jax.Array | None = None,
    noise_sampler: NoiseSampler | None = None,
) -> jax.Array:
    """DPM-Solver-2 with churn: `kd.dpm2_schedule(sigmas=...)` run by `kd.sample`.

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
      s_churn, s_tmin, s_tmax, s_noise: as of `kd.dpm2_schedule`.
      key: one key, or [B] keys, one a sample; needed where s_churn is not the number 0.
      noise_sampler: `noise_sampler(sigma, sigma_next) -> [B, ...]`, in place of a key; called
        for each of the N steps in turn, before the first one runs.

    Returns:
      [B, ...] float32 (float64 where x is), at the last of the sigmas.

    Raises:
      ValueError: as for `kd.dpm2_schedule`; churn without key and noise_sampler, or both of them;
        extra_args that hold something else than arrays.

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
    levels, closed = _levels(sigmas)
    num_steps = len(levels) - (not closed)
    if not closed and may_churn(s_churn):
        # The builder counts one step more, from the level that ends this run: it has no churn.
        xp, s_churn = common_namespace(s_churn)
        share = xp.broadcast_to(s_churn, (num_steps,)) * ((num_steps + 1) / num_steps)
        s_churn = xp.concatenate([share, xp.zeros(1, share.dtype)])
    s_noise = _one_more(s_noise, closed)
    schedule = dpm2_schedule(
        _noise_of(model),
        sigmas=levels,
        s_churn=s_churn,
        s_tmin=s_tmin,
        s_tmax=s_tmax,
        s_noise=s_noise,
    )
    x, noise = check_sample(x), None
    if not schedule.deterministic:
        noise = _noise(noise_sampler, key, sigmas, num_steps, x)
        if noise is None:
            # The row before the first draws it: no other row has that index.
            before = replace(schedule[0], index=jnp.int32(-1))
            z = row_noise(key, before, x.shape)  # type: ignore[arg-type]
        else:
            z, noise = noise[0], jnp.roll(noise, -1, axis=0)
        first = churned(levels, s_churn, s_tmin, s_tmax, s_noise)[1][0]
        x = x + per_sample(first, x) * z.astype(x.dtype)
    return _run(model, x, schedule, closed, extra_args, callback, disable, key, noise)


def sample_dpm_2_ancestral(
    model: Model,
    x: ArrayLike,
    sigmas: ArrayLike | Sequence[float],
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], Any] | None = None,
    disable: bool | None = None,
    eta: Any = 1.0,
    s_noise: Any = 1.0,
    noise_sampler: NoiseSampler | None = None,
    *,
    key: jax.Array | None = None,
) -> jax.Array:
    """Ancestral DPM-Solver-2: `kd.dpm2_ancestral_schedule(sigmas=...)` run by `kd.sample`.

    Args:
      model, x, sigmas, extra_args, callback, disable: as of `sample_dpm_2`.
      eta, s_noise: as of `kd.dpm2_ancestral_schedule`.
      noise_sampler: as of `sample_dpm_2`; called for each step that does not end at 0.
      key: one key, or [B] keys; needed without a noise_sampler.

    Returns:
      [B, ...] float32 (float64 where x is), at the last of the sigmas.

    Raises:
      ValueError: as for `kd.dpm2_ancestral_schedule`, an eta beyond its bound included; neither
        key nor noise_sampler, or both; extra_args that hold something else than arrays.

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
    levels, closed = _levels(sigmas)
    schedule = dpm2_ancestral_schedule(
        _noise_of(model),
        sigmas=levels,
        eta=_one_more(eta, closed),
        s_noise=_one_more(s_noise, closed),
    )
    x = check_sample(x)
    noise = _noise(noise_sampler, key, sigmas, len(levels) - 1, x)
    return _run(model, x, schedule, closed, extra_args, callback, disable, key, noise)


def sample_lcm(
    model: Model,
    x: ArrayLike,
    sigmas: ArrayLike | Sequence[float],
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], Any] | None = None,
    disable: bool | None = None,
    noise_sampler: NoiseSampler | None = None,
    s_noise: Any = 1.0,
    s_noise_end: Any = None,
    *,
    key: jax.Array | None = None,
) -> jax.Array:
    """Latent-consistency sampling in k-diffusion's units: `x_next = D + sigma_next * s_noise * z`.

    Args:
      model, x, sigmas, extra_args, callback, disable: as of `sample_dpm_2`; the boundary scaling
        of a consistency model is the model's own business, as it is in user interfaces.
      noise_sampler: as of `sample_dpm_2`; called for each step that does not end at 0.
      s_noise, s_noise_end: as of `kd.lcm_schedule`.
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
    levels, closed = _levels(sigmas)
    # Euler's table with the step down to 0: the estimate of x0, and noise of the next level on it.
    schedule = euler_schedule(_noise_of(model), sigmas=levels, eta=0.0)
    factors = noise_factors(s_noise, s_noise_end, len(levels) - (not closed))
    xp, levels, factors = common_namespace(levels, factors)
    weight = xp.concatenate([levels[1:] * factors[: len(levels) - 1], xp.zeros(1, levels.dtype)])
    rows = schedule.rows
    weight = jnp.asarray(weight, rows.noise_weight.dtype)
    zero = jnp.zeros_like(weight)
    schedule = replace(schedule, rows=replace(rows, noise_weight=weight, epsilon_weight=zero))
    x = check_sample(x)
    noise = _noise(noise_sampler, key, sigmas, len(levels) - 1, x)
    return _run(model, x, schedule, closed, extra_args, callback, disable, key, noise)


def _run(
    model: Any,
    x: Any,
    schedule: Schedule,
    closed: bool,
    extra_args: Any,
    callback: Any,
    disable: Any,
    key: Any,
    noise: Any,
) -> jax.Array:
    if not closed:  # without the step to 0, a table of pairs is no longer one that ends in D
        rows = jax.tree.map(lambda leaf: leaf[:-1], schedule.rows)
        schedule = replace(schedule, rows=rows, sigmas=schedule.sigmas[:-1], alternating=False)
    extra_args = {} if extra_args is None else extra_args
    for leaf in jax.tree.leaves(extra_args):
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, int, float)):
            raise ValueError(
                f"extra_args hold {leaf!r}, which is no array; a compiled program takes arrays and "
                "numbers. Bind anything else to the model, once: functools.partial(model, ...)."
            )
    out: jax.Array = sample(
        as_denoiser(model, schedule.sigmas, callback),
        extra_args,
        schedule,
        x,
        key,
        noise_fn=None if noise is None else given_noise(noise),
        progress=disable is False,
    )
    if callback is not None and not is_traced(out):
        jax.block_until_ready(out)
        jax.effects_barrier()
    return out


def _noise_of(model: Any) -> Any:
    """The noise levels that a table takes its timesteps from; a plain model is told sigma."""
    return model.noise if isinstance(model, DiscreteDenoiser) else None


def _levels(sigmas: Any) -> tuple[Any, bool]:
    """The levels without a closing 0, and whether there was one."""
    if is_traced(sigmas):  # the last one cannot be seen
        return sigmas[:-1], True
    levels = check_vector("sigmas", sigmas)
    if len(levels) < 2:
        raise ValueError(f"sigmas = {levels.tolist()} holds no step; pass at least two levels.")
    return (levels[:-1], True) if levels[-1] == 0 else (levels, False)


def _one_more(value: Any, closed: bool) -> Any:
    """One a step, for the builder, which counts a step more where a grid ends above 0."""
    xp, values = common_namespace(value)
    return value if closed or values.ndim == 0 else xp.concatenate([values, values[-1:]])


def _noise(noise_sampler: Any, key: Any, sigmas: Any, count: int, x: jax.Array) -> jax.Array | None:
    """What the noise_sampler gives for the first steps, [count, B, ...]; None where a key is to."""
    if (noise_sampler is None) == (key is None):
        came = "neither key nor noise_sampler" if key is None else "both key and noise_sampler"
        raise ValueError(
            f"this run draws noise and was given {came}; pass key=jax.random.key(seed), or "
            "noise_sampler(sigma, sigma_next)."
        )
    if noise_sampler is None:
        return None
    # Called from here and not in the loop, where a sampler with a state would be called once.
    draws = [jnp.asarray(noise_sampler(sigmas[i], sigmas[i + 1])) for i in range(count)]
    for z in draws:
        if z.shape != x.shape:
            raise ValueError(
                f"noise_sampler returned shape {z.shape} for a sample of shape {x.shape}; return "
                "unit Gaussian noise of the sample's shape."
            )
    return jnp.stack(draws).astype(x.dtype) if draws else jnp.zeros((1, *x.shape), x.dtype)
