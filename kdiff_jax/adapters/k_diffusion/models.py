"""k-diffusion's wrappers: networks of training timesteps as `model(x, sigma) -> denoised`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

import kdiff_jax as kd
from kdiff_jax._arrays import Array, common_namespace
from kdiff_jax._checks import check_flag, check_int, check_vector, shown
from kdiff_jax._denoise.prediction import Denoise
from kdiff_jax._run.check import parameters_of
from kdiff_jax.adapters.k_diffusion.checks import (
    check_callable,
    check_level,
    check_numbers,
    check_sample,
)

# model(x, sigma, **extra_args) -> denoised
Model = Callable[..., jax.Array]
# network(x, timestep, **extra_args) -> epsilon or v
Network = Callable[..., jax.Array]


@dataclass(frozen=True)
class WithKeywords:
    """`inner_model(x, timestep, **extra_args)`; equal to another of it, so that none retraces."""

    inner_model: Network

    def __call__(self, extra_args: dict[str, Any], x: jax.Array, timestep: jax.Array) -> jax.Array:
        advice = "it is called as model(x, timestep, **extra_args)."
        parameters_of("model", self.inner_model, 2, advice, extra_args)
        return self.inner_model(x, timestep, **extra_args)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class _Quantized:
    """A denoiser whose network receives whole timesteps only."""

    denoise: Denoise

    def __call__(self, params: Any, x: jax.Array, row: kd.Row, cond: Any = None) -> kd.Prediction:
        # The timestep is linear in log sigma from one to the next: the nearest is the rounded.
        return self.denoise(params, x, replace(row, timestep=jnp.round(row.timestep)), cond)


def denoised_at(
    denoise: Denoise,
    x: ArrayLike,
    sigma: ArrayLike,
    timestep_at: Callable[[Array], Array],
    extra_args: dict[str, Any],
) -> jax.Array:
    """`model(x, sigma, **extra_args) -> denoised` of a denoiser; sigma is a number or [B]."""
    x = check_sample("x", x)
    if x.ndim < 1:
        raise ValueError("x is a number; expected a sample [B, ...].")
    sigma = check_level("sigma", sigma, x)
    timestep = jnp.asarray(timestep_at(sigma), jnp.float32)
    timestep = jnp.broadcast_to(timestep, x.shape[:1])
    sigma = jnp.broadcast_to(jnp.asarray(sigma, float), x.shape[:1])
    zero = jnp.zeros_like(sigma)
    row = kd.Row(
        index=zero,
        step=zero,
        timestep=timestep,
        sigma=sigma,
        sigma_left=sigma,
        sigma_reached=zero,
        denoised_weight=zero,
        input_scale=1 / jnp.sqrt(1 + sigma**2),
    )
    return denoise(extra_args, x, row).denoised


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class DiscreteDenoiser:
    """A network of training timesteps in k-diffusion's contract; made by the functions below.

    Attributes:
      denoise: the network as a denoiser of `kd.sample`; its params are the extra_args.
      noise: the noise levels of training; the samplers build their tables from them.
      quantize: whether the network receives whole timesteps only, the nearest in log sigma.

    Example:
      >>> import kdiff_jax as kd
      >>> from kdiff_jax.adapters import k_diffusion as K
      >>> abar = kd.noise_schedule("scaled_linear").alphas_cumprod
      >>> model = K.DiscreteEpsDDPMDenoiser(lambda x, timestep: 0.1 * x, abar)
      >>> model.get_sigmas(2).round(3).tolist()
      [14.615, 0.029, 0.0]
    """

    denoise: Denoise
    noise: kd.NoiseSchedule
    quantize: bool = field(metadata={"static": True})

    def __call__(self, x: ArrayLike, sigma: ArrayLike, **extra_args: Any) -> jax.Array:
        """`model(x, sigma, **extra_args) -> denoised`; sigma is a number or [B]."""
        return denoised_at(self.denoise, x, sigma, self.noise.timestep_at, extra_args)

    @property
    def sigmas(self) -> np.ndarray:
        """[T] the noise levels of training, rising."""
        return self.noise.sigmas

    @property
    def sigma_min(self) -> float:
        """The least noise level of training."""
        return self.noise.sigmas[0]

    @property
    def sigma_max(self) -> float:
        """The greatest noise level of training."""
        return self.noise.sigmas[-1]

    def sigma_to_t(self, sigma: ArrayLike, quantize: bool | None = None) -> Array:
        """The timestep of a noise level, linear in log sigma; whole where it is quantized."""
        timestep = self.noise.timestep_at(check_numbers("sigma", sigma, above=0))
        whole = self.quantize if quantize is None else check_flag("quantize", quantize)
        return timestep.round() if whole else timestep

    def t_to_sigma(self, t: ArrayLike) -> Array:
        """The noise level of a fractional timestep in [0, T - 1], linear in log sigma."""
        count = len(self.noise.sigmas)
        t = check_numbers("t", t, at_least=0, at_most=count - 1)
        xp, time, grid, log_sigmas = common_namespace(
            t, np.arange(count), np.log(self.noise.sigmas)
        )
        return xp.exp(xp.interp(time, grid, log_sigmas))

    def get_sigmas(self, n: int | None = None) -> np.ndarray:
        """[n + 1] levels of even timesteps from T - 1 to 0, and 0; None: all those of training."""
        if n is None:
            return np.append(self.noise.sigmas[::-1], 0)
        last = len(self.noise.sigmas) - 1
        return np.append(self.t_to_sigma(np.linspace(last, 0, check_int("n", n, 1))), 0)


def discrete(
    prediction_type: Literal["epsilon", "v_prediction"],
    model: Network,
    alphas_cumprod: ArrayLike | Sequence[float],
    quantize: bool,
) -> DiscreteDenoiser:
    """A wrapper of a network of training timesteps."""
    quantize = check_flag("quantize", quantize)
    abar = check_vector("alphas_cumprod", alphas_cumprod)
    if abar.min() <= 0 or abar.max() >= 1 or np.any(np.diff(abar) >= 0):
        raise ValueError(
            f"alphas_cumprod runs from {abar[0]} to {abar[-1]}; expected [T] numbers in (0, 1) "
            "that fall from one to the next: the share of the variance that is signal."
        )
    check_callable("model", model, "model(x, timestep, **extra_args)")
    noise = kd.NoiseSchedule(abar, np.sqrt((1 - abar) / abar))
    denoise = kd.denoiser(WithKeywords(model), prediction_type)
    return DiscreteDenoiser(_Quantized(denoise) if quantize else denoise, noise, quantize)


def DiscreteEpsDDPMDenoiser(
    model: Network, alphas_cumprod: ArrayLike | Sequence[float], quantize: bool = False
) -> DiscreteDenoiser:
    """A network that predicts epsilon, in k-diffusion's contract: `denoised = x - sigma * eps`.

    `eps = model(x / sqrt(1 + sigma^2), t, **extra_args)` with t the timestep of sigma.

    Args:
      model: `model(x, timestep, **extra_args)`; x [B, ...], timestep [B] float32, the same shape
        back. Keep one function, and hand its weights in as extra_args.
      alphas_cumprod: [T] the share of the variance that is signal, falling.
      quantize: whether the network receives whole timesteps only.

    Returns:
      A callable `(x, sigma, **extra_args) -> denoised` with sigmas, sigma_min, sigma_max,
      sigma_to_t, t_to_sigma and get_sigmas.

    Raises:
      ValueError: alphas_cumprod that leave (0, 1) or do not fall; a model that is not callable.

    Example:
      >>> import jax.numpy as jnp, kdiff_jax as kd
      >>> from kdiff_jax.adapters import k_diffusion as K
      >>> def model(x, timestep, gain):
      ...     return gain * x
      >>> wrapped = K.DiscreteEpsDDPMDenoiser(model, kd.noise_schedule().alphas_cumprod)
      >>> wrapped(jnp.ones((2, 8)), 3.0, gain=0.1).shape
      (2, 8)

    Source: `DiscreteEpsDDPMDenoiser` of k-diffusion.
    """
    return discrete("epsilon", model, alphas_cumprod, quantize)


def DiscreteVDDPMDenoiser(
    model: Network, alphas_cumprod: ArrayLike | Sequence[float], quantize: bool = False
) -> DiscreteDenoiser:
    """A network that predicts v, in k-diffusion's contract: `denoised = a^2 x - sigma a v`.

    `a = 1 / sqrt(1 + sigma^2)` and `v = model(a x, t, **extra_args)`.

    Args and Returns: as of `DiscreteEpsDDPMDenoiser`.

    Raises:
      ValueError: as for `DiscreteEpsDDPMDenoiser`.

    Example:
      >>> import jax.numpy as jnp, kdiff_jax as kd
      >>> from kdiff_jax.adapters import k_diffusion as K
      >>> abar = kd.noise_schedule().alphas_cumprod
      >>> wrapped = K.DiscreteVDDPMDenoiser(lambda x, timestep: 0.1 * x, abar)
      >>> wrapped(jnp.ones((2, 8)), jnp.array([3.0, 0.5])).shape
      (2, 8)

    Source: `DiscreteVDDPMDenoiser` of k-diffusion.
    """
    return discrete("v_prediction", model, alphas_cumprod, quantize)


class CompVisModel(Protocol):
    """A network as the checkpoints of CompVis have it."""

    @property
    def alphas_cumprod(self) -> ArrayLike:
        """[T] the share of the variance that is signal, falling."""

    @property
    def apply_model(self) -> Network:
        """`apply_model(x, timestep, **extra_args)`."""


def CompVisDenoiser(model: CompVisModel, quantize: bool = False) -> DiscreteDenoiser:
    """`DiscreteEpsDDPMDenoiser(model.apply_model, model.alphas_cumprod, quantize)`.

    Args:
      model: any object with `apply_model(x, timestep, **extra_args)` and alphas_cumprod [T].
      quantize: whether the network receives whole timesteps only.

    Returns:
      As of `DiscreteEpsDDPMDenoiser`.

    Raises:
      ValueError: as for `DiscreteEpsDDPMDenoiser`.

    Example:
      >>> import types, kdiff_jax as kd
      >>> from kdiff_jax.adapters import k_diffusion as K
      >>> model = types.SimpleNamespace(
      ...     apply_model=lambda x, timestep, cond: 0.1 * x,
      ...     alphas_cumprod=kd.noise_schedule().alphas_cumprod,
      ... )
      >>> K.CompVisDenoiser(model).get_sigmas(10).shape
      (11,)

    Source: `CompVisDenoiser` of k-diffusion.
    """
    return discrete("epsilon", *_parts_of(model), quantize)


def CompVisVDenoiser(model: CompVisModel, quantize: bool = False) -> DiscreteDenoiser:
    """`DiscreteVDDPMDenoiser(model.apply_model, model.alphas_cumprod, quantize)`.

    Args, Returns, Raises: as of `CompVisDenoiser`.

    Example:
      >>> import types, kdiff_jax as kd
      >>> from kdiff_jax.adapters import k_diffusion as K
      >>> abar = kd.noise_schedule().alphas_cumprod
      >>> model = types.SimpleNamespace(apply_model=lambda x, t: 0.1 * x, alphas_cumprod=abar)
      >>> K.CompVisVDenoiser(model).quantize
      False

    Source: `CompVisVDenoiser` of k-diffusion.
    """
    return discrete("v_prediction", *_parts_of(model), quantize)


def _parts_of(model: CompVisModel) -> tuple[Network, ArrayLike]:
    missing = [name for name in ("apply_model", "alphas_cumprod") if not hasattr(model, name)]
    if missing:
        raise ValueError(
            f"model = {shown(model)} has no {' and no '.join(missing)}; pass a network as the "
            "checkpoints of CompVis have it, or take Discrete(Eps, V)DDPMDenoiser."
        )
    network = "apply_model(x, timestep, **extra_args)"
    return check_callable("apply_model", model.apply_model, network), model.alphas_cumprod
