"""Inpainting: a part of the sample is known, and the network paints the rest around it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kdiff_jax._arrays import as_float, divided, is_traced, rounded, state_dtype
from kdiff_jax._checks import as_numbers
from kdiff_jax._denoise.prediction import (
    Denoise,
    Prediction,
    as_denoise,
    brief,
    check_call,
    one_of,
    predicted,
    units,
)
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
        x = check_call(x, row)
        x = x.astype(state_dtype(x))
        mask = _fit("mask", self.mask, x)
        known = _without_nans(_fit("known", self.known, x), mask)
        alpha, sigma, _ = units(row, x)
        keep = one_of(x.dtype) - mask
        seen = x
        if self.noise is not None:
            noise = _without_nans(_fit("noise", self.noise, x), mask)
            seen = mask * x + keep * (alpha * known + sigma * noise)
        inner = predicted(self.denoise, params, seen, row, cond)
        denoised = mask * inner.denoised + keep * known
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
      known: clean data that broadcasts to [B, ...]; its values where mask is 1 do not matter, and
        may be NaN. So may those of noise.
      mask: broadcasts to [B, ...], bool or in [0, 1]: 1 where to paint, 0 where to keep, between
        them a blend of both. One mask of pixels is [H, W, 1].
      noise: None, or unit Gaussian noise that broadcasts to [B, ...]. That of the initial sample
        is `kd.initial_sample(schedule, key, shape) / schedule.init_noise_sigma`.

    Returns:
      A denoiser.

    Raises:
      ValueError: a mask outside [0, 1]; what is not finite in known or noise where mask is below
        1; what holds no numbers; when it is traced, known, mask or noise of a shape that
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
    values = {"known": _numbers("known", known), "mask": _numbers("mask", mask)}
    if noise is not None:
        values["noise"] = _numbers("noise", noise)
    share = values["mask"]
    if share is not None and not np.all((share >= 0) & (share <= 1)):
        raise ValueError(
            f"mask spans [{share.min()}, {share.max()}]; expected [0, 1]: 1 where to paint, "
            "0 where to keep what is known."
        )
    for name in ("known", "noise"):
        if not _finite_where_kept(name, values.get(name), share):
            raise ValueError(
                f"{name} holds a NaN or an infinity where mask is below 1, in what is kept; pass "
                "finite numbers there, or a mask of 1."
            )
    noise = None if noise is None else as_float(noise)
    return Inpainted(as_denoise(denoise), as_float(known), as_float(mask), noise)


def _numbers(name: str, value: Any) -> np.ndarray | None:
    """The numbers of an option as they are rounded; None where this process cannot see them."""
    if is_traced(value) or not getattr(value, "is_fully_addressable", True):
        return None
    arrays = (np.ndarray, jax.Array)
    if name == "mask" and isinstance(value, arrays) and value.dtype == np.bool_:
        return np.asarray(value, np.float32)
    numbers = rounded(as_numbers(name, value))
    if numbers.size == 0:
        raise ValueError(f"{name} is empty, of shape {numbers.shape}; pass what broadcasts to x.")
    return numbers


def _finite_where_kept(name: str, values: np.ndarray | None, mask: np.ndarray | None) -> bool:
    finite = values is None or np.isfinite(values)
    if mask is None or np.all(finite):
        return True
    try:
        return bool(np.all(finite | (mask == 1)))
    except ValueError:
        raise ValueError(
            f"{name} has shape {np.shape(finite)} and mask {mask.shape}, which meet no one sample; "
            "give shapes that broadcast to that of the sample."
        ) from None


@functools.partial(jax.jit, inline=True)
def _without_nans(values: jax.Array, mask: jax.Array) -> jax.Array:
    # What is painted over may be anything, and 0 * NaN is NaN.
    return jnp.where((mask == 1) & ~jnp.isfinite(values), 0, values)


def _fit(name: str, value: jax.Array, x: jax.Array) -> jax.Array:
    try:
        return jnp.broadcast_to(value.astype(x.dtype), x.shape)
    except ValueError:
        raise ValueError(
            f"{name} has shape {value.shape} and met a sample of shape {x.shape}; give one that "
            "broadcasts to it (a mask of pixels: [H, W, 1] or [B, H, W, 1]). Inside kd.guided the "
            "batch is doubled: wrap kd.inpainted around it instead."
        ) from None
