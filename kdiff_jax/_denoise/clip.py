"""Keeping the estimate of x0 within its range: clipping, and dynamic thresholding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from kdiff_jax._arrays import is_traced, per_sample, state_dtype
from kdiff_jax._checks import check_number, shown
from kdiff_jax._denoise.prediction import (
    Denoise,
    Prediction,
    as_denoise,
    as_leaf,
    brief,
    check_call,
    epsilon_of,
    one_of,
    predicted,
)
from kdiff_jax._denoise.quantile import quantile
from kdiff_jax._table.row import Row


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Clipped:
    """Made by `kd.clipped`."""

    denoise: Denoise
    clip_range: jax.Array

    def __call__(self, params: Any, x: jax.Array, row: Row, cond: Any = None) -> Prediction:
        x = check_call(x, row)
        denoised = predicted(self.denoise, params, x, row, cond).denoised
        limit = per_sample(self.clip_range, denoised)
        denoised = jnp.clip(denoised, -limit, limit)
        return Prediction(denoised, epsilon_of(denoised, x.astype(denoised.dtype), row))

    def __repr__(self) -> str:
        return f"Clipped(clip_range {brief(self.clip_range)}, {brief(self.denoise)})"


def clipped(denoise: Denoise, clip_range: ArrayLike = 1.0) -> Clipped:
    """A denoiser whose estimate of x0 is clipped: `D <- clip(D, -clip_range, clip_range)`.

    Args:
      denoise: the denoiser to wrap.
      clip_range: positive, scalar or [B].

    Returns:
      A denoiser; epsilon follows from the new D.

    Raises:
      ValueError: a clip_range that is not positive.

    Example:
      >>> import jax.numpy as jnp, kdiff_jax as kd
      >>> denoise = kd.clipped(kd.denoiser(lambda params, x, timestep: x, "sample"), 1.0)
      >>> row = kd.dpm2(kd.levels(kd.noise_schedule(), 10))[-1]
      >>> denoise(None, jnp.full((1, 2), 7.0), row).denoised.tolist()
      [[1.0, 1.0]]

    Source: `clip_sample` of diffusers' LCMScheduler.
    """
    return Clipped(as_denoise(denoise), as_leaf("clip_range", clip_range, above=0))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Thresholded:
    """Made by `kd.thresholded`."""

    denoise: Denoise
    ratio: jax.Array
    sample_max_value: jax.Array

    def __call__(self, params: Any, x: jax.Array, row: Row, cond: Any = None) -> Prediction:
        x = check_call(x, row)
        denoised = predicted(self.denoise, params, x, row, cond).denoised
        sizes = jnp.abs(denoised).astype(state_dtype(denoised))
        limit = quantile(sizes, self.ratio.astype(sizes.dtype))
        limit = per_sample(
            jnp.clip(limit, one_of(sizes.dtype), self.sample_max_value.astype(sizes.dtype)),
            denoised,
        )
        denoised = jnp.clip(denoised, -limit, limit) / limit
        return Prediction(denoised, epsilon_of(denoised, x.astype(denoised.dtype), row))

    def __repr__(self) -> str:
        options = f"ratio {brief(self.ratio)}, sample_max_value {brief(self.sample_max_value)}"
        return f"Thresholded({options}, {brief(self.denoise)})"


def thresholded(
    denoise: Denoise, ratio: ArrayLike = 0.995, sample_max_value: ArrayLike = 1.0
) -> Thresholded:
    """A denoiser with dynamic thresholding: `D <- clip(D, -s, s) / s`, with one s a sample.

    `s = clip(quantile(|D|, ratio), 1, sample_max_value)`. It changes the range of D, so it suits
    networks on pixels in [-1, 1], not on latents.

    Args:
      denoise: the denoiser to wrap.
      ratio: the quantile, in (0, 1].
      sample_max_value: the largest s, at least 1.

    Returns:
      A denoiser; epsilon follows from the new D.

    Raises:
      ValueError: a ratio outside (0, 1], a sample_max_value below 1.

    Example:
      >>> import jax.numpy as jnp, kdiff_jax as kd
      >>> network = kd.denoiser(lambda params, x, timestep: x, "sample")
      >>> denoise = kd.thresholded(network, ratio=0.995, sample_max_value=1.5)
      >>> row = kd.dpm2(kd.levels(kd.noise_schedule(), 10))[-1]
      >>> denoise(None, jnp.full((1, 2), 1.2), row).denoised.tolist()
      [[1.0, 1.0]]

    Source: Saharia et al. 2022 (arXiv:2205.11487), section 2.3; `thresholding` of diffusers.
    """
    if not is_traced(ratio) and check_number("ratio", ratio, above=0) > 1:
        raise ValueError(f"ratio = {shown(ratio)} is no quantile; expected it in (0, 1].")
    return Thresholded(
        as_denoise(denoise),
        as_leaf("ratio", ratio, above=0),
        as_leaf("sample_max_value", sample_max_value, at_least=1),
    )
