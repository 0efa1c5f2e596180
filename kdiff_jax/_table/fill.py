"""From the weights of a sampler's evaluations to a table: the columns that every sampler shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kdiff_jax._arrays import Array, common_namespace, is_traced
from kdiff_jax._checks import as_the_table_rounds
from kdiff_jax._levels.levels import Levels
from kdiff_jax._table.row import Row
from kdiff_jax._table.schedule import Schedule

# What one evaluation of each step that ends above 0 needs: names of Row and [M] numbers.
Evaluation = Mapping[str, ArrayLike]
# alpha, sigma and input_scale of rows at levels; None where they are 1.
Units = Callable[[Array], tuple[Array | None, Array, Array | None]]

_DTYPES = {"index": np.int32, "step": np.int32, "timestep": np.float32, "advances": np.bool_}
# What an evaluation names in the units of the levels.
_OF_LEVELS = {"sigma", "timestep", "sigma_left", "sigma_reached"}
# A closing step, where the levels end at 0, is one evaluation: x_next = D.
_CLOSING = {"denoised_weight": 1.0, "advances": True}


def fill(
    levels: Levels,
    *evaluations: Evaluation,
    units: Units | None = None,
    init_noise_sigma: ArrayLike | None = None,
) -> Schedule:
    """The table of a sampler: in each step its evaluations in turn, and a closing row.

    Args:
      levels: the run.
      evaluations: each a dict of "sigma", the level that it is made at, and of the columns that
        are not None, [M] numbers (or one) for the M steps that end above 0. A column that only
        some of them name is 0 in the others. "timestep", "sigma_left" and "sigma_reached" are
        those of the whole step, the timestep that of its start, where they are not given.
      units: alpha, sigma and input_scale of rows at given levels, those of `levels.noise` by
        default.
      init_noise_sigma: in place of that of the levels.

    Returns:
      A Schedule, its numbers rounded once, to JAX's default float, and put on the device.
    """
    per_step, count = len(evaluations), levels.num_steps
    units = levels.noise.units if units is None else units
    evaluations = _with_step_ends(levels, evaluations)
    names = {name for evaluation in evaluations for name in evaluation}

    def column(name: str) -> Array:
        values = [evaluation.get(name, 0.0) for evaluation in evaluations]
        return _in_turn(values, _CLOSING.get(name, 0.0), levels)

    sigma = _in_turn([e["sigma"] for e in evaluations], levels.starts[-1], levels)
    alpha, sigma, input_scale = units(sigma)
    inner = slice(count - levels.closes)
    timesteps = [e.get("timestep", levels.timesteps[inner]) for e in evaluations]
    ladder = _in_units(levels, units)

    def end(name: str, of_steps: Array) -> Array:
        if name not in names:
            return of_steps[steps]
        own = (common_namespace(e[name])[1] if name in e else None for e in evaluations)
        values: list[ArrayLike] = [of_steps[inner] if at is None else units(at)[1] for at in own]
        return _in_turn(values, of_steps[-1], levels)

    steps = np.repeat(np.arange(count), per_step)
    steps = steps[: len(steps) - (per_step - 1 if levels.closes else 0)]
    columns: dict[str, ArrayLike | None] = {
        **{name: column(name) for name in names - _OF_LEVELS},
        "index": np.arange(len(steps)) + per_step * levels.first_step,
        "step": steps + levels.first_step,
        "timestep": _in_turn(timesteps, levels.timesteps[-1], levels),
        "sigma": sigma,
        "alpha": alpha,
        "input_scale": input_scale,
        "sigma_left": end("sigma_left", ladder[:-1]),
        "sigma_reached": end("sigma_reached", ladder[1:]),
    }
    floating = jax.dtypes.canonicalize_dtype(np.float64)
    rows = {
        name: _rounded(value, _DTYPES.get(name, floating), (len(steps),))
        for name, value in columns.items()
        if value is not None
    }
    above = len(ladder) - levels.closes
    if not is_traced(ladder):
        as_the_table_rounds("the table", np.asarray(ladder)[:above], ascending=levels.ascends)
    _check_finite(rows)
    return _on_device(
        Schedule(
            rows=Row(**rows),
            sigmas=_rounded(ladder, floating, (count + 1,)),
            init_noise_sigma=_rounded(_start(levels, init_noise_sigma), floating, ()),
            flow=levels.noise.flow,
            zero_terminal_snr=levels.zero_terminal_snr,
        )
    )


def timesteps_reached(levels: Levels) -> Array:
    """[M] the timesteps at the ends of the steps that end above 0: those that the next ones have.

    Where the run ends, and where churn raises the next step, the timestep of the level itself.
    """
    of_level = levels.noise.timestep_at(levels.inner[1])
    xp, of_level, of_next = common_namespace(of_level, levels.timesteps[1:])
    count = len(of_next)
    if levels.raised is not None:
        _, raised, sigmas = common_namespace(levels.raised[1:], levels.sigmas[1:-1])
        of_next = xp.where(raised > sigmas, of_level[:count], of_next)
    return xp.concatenate([of_next, of_level[count:]])


def _check_finite(rows: Mapping[str, Any]) -> None:
    for name, column in rows.items():
        if not is_traced(column) and column.dtype.kind == "f" and not np.isfinite(column).all():
            raise ValueError(
                f"{name} is not finite in {column.dtype} in some rows; lower s_noise, or take "
                "levels that end lower."
            )


def _start(levels: Levels, init_noise_sigma: ArrayLike | None) -> ArrayLike:
    """The deviation of the initial noise, with what churn adds before the first step."""
    start = levels.init_noise_sigma if init_noise_sigma is None else init_noise_sigma
    if levels.added is None:
        return start
    xp, start, added = common_namespace(start, levels.added[0])
    return xp.hypot(start, added)


def _on_device(schedule: Schedule) -> Schedule:
    if is_traced(*jax.tree.leaves(schedule)):
        return jax.tree.map(jnp.asarray, schedule)
    # One transfer, no program: an operation on each leaf would compile anew for every length.
    return jax.device_put(schedule)


def _with_step_ends(levels: Levels, evaluations: tuple[Evaluation, ...]) -> tuple[Evaluation, ...]:
    """The evaluations with what every sampler does in the last one of a step."""
    *others, last = evaluations
    if levels.added is not None:
        # The noise that raises a step is added by the row before it; every sampler here that
        # takes churn draws none of its own.
        last = {**last, "noise_weight": levels.added[1 : levels.inner[0].shape[0] + 1]}
    if any("anchor_weight" in evaluation for evaluation in evaluations):
        last = {**last, "advances": True}
    return (*others, last)


def _in_turn(values: list[ArrayLike], closing: ArrayLike, levels: Levels) -> Array:
    """Numbers of the evaluations of each step, one after the other, and of the closing row."""
    inner = levels.num_steps - levels.closes
    xp, last, *parts = common_namespace(closing, *values)
    parts = [part if part.ndim else xp.full(inner, part) for part in parts]
    column = parts[0] if len(parts) == 1 else xp.stack(parts, -1).reshape(-1)
    return xp.concatenate([column, last.reshape(1)]) if levels.closes else column


def _in_units(levels: Levels, units: Units) -> Array:
    """The levels in the units of the rows, [N + 1]; what is above 0, and a closing 0."""
    if not levels.closes:
        return units(levels.sigmas)[1]
    xp, above, end = common_namespace(units(levels.sigmas[:-1])[1], np.zeros(1))
    return xp.concatenate([above, end])


def _rounded(value: ArrayLike, dtype: Any, shape: tuple[int, ...]) -> Any:
    """A column in the dtype of a Row: NumPy, for one transfer of all of them, or traced."""
    if is_traced(value):
        return jnp.broadcast_to(jnp.asarray(value).astype(dtype), shape)
    with np.errstate(over="ignore"):
        array = np.asarray(value, dtype)
    return array if array.shape == shape else np.full(shape, array)
