"""Adaptive projected guidance: less of the part of guidance that only raises the contrast."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from kdiff_jax._arrays import divided, per_sample
from kdiff_jax._checks import check_flag
from kdiff_jax._denoise.pair import both, check_uncond
from kdiff_jax._denoise.prediction import (
    Denoise,
    Prediction,
    as_denoise,
    as_leaf,
    brief,
    check_call,
    units,
)
from kdiff_jax._table.row import Row


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Projected:
    """Made by `kd.projected`."""

    denoise: Denoise
    scale: jax.Array
    uncond: Any
    eta: jax.Array
    norm_threshold: jax.Array | None
    batched: bool = field(metadata={"static": True})

    def __call__(self, params: Any, x: jax.Array, row: Row, cond: Any = None) -> Prediction:
        x = check_call(x, row)
        with_cond, without = both(self, params, x, row, cond)
        change = _change(self, with_cond.denoised, without.denoised)
        alpha, sigma, _ = units(row, change)
        # As a change of the conditional epsilon: from D alone it would cancel at small sigma.
        epsilon = with_cond.epsilon - divided(alpha * change, sigma)
        return Prediction(with_cond.denoised + change, epsilon)

    def __repr__(self) -> str:
        options = [f"scale {brief(self.scale)}", f"eta {brief(self.eta)}"]
        if self.norm_threshold is not None:
            options.append(f"norm_threshold {brief(self.norm_threshold)}")
        if not self.batched:
            options.append("two calls")
        return f"Projected({', '.join(options)}, {brief(self.denoise)})"


# Compiled: outside of a program each constant in here would cross to the device in every call.
@functools.partial(jax.jit, inline=True)
def _change(options: Projected, denoised: jax.Array, without: jax.Array) -> jax.Array:
    """`(scale - 1) * (orthogonal + eta * parallel)` of the difference of two estimates of x0."""
    scale, eta = (per_sample(leaf, denoised) for leaf in (options.scale, options.eta))

    def dot(one: jax.Array, other: jax.Array) -> jax.Array:
        return jnp.sum(one * other, axis=tuple(range(1, one.ndim)), keepdims=True)

    difference = denoised - without
    if options.norm_threshold is not None:
        limit = per_sample(options.norm_threshold, denoised)
        square = dot(difference, difference)
        large = square > limit**2  # the root and its gradient only where it is
        difference = difference * jnp.where(large, limit / jnp.sqrt(jnp.where(large, square, 1)), 1)
    square = dot(denoised, denoised)
    parallel = dot(difference, denoised) / jnp.where(square > 0, square, 1) * denoised
    return (scale - 1) * (difference - (1 - eta) * parallel)


def projected(
    denoise: Denoise,
    scale: ArrayLike,
    uncond: Any,
    *,
    eta: ArrayLike = 0.0,
    norm_threshold: ArrayLike | None = None,
    batched: bool = True,
) -> Projected:
    """Adaptive projected guidance: `D <- D_cond + (scale - 1) * (orthogonal + eta * parallel)`.

    `orthogonal + parallel` is `d = D_cond - D_uncond`, at most norm_threshold long:
    `d <- d * min(1, norm_threshold / |d|)`, and then `parallel = (d . D_cond) / |D_cond|^2 D_cond`;
    norms and products are over each sample. The parallel part raises contrast and saturation more
    than quality, so large scales do without it. With eta = 1 and no threshold it is `kd.guided`.

    Args:
      denoise: the denoiser to wrap.
      scale: scalar or [B]; 1 is no guidance. w in the paper.
      uncond: the pytree of `cond` that means "no condition", as for `kd.guided`.
      eta: the share of the parallel part that is kept, scalar or [B]; 0 in most of the paper.
      norm_threshold: positive, scalar or [B], in units of D: it grows with the square root of the
        number of pixels. r in the paper, 2.5 to 15. None leaves the length as it is.
      batched: True makes one call with a batch of twice the size, False two, as for `kd.guided`.

    Returns:
      A denoiser, which must be called with cond; epsilon follows from the new D. The momentum of
      the paper, a memory from step to step, is left out.

    Raises:
      ValueError: a scale or eta that is not finite, or of rank 2; a norm_threshold that is not
        positive. When it is called: a cond as for `kd.guided`.

    Example:
      >>> import jax.numpy as jnp, kdiff_jax as kd
      >>> def model_fn(params, x, timestep, label):
      ...     return params * x * label[:, None]
      >>> denoise = kd.projected(kd.denoiser(model_fn), 7.0, jnp.float32(0), norm_threshold=2.5)
      >>> row = kd.dpm2(kd.levels(kd.noise_schedule(), 10))[0]
      >>> denoise(jnp.float32(0.1), jnp.ones((3, 4)), row, jnp.ones(3)).denoised.shape
      (3, 4)

    Source: Sadat et al. 2024 (arXiv:2410.02416), algorithm 1 with beta = 0.
    """
    check_flag("batched", batched)
    check_uncond(uncond)
    limit = None if norm_threshold is None else as_leaf("norm_threshold", norm_threshold, above=0)
    leaves = as_leaf("scale", scale), uncond, as_leaf("eta", eta), limit
    return Projected(as_denoise(denoise), *leaves, batched)
