"""Row: what one evaluation of the network needs, and what the step after it does."""

from __future__ import annotations

import operator
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdiff_jax._arrays import is_traced
from kdiff_jax._checks import equal_or_refused, shown


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Row:
    """What one evaluation of the network needs, and what the step after it does.

        x_next = denoised_weight * D + epsilon_weight * epsilon + anchor_weight * anchor
                 + denoised_weight_1 * D_1 + denoised_weight_2 * D_2 + noise_weight * z

    A column that a sampler does not use is None: its term is not compiled, and a history that
    only this term reads is not carried. A leaf is a scalar, or a prefix of the sample's shape:
    [B] puts each sample of a batch at its own row, [B, F] each frame of each sample. In a
    Schedule it has one more axis, [R], at its end.

    Attributes:
      index: int32, the row's place in the whole run; names its noise.
      step: int32, the outer step that the row belongs to.
      timestep: float32, what the network receives.
      sigma: weight of eps in the sample.
      sigma_left: the noise level that the row's outer step leaves, in the units of
        `Schedule.sigmas`, for a midpoint too.
      sigma_reached: the level that it reaches; 0 in a closing step. Where the step draws noise in
        its first row too, that row's own level: the midpoint of `dpmpp_sde`.
      denoised_weight: weight of D, the estimate of x0.
      epsilon_weight: weight of epsilon, the estimate of eps.
      noise_weight: weight of fresh unit Gaussian noise; 0 draws none in this row, and has the
        gradient 0: begin to learn it above 0.
      anchor_weight: weight of the sample at the start of the outer step.
      advances: bool, whether the outer step ends here, so that the anchor moves on; None: always.
      denoised_weight_1: weight of D as it was one row before.
      denoised_weight_2: weight of D as it was two rows before.
      alpha: weight of x0 in the sample, `x = alpha * x0 + sigma * eps`; None: 1. A row from
        `schedule[i]`, `rows_at` or `kd.sample` has the constant 1 in its place.
      input_scale: what the sample is multiplied by before the network sees it; None: as alpha.
      idle: bool, whether the row lies past the end of its table, so that the sample stays as it
        is; made by `pad` and `rows_at`, else None.

    Example:
      >>> import kdiff_jax as kd
      >>> row = kd.euler(kd.levels(kd.noise_schedule("scaled_linear"), 4))[1]
      >>> row.step.item(), row.timestep.item(), row.noise_weight is None
      (1, 666.0, True)
    """

    index: jax.Array
    step: jax.Array
    timestep: jax.Array
    sigma: jax.Array
    sigma_left: jax.Array
    sigma_reached: jax.Array
    denoised_weight: jax.Array
    epsilon_weight: jax.Array | None = None
    noise_weight: jax.Array | None = None
    anchor_weight: jax.Array | None = None
    advances: jax.Array | None = None
    denoised_weight_1: jax.Array | None = None
    denoised_weight_2: jax.Array | None = None
    alpha: jax.Array | None = None
    input_scale: jax.Array | None = None
    idle: jax.Array | None = None

    def __repr__(self) -> str:
        if not all(hasattr(leaf, "shape") for leaf in (self.index, self.sigma)):
            return "Row(...)"
        if self.index.ndim == 0 and not isinstance(self.sigma, jax.core.Tracer):
            step, timestep, sigma = int(self.step), float(self.timestep), float(self.sigma)
            return (
                f"Row({int(self.index)} of step {step}, timestep {timestep:.6g}, sigma {sigma:.4g})"
            )
        return f"Row({list(self.index.shape)}, columns {', '.join(columns_of(self))})"

    __eq__ = equal_or_refused


def columns_of(rows: Row) -> tuple[str, ...]:
    """The names of the columns that a table has."""
    return tuple(f.name for f in fields(Row) if getattr(rows, f.name) is not None)


def with_units(row: Row) -> Row:
    """The row with the constant 1 for an alpha and an input_scale that are not there."""
    one = jnp.ones_like(row.sigma)
    alpha = one if row.alpha is None else row.alpha
    scale = one if row.input_scale is None else row.input_scale
    return replace(row, alpha=alpha, input_scale=scale)


def reads_history(rows: Row) -> bool:
    """Whether rows read what rows before them left in the State: an anchor, D_1 or D_2."""
    return any(
        column is not None
        for column in (rows.anchor_weight, rows.denoised_weight_1, rows.denoised_weight_2)
    )


def row_number(i: Any) -> Any:
    """An integer, traced or not; a bool would be row 0 or 1, unseen."""
    try:
        if is_traced(i) and i.shape == () and jnp.issubdtype(i.dtype, jnp.integer):
            return i
        if is_traced(i) or isinstance(i, (bool, np.bool_)):
            raise TypeError
        return operator.index(i)
    except TypeError:
        raise TypeError(
            f"a schedule is indexed by one integer or by a slice, got {shown(i)}; to drop the "
            "first outer steps take levels.start_at(step)."
        ) from None


def nan_unless(there: jax.Array, row: Row) -> Row:
    """The row, with a weight of NaN where it is none: no trace can raise."""
    return replace(row, denoised_weight=jnp.where(there, row.denoised_weight, np.nan))


@jax.jit
def take_row(rows: Row, i: jax.Array) -> Row:
    # Compiled: an eager gather of all leaves costs twenty times as much.
    rows = replace(rows, idle=None)
    row = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False), rows)
    return with_units(row)


@jax.jit
def take_rows(rows: Row, length: jax.Array | None, i: jax.Array) -> Row:
    num_rows, tables = rows.index.shape[-1], rows.index.shape[:-1]
    end = jnp.full(tables, num_rows, jnp.int32) if length is None else length
    i = jnp.asarray(i, jnp.int32)
    i = jnp.broadcast_to(i, tables) if i.ndim < len(tables) else i
    end = end.reshape(end.shape + (1,) * (i.ndim - end.ndim))
    # Idle rows hand the network the last real level, not one that it never saw.
    at = jnp.clip(i, 0, end - 1)

    def take(leaf: jax.Array) -> jax.Array:
        if not tables:
            return leaf[at]
        places = at.reshape(*tables, -1)
        return jnp.take_along_axis(leaf, places, axis=-1).reshape(at.shape)

    row = jax.tree.map(take, replace(rows, idle=None))
    return nan_unless(i >= 0, replace(with_units(row), idle=i >= end))
