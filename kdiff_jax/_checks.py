"""Refusals: every message says what came, what is expected and what to do."""

import math
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

from kdiff_jax._arrays import Array, is_traced


def check_int(name: str, value: Any, minimum: int) -> int:
    """An integer of at least `minimum`; a bool or a float is a mistake and not rounded."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise ValueError(
            f"{name} = {value!r} is not an integer; pass an integer of at least {minimum}."
        ) from None
    if number < minimum:
        raise ValueError(f"{name} = {number} is too small; pass an integer of at least {minimum}.")
    return number


def check_number(
    name: str, value: Any, *, above: float = -math.inf, at_least: float = -math.inf
) -> Any:
    """A finite real number within its bounds; a traced value passes, it cannot be inspected."""
    if is_traced(value):
        return value
    bound = f"above {above}" if above > at_least else f"of at least {at_least}"
    try:
        if isinstance(value, (bool, np.bool_, str)):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} = {value!r} is not a number; pass one {bound}.") from None
    if not math.isfinite(number) or number <= above or number < at_least:
        raise ValueError(f"{name} = {number} is out of range; pass a finite number {bound}.")
    return number


def check_strength(strength: Any) -> float:
    """An image-to-image strength in (0, 1]."""
    if is_traced(strength):
        raise ValueError(
            "strength is traced, and it decides how many steps there are; pass a number."
        )
    strength = check_number("strength", strength, above=0)
    if strength > 1:
        raise ValueError(f"strength = {strength} is out of range; expected it in (0, 1].")
    return strength


def share(count: int, strength: Any) -> int:
    """`floor(count * strength)` of an image-to-image strength in (0, 1]."""
    # Rounded first: 0.58 * 50 is 28.999999999999996 in binary.
    return math.floor(round(count * check_strength(strength), 9))


def check_choice(name: str, value: Any, choices: Iterable[str | None]) -> Any:
    """One of a few names."""
    options = list(choices)
    if not (value is None or isinstance(value, str)) or value not in options:
        expected = ", ".join(repr(option) for option in options)
        raise ValueError(f"{name} = {value!r} is not known; choose one of {expected}.")
    return value


def check_vector(name: str, value: Any) -> np.ndarray:
    """A non-empty one-dimensional list of finite numbers, in float64."""
    try:
        vector = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} = {value!r} is not a list of numbers; pass one.") from None
    if vector.ndim != 1 or vector.size == 0:
        raise ValueError(
            f"{name} has shape {vector.shape}; pass a one-dimensional list of at least one number."
        )
    if not np.all(np.isfinite(vector)):
        raise ValueError(
            f"{name} holds a NaN or an infinity: {value!r}; every entry must be finite."
        )
    return vector


def check_sigmas(name: str, sigmas: Any) -> Array:
    """Strictly descending positive levels, [N] float64, without the closing 0 they may end in.

    Traced ones pass as they are: they cannot be inspected.
    """
    if is_traced(sigmas):
        return sigmas
    levels = check_vector(name, sigmas)
    # k-diffusion's grids carry their closing 0, diffusers' do not: both mean the same grid.
    levels = levels[:-1] if levels[-1] == 0 else levels
    if levels.size == 0 or levels.min() <= 0 or np.any(np.diff(levels) >= 0):
        raise ValueError(
            f"{name} = {np.asarray(sigmas).tolist()} is no grid; expected strictly descending "
            "positive noise levels (a closing 0 may end them)."
        )
    return levels


def one_per_step(name: str, value: Any, num_steps: int) -> Array:
    """A number that is not negative, or one a step, [N]; a traced value passes."""
    if is_traced(value):
        return value
    values = np.asarray(value, np.float64)
    if values.shape not in ((), (num_steps,)):
        raise ValueError(
            f"{name} has shape {values.shape}; expected a number or one a step, [{num_steps}]."
        )
    if not np.all(np.isfinite(values)) or np.any(values < 0):
        raise ValueError(f"{name} = {value} must be finite and not negative; pass 0 for none.")
    return values
