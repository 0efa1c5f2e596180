"""Refusals: every message says what came, what is expected and what to do."""

import math
import operator
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdiff_jax._arrays import Array, is_traced, largest_level, rounded

# The largest count of steps, training timesteps and so on: far above use, far below the memory.
LARGEST_COUNT = 1_000_000
# What float() or NumPy would take for a number, and nobody means as one.
_NO_NUMBERS: tuple[type, ...] = (bool, np.bool_, str, bytes, complex, np.complexfloating)
_NO_NUMBERS += (np.datetime64, np.timedelta64, np.character, np.void)


def shown(value: Any) -> str:
    """A value in a message: its repr, cut, since a list or an integer may be of any length."""
    try:
        text = repr(value)
    except Exception as error:
        return f"a {type(value).__name__} (its repr raises {type(error).__name__})"
    return text if len(text) <= 120 else f"{text[:100]}... ({type(value).__name__})"


def brought(value: Any) -> str:
    """What an argument is, in a message: a container by its type, since it may be of any size."""
    if isinstance(value, (jax.Array, np.ndarray)):
        return f"{value.dtype}{list(value.shape)}"
    plain = value is None or callable(value) or isinstance(value, (int, float, complex, str, bytes))
    if plain or type(value).__module__.startswith("kdiff_jax."):
        return shown(value)
    return f"a {type(value).__name__}"


def check_batch(name: str, value: Any, *, finite: bool = True) -> jax.Array:
    """An array of floats with a batch axis, finite where it is on the host; lists are none."""
    if isinstance(value, jax.Array) and value.dtype == np.float32 and value.ndim and value.size:
        return value  # what follows takes as long as a whole step of a small sample
    if not isinstance(value, (jax.Array, np.ndarray)):
        raise ValueError(
            f"{name} is {brought(value)}; expected an array [B, ...] of JAX or NumPy: pass one, "
            "such as jnp.asarray(...)."
        )
    if not jnp.issubdtype(value.dtype, jnp.floating) or value.dtype.itemsize > 8:
        raise ValueError(f"{name} is {value.dtype}; expected a real floating dtype: cast it first.")
    if value.ndim < 1 or not value.size:
        what = "empty" if value.ndim else "a scalar"
        raise ValueError(f"{name} is {what}; expected [B, ...], the batch axis first.")
    if finite and isinstance(value, np.ndarray) and not np.all(np.isfinite(rounded(value))):
        raise ValueError(f"{name} holds a NaN or an infinity; every entry must be finite.")
    return jnp.asarray(value)


def check_kind(name: str, value: Any, kind: Any, remedy: str) -> Any:
    """A value of a class or protocol of this library, where another is easily taken for it."""
    if not isinstance(value, kind) or isinstance(value, type):
        what = "a class" if isinstance(value, type) else f"of type {type(value).__name__}"
        raise ValueError(f"{name} = {shown(value)} is {what}; pass {remedy}.")
    return value


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def check_flag(name: str, value: Any) -> bool:
    """True or False: "no" and "false" are strings, and true to Python."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} = {shown(value)} is neither True nor False; pass one of them.")
    return bool(value)


def check_int(name: str, value: Any, minimum: int, maximum: int = LARGEST_COUNT) -> int:
    """An integer within its bounds; a bool or a float is a mistake and not rounded."""
    if is_traced(value):
        raise ValueError(
            f"{name} is traced, and its value must be known when the table is built; pass an "
            "integer, or make it a static argument."
        )
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise ValueError(
            f"{name} = {shown(value)} is not an integer; pass an integer of at least {minimum}."
        ) from None
    if number < minimum:
        raise ValueError(
            f"{name} = {shown(number)} is too small; pass an integer of at least {minimum}."
        )
    if number > maximum:
        raise ValueError(
            f"{name} = {shown(number)} is too large; pass an integer of at most {maximum}."
        )
    return number


def check_number(
    name: str, value: Any, *, above: float = -math.inf, at_least: float = -math.inf
) -> Any:
    """A finite real number within its bounds; a traced value passes, it cannot be inspected."""
    if is_traced(value):
        return _check_traced(name, value, [()], "one number")
    bound = f"above {above}" if above > at_least else f"of at least {at_least}"
    bound = "" if bound.endswith("-inf") else f" {bound}"
    try:
        shape = getattr(value, "shape", ())
        if isinstance(value, _NO_NUMBERS) or _dtype_kind(value) not in "iufV" or shape != ():
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name} = {shown(value)} is not a number; pass a finite one{bound}."
        ) from None
    except OverflowError:
        raise ValueError(
            f"{name} = {shown(value)} is out of range; pass a finite number{bound}."
        ) from None
    if not math.isfinite(number) or number <= above or number < at_least:
        raise ValueError(f"{name} = {number} is out of range; pass a finite number{bound}.")
    return number


def _check_traced(name: str, value: Any, shapes: list[tuple[int, ...]], expected: str) -> Any:
    """A traced value: all that is known of it are its shape and its dtype."""
    if value.shape not in shapes:
        raise ValueError(f"{name} has shape {value.shape}; pass {expected}.")
    if not (jnp.issubdtype(value.dtype, np.floating) or jnp.issubdtype(value.dtype, np.integer)):
        raise ValueError(f"{name} is {value.dtype}; pass real numbers.")
    return value


def _dtype_kind(value: Any) -> str:
    """The kind of an array's dtype; "V" for what is no array, and for ml_dtypes' floats."""
    dtype = getattr(value, "dtype", None)
    return dtype.kind if isinstance(dtype, np.dtype) else "V"


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
        raise ValueError(f"{name} = {shown(value)} is not known; choose one of {expected}.")
    return value


def check_vector(name: str, value: Any) -> np.ndarray:
    """A non-empty one-dimensional list of finite numbers, in float64."""
    vector = as_numbers(name, value)
    if vector.ndim != 1 or vector.size == 0:
        raise ValueError(
            f"{name} has shape {vector.shape}; pass a one-dimensional list of at least one number."
        )
    if not np.all(np.isfinite(vector)):
        raise ValueError(
            f"{name} holds a NaN or an infinity: {shown(value)}; every entry must be finite."
        )
    return vector


def as_numbers(name: str, value: Any) -> np.ndarray:
    """A number or an array of real numbers, in float64; strings, bools and dates are none."""
    entries = value if isinstance(value, (list, tuple)) else ()
    if is_traced(value):
        raise ValueError(
            f"{name} is traced, and its value must be known when the table is built; pass numbers."
        )
    if is_traced(*entries):
        raise ValueError(
            f"{name} is a list that holds traced values; pass one traced array: jnp.stack(...)."
        )
    wrong = any(isinstance(entry, _NO_NUMBERS) for entry in (value, *entries))
    try:
        array = np.asarray(value)
        if wrong or (array.dtype.kind not in "iufV" and not _is_integers(array)):
            raise TypeError
        return array.astype(np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} = {shown(value)} is not a list of numbers; pass one.") from None
    except OverflowError:
        raise ValueError(
            f"{name} = {shown(value)} holds a number that no float can; pass finite numbers."
        ) from None


def _is_integers(array: np.ndarray) -> bool:
    """Whether an array of objects is one of Python's integers beyond 64 bits."""
    numbers = (int, float, np.integer, np.floating)
    return array.dtype.kind == "O" and all(
        isinstance(entry, numbers) and not isinstance(entry, bool) for entry in array.flat
    )


def check_sigmas(name: str, sigmas: Any) -> Array:
    """Strictly descending positive levels, [N] float64, without the closing 0 they may end in.

    Traced ones are NaN where they are no such levels: no trace can raise, and N is its shape, so
    that a closing 0 cannot be dropped. Under `jax.grad` alone they have values, and it is.
    """
    if is_traced(sigmas):
        traced = traced_vector(name, sigmas)
        return as_the_table_rounds(name, traced[:-1] if _ends_in_0(traced) else traced)
    levels = check_vector(name, sigmas)
    # k-diffusion's grids carry their closing 0, diffusers' do not: both mean the same grid.
    levels = levels[:-1] if levels[-1] == 0 else levels
    if levels.size == 0 or levels.min() <= 0 or np.any(np.diff(levels) >= 0):
        raise ValueError(
            f"{name} = {shown(np.asarray(sigmas).tolist())} is no grid; expected strictly "
            "descending positive noise levels (a closing 0 may end them)."
        )
    return as_the_table_rounds(name, levels)


def traced_vector(name: str, value: Any) -> jax.Array:
    """A traced list of at least one real number, as floats; its values are not known."""
    if value.ndim != 1 or not value.size:
        raise ValueError(
            f"{name} has shape {value.shape}; pass a one-dimensional list of at least one number."
        )
    levels: jax.Array = _check_traced(name, value, [value.shape], "")
    return levels.astype(jax.dtypes.canonicalize_dtype(np.float64))


def _ends_in_0(levels: jax.Array) -> bool:
    try:
        return levels.shape[0] > 1 and bool(levels[-1] == 0)
    except jax.errors.ConcretizationTypeError:
        return False


def as_the_table_rounds(
    what: str, levels: Array, arguments: str = "levels", ascending: bool = False
) -> Array:
    """Levels, [N], that stay finite, positive and strictly descending in the float of a table.

    Traced ones that are not become NaN, all of them: a picture from wrong levels looks like one.
    """
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    low, high = float(np.finfo(dtype).tiny), largest_level()
    xp: Any = jnp if is_traced(levels) else np
    with np.errstate(all="ignore"):
        rounded = levels.astype(dtype)
        apart = xp.diff(rounded[::-1] if ascending else rounded) < 0
        # Below: numbers that a device takes for 0. Above: their squares, variances, overflow.
        held = (rounded >= low) & (rounded <= high)
    if is_traced(levels):
        return jnp.where(xp.all(apart) & xp.all(held), levels, np.nan)
    if not np.all(held):
        raise ValueError(
            f"{what}: a level is {levels[np.argmin(held)]:.6g}, and {dtype} tables hold levels "
            f"from {low:.3g} to {high:.3g}; choose other {arguments}."
        )
    if not np.all(apart):
        raise ValueError(
            f"{what} between sigma = {levels[0]:.6g} and {levels[-1]:.6g} has steps too small for "
            f"{dtype} at num_steps = {levels.size}; take fewer steps or other {arguments}."
        )
    return levels


def one_per_step(name: str, value: Any, num_steps: int) -> Array:
    """A number that is not negative, or one a step, [N]; a traced value passes."""
    if is_traced(value):
        expected = f"a number or one a step, [{num_steps}]"
        return _check_traced(name, value, [(), (num_steps,)], expected)
    values = as_numbers(name, value)
    if values.shape not in ((), (num_steps,)):
        raise ValueError(
            f"{name} has shape {values.shape}; expected a number or one a step, [{num_steps}]."
        )
    # What it multiplies, a level at most, then stays finite in the float of a table.
    if not (np.all(values >= 0) and np.all(values <= largest_level())):
        raise ValueError(
            f"{name} = {shown(value)} must be finite and not negative, at most "
            f"{largest_level():.3g}; pass 0 for none."
        )
    return values


def check_within(name: str, value: Any, low: float, high: float, what: str) -> Any:
    """Real numbers of any shape from low to high, float64; traced ones pass."""
    if is_traced(value):
        return _check_traced(name, value, [value.shape], "")
    values = as_numbers(name, value)
    if not np.all((low <= values) & (values <= high)):
        raise ValueError(
            f"{name} = {shown(value)} leaves [{low:g}, {high:g}], {what}; keep inside."
        )
    return values


def held_by_jax(name: str, value: Any) -> np.ndarray:
    """Numbers that the default types of JAX hold: of those beyond it makes other ones."""
    numbers, array = as_numbers(name, value), np.asarray(value)
    whole = array.dtype.kind in "iuO"
    limits = jnp.iinfo(jnp.result_type(int)) if whole else jnp.finfo(jnp.result_type(float))
    if not np.all(np.abs(numbers) <= float(limits.max)):
        raise ValueError(f"{name} = {shown(value)} is not finite; pass {limits.dtype} numbers.")
    return array


def as_array(name: str, value: Any) -> jax.Array:
    """An array of numbers for the device; a list of traced ones too."""
    if isinstance(value, jax.Array) or (isinstance(value, (list, tuple)) and is_traced(*value)):
        return jnp.asarray(value)
    try:
        return jnp.asarray(held_by_jax(name, value))
    except ValueError:
        raise ValueError(f"{name} = {shown(value)} is no array of numbers; pass one.") from None


def equal_or_refused(one: Any, other: Any) -> Any:
    """The `==` of dataclasses, with what to do where their fields are arrays."""
    if one is other:
        return True
    if type(one) is not type(other):
        return NotImplemented
    try:
        return tuple(vars(one).values()) == tuple(vars(other).values())
    except (ValueError, TypeError):
        raise ValueError(
            f"two values of {type(one).__name__} hold arrays, which == does not compare; take "
            "chex.assert_trees_all_equal(a, b), or "
            "jax.tree.all(jax.tree.map(np.array_equal, a, b))."
        ) from None
