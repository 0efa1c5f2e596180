"""Inpainting: a part of the sample is known, and the network paints the rest around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kdiff_jax._arrays import as_float, divided, is_traced, state_dtype
from kdiff_jax._denoise.prediction import Denoise, Prediction, as_pytree, brief, units
from kdiff_jax._table.row import Row


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Inpainted:
    """Made by `kd.inpainted`."""

    denoise: Denoise
    known: jax.Array
    mask: jax.Array
    noise: jax.Array | None

    def __call__(self, params: Any, x: jax.Array, row: Row, cond: Any = None) -> Prediction:
        x = jnp.asarray(x)
        x = x.astype(state_dtype(x))
        known, mask = _fit("known", self.known, x), _fit("mask", self.mask, x)
        alpha, sigma, _ = units(row, x)
        seen = x
        if self.noise is not None:
            noised = alpha * known + sigma * _fit("noise", self.noise, x)
            seen = mask * x + (1 - mask) * noised
        inner = self.denoise(params, seen, row, cond)
        denoised = mask * inner.denoised + (1 - mask) * known
        # epsilon belongs to the x of the caller. As a change of the inner epsilon it stays the
        # network's own to the bit where nothing is known, and leads straight to `known` elsewhere.
        change = (x - seen) - alpha * (denoised - inner.denoised)
        return Prediction(denoised, inner.epsilon + divided(change, sigma))

    def __repr__(self) -> str:
        noise = "" if self.noise is None else f", noise {brief(self.noise)}"
        parts = f"known {brief(self.known)}, mask {brief(self.mask)}{noise}"
        return f"Inpainted({parts}, {brief(self.denoise)})"


def inpainted(
    denoise: Denoise, known: ArrayLike, mask: ArrayLike, noise: ArrayLike | None = None
) -> Inpainted:
    """A denoiser that knows a part of the result: `D <- mask * D + (1 - mask) * known`.

    Without noise the network sees x as it is, and the known part of x goes on a straight line from
    its noise to the known values. With noise the network sees
    `mask * x + (1 - mask) * (alpha * known + sigma * noise)`: the known part at the row's own
    level, at half-steps too, with the same noise in every row. In both cases epsilon follows from
    the new D, and the last row of any sampler returns the known values exactly.

    The painted part is plausible beside the known one, but it is no draw from the exact conditional
    distribution; this replacement only approximates that.

    Args:
      denoise: the denoiser to wrap; guidance and clipping belong inside.
      known: clean data that broadcasts to [B, ...]; its values where mask is 1 do not matter.
      mask: broadcasts to [B, ...], in [0, 1]: 1 where to paint, 0 where to keep, between
        them a blend of both. One mask of pixels is [H, W, 1].
      noise: None, or unit Gaussian noise that broadcasts to [B, ...]. That of the initial sample
        is `kd.initial_sample(schedule, key, shape) / schedule.init_noise_sigma`.

    Returns:
      A denoiser.

    Raises:
      ValueError: a mask outside [0, 1]; when it is traced, known, mask or noise of a shape that
        does not broadcast to that of the sample.

    Example:
      >>> import jax, jax.numpy as jnp, kdiff_jax as kd
      >>> schedule = kd.dpm2(kd.levels(kd.noise_schedule("scaled_linear"), 10))
      >>> x = kd.initial_sample(schedule, jax.random.key(0), (2, 8))
      >>> left = jnp.arange(8) < 4
      >>> denoise = kd.denoiser(lambda params, x, timestep: params * x)
      >>> denoise = kd.inpainted(denoise, known=jnp.full((2, 8), 0.5), mask=~left)
      >>> kd.sample(denoise, jnp.float32(0.1), schedule, x)[0, :4].tolist()
      [0.5, 0.5, 0.5, 0.5]

    Source: Song et al. 2021 (arXiv:2011.13456), appendix I.2; Lugmayr et al. 2022
    (arXiv:2201.09865), equation 8; with noise, `KSamplerX0Inpaint` of ComfyUI.
    """
    if not is_traced(mask):
        values = np.asarray(mask, np.float64)
        if not np.all((values >= 0) & (values <= 1)):
            raise ValueError(
                f"mask spans [{values.min()}, {values.max()}]; expected [0, 1]: 1 where to paint, "
                "0 where to keep what is known."
            )
    noise = None if noise is None else as_float(noise)
    return Inpainted(as_pytree(denoise), as_float(known), as_float(mask), noise)


def _fit(name: str, value: jax.Array, x: jax.Array) -> jax.Array:
    try:
        return jnp.broadcast_to(value.astype(x.dtype), x.shape)
    except ValueError:
        raise ValueError(
            f"{name} has shape {value.shape} and met a sample of shape {x.shape}; give one that "
            "broadcasts to it (a mask of pixels: [H, W, 1] or [B, H, W, 1]). Inside kd.guided the "
            "batch is doubled: wrap kd.inpainted around it instead."
        ) from None
