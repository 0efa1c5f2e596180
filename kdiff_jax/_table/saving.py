"""A table as text: JSON with every number exact, and with the dtype of every column."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import jax
import numpy as np

from kdiff_jax._arrays import is_traced
from kdiff_jax._checks import shown
from kdiff_jax._table.row import Row, columns_of

FORMAT, VERSION = "kdiff_jax.Schedule", 1
# The dtypes of leaves; those that are not here are of a floating dtype.
_DTYPES = {"index": "int32", "step": "int32", "length": "int32", "advances": "bool", "idle": "bool"}
_FLOATING = ("float32", "float64")
_STATIC = ("flow", "zero_terminal_snr", "continues")
_REMEDY = "pass the text that schedule.to_json() returned"


def written(rows: Row, rest: Mapping[str, Any]) -> str:
    """The JSON of a table: of its rows, and of the other fields of a Schedule."""
    columns = {name: getattr(rows, name) for name in columns_of(rows)}
    arrays = {name: leaf for name, leaf in rest.items() if name not in _STATIC and leaf is not None}
    if is_traced(*columns.values(), *arrays.values()):
        raise ValueError(
            "the schedule is traced here and has no numbers to write; call to_json outside of jit."
        )
    return json.dumps(
        {
            "format": FORMAT,
            "version": VERSION,
            **{name: bool(rest[name]) for name in _STATIC},
            **{name: _entry(name, leaf) for name, leaf in arrays.items()},
            "rows": {name: _entry(name, leaf) for name, leaf in columns.items()},
        }
    )


def _entry(name: str, leaf: Any) -> dict[str, Any]:
    array = np.asarray(leaf)
    _check_dtype(name, str(array.dtype))
    if not np.all(np.isfinite(array)):
        raise ValueError(
            f"{name} holds a NaN or an infinity, which JSON has no numbers for; pass a table of "
            "finite numbers."
        )
    # A float32 is a float64 too, and Python writes each as the shortest text that reads back as it.
    return {"dtype": str(array.dtype), "values": array.tolist()}


def read(text: str | bytes) -> dict[str, Any]:
    """The fields of the Schedule that a text holds, in NumPy."""
    held = _object_of(text)
    static = {name: held.pop(name, None) for name in _STATIC}
    for name, value in static.items():
        if not isinstance(value, bool):
            raise ValueError(
                f"{name} = {shown(value)} in the JSON; expected true or false: {_REMEDY}."
            )
    columns = _arrays_of(
        "rows", held.pop("rows", None), _names(required=True), _names(required=False)
    )
    rest = _arrays_of("the JSON", held, ("sigmas", "init_noise_sigma"), ("length",))
    _check_shapes(columns, rest)
    return {"rows": Row(**columns), **rest, **static}


def _names(required: bool) -> tuple[str, ...]:
    return tuple(f.name for f in fields(Row) if (f.default is not None) == required)


def _object_of(text: str | bytes) -> dict[str, Any]:
    """The JSON object of a text, without what it says of itself."""
    try:
        held = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        start = shown(text[:40]) if isinstance(text, (str, bytes)) else type(text).__name__
        raise ValueError(f"text = {start} is no JSON ({error}); {_REMEDY}.") from None
    form = held.pop("format", None) if isinstance(held, dict) else type(held).__name__
    if form != FORMAT:
        raise ValueError(f"the JSON is of format {shown(form)}; expected {FORMAT!r}: {_REMEDY}.")
    version = held.pop("version", None)
    if version != VERSION:
        raise ValueError(
            f"the JSON is of version {shown(version)}, and this kdiff_jax reads version "
            f"{VERSION}; read it with the kdiff_jax that wrote it, or build the table again."
        )
    return held


def _arrays_of(
    where: str, held: Any, required: tuple[str, ...], optional: tuple[str, ...]
) -> dict[str, Any]:
    if not isinstance(held, dict):
        raise ValueError(f"{where} is {shown(held)}; expected an object of columns: {_REMEDY}.")
    missing = [name for name in required if name not in held]
    unknown = [name for name in held if name not in (*required, *optional)]
    if missing or unknown:
        raise ValueError(
            f"{where} lacks {missing} and has {unknown}; expected {', '.join(required)}, and of "
            f"{', '.join(optional)} what the sampler uses: {_REMEDY}."
        )
    return {name: _array(name, entry) for name, entry in held.items()}


def _array(name: str, entry: Any) -> np.ndarray:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "values"}:
        raise ValueError(f"{name} is {shown(entry)}; expected its dtype and values: {_REMEDY}.")
    _check_dtype(name, entry["dtype"])
    if entry["dtype"] == "float64" and not jax.config.values["jax_enable_x64"]:
        raise ValueError(
            f"{name} is float64, which JAX would round here; call "
            "jax.config.update('jax_enable_x64', True) first, or build the table in float32."
        )
    dtype = np.dtype(entry["dtype"])
    try:
        values = np.asarray(entry["values"])
    except ValueError:
        values = np.asarray(None)  # rows of different lengths
    # Whole numbers may stand for floats, nothing else for anything else.
    kinds = {"b": "b", "i": "i", "f": "fi"}[dtype.kind]
    if values.dtype.kind not in kinds or values.size == 0:
        raise ValueError(
            f"{name} holds {shown(entry['values'])}; expected {dtype} numbers, in lists of one "
            f"length: {_REMEDY}."
        )
    with np.errstate(over="ignore"):
        array = values.astype(dtype)
    if not np.all(np.isfinite(array)) or (dtype.kind == "i" and np.any(array != values)):
        raise ValueError(f"{name} holds numbers beyond {dtype}; pass finite ones: {_REMEDY}.")
    return array


def _check_dtype(name: str, dtype: Any) -> None:
    expected = (_DTYPES[name],) if name in _DTYPES else _FLOATING
    if dtype not in expected:
        raise ValueError(
            f"{name} is {shown(dtype)}; expected {' or '.join(expected)}, as where a sampler "
            "fills the table: cast it."
        )


def _check_shapes(columns: dict[str, np.ndarray], rest: dict[str, np.ndarray]) -> None:
    shape = columns["index"].shape
    if other := {name: leaf.shape for name, leaf in columns.items() if leaf.shape != shape}:
        raise ValueError(f"index has shape {shape} and {other}; expected one shape: {_REMEDY}.")
    tables, sigmas = shape[:-1], rest["sigmas"].shape
    expected = {"init_noise_sigma": tables, "length": tables, "sigmas": (*tables, *sigmas[-1:])}
    other = {name: leaf.shape for name, leaf in rest.items() if leaf.shape != expected[name]}
    if not shape or not sigmas or other:
        raise ValueError(
            f"the rows have shape {shape} and the rest {other or sigmas}; expected rows [R], or "
            f"[B, R] of a stack, sigmas [N + 1] and a number a table: {_REMEDY}."
        )
    length = rest.get("length")
    if (length is None) != ("idle" not in columns):
        raise ValueError(f"length and idle come together, of a padded table: {_REMEDY}.")
    if length is not None and (np.any(length < 1) or np.any(length > shape[-1])):
        raise ValueError(
            f"length = {length.tolist()} of a table of {shape[-1]} rows; expected it between 1 and "
            f"{shape[-1]}: {_REMEDY}."
        )
