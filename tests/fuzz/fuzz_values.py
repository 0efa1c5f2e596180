"""The wrong objects of the fuzzer, and what each kind of argument may accept."""

import datetime
import fractions
import math
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kdiff_jax as kd

Accepts = Callable[[Any], bool]


class NoRepr:
    """An object whose repr fails, as that of a half-built one does."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


NOISE = kd.noise_schedule("scaled_linear")
FLOW = kd.flow_schedule(3.0)
LEVELS = kd.levels(NOISE, 3)
SCHEDULE = kd.dpm2(LEVELS)
NOISY = kd.dpm2_ancestral(LEVELS)
KEY = jax.random.key(0)
SAMPLE = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4)), jnp.float32)


def network(params: Any, x: Any, timestep: Any, cond: Any = None) -> Any:
    return params * x


DENOISE = kd.denoiser(network)
ROW = NOISY[0]
STATE = kd.init(NOISY, SAMPLE)
PREDICTION = kd.Prediction(SAMPLE, SAMPLE)

PLAIN: list[Any] = [None, True, False, np.True_, 0, 1, -1, 2, 3, 7, 0.0, -0.0, 0.5, 1.0, 2.5, -1.5]
EXTREME: list[Any] = [
    *(math.nan, math.inf, -math.inf, 1e39, -1e39, 1e300, 5e-324, 1e-46, 1e-12, 2**31, 2**63),
    *(-(2**63), 10**400, -(10**400), np.float32(np.nan), np.float64(np.inf)),
]
NO_NUMBERS: list[Any] = [
    *(
        "",
        "1",
        "no",
        "false",
        "karras",
        "dpm2",
        "scaled_linear",
        "nan",
        "[" * 100_000,
        b"1",
        1j,
        0j,
    ),
    *(np.complex64(1), datetime.date(2026, 1, 2), datetime.datetime(2026, 1, 2)),
    *(np.datetime64("2026-01-02"), np.timedelta64(3, "s"), datetime.timedelta(3), Path("a.json")),
]
NUMBERS: list[Any] = [fractions.Fraction(1, 2), Decimal("0.5"), np.int8(2), np.float16(0.5)]
LISTS: list[Any] = [
    *([], (), [[]], [1.0], [10.0, 1.0], [10.0, 1.0, 0.0], [1.0, 10.0], [2, 2], [0.0], [-1.0, -2.0]),
    *(["1"], ["10", "1"], [True, False], [None], [math.nan, 1.0], [1.0, math.inf], [1j, 1.0]),
    *([1, [2, 3]], [10**400, 1], [1e39, 1.0], [1.0, 1e-46], [1 + 1e-12, 1.0], nested(200)),
    *(nested(5_000), {"a": nested(5_000)}),
    *(range(3), {1.0, 2.0}, {"a": 1.0}, {}, [[2.0, 1.0], [3.0, 1.0]], (2, 4), [-1, 4], (2, 10**12)),
]
ARRAYS: list[Any] = [
    *(
        np.array([]),
        np.zeros((0, 3)),
        np.array(3),
        np.array(0.5),
        np.ones(3, int),
        np.ones(2, bool),
    ),
    *(np.array(["a"]), np.array([None]), np.array([1j]), np.array([np.nan, 1.0]), np.ones((2, 4))),
    *(jnp.ones(2, jnp.bfloat16), jnp.ones(2, jnp.int32), jnp.ones((2, 4), bool), jnp.float32(0.5)),
    *(jnp.ones((2, 4), jnp.complex64), jnp.full((2, 4), jnp.nan), jnp.ones((3, 4)), jnp.ones(())),
]
OBJECTS: list[Any] = [
    *(object(), NoRepr(), int, len, lambda: None, lambda *args: None, lambda *args: 1, Ellipsis),
    *(NOISE, FLOW, LEVELS, LEVELS.reversed(), SCHEDULE, NOISY, ROW, STATE, PREDICTION, DENOISE),
    *(network, KEY, jax.random.PRNGKey(0), jax.random.split(KEY, 2), jax.random.split(KEY, 3)),
    *([KEY, KEY], SAMPLE, [SCHEDULE, SCHEDULE], [SCHEDULE, 1], jax.ShapeDtypeStruct((2, 4), float)),
]
WRONG: list[Any] = [*PLAIN, *EXTREME, *NO_NUMBERS, *NUMBERS, *LISTS, *ARRAYS, *OBJECTS]


def _kind(value: Any) -> str | None:
    """Real or whole numbers of an array, other ones, or None for what is no array."""
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return None
    name = str(dtype)
    return "real" if "float" in name else "whole" if "int" in name else name


def is_number(value: Any) -> bool:
    """A real finite number; a bool, a string, a date or a complex number is none."""
    if isinstance(value, (bool, np.bool_, str, bytes, complex, np.timedelta64, np.datetime64)):
        return False
    if _kind(value) not in ("real", "whole", None):
        return False
    try:
        return np.ndim(value) == 0 and math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def number(low: float = -math.inf, high: float = math.inf, *, above: bool = False) -> Accepts:
    """Numbers in [low, high], or in (low, high]."""

    def accepts(value: Any) -> bool:
        if not is_number(value):
            return False
        return low <= float(value) <= high and not (above and float(value) == low)

    return accepts


def count(low: int = 1, high: int = 1_000_000) -> Accepts:
    def accepts(value: Any) -> bool:
        whole = isinstance(value, int) or _kind(value) == "whole"
        return whole and is_number(value) and low <= int(value) <= high

    return accepts


def flag(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_))


def one_of(*names: Any) -> Accepts:
    return lambda value: (value is None or isinstance(value, str)) and value in names


def optional(accepts: Accepts) -> Accepts:
    return lambda value: value is None or accepts(value)


def either(*kinds: Accepts) -> Accepts:
    return lambda value: any(accepts(value) for accepts in kinds)


def an(*types: type) -> Accepts:
    return lambda value: isinstance(value, types)


def anything(value: Any) -> bool:
    return True


def numbers(
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above: bool = False,
    nan: bool = False,
    host_nan: bool = False,
    flags: bool = False,
    empty: bool = False,
    infinite: bool = False,
) -> Accepts:
    """A number, or numbers in lists and arrays, each in [low, high], or in (low, high].

    nan: arrays of JAX may hold one, since looking at them costs a transfer; host_nan: those of
    NumPy too. flags: an array of bools is one of 0 and 1. empty: what is done to each of any shape.
    infinite: infinities too.
    """
    finite = number(low, high, above=above)

    def within(value: Any) -> bool:
        return finite(value) or (infinite and isinstance(value, float) and math.isinf(value))

    def accepts(value: Any) -> bool:
        if within(value):
            return True
        if isinstance(value, (range, tuple)):
            value = list(value)
        if isinstance(value, list):
            rows = bool(value) and all(isinstance(row, list) for row in value)
            entries = [e for row in value for e in row] if rows else value
            return (empty or bool(entries)) and all(map(within, entries))
        if not isinstance(value, (np.ndarray, jax.Array)):
            return False
        if value.size == 0 or _kind(value) not in ("real", "whole"):
            return (empty and value.size == 0) or (flags and _kind(value) == "bool")
        unseen = host_nan or (nan and isinstance(value, jax.Array))
        return unseen or all(within(v) for v in np.asarray(value, np.float64).ravel())

    return accepts
