"""Networks trained on continuous noise levels: EDM preconditioning, and what a network is told.

A network of `kd.denoiser` is told the row's training timestep; these are told a function of the
noise level itself. The rows need `alpha > 0` only: with alpha = 1 the level is sigma, and in other
units it is `sigma / alpha`, so that such networks run on the tables of every sampler.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from kdiff_jax._checks import check_choice
from kdiff_jax._denoise import (
    Denoise,
    Prediction,
    as_leaf,
    as_pytree,
    ask,
    check_network,
    per_sample,
)
from kdiff_jax._noise_schedule import state_dtype
from kdiff_jax._schedule import Row

C_NOISE: dict[str, Callable[[jax.Array], jax.Array]] = {
    "log_sigma": lambda sigma: jnp.log(sigma) / 4,
    "sigma": lambda sigma: sigma,
    "angle": lambda sigma: jnp.arctan(sigma) * (2 / jnp.pi),
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Continuous:
    """Made by `kd.continuous`."""

    denoise: Denoise
    c_noise: Any = field(metadata={"static": True})

    def __call__(self, params: Any, x: jax.Array, row: Row, cond: Any = None) -> Prediction:
        told = C_NOISE[self.c_noise] if isinstance(self.c_noise, str) else self.c_noise
        time = told(jnp.asarray(row.sigma) / jnp.asarray(row.alpha))
        return self.denoise(params, x, replace(row, timestep=time), cond)


def continuous(
    denoise: Denoise, c_noise: str | Callable[[jax.Array], jax.Array] = "sigma"
) -> Continuous:
    """A denoiser whose network is told the noise level, and no training timestep.

        log_sigma   log(sigma) / 4            EDM
        sigma       sigma                     k-diffusion's own networks
        angle       (2 / pi) * atan(sigma)    v-diffusion; with "v_prediction", its VDenoiser

    sigma is the level where alpha is 1, `row.sigma / row.alpha` in general.

    Args:
      denoise: the denoiser to wrap, of any prediction type but flow_prediction, whose network is
        told `T * sigma` by the schedule: with num_train_timesteps=1 that is sigma itself.
      c_noise: one of these names, or a function of sigma; keep one function.

    Returns:
      A denoiser. Wrappers around it see the row's own timestep.

    Raises:
      ValueError: an unknown name, something that is no function.

    Example:
      >>> import jax, jax.numpy as jnp, kdiff_jax as kd
      >>> v_network = kd.denoiser(lambda params, x, time: params * x, "v_prediction")
      >>> denoise = kd.continuous(v_network, "angle")
      >>> schedule = kd.dpm2_schedule(kd.noise_schedule(), sigmas=[10.0, 1.0, 0.1])
      >>> x = kd.initial_sample(schedule, jax.random.key(0), (2, 8))
      >>> kd.sample(denoise, jnp.float32(0.1), schedule, x).shape
      (2, 8)

    Source: `VDenoiser` (external.py) and `Denoiser` (layers.py) of k-diffusion; Karras et al. 2022
    (arXiv:2206.00364), table 1.
    """
    return Continuous(as_pytree(denoise), _check_c_noise(c_noise))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EdmDenoiser:
    """Made by `kd.edm_denoiser`, inside a `Continuous`: its time is the row's timestep."""

    model_fn: Callable[..., Any] = field(metadata={"static": True})
    dtype: Any = field(metadata={"static": True})
    sigma_data: Any

    @property
    def prediction_type(self) -> str:
        """Neither x0 nor eps alone, but a mixture that changes with the level."""
        return "edm"

    def __call__(self, params: Any, x: jax.Array, row: Row, cond: Any = None) -> Prediction:
        x = jnp.asarray(x)
        x = x.astype(state_dtype(x))
        sigma = per_sample(row.sigma, x)
        data = per_sample(row.alpha, x) * per_sample(self.sigma_data, x)
        # The standard deviation of x, and of each of its parts as a share of it.
        scale = 1 / jnp.sqrt(sigma**2 + data**2)
        signal, noise = scale * data, scale * sigma
        xs = scale * x
        out = ask(self.model_fn, params, xs, row.timestep, cond, self.dtype)
        denoised = per_sample(self.sigma_data, x) * (signal * xs + noise * out)
        return Prediction(denoised, noise * xs - signal * out)


def edm_denoiser(
    model_fn: Callable[..., Any],
    sigma_data: ArrayLike = 0.5,
    dtype: Any = None,
    *,
    c_noise: str | Callable[[jax.Array], jax.Array] = "log_sigma",
) -> Continuous:
    """A network with EDM preconditioning: `D = c_skip * x + c_out * out(c_in * x, c_noise)`.

    With `n = sqrt(sigma^2 + sigma_data^2)`: `c_in = 1 / n`, `c_skip = sigma_data^2 / n^2`,
    `c_out = sigma * sigma_data / n`, `c_noise = log(sigma) / 4`; and, without the cancellation of
    (x - D) / sigma, `epsilon = sigma / n^2 * x - sigma_data / n * out`.

    Args:
      model_fn: as for `kd.denoiser`; its third argument is c_noise, [B] float32.
      sigma_data: positive, the standard deviation of the data; scalar or [B]. 0.5 for images in
        [-1, 1], 1 for k-diffusion's `Denoiser`.
      dtype: as for `kd.denoiser`.
      c_noise: what the network is told, as for `kd.continuous`; "sigma" for k-diffusion's
        `Denoiser`.

    Returns:
      A denoiser for the schedules of every noise schedule but a rectified flow.

    Raises:
      ValueError: a sigma_data that is not positive; otherwise as for `kd.denoiser` and
        `kd.continuous`.

    Example:
      >>> import jax, jax.numpy as jnp, kdiff_jax as kd
      >>> denoise = kd.edm_denoiser(lambda params, x, c_noise: params * x)
      >>> schedule = kd.dpm2_schedule(kd.noise_schedule(), sigmas=[80.0, 10.0, 1.0, 0.1, 0.002])
      >>> x = kd.initial_sample(schedule, jax.random.key(0), (2, 8))
      >>> kd.sample(denoise, jnp.float32(0.1), schedule, x).shape
      (2, 8)

    Source: Karras et al. 2022 (arXiv:2206.00364), equation 7 and table 1; `Denoiser` of
    k-diffusion's layers.py.
    """
    dtype, c_noise = check_network(model_fn, dtype), _check_c_noise(c_noise)
    data = as_leaf("sigma_data", sigma_data, above=0)
    return Continuous(EdmDenoiser(model_fn, dtype, data), c_noise)


def _check_c_noise(c_noise: Any) -> Any:
    if callable(c_noise):
        return c_noise
    return check_choice("c_noise", c_noise, C_NOISE)
