"""k-diffusion's wrapper of the networks of OpenAI's guided-diffusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from kdiff_jax._checks import check_flag, shown
from kdiff_jax.adapters.k_diffusion.checks import check_callable
from kdiff_jax.adapters.k_diffusion.models import DiscreteDenoiser, Network, discrete


@dataclass(frozen=True)
class _FirstHalf:
    """A network without the variances that it predicts beside epsilon, in the second half."""

    inner_model: Network

    def __call__(self, x: jax.Array, timestep: jax.Array, **extra_args: Any) -> jax.Array:
        out = self.inner_model(x, timestep, **extra_args)
        shape = jnp.shape(out)
        for axis in range(1, x.ndim):
            if shape == (*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :]):
                return jnp.split(out, 2, axis)[0]
        raise ValueError(
            f"model returned shape {shape} for a sample of shape {x.shape}; with learned sigmas it "
            "returns twice the channels, epsilon first. Pass has_learned_sigmas=False where it "
            "returns epsilon alone."
        )


class OpenAIDiffusion(Protocol):
    """What is read of the diffusion object of OpenAI's guided-diffusion."""

    @property
    def alphas_cumprod(self) -> ArrayLike:
        """[T] the share of the variance that is signal, falling."""


def OpenAIDenoiser(
    model: Network,
    diffusion: OpenAIDiffusion,
    quantize: bool = False,
    has_learned_sigmas: bool = True,
) -> DiscreteDenoiser:
    """`DiscreteEpsDDPMDenoiser(model, diffusion.alphas_cumprod, quantize)`, epsilon only.

    Args:
      model: `model(x, timestep, **extra_args)`; with learned sigmas it returns twice the channels
        of x, in whichever axis they are, of which the first half is epsilon.
      diffusion: any object with alphas_cumprod [T].
      quantize: whether the network receives whole timesteps only.
      has_learned_sigmas: whether to cut the second half off.

    Returns:
      As of `DiscreteEpsDDPMDenoiser`.

    Raises:
      ValueError: as for `DiscreteEpsDDPMDenoiser`; when it is called, an output of another shape.

    Example:
      >>> import types, jax.numpy as jnp, kdiff_jax as kd
      >>> from kdiff_jax.adapters import k_diffusion as K
      >>> diffusion = types.SimpleNamespace(alphas_cumprod=kd.noise_schedule().alphas_cumprod)
      >>> def model(x, timestep):
      ...     return jnp.concatenate([0.1 * x, x], axis=1)
      >>> K.OpenAIDenoiser(model, diffusion)(jnp.ones((2, 3, 8, 8)), 3.0).shape
      (2, 3, 8, 8)

    Source: `OpenAIDenoiser` of k-diffusion.
    """
    check_callable("model", model, "model(x, timestep, **extra_args)")
    learned = check_flag("has_learned_sigmas", has_learned_sigmas)
    if not hasattr(diffusion, "alphas_cumprod"):
        raise ValueError(
            f"diffusion = {shown(diffusion)} has no alphas_cumprod; pass one that has."
        )
    network = _FirstHalf(model) if learned else model
    return discrete("epsilon", network, diffusion.alphas_cumprod, quantize)
