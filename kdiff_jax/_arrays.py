"""Arrays of NumPy and JAX: one formula for both, and how a leaf meets a sample."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

# Float64 NumPy on the host, JAX where an input is traced: the same formulas fill both.
Array = np.ndarray | jax.Array

Function = TypeVar("Function", bound=Callable[..., Any])


def is_traced(*values: Any) -> bool:
    """Whether a value is known only inside a transformation, so that it cannot be inspected."""
    # `any` of a generator takes twice as long, and a table asks fifty times.
    for value in values:  # noqa: SIM110
        if isinstance(value, jax.core.Tracer):
            return True
    return False


def common_namespace(*values: Any) -> tuple[Any, ...]:
    """NumPy in float64 for values, jax.numpy where one is traced; and the values as its arrays.

    So one formula fills a table on the host in float64, and runs traced where a caller wants its
    gradient. Casting to one dtype keeps strict dtype promotion content.
    """
    if is_traced(*values):
        dtype = jax.dtypes.canonicalize_dtype(np.float64)
        return jnp, *(jnp.asarray(value, dtype) for value in values)
    return np, *(np.asarray(value, np.float64) for value in values)


def state_dtype(x: jax.Array) -> np.dtype:
    """The dtype that a sample is kept in: float32 at least, float64 stays."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"the sample is {x.dtype}; expected a real floating dtype: cast it first.")
    return np.dtype(np.float64 if x.dtype == jnp.float64 else np.float32)


def along(leaf: jax.Array, x: jax.Array) -> jax.Array:
    """A leaf whose shape is a prefix of the sample's, [], [B] or [B, F], as one of x's rank."""
    return leaf.reshape(leaf.shape + (1,) * (x.ndim - leaf.ndim)) if leaf.ndim else leaf


def per_sample(value: ArrayLike, x: jax.Array, name: str = "") -> jax.Array:
    """A number, or numbers whose shape is a prefix of the sample's, in the dtype and rank of x."""
    leaf = jnp.asarray(value).astype(x.dtype)
    if leaf.shape != x.shape[: leaf.ndim]:
        raise ValueError(
            f"{name}values of shape {leaf.shape} met a sample of shape {x.shape}; give one number, "
            "or one a sample, [B]. Inside kd.guided the batch is doubled: wrap values [B] around "
            "it, or take batched=False there."
        )
    return along(leaf, x)


def divided(x: jax.Array, number: jax.Array) -> jax.Array:
    """`x / number` for a number a row, rounded alike in every program.

    XLA divides, or multiplies with the reciprocal, as it finds other uses of the number: in the
    program of one device otherwise than in that of several, which then differ in the last bit.
    """
    return x * _reciprocal(number)


@functools.partial(jax.jit, inline=True)
def _reciprocal(number: jax.Array) -> jax.Array:
    # Compiled alone: outside of a program the 1 would cross to the device in every call.
    return 1 / number


def on_own_mesh(function: Function) -> Function:
    """The function, traced under `jax.set_mesh` of the mesh of explicit axes that an array is on.

    Since JAX 0.12 zeros in the shape of a sharded array are sharded as it is there only.
    """

    @functools.wraps(function)
    def whole(*arrays: Any, **options: Any) -> Any:
        enter = getattr(jax.sharding, "use_abstract_mesh", None)  # JAX 0.6 has no such axes
        if enter is not None and jax.sharding.get_abstract_mesh().empty:
            for leaf in jax.tree.leaves(arrays):
                mesh = jax.typeof(leaf).sharding.mesh
                if jax.sharding.AxisType.Explicit in mesh.axis_types:
                    with enter(mesh):
                        return function(*arrays, **options)
        return function(*arrays, **options)

    return whole  # type: ignore[return-value]


def largest_level() -> float:
    """The largest number whose square the float of a table holds."""
    return float(np.finfo(jax.dtypes.canonicalize_dtype(np.float64)).max) ** 0.5


def rounded(numbers: np.ndarray) -> np.ndarray:
    """Numbers in JAX's default float, or as narrow as they are; what is too large is infinite."""
    default = jax.dtypes.canonicalize_dtype(np.float64)
    with np.errstate(over="ignore"):
        return numbers.astype(default) if numbers.dtype.itemsize > default.itemsize else numbers


def as_float(value: ArrayLike) -> jax.Array:
    """A number as a leaf of one dtype, so that another value is never another program."""
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    if isinstance(value, jax.Array):
        return value.astype(dtype)
    # A copy, sent openly: `jax.transfer_guard("disallow")` stops what jnp.asarray sends.
    with np.errstate(over="ignore"):
        return jax.device_put(np.array(value, dtype))


def put_like(tree: Any, like: jax.Array) -> Any:
    """A pytree of host arrays on the device of `like`, in one transfer."""
    committed = not is_traced(like) and like.committed
    # An uncommitted array may meet arrays of any device, a committed one only its own.
    return jax.device_put(tree, like.sharding) if committed else jax.device_put(tree)
