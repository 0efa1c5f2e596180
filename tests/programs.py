"""Looking into programs: what is compiled, and what a compiled program holds."""

import logging

import jax

from program import copies_in_loops as copies_in_loops


def sub_jaxprs(jaxpr, without=None):
    """A program and every program inside it, but for those in the operation `without`."""
    yield jaxpr
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == without:
            continue
        for value in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from sub_jaxprs(inner, without)


def compilations(caplog, run):
    """The names of the programs that JAX says it compiles while `run` runs."""
    caplog.clear()
    with caplog.at_level(logging.WARNING), jax.log_compiles():
        jax.block_until_ready(run())
    return [r.getMessage() for r in caplog.records if r.getMessage().startswith("Compiling")]


def hlo_of(function, *args):
    return jax.jit(function).lower(*args).compile().as_text()
