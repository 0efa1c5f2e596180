"""The boundary scaling of consistency models, at which latent-consistency networks are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from kdiff_jax._arrays import per_sample
from kdiff_jax._denoise.prediction import (
    Denoise,
    Prediction,
    as_denoise,
    as_leaf,
    brief,
    check_call,
    epsilon_of,
    predicted,
    units,
)
from kdiff_jax._table.row import Row


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Consistency:
    """Made by `kd.consistency`."""

    denoise: Denoise
    timestep_scaling: jax.Array
    sigma_data: jax.Array

    def __call__(self, params: Any, x: jax.Array, row: Row, cond: Any = None) -> Prediction:
        x = check_call(x, row)
        denoised = predicted(self.denoise, params, x, row, cond).denoised
        x = x.astype(denoised.dtype)
        time = per_sample(row.timestep, x) * per_sample(self.timestep_scaling, x)
        data = per_sample(self.sigma_data, x)
        norm = time**2 + data**2
        c_skip, c_out = data**2 / norm, time / jnp.sqrt(norm)
        *_, scale = units(row, x)
        denoised = c_out * denoised + c_skip * (scale * x)
        return Prediction(denoised, epsilon_of(denoised, x, row))

    def __repr__(self) -> str:
        scaling, data = brief(self.timestep_scaling), brief(self.sigma_data)
        options = f"timestep_scaling {scaling}, sigma_data {data}"
        return f"Consistency({options}, {brief(self.denoise)})"


def consistency(
    denoise: Denoise, timestep_scaling: ArrayLike = 10.0, sigma_data: ArrayLike = 0.5
) -> Consistency:
    """A denoiser with the boundary scaling of a consistency model: `D <- c_out D + c_skip xs`.

    With `t = timestep * timestep_scaling` and `xs = input_scale * x`:
    `c_skip = sigma_data^2 / (t^2 + sigma_data^2)`, `c_out = t / sqrt(t^2 + sigma_data^2)`, so
    that at timestep 0 the consistency function is the identity. A network does not show whether it
    was trained with this scaling, so nothing is refused: `kd.lcm` runs other networks too. On a
    table with midpoints, `kd.dpm2` and the like, `kd.sample` warns: they take a slope of D.

    Args:
      denoise: the denoiser to wrap; clipping and thresholding belong inside.
      timestep_scaling: positive; 10 in published LCM checkpoints.
      sigma_data: positive; 0.5 in published LCM checkpoints.

    Returns:
      A denoiser; epsilon follows from the new D.

    Raises:
      ValueError: a timestep_scaling or sigma_data that is not positive.

    Example:
      >>> import jax.numpy as jnp, kdiff_jax as kd
      >>> denoise = kd.consistency(kd.denoiser(lambda params, x, timestep: params * x))
      >>> row = kd.lcm(kd.lcm_levels(kd.noise_schedule("scaled_linear"), 4))[0]
      >>> denoise(jnp.float32(0.1), jnp.ones((2, 8)), row).denoised.shape
      (2, 8)

    Source: Song et al. 2023 (arXiv:2303.01469), equation 5; Luo et al. 2023 (arXiv:2310.04378);
    `get_scalings_for_boundary_condition_discrete` of diffusers.
    """
    return Consistency(
        as_denoise(denoise),
        as_leaf("timestep_scaling", timestep_scaling, square=True, above=0),
        as_leaf("sigma_data", sigma_data, square=True, above=0),
    )
