"""Row: what one evaluation needs. State: what a step hands to the next. Rows out of tables."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Row:
    """What one evaluation of the network needs, and what the step after it does.

        x_next = anchor_weight * anchor + denoised_weight * D + epsilon_weight * epsilon
                 + noise_weight * z

    Every leaf is a scalar; [R] in a Schedule; [B] puts each sample of a batch at its own row.

    Attributes:
      index: int32, the row's place in the table it was built in; names its noise.
      step: int32, the outer step that the row belongs to.
      timestep: float32, what the network is told.
      alpha: weight of x0 in the sample, `x = alpha * x0 + sigma * eps`.
      sigma: weight of eps in the sample.
      input_scale: what the sample is multiplied by before the network sees it.
      anchor_weight: weight of the sample at the start of the outer step.
      denoised_weight: weight of the estimate of x0.
      epsilon_weight: weight of the estimate of eps.
      noise_weight: weight of fresh unit Gaussian noise; 0 draws none.
      advances: bool, whether the outer step ends here, so that the anchor moves on.
      sigma_left: the noise level on the grid that the row's outer step leaves, in the units of
        `Schedule.sigmas`: `sigmas[step]` of the whole run, for a midpoint too.
      sigma_reached: the level that it reaches, `sigmas[step + 1]`; 0 in the closing step.
    """

    index: jax.Array
    step: jax.Array
    timestep: jax.Array
    alpha: jax.Array
    sigma: jax.Array
    input_scale: jax.Array
    anchor_weight: jax.Array
    denoised_weight: jax.Array
    epsilon_weight: jax.Array
    noise_weight: jax.Array
    advances: jax.Array
    sigma_left: jax.Array
    sigma_reached: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Where a trajectory is: all that a step reads besides its row.

    Attributes:
      sample: [B, ...] the sample at the next row's noise level.
      anchor: [B, ...] the sample at the start of the current outer step.
    """

    sample: jax.Array
    anchor: Any


# A row that leaves the sample as it is, given that anchor and sample agree as they do between
# outer steps.
IDLE = {
    "anchor_weight": 1,
    "denoised_weight": 0,
    "epsilon_weight": 0,
    "noise_weight": 0,
    "advances": False,
}


@jax.jit
def take_row(rows: Row, i: Any) -> Row:
    # Compiled: an eager gather of thirteen leaves costs twenty times as much.
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False), rows)


@jax.jit
def take_rows(rows: Row, length: Any, i: Any) -> Row:
    num_rows = rows.index.shape[-1]
    end = jnp.int32(num_rows) if length is None else length
    i = jnp.broadcast_to(jnp.asarray(i, jnp.int32), rows.index.shape[:-1] or jnp.shape(i))
    # Idle rows tell the network the last real level, not one that it never saw.
    at = jnp.clip(i, 0, end - 1)

    def take(leaf: jax.Array) -> jax.Array:
        if leaf.ndim == 1:
            return leaf[at]
        return jnp.take_along_axis(leaf, at[:, None], axis=1)[:, 0]

    row = jax.tree.map(take, rows)
    idle = {
        name: jnp.where(i < end, getattr(row, name), jnp.asarray(value, getattr(row, name).dtype))
        for name, value in IDLE.items()
    }
    return replace(row, **idle)
