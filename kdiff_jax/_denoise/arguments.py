"""What the network is handed beside the sample: params, conditions, and those of guidance."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdiff_jax._arrays import is_traced
from kdiff_jax._checks import shown
from kdiff_jax._denoise.prediction import layers_of

_ADVICE = {
    "params": "an Equinox module is split by arrays, rest = eqx.partition(module, eqx.is_array) "
    "and joined in model_fn by eqx.combine(params, rest); weights of PyTorch come from "
    "torchax.extract_jax(module), those of Keras are variable.value; what else is no array belongs "
    "into model_fn",
    "cond": "prompts go in as what the text encoder makes of them, tokens or embeddings, and "
    "tensors as jnp.asarray(tensor.numpy())",
}
_ADVICE["uncond"] = _ADVICE["cond"]
# Deeper than any network's params; JAX breaks down at about a thousand.
_DEEPEST = 200
_NESTED = (list, tuple, dict)


def check_arguments(denoise: Any, params: Any, cond: Any, batch: int) -> None:
    """Refuses what a compiled run could only refuse in JAX's words, or could not see at all.

    That is a leaf that is no array, and conditions that do not suit those of guidance, whose
    values are known here and not in the program.
    """
    check_arrays("params", params)
    check_arrays("cond", cond)
    for layer in layers_of(denoise):
        if hasattr(layer, "denoise") and hasattr(layer, "uncond"):
            check_conditions(cond, layer.uncond, batch if layer.batched else None)
            return


def check_depth(name: str, tree: Any) -> None:
    """Refuses containers so deep that JAX, which recurses into them, breaks down for good."""
    level = [tree] if isinstance(tree, _NESTED) else []
    for _ in range(_DEEPEST):
        if not level:
            return
        parts = [part for n in level for part in (n.values() if isinstance(n, dict) else n)]
        # Each once: a list may hold itself twice.
        level = [*{id(part): part for part in parts if isinstance(part, _NESTED)}.values()]
    raise ValueError(
        f"{name} is a {type(tree).__name__} nested more than {_DEEPEST} deep; pass a flatter one."
    )


def check_arrays(name: str, tree: Any, advice: str = "") -> None:
    """Refuses a leaf that is neither an array nor a number."""
    if tree is None:
        return
    check_depth(name, tree)
    # By type: a network has thousands of leaves, and isinstance of arrays is slow.
    if all(issubclass(kind, jax.Array) for kind in {*map(type, jax.tree.leaves(tree))}):
        return
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if not _is_numeric(leaf):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} = {shown(leaf)} is neither an array nor a "
                f"number; pass a pytree of arrays: {advice or _ADVICE[name]}."
            )


def _is_numeric(leaf: Any) -> bool:
    if isinstance(leaf, int) and not isinstance(leaf, bool):
        limits = jnp.iinfo(jnp.result_type(int))
        return bool(limits.min <= leaf <= limits.max)
    if isinstance(leaf, (bool, float, complex)):
        return True
    if isinstance(leaf, np.ma.MaskedArray):
        return False
    if isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)):  # keys too
        return True
    dtype = getattr(leaf, "dtype", None)  # tensors and variables of other libraries have their own
    return isinstance(dtype, np.dtype) and dtype.kind in "biufcV"


def check_conditions(cond: Any, uncond: Any, batch: int | None) -> None:
    """Refuses conditions that cannot stand beside each other in one network.

    With a batch their leaves stand beside each other in a doubled one, and need its axis.
    """
    if cond is None:
        raise ValueError(
            "a guided denoiser was called without cond; pass cond=..., or take the denoiser "
            "without kd.guided."
        )
    leaves = jax.tree_util.all_leaves([cond, uncond])  # of one array each, as most are
    got, expected = ("", "") if leaves else (str(jax.tree.structure(t)) for t in (cond, uncond))
    if got != expected:
        raise ValueError(
            f"cond is {got} and uncond {expected}; expected the same pytree, so that both are "
            "conditions of one network."
        )
    for (path, c), u in zip(
        jax.tree_util.tree_flatten_with_path(cond)[0], jax.tree.leaves(uncond), strict=True
    ):
        where, shape = jax.tree_util.keystr(path), np.shape(c)
        if batch is not None and shape[:1] != (batch,):
            doubled = shape[:1] == (2 * batch,)
            advice = (
                "pass the conditional half; kd.guided doubles it by itself"
                if doubled
                else "give it a batch axis, or take batched=False, where each call has it as it is"
            )
            raise ValueError(
                f"cond{where} has shape {shape} and the batch {batch} samples; {advice}."
            )
        if np.shape(u) and _broadcast(np.shape(u), shape) != shape:
            raise ValueError(
                f"uncond{where} has shape {np.shape(u)} and cond{where} {shape}; pass one that "
                "broadcasts to it."
            )
        dtype = c.dtype if isinstance(c, jax.Array) else jnp.result_type(c)
        if not _survives(u, dtype):
            raise ValueError(
                f"uncond{where} = {shown(u)} changes when it is cast to the {dtype} of "
                f"cond{where}; pass values that it can hold."
            )


def _broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...] | None:
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        return None


def _survives(value: Any, dtype: np.dtype) -> bool:
    """Whether a cast keeps the value of integers, and rounds those of floats at most."""
    if is_traced(value):
        return True
    if not isinstance(dtype, np.dtype):
        return bool(getattr(value, "dtype", None) == dtype)
    if isinstance(value, jax.Array):
        if value.dtype == dtype or not value.is_fully_addressable:
            return True
        if jnp.issubdtype(value.dtype, jnp.floating) and jnp.issubdtype(dtype, jnp.floating):
            return True
        if not isinstance(value.dtype, np.dtype):  # a key
            return False
        value = jax.device_get(value)
    value = np.asarray(value)
    if value.dtype.kind == "c":
        return bool(jnp.issubdtype(dtype, jnp.complexfloating))
    with np.errstate(all="ignore"):
        cast = value.astype(dtype)
    if jnp.issubdtype(dtype, jnp.inexact) and value.dtype.kind not in "biu":
        return bool(np.array_equal(np.isfinite(cast), np.isfinite(value)))
    return bool(np.array_equal(cast.astype(np.float64), value.astype(np.float64)))
