"""Autoguidance: a network is guided by a weaker version of itself, and not by its condition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
from jax.typing import ArrayLike

from kdiff_jax._checks import brought
from kdiff_jax._denoise.arguments import check_arrays
from kdiff_jax._denoise.pair import call, mixed
from kdiff_jax._denoise.prediction import (
    Denoise,
    Prediction,
    as_denoise,
    as_leaf,
    brief,
    check_call,
)
from kdiff_jax._table.row import Row


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Autoguided:
    """Made by `kd.autoguided`."""

    denoise: Denoise
    weak: Denoise
    scale: jax.Array

    def __call__(self, params: Any, x: jax.Array, row: Row, cond: Any = None) -> Prediction:
        x = check_call(x, row)
        check_arrays("params", params)
        check_arrays("cond", cond)
        if not isinstance(params, (tuple, list)) or len(params) != 2:
            raise ValueError(
                f"params is {brought(params)}; kd.autoguided runs two networks: pass the pair "
                "(params, params_weak)."
            )
        good = call(self.denoise, params[0], x, row, cond)
        return mixed(self.scale, good, call(self.weak, params[1], x, row, cond))

    def __repr__(self) -> str:
        return f"Autoguided(scale {brief(self.scale)}, {brief(self.denoise)}, {brief(self.weak)})"


def autoguided(denoise: Denoise, scale: ArrayLike, weak: Denoise | None = None) -> Autoguided:
    """Autoguidance: `D <- D_weak + scale * (D - D_weak)`, epsilon alike.

    The weak network is the same one of fewer weights, or from an earlier moment of training. Both
    see the same condition, so that classes keep their variety, and networks without conditions
    are guided too. Two networks of one structure are traced once.

    Args:
      denoise: the denoiser to wrap, of the network that is to be guided.
      scale: scalar or [B]; 1 is no guidance, about 2 is usual.
      weak: the denoiser of the weaker network, where it is another function or predicts another
        quantity; None takes `denoise` for both, with other params.

    Returns:
      A denoiser, to be called with the pair (params, params_weak) as its params.

    Raises:
      ValueError: a scale that is not finite, or of rank 2. When it is called: params that are no
        pair.

    Example:
      >>> import jax.numpy as jnp, kdiff_jax as kd
      >>> denoise = kd.denoiser(lambda params, x, timestep: params * x)
      >>> denoise = kd.autoguided(denoise, scale=2.0)
      >>> row = kd.dpm2(kd.levels(kd.noise_schedule(), 10))[0]
      >>> params = jnp.float32(0.2), jnp.float32(0.1)  # of the network, of the weaker one
      >>> denoise(params, jnp.ones((3, 4)), row).denoised.shape
      (3, 4)

    Source: Karras et al. 2024 (arXiv:2406.02507).
    """
    guided = as_denoise(denoise)
    weaker = guided if weak is None else as_denoise(weak, "weak")
    return Autoguided(guided, weaker, as_leaf("scale", scale))
