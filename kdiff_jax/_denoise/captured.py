"""Weights that a network captures: constants of every program that holds the network."""

from __future__ import annotations

import dis
import functools
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from kdiff_jax._arrays import is_traced

# What nobody captures by mistake: the tables and embeddings of networks are smaller.
LARGE = 2**20
# Far more than a network has modules, and few enough to look at in milliseconds.
_MOST_OBJECTS = 20_000
_OPAQUE = (types.ModuleType, type, str, bytes, int, float, complex)


def warn_of_captured(model_fn: Callable[..., Any], stacklevel: int) -> None:
    """One warning that names what model_fn captures of arrays above 1 MB."""
    large = {name: size for name, size in _captured_by(model_fn) if size > LARGE}
    if large:
        names = ", ".join(f"{name} ({size / 2**20:.1f} MB)" for name, size in large.items())
        warnings.warn(
            f"model_fn captures {names}: constants of each program that is compiled with it, kept "
            "as long as the program, and read once, so that later changes are not seen. Pass them "
            "as params: kd.sample(denoise, params, ...) hands them to model_fn.",
            stacklevel=stacklevel + 1,
        )


def _captured_by(model_fn: Callable[..., Any]) -> Iterator[tuple[str, int]]:
    """The name and the bytes of everything that a function captures, and those that it calls."""
    seen: set[int] = set()
    functions: list[Any] = [model_fn]
    # The functions that model_fn names, and those that these name: wrappers of wrappers.
    for _ in range(3):
        named = {
            id(value): (name, value)
            for f in functions
            for name, value in _named_by(f)
            if not _is_stateless(f, value)
        }
        functions = []
        for name, value in named.values():
            if isinstance(value, _FUNCTIONS) or hasattr(value, "__wrapped__"):
                functions.append(value)
            else:
                yield name, _bytes_in(value, seen)


_FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial)


def _is_stateless(function: Any, value: Any) -> bool:
    """Whether a function hands a network of Keras the variables to use in place of its own."""
    names = getattr(getattr(function, "__code__", None), "co_names", ())
    return "stateless_call" in names and hasattr(value, "stateless_call")


def _named_by(function: Any) -> Iterator[tuple[str, Any]]:
    """What a function holds, or reads from its closure and its globals, by name."""
    if isinstance(function, functools.partial):
        yield "the function of functools.partial", function.func
        yield from ((f"argument {i} of functools.partial", v) for i, v in enumerate(function.args))
        yield from function.keywords.items()
    elif isinstance(function, types.MethodType):
        yield f"its object, a {type(function.__self__).__name__},", function.__self__
        yield function.__name__, function.__func__
    elif isinstance(function, types.FunctionType):
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            try:
                yield name, cell.cell_contents
            except ValueError:  # a name that has no value yet
                continue
        for name in _globals_of(function.__code__):
            if name in function.__globals__:
                yield name, function.__globals__[name]
        code, defaults = function.__code__, function.__defaults__ or ()
        names = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
        yield from zip(names, defaults, strict=True)
        yield from (function.__kwdefaults__ or {}).items()
    elif hasattr(function, "__wrapped__"):  # jax.jit, functools.wraps
        yield "the function inside", function.__wrapped__
    else:
        yield from getattr(function, "__dict__", {}).items()
        yield "__call__", type(function).__call__


def _globals_of(code: types.CodeType) -> Iterator[str]:
    # By instruction: the names of the code are those of attributes too.
    for instruction in dis.get_instructions(code):
        if instruction.opname == "LOAD_GLOBAL":
            yield str(instruction.argval)
        elif isinstance(instruction.argval, types.CodeType):
            yield from _globals_of(instruction.argval)


def _bytes_in(value: Any, seen: set[int]) -> int:
    """The bytes of the arrays in a value: in containers, in pytrees, in attributes of objects."""
    total, waiting = 0, [value]
    while waiting and len(seen) < _MOST_OBJECTS:
        value = waiting.pop()
        if id(value) in seen or value is None or isinstance(value, (*_OPAQUE, *_FUNCTIONS)):
            continue
        seen.add(id(value))
        if isinstance(value, (jax.Array, np.ndarray)):
            total += 0 if is_traced(value) else int(value.nbytes)
        elif isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, (list, tuple, set)):
            waiting.extend(value)
        elif jax.tree_util.all_leaves([value]):
            waiting.extend(getattr(value, "__dict__", {}).values())
        else:
            waiting.extend(jax.tree.leaves(value))
    return total
