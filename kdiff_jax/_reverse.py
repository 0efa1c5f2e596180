"""A loop whose length is traced has no reverse mode: an identity that says so in plain words."""

from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def without_reverse_mode(tree: Any) -> Any:
    """The same values; forward mode passes, reverse mode raises before it reaches the loop."""
    return jax.tree.map(_identity.bind, tree)


def _refuse(*_: Any) -> None:
    raise ValueError(
        "a padded schedule has no reverse mode: how many rows its loop runs is known only when it "
        "runs. Take the gradient through the schedule before pad (or a stack of tables of one "
        "length), or use forward mode: jax.jvp, jax.jacfwd."
    )


# JAX's own error, raised inside the loop, names a `fori_loop` that no caller has written.
_identity = Primitive("without_reverse_mode")
_identity.def_impl(lambda x: x)
_identity.def_abstract_eval(lambda x: x)
ad.deflinear2(_identity, _refuse)
batching.defvectorized(_identity)
mlir.register_lowering(_identity, lambda ctx, x: [x])
