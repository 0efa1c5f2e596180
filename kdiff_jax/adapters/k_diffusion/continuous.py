"""k-diffusion's wrapper of a network of continuous time, `model(x, sigma) -> denoised`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
from jax.typing import ArrayLike

import kdiff_jax as kd
from kdiff_jax._arrays import Array, common_namespace
from kdiff_jax._denoise.prediction import Denoise
from kdiff_jax.adapters.k_diffusion.checks import check_callable, check_numbers
from kdiff_jax.adapters.k_diffusion.models import Network, WithKeywords, denoised_at


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class ContinuousDenoiser:
    """A network of continuous time in k-diffusion's contract; made by `VDenoiser`.

    Attributes:
      denoise: the network as a denoiser of `kd.sample`; its params are the extra_args.
    """

    denoise: Denoise

    def __call__(self, x: ArrayLike, sigma: ArrayLike, **extra_args: Any) -> jax.Array:
        """`model(x, sigma, **extra_args) -> denoised`; sigma is a number or [B]."""
        return denoised_at(self.denoise, x, sigma, self.sigma_to_t, extra_args)

    def sigma_to_t(self, sigma: ArrayLike) -> Array:
        """The time of a noise level: `atan(sigma) * 2 / pi`, in [0, 1]."""
        xp, sigma = common_namespace(check_numbers("sigma", sigma, at_least=0))
        return xp.arctan(sigma) * (2 / math.pi)

    def t_to_sigma(self, t: ArrayLike) -> Array:
        """The noise level of a time in [0, 1): `tan(t * pi / 2)`."""
        xp, t = common_namespace(check_numbers("t", t, at_least=0, at_most=1))
        return xp.tan(t * (math.pi / 2))


def VDenoiser(inner_model: Network) -> ContinuousDenoiser:
    """A network of v-diffusion in k-diffusion's contract: `denoised = a^2 x - sigma a v`.

    `a = 1 / sqrt(1 + sigma^2)` and `v = inner_model(a x, t, **extra_args)` at the time
    `t = atan(sigma) * 2 / pi`.

    Args:
      inner_model: `inner_model(x, t, **extra_args)`; x [B, ...], t [B] float32 in [0, 1], the same
        shape back. Keep one function, and hand its weights in as extra_args.

    Returns:
      A callable `(x, sigma, **extra_args) -> denoised` with sigma_to_t and t_to_sigma.

    Raises:
      ValueError: a network that is not callable.

    Example:
      >>> import jax.numpy as jnp
      >>> from kdiff_jax.adapters import k_diffusion as K
      >>> model = K.VDenoiser(lambda x, t, gain: gain * x)
      >>> model(jnp.ones((2, 8)), 3.0, gain=0.1).shape
      (2, 8)

    Source: `VDenoiser` of k-diffusion.
    """
    check_callable("inner_model", inner_model, "inner_model(x, t, **extra_args)")
    network = kd.denoiser(WithKeywords(inner_model), "v_prediction")
    return ContinuousDenoiser(kd.continuous(network, "angle"))
