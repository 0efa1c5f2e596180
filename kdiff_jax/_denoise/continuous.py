"""Networks trained on continuous noise levels: their time is a function of sigma.

A network of `kd.denoiser` receives the row's training timestep; these receive a function of the
noise level itself. The rows need `alpha > 0` only: where alpha is 1 the level is sigma, and in
other units it is `sigma / alpha`, so that such networks run on the tables of every sampler.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from kdiff_jax._arrays import along, per_sample, state_dtype
from kdiff_jax._checks import check_choice
from kdiff_jax._denoise.network import ModelFn, call_network, check_network
from kdiff_jax._denoise.prediction import (
    Denoise,
    Prediction,
    as_denoise,
    as_leaf,
    brief,
    check_call,
    described,
    one_of,
    predicted,
    units,
)
from kdiff_jax._table.row import Row

TimeName = Literal["log_sigma", "sigma", "angle"]
TimeFn = Callable[[jax.Array], jax.Array]

# Compiled, so that no constant crosses to the device in a call outside of a program.
TIME_FNS: dict[TimeName, TimeFn] = {
    "log_sigma": jax.jit(lambda sigma: jnp.log(sigma) / 4, inline=True),
    "sigma": lambda sigma: sigma,
    "angle": jax.jit(lambda sigma: jnp.arctan(sigma) * (2 / jnp.pi), inline=True),
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Continuous:
    """Made by `kd.continuous`."""

    denoise: Denoise
    c_noise: TimeName | TimeFn = field(metadata={"static": True})

    def __call__(self, params: Any, x: jax.Array, row: Row, cond: Any = None) -> Prediction:
        x = check_call(x, row)
        time_fn = TIME_FNS[self.c_noise] if isinstance(self.c_noise, str) else self.c_noise
        level = jnp.asarray(row.sigma)
        if row.alpha is not None:
            alpha = jnp.asarray(row.alpha)
            level = along(level, alpha) / along(alpha, level)
        time = time_fn(level)
        shape = () if isinstance(time, (int, float)) else getattr(time, "shape", None)
        if shape not in ((), level.shape):
            raise ValueError(
                f"c_noise returned {described(time)} for levels of {described(level)}; return one "
                "number for each of them."
            )
        return predicted(self.denoise, params, x, replace(row, timestep=time), cond)

    def __repr__(self) -> str:
        return f"Continuous({brief(self.c_noise)}, {brief(self.denoise)})"


def continuous(denoise: Denoise, c_noise: TimeName | TimeFn = "sigma") -> Continuous:
    """A denoiser whose network receives the noise level in place of a training timestep.

        log_sigma   log(sigma) / 4            EDM
        sigma       sigma                     k-diffusion's own networks
        angle       (2 / pi) * atan(sigma)    v-diffusion; with "v_prediction", its VDenoiser

    sigma is the level where alpha is 1, `row.sigma / row.alpha` in general.

    Args:
      denoise: the denoiser to wrap, of any prediction type but flow_prediction, whose network
        receives `T * sigma` by its schedule: with num_train_timesteps=1 that is sigma itself.
      c_noise: one of these names, or a function of sigma; keep one function. The network receives
        its value as float32, [B] (or [B, F]).

    Returns:
      A denoiser. Wrappers around it see the row's own timestep.

    Raises:
      ValueError: an unknown name, or something that is neither a name nor a function; when it is
        called, a function that returns no number a level.

    Example:
      >>> import jax, jax.numpy as jnp, kdiff_jax as kd
      >>> v_network = kd.denoiser(lambda params, x, time: params * x, "v_prediction")
      >>> denoise = kd.continuous(v_network, "angle")
      >>> schedule = kd.dpm2(kd.levels(None, sigmas=[10.0, 1.0, 0.1]))
      >>> x = kd.initial_sample(schedule, jax.random.key(0), (2, 8))
      >>> kd.sample(denoise, jnp.float32(0.1), schedule, x).shape
      (2, 8)

    Source: `VDenoiser` (external.py) and `Denoiser` (layers.py) of k-diffusion; Karras et al. 2022
    (arXiv:2206.00364), table 1.
    """
    return Continuous(as_denoise(denoise), _check_c_noise(c_noise))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class EdmDenoiser:
    """Made by `kd.edm_denoiser`, inside a `Continuous`: its c_noise is the row's timestep."""

    model_fn: ModelFn = field(metadata={"static": True})
    dtype: np.dtype | None = field(metadata={"static": True})
    sigma_data: jax.Array

    @property
    def prediction_type(self) -> str:
        """Neither x0 nor eps alone, but a mixture that changes with the level."""
        return "edm"

    def __call__(self, params: Any, x: jax.Array, row: Row, cond: Any = None) -> Prediction:
        x = check_call(x, row)
        x = x.astype(state_dtype(x))
        alpha, sigma, _ = units(row, x)
        sigma_data = per_sample(self.sigma_data, x)
        data = alpha * sigma_data
        # 1 over the standard deviation of x; then the shares of signal and noise in it.
        scale = one_of(x.dtype) / jnp.sqrt(sigma**2 + data**2)
        signal, noise = scale * data, scale * sigma
        xs = scale * x
        out = call_network(self.model_fn, params, xs, row.timestep, cond, self.dtype)
        denoised = sigma_data * (signal * xs + noise * out)
        return Prediction(denoised, noise * xs - signal * out)

    def __repr__(self) -> str:
        dtype = "" if self.dtype is None else f", {self.dtype}"
        return f"EdmDenoiser({brief(self.model_fn)}, sigma_data {brief(self.sigma_data)}{dtype})"


def edm_denoiser(
    model_fn: ModelFn,
    sigma_data: ArrayLike = 0.5,
    dtype: DTypeLike | None = None,
    *,
    c_noise: TimeName | TimeFn = "log_sigma",
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
      c_noise: what the network receives as its time, as for `kd.continuous`; "sigma" for
        k-diffusion's `Denoiser`.

    Returns:
      A denoiser for the schedules of every noise schedule but a rectified flow.

    Raises:
      ValueError: a sigma_data that is not positive; otherwise as for `kd.denoiser` and
        `kd.continuous`.

    Example:
      >>> import jax, jax.numpy as jnp, kdiff_jax as kd
      >>> denoise = kd.edm_denoiser(lambda params, x, c_noise: params * x)
      >>> schedule = kd.dpm2(kd.levels(None, sigmas=[80.0, 10.0, 1.0, 0.1, 0.002]))
      >>> x = kd.initial_sample(schedule, jax.random.key(0), (2, 8))
      >>> kd.sample(denoise, jnp.float32(0.1), schedule, x).shape
      (2, 8)

    Source: Karras et al. 2022 (arXiv:2206.00364), equation 7 and table 1; `Denoiser` of
    k-diffusion's layers.py.
    """
    dtype, c_noise = check_network(model_fn, dtype), _check_c_noise(c_noise)
    data = as_leaf("sigma_data", sigma_data, square=True, above=0)
    return Continuous(EdmDenoiser(model_fn, dtype, data), c_noise)


def _check_c_noise(c_noise: TimeName | TimeFn) -> TimeName | TimeFn:
    return c_noise if callable(c_noise) else check_choice("c_noise", c_noise, get_args(TimeName))
