"""The two outputs that guidance compares, of one doubled batch or of two calls, and their mix."""

from __future__ import annotations

import functools
import math
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from kdiff_jax._arrays import per_sample
from kdiff_jax._checks import shown
from kdiff_jax._denoise.arguments import check_arrays, check_conditions
from kdiff_jax._denoise.prediction import Denoise, Prediction, predicted
from kdiff_jax._table.row import Row

Tree = TypeVar("Tree", Prediction, jax.Array)


class Guider(Protocol):
    """What makes two calls of one network: with cond, and with uncond in its place."""

    @property
    def denoise(self) -> Denoise: ...
    @property
    def uncond(self) -> Any: ...
    @property
    def batched(self) -> bool: ...


def both(
    guider: Guider, params: Any, x: jax.Array, row: Row, cond: Any
) -> tuple[Prediction, Prediction]:
    """What the network of a guider predicts with its condition, and without."""
    cond, uncond = conditions(guider, params, cond, x.shape[0])
    if guider.batched:
        return in_one_batch(guider.denoise, params, x, row, cond, uncond)
    with_cond = call(guider.denoise, params, x, row, cond)
    return with_cond, call(guider.denoise, params, x, row, uncond)


def conditions(guider: Guider, params: Any, cond: Any, batch: int) -> tuple[Any, Any]:
    """cond as arrays, and uncond broadcast to it."""
    check_arrays("params", params)
    check_arrays("cond", cond)
    check_conditions(cond, guider.uncond, batch if guider.batched else None)
    cond = jax.tree.map(jnp.asarray, cond)

    def broadcast(c: jax.Array, u: ArrayLike) -> jax.Array:
        # With c and not to its shape alone: under a mesh of explicit axes u is sharded as c is.
        _, u = jnp.broadcast_arrays(c, jnp.asarray(u, c.dtype))
        return jnp.broadcast_to(u, c.shape)

    return cond, jax.tree.map(broadcast, cond, guider.uncond)


@jax.jit
def call(denoise: Denoise, params: Any, x: jax.Array, row: Row, cond: Any) -> Prediction:
    """The denoiser, compiled as a function of its own, so that two calls trace the network once."""
    return predicted(denoise, params, x, row, cond)


def in_one_batch(
    denoise: Denoise, params: Any, x: jax.Array, row: Row, cond: Any, uncond: Any
) -> tuple[Prediction, Prediction]:
    """Both predictions by one call with a batch of twice the size."""

    # Each sample beside its twin, [B, 2] as [2B]: so both stay on the sample's device. One half
    # after the other would send samples between the devices of a sharded batch, twice a row.
    def beside(one: jax.Array, other: jax.Array) -> jax.Array:
        both = jnp.stack([one, other], axis=1)
        return both.reshape(2 * one.shape[0], *one.shape[1:])

    def half(both: jax.Array, which: int) -> jax.Array:
        pairs = both.reshape(x.shape[0], 2, *both.shape[1:])
        return jax.lax.index_in_dim(pairs, which, axis=1, keepdims=False)

    rows = jax.tree.map(lambda leaf: beside(leaf, leaf) if jnp.ndim(leaf) else leaf, row)
    together = jax.tree.map(beside, cond, uncond)
    prediction = predicted(denoise, params, beside(x, x), rows, together)
    with_cond, without = (
        jax.tree.map(functools.partial(half, which=which), prediction) for which in (0, 1)
    )
    return with_cond, without


def mixed(scale: jax.Array, good: Tree, bad: Tree) -> Tree:
    """`bad + scale * (good - bad)`, of an estimate or of both halves of a prediction."""

    def mix(good: jax.Array, bad: jax.Array) -> jax.Array:
        return bad + per_sample(scale, bad) * (good - bad)

    # Both halves are mixed alike, so x = alpha D + sigma epsilon still holds, uncancelled.
    return jax.tree.map(mix, good, bad)


def check_uncond(uncond: Any) -> None:
    """Refuses what no network can be given as its condition."""
    check_arrays("uncond", uncond)
    if any(isinstance(leaf, float) and not math.isfinite(leaf) for leaf in jax.tree.leaves(uncond)):
        raise ValueError(f"uncond = {shown(uncond)} is not finite; pass the condition for none.")
