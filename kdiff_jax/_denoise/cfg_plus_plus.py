"""CFG++: the estimate of x0 is guided, and the noise that goes back in is the unconditional one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from kdiff_jax._checks import check_flag
from kdiff_jax._denoise.pair import both, check_uncond, mixed
from kdiff_jax._denoise.prediction import (
    Denoise,
    Prediction,
    as_denoise,
    as_leaf,
    brief,
    check_call,
)
from kdiff_jax._table.check import is_known
from kdiff_jax._table.row import Row


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class CfgPlusPlus:
    """Made by `kd.cfg_plus_plus`."""

    denoise: Denoise
    scale: jax.Array
    uncond: Any
    batched: bool = field(metadata={"static": True})

    def __call__(self, params: Any, x: jax.Array, row: Row, cond: Any = None) -> Prediction:
        x = check_call(x, row)
        check_rows(row)
        with_cond, without = both(self, params, x, row, cond)
        denoised = mixed(self.scale, with_cond.denoised, without.denoised)
        return Prediction(denoised, without.epsilon)

    def __repr__(self) -> str:
        calls = "" if self.batched else ", two calls"
        return f"CfgPlusPlus(scale {brief(self.scale)}{calls}, {brief(self.denoise)})"


def check_rows(rows: Row) -> None:
    """Refuses rows that are not made of D and noise, as far as their numbers are known."""

    def any_known(weight: jax.Array | None, wrong: Callable[[Any], Any]) -> bool:
        known = weight is not None and is_known(weight)
        return known and bool(np.any(wrong(jax.device_get(weight))))

    without = any_known(rows.denoised_weight, lambda weight: weight == 0)
    if without or any_known(rows.anchor_weight, lambda weight: weight != 0):
        raise ValueError(
            "kd.cfg_plus_plus on a row that goes on from the anchor or has no D, where it would "
            "guide little or not at all; take kd.euler, kd.dpmpp_2m, kd.dpmpp_3m, kd.unipc, kd.lcm "
            "or kd.tcd, whose rows are made of D and noise, or kd.guided."
        )


def cfg_plus_plus(
    denoise: Denoise, scale: ArrayLike, uncond: Any, *, batched: bool = True
) -> CfgPlusPlus:
    """CFG++: `D <- D_uncond + scale * (D_cond - D_uncond)`, and `epsilon <- epsilon_uncond`.

    The noise that goes back in is not guided, and small scales are enough: in a step of `kd.guided`
    a share `sigma_next / sigma` of the change of D cancels against that of epsilon, here it stays.
    That takes a sampler whose rows are made of D and noise: `kd.euler` (the paper's),
    `kd.dpmpp_2m`, `kd.dpmpp_3m`, `kd.unipc`, `kd.lcm`, `kd.tcd`. Rows that go on from the anchor
    (`kd.dpm2`, `kd.heun`, `kd.dpmpp_2s_ancestral`, `kd.dpmpp_sde`) see little of D or nothing, and
    are refused.

    Args:
      denoise: the denoiser to wrap; clipping, thresholding and other guidance belong inside, since
        they make epsilon from D; `kd.inpainted` goes outside.
      scale: scalar or [B], 0 to 1 in the paper: 0 is unconditional, at 1 D is the conditional one.
      uncond: the pytree of `cond` that means "no condition", as for `kd.guided`.
      batched: True makes one call with a batch of twice the size, False two, as for `kd.guided`.

    Returns:
      A denoiser, which must be called with cond.

    Raises:
      ValueError: a scale that is not finite, or of rank 2. When it is called, or `kd.sample` with
        it: a row that goes on from the anchor or has no D, if its numbers are known (inside a jit
        of your own they are not); a cond as for `kd.guided`. In `kd.sample`: a wrapper outside of
        it but `kd.inpainted`.

    Example:
      >>> import jax.numpy as jnp, kdiff_jax as kd
      >>> def model_fn(params, x, timestep, label):
      ...     return params * x * label[:, None]
      >>> denoise = kd.cfg_plus_plus(kd.denoiser(model_fn), scale=0.6, uncond=jnp.float32(0))
      >>> row = kd.euler(kd.levels(kd.noise_schedule(), 10))[0]
      >>> prediction = denoise(jnp.float32(0.1), jnp.ones((3, 4)), row, jnp.ones(3))
      >>> float(jnp.max(jnp.abs(prediction.epsilon)))  # that of label 0
      0.0

    Source: Chung et al. 2024 (arXiv:2406.08070), algorithm 2.
    """
    check_flag("batched", batched)
    check_uncond(uncond)
    return CfgPlusPlus(as_denoise(denoise), as_leaf("scale", scale), uncond, batched)
