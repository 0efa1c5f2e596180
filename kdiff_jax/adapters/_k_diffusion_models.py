"""k-diffusion's wrappers: networks of training timesteps as `model(x, sigma) -> denoised`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kdiff_jax._checks import check_int, check_vector, common_namespace
from kdiff_jax._denoise import Denoiser, Prediction, as_pytree, denoiser
from kdiff_jax._noise_schedule import NoiseSchedule, state_dtype, vp_levels
from kdiff_jax._schedule import Row
from kdiff_jax.adapters._k_diffusion_grids import to_d


@dataclass(frozen=True)
class _WithKeywords:
    """`inner_model(x, timestep, **extra_args)`; equal to another of it, so that none retraces."""

    inner_model: Callable[..., Any]

    def __call__(self, extra_args: Any, x: jax.Array, timestep: jax.Array) -> Any:
        return self.inner_model(x, timestep, **extra_args)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DiscreteDenoiser:
    """A network of training timesteps in k-diffusion's contract; made by the functions below.

    Attributes:
      denoise: the network as `kd.denoiser` reads it.
      noise: the noise levels of training; the samplers below build their tables from them.
      quantize: whether the network is told whole timesteps only, the nearest in log sigma.
    """

    denoise: Denoiser
    noise: Any
    quantize: bool = field(metadata={"static": True})

    def __call__(self, x: ArrayLike, sigma: ArrayLike, **extra_args: Any) -> jax.Array:
        """`model(x, sigma, **extra_args) -> denoised`; sigma is a number or [B]."""
        x = jnp.asarray(x)
        x = x.astype(state_dtype(x))
        sigma = jnp.broadcast_to(jnp.asarray(sigma, x.dtype), x.shape[:1])
        zero = jnp.zeros_like(sigma)
        columns: dict[str, Any] = {f.name: zero for f in fields(Row)}
        columns |= {"alpha": zero + 1, "sigma": sigma, "input_scale": vp_levels(sigma, jnp)[0]}
        columns["timestep"] = jnp.asarray(self.noise.timestep_at(sigma), jnp.float32)
        return self.predict(x, Row(**columns), extra_args).denoised

    def predict(self, x: jax.Array, row: Row, extra_args: Any) -> Prediction:
        """Both halves of the answer: epsilon out of denoised would cancel."""
        if self.quantize:
            # The timestep is linear in log sigma from one to the next: the nearest is the rounded.
            row = replace(row, timestep=jnp.round(row.timestep))
        return self.denoise(extra_args, x, row)

    @property
    def sigmas(self) -> Any:
        """[T] the noise levels of training, rising."""
        return self.noise.sigmas

    @property
    def sigma_min(self) -> Any:
        """The least noise level of training."""
        return self.noise.sigmas[0]

    @property
    def sigma_max(self) -> Any:
        """The greatest noise level of training."""
        return self.noise.sigmas[-1]

    def sigma_to_t(self, sigma: ArrayLike, quantize: bool | None = None) -> Any:
        """The timestep of a noise level, linear in log sigma; whole where it is quantized."""
        timestep: Any = self.noise.timestep_at(sigma)
        return timestep.round() if (self.quantize if quantize is None else quantize) else timestep

    def t_to_sigma(self, t: ArrayLike) -> Any:
        """The noise level of a fractional timestep in [0, T - 1], linear in log sigma."""
        count = len(self.noise.sigmas)
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


def _discrete(
    prediction_type: str,
    model: Callable[..., Any],
    alphas_cumprod: ArrayLike | Sequence[float],
    quantize: bool,
) -> DiscreteDenoiser:
    abar = check_vector("alphas_cumprod", alphas_cumprod)
    if abar.min() <= 0 or abar.max() >= 1 or np.any(np.diff(abar) >= 0):
        raise ValueError(
            f"alphas_cumprod runs from {abar[0]} to {abar[-1]}; expected [T] numbers in (0, 1) "
            "that fall from one to the next: the share of the variance that is signal."
        )
    if not callable(model):
        raise ValueError(f"model = {model!r} is not callable; pass model(x, timestep, **kwargs).")
    noise = NoiseSchedule(abar, np.sqrt((1 - abar) / abar))
    return DiscreteDenoiser(denoiser(_WithKeywords(model), prediction_type), noise, bool(quantize))


def DiscreteEpsDDPMDenoiser(
    model: Callable[..., Any], alphas_cumprod: ArrayLike | Sequence[float], quantize: bool = False
) -> DiscreteDenoiser:
    """A network that says epsilon, in k-diffusion's contract: `denoised = x - sigma * eps`.

    `eps = model(x / sqrt(1 + sigma^2), t, **extra_args)` with t the timestep of sigma.

    Args:
      model: `model(x, timestep, **extra_args)`; x [B, ...], timestep [B] float32, the same shape
        back. Keep one function, and hand its weights in as extra_args.
      alphas_cumprod: [T] the share of the variance that is signal, falling.
      quantize: tell the network whole timesteps only.

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
    return _discrete("epsilon", model, alphas_cumprod, quantize)


def DiscreteVDDPMDenoiser(
    model: Callable[..., Any], alphas_cumprod: ArrayLike | Sequence[float], quantize: bool = False
) -> DiscreteDenoiser:
    """A network that says v, in k-diffusion's contract: `denoised = a^2 x - sigma a v`.

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
    return _discrete("v_prediction", model, alphas_cumprod, quantize)


def CompVisDenoiser(model: Any, quantize: bool = False) -> DiscreteDenoiser:
    """`DiscreteEpsDDPMDenoiser(model.apply_model, model.alphas_cumprod, quantize)`.

    Args:
      model: any object with `apply_model(x, timestep, **extra_args)` and alphas_cumprod [T].
      quantize: tell the network whole timesteps only.

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
    return DiscreteEpsDDPMDenoiser(model.apply_model, model.alphas_cumprod, quantize)


def CompVisVDenoiser(model: Any, quantize: bool = False) -> DiscreteDenoiser:
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
    return DiscreteVDDPMDenoiser(model.apply_model, model.alphas_cumprod, quantize)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ModelDenoiser:
    """Made by `as_denoiser`; its params are the extra_args of the model."""

    model: Any
    sigmas: Any
    callback: Any = field(metadata={"static": True})

    def __call__(self, params: Any, x: jax.Array, row: Row, cond: Any = None) -> Prediction:
        if isinstance(self.model, DiscreteDenoiser):
            prediction = self.model.predict(x, row, params)
        else:
            sigma = jnp.broadcast_to(row.sigma.astype(x.dtype), x.shape[:1])
            denoised = jnp.asarray(self.model(x, sigma, **params))
            if denoised.shape != x.shape:
                raise ValueError(
                    f"model returned shape {denoised.shape} for a sample of shape {x.shape}; "
                    "return denoised, of the same shape."
                )
            prediction = Prediction(denoised, to_d(x, sigma, denoised.astype(x.dtype)))
        if self.callback is not None:
            said = (x, row.step, self.sigmas[row.step], row.sigma, prediction.denoised)
            # Rows that start from an anchor are the second evaluation of their step.
            jax.lax.cond(row.anchor_weight == 0, self._tell, lambda *said: None, *said)
        return prediction

    def _tell(self, *said: jax.Array) -> None:
        def tell(x: Any, i: Any, sigma: Any, sigma_hat: Any, denoised: Any) -> None:
            values = {"x": x, "i": int(i), "sigma": float(sigma), "sigma_hat": float(sigma_hat)}
            self.callback({**values, "denoised": denoised})

        jax.debug.callback(tell, *said, ordered=True)


def as_denoiser(model: Any, sigmas: Any, callback: Any = None) -> ModelDenoiser:
    """A model of k-diffusion's contract for `kd.sample`, with the grid that a callback is told."""
    # The table has the wrapper's noise levels in it: they need not cross into the program.
    discrete = isinstance(model, DiscreteDenoiser)
    network = replace(model, noise=None) if discrete else as_pytree(model)
    return ModelDenoiser(network, sigmas, callback)
