"""Refusals of what is no table, where one is expected."""

from __future__ import annotations

from typing import Any

from kdiff_jax._arrays import is_traced
from kdiff_jax._checks import brought
from kdiff_jax._table.row import Row
from kdiff_jax._table.schedule import Schedule


def check_schedule(schedule: Any) -> None:
    """A Schedule, and not the levels or the noise that it is made of."""
    if not isinstance(schedule, Schedule):
        raise ValueError(
            f"schedule is {brought(schedule)}; expected what a sampler makes of levels: pass "
            "kd.dpm2(kd.levels(noise, 25)), in the order kd.sample(denoise, params, schedule, x)."
        )


def check_row(row: Any) -> None:
    """One row, and not a schedule or its number."""
    if not isinstance(row, Row):
        raise ValueError(
            f"row is {brought(row)}; expected one row of a schedule: pass schedule[i], or "
            "schedule.rows_at(i)."
        )


def is_known(leaf: Any) -> bool:
    """Whether this process can read a leaf of a table, which may be traced or held by others."""
    return not is_traced(leaf) and getattr(leaf, "is_fully_addressable", True)
