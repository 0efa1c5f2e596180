"""What `jax.export` writes down of the values of a run, so that an exported run can be loaded.

A serialised function names the types of its arguments and results, with the fields that hold arrays
and the values of the static ones. A denoiser is closed over, and no argument: it holds a function.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import Field, fields
from typing import Any

from kdiff_jax._denoise.prediction import Prediction
from kdiff_jax._levels.alone import SigmasAlone
from kdiff_jax._levels.flow import FlowSchedule
from kdiff_jax._levels.levels import Levels
from kdiff_jax._levels.noise_schedule import NoiseSchedule
from kdiff_jax._run.state import State
from kdiff_jax._table.row import Row
from kdiff_jax._table.schedule import Schedule

TYPES = (NoiseSchedule, FlowSchedule, SigmasAlone, Levels, Row, Schedule, Prediction, State)


def _is_static(field: Field[Any]) -> bool:
    return bool(field.metadata.get("static"))


def written(cls: type[Any], static_values: Sequence[Any]) -> bytes:
    """The names of the array fields of a dataclass, in order, and its static values by name."""
    static = [f.name for f in fields(cls) if _is_static(f)]
    held = {
        "arrays": [f.name for f in fields(cls) if not _is_static(f)],
        "static": dict(zip(static, static_values, strict=True)),
    }
    # A static field may hold NumPy's bool, which is equal to Python's and no JSON.
    return json.dumps(held, default=lambda value: value.item()).encode()


def rebuilt(cls: type[Any], held: dict[str, Any], children: Sequence[Any]) -> Any:
    """The dataclass of what was written, which an earlier or later version may have done."""
    arrays = [f.name for f in fields(cls) if not _is_static(f)]
    static = {f.name for f in fields(cls) if _is_static(f)}
    # The program counts its arguments, so their order is part of it. A column that came later is
    # None there, which is no argument.
    optional = {f.name for f in fields(cls) if f.default is None}
    later = {name for name in optional if name not in held["arrays"]}
    if [name for name in arrays if name not in later] != held["arrays"] or static != set(
        held["static"]
    ):
        raise ValueError(
            f"the function was exported with a {cls.__name__} of the fields "
            f"{[*held['arrays'], *held['static']]}, and this version of kdiff_jax has "
            f"{[f.name for f in fields(cls)]}; export it again, or use the version that wrote it."
        )
    return cls(**dict(zip(held["arrays"], children, strict=True)), **held["static"])


def _register(cls: type[Any]) -> None:
    # From sys.modules: `jax.export` is an attribute of jax only once someone imported it.
    sys.modules["jax.export"].register_pytree_node_serialization(
        cls,
        serialized_name=f"kdiff_jax.{cls.__name__}",
        serialize_auxdata=lambda values: written(cls, values),
        deserialize_auxdata=json.loads,
        from_children=lambda held, children: rebuilt(cls, held, children),
    )


# JAX 0.6 loads jax.export, and absl with it, only for those who import it, which has to be before
# this package; later versions always load it.
if "jax.export" in sys.modules:
    for _type in TYPES:
        _register(_type)
