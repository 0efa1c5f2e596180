"""Refusals of k-diffusion's arguments: by name, before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kdiff_jax._arrays import Array, is_traced
from kdiff_jax._checks import as_numbers, shown
from kdiff_jax._denoise.arguments import check_depth
from kdiff_jax._run.check import parameters_of

LARGEST = float(np.finfo(np.float32).max)


def check_numbers(
    name: str,
    value: Any,
    *,
    above: float = -math.inf,
    at_least: float = -LARGEST,
    at_most: float = LARGEST,
) -> Array:
    """Numbers of any shape within their bounds, float64 on the host; traced ones pass."""
    if is_traced(value):
        return value
    numbers = as_numbers(name, value)
    inside = (above < numbers) & (at_least <= numbers) & (numbers <= at_most)
    if not (numbers.size and np.all(inside)):
        low = f"above {above:g}" if above > at_least else f"from {at_least:.6g}"
        raise ValueError(
            f"{name} = {shown(value)} is out of range; expected finite numbers {low} to "
            f"{at_most:.6g}."
        )
    return numbers


def check_sample(name: str, value: ArrayLike) -> jax.Array:
    """A sample as an array of JAX; what is on the host is looked into first."""
    if not isinstance(value, jax.Array):
        numbers = check_numbers(name, value)
        value = value if isinstance(value, np.ndarray) else numbers
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name} is {array.dtype}; expected a real floating dtype: cast it first.")
    return array


def check_level(name: str, value: Any, x: jax.Array) -> Array:
    """The level of a sample, a number or one a sample, [B]; positive in float32 too."""
    level = check_numbers(name, value, at_least=float(np.finfo(np.float32).tiny))
    if level.shape not in ((), x.shape[:1]):
        raise ValueError(
            f"{name} {level.shape} does not fit x {x.shape}; expected x [B, ...], and a number or "
            "[B]."
        )
    return level


def check_callable(name: str, value: Any, signature: str) -> Any:
    """A function of the user's."""
    if not callable(value):
        raise ValueError(f"{name} = {shown(value)} is not callable; pass {signature}.")
    return value


def check_extra_args(extra_args: Any) -> dict[str, Any]:
    """The keyword arguments of a model: arrays and numbers, for they enter a compiled program."""
    if extra_args is None:
        return {}
    if not isinstance(extra_args, dict) or not all(isinstance(key, str) for key in extra_args):
        raise ValueError(
            f"extra_args = {shown(extra_args)} is no dict of keyword arguments; pass "
            "extra_args={'name': array}."
        )
    check_depth("extra_args", extra_args)
    for leaf in jax.tree.leaves(extra_args):
        if not _enters_a_program(leaf):
            raise ValueError(
                f"extra_args hold {shown(leaf)}, which is no array; a compiled program takes "
                "arrays and numbers. Bind anything else to the model, once: "
                "functools.partial(model, ...)."
            )
    return extra_args


def _enters_a_program(leaf: Any) -> bool:
    if isinstance(leaf, int) and not isinstance(leaf, bool):
        bounds = np.iinfo(jax.dtypes.canonicalize_dtype(np.int64))
        return bool(bounds.min <= leaf <= bounds.max)
    if isinstance(leaf, (np.ndarray, np.generic)):
        return leaf.dtype.kind in "biufcV"
    return isinstance(leaf, (jax.Array, bool, float))


def check_plain_arguments(
    model: Callable[..., Any], callback: Any, disable: Any, noise_sampler: Any
) -> None:
    """The arguments of a sampler that are no numbers."""
    check_callable("model", model, "model(x, sigma, **extra_args) -> denoised")
    if callback is not None:
        advice = "a function of one dict, or None"
        check_callable("callback", callback, advice)
        parameters_of("callback", callback, 1, f"pass {advice}.")
    if noise_sampler is not None:
        advice = "noise_sampler(sigma, sigma_next), or None"
        check_callable("noise_sampler", noise_sampler, advice)
        parameters_of("noise_sampler", noise_sampler, 2, f"pass {advice}.")
    if disable is not None and not isinstance(disable, (bool, np.bool_)):
        raise ValueError(f"disable = {shown(disable)} is no flag; pass None, True or False.")
