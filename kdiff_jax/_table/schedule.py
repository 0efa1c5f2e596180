"""Schedule: the rows of a run as one immutable value; counting, slicing, padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np

from kdiff_jax._arrays import is_traced, put_like
from kdiff_jax._checks import as_array, check_int, equal_or_refused, plural, shown
from kdiff_jax._table.row import (
    Row,
    columns_of,
    nan_unless,
    reads_history,
    row_number,
    take_row,
    take_rows,
)
from kdiff_jax._table.saving import read, written

# What a column holds in a row that does not use it; those that are not here every row has.
NEUTRAL = {
    "epsilon_weight": 0.0,
    "noise_weight": 0.0,
    "anchor_weight": 0.0,
    "advances": True,
    "denoised_weight_1": 0.0,
    "denoised_weight_2": 0.0,
    "alpha": 1.0,
    "input_scale": 1.0,
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Schedule:
    """The rows of a run, an immutable pytree; `schedule.rows` is the `xs` of a `lax.scan`.

    Made from `kd.levels` by a sampler: `kd.euler`, `kd.dpm2`, `kd.dpmpp_2m` and so on. Its numbers
    are leaves: a table of the same length and columns never recompiles, nor does one of any length
    after `pad`. `kd.stack` gives the leaves of many tables a leading axis B.

    Attributes:
      rows: a Row with leaves [R]; a column that the sampler does not use is None.
      sigmas: [N + 1] the sigma at which each outer step starts, and the one that the last reaches.
      init_noise_sigma: scalar, the standard deviation that initial noise is given.
      length: None, or int32: the rows of a padded table that are real, the first ones.
      flow: the rows are levels of a rectified flow, alpha + sigma = 1; static.
      zero_terminal_snr: the first row may hold no signal at all (alpha = 0), or for DPM2 and
        Euler next to none (sigma = 4096); refused for an epsilon network; static.
      continues: the rows are a slice that reads what rows before it left in a State; static.

    Example:
      >>> import kdiff_jax as kd
      >>> kd.dpm2(kd.levels(kd.noise_schedule("scaled_linear"), 4)).rows.step.tolist()
      [0, 0, 1, 1, 2, 2, 3]
    """

    rows: Row
    sigmas: jax.Array
    init_noise_sigma: jax.Array
    length: jax.Array | None = None
    flow: bool = field(default=False, metadata={"static": True})
    zero_terminal_snr: bool = field(default=False, metadata={"static": True})
    continues: bool = field(default=False, metadata={"static": True})

    @property
    def num_steps(self) -> int:
        """N, the outer steps: the real ones of a padded table, the most of any table of a stack."""
        if self.length is None:
            return self.sigmas.shape[-1] - 1
        last = self._real_lengths()[..., None] - 1
        step = np.asarray(self.rows.step)
        return int(np.max(np.take_along_axis(step, last, -1) - step[..., :1])) + 1

    @property
    def num_rows(self) -> int:
        """R, the evaluations of the network: 2N - 1 for DPM2, N for samplers of one row a step.

        The real ones of a padded table, the most of any table of a stack. Where the length is
        traced it is no number: ValueError.
        """
        if self.length is None:
            return self.rows.index.shape[-1]
        return int(np.max(self._real_lengths()))

    def _real_lengths(self) -> np.ndarray:
        if is_traced(self.length):
            raise ValueError(
                "the length of a padded schedule is traced here, so it is no number to count or "
                "cut with; use schedule.length, or count and cut before jit."
            )
        return jax.device_get(self.length)

    def __len__(self) -> int:
        return self.num_rows

    @overload
    def __getitem__(self, i: int | jax.Array) -> Row: ...

    @overload
    def __getitem__(self, i: slice) -> Schedule: ...

    def __getitem__(self, i: int | jax.Array | slice) -> Row | Schedule:
        """Row i, scalar leaves; negative counts from the end, IndexError outside.

        `schedule[a:]` is a Schedule of the rows from a on, to resume with the State that was saved
        before row a: `kd.sample(denoise, params, schedule[a:], state, key)`. It is refused without
        one where rows read a history. To begin a run later, cut its levels: `levels.start_at`.
        """
        if self.rows.index.ndim != 1:
            raise ValueError(
                f"the rows have shape {self.rows.index.shape}, those of a stack; take "
                "schedule.rows_at(i), one row a table."
            )
        if isinstance(i, slice):
            return self._rows_between(i)
        at = row_number(i)
        if is_traced(at, self.length):
            return self._traced_row(jnp.asarray(at))
        if not -self.num_rows <= at < self.num_rows:
            raise IndexError(f"row {shown(at)} of a schedule with {self.num_rows} rows")
        # Put there openly: `jax.transfer_guard("disallow")` stops what a call sends by itself.
        return take_row(self.rows, jax.device_put(np.int32(at % self.num_rows)))

    def _traced_row(self, i: jax.Array) -> Row:
        """Row i where it is known in a program only: NaN where there is none, and IndexError."""
        end = self.rows.index.shape[-1] if self.length is None else self.length
        row = take_row(self.rows, jnp.where(i < 0, i + end, i))
        return nan_unless((-end <= i) & (i < end), row)

    def __iter__(self) -> Iterator[Row]:
        return (self[i] for i in range(self.num_rows))

    def _rows_between(self, part: slice) -> Schedule:
        if is_traced(*jax.tree.leaves(self)):
            raise ValueError("the schedule is traced here; slice its rows before jit.")
        for end in (part.start, part.stop, part.step):
            row_number(0 if end is None else end)
        start, stop, stride = part.indices(self.num_rows)
        if stride != 1 or start >= stop:
            raise ValueError(
                f"rows {start}:{stop}:{stride} of {self.num_rows} are no run; take one row or more "
                "in a row: schedule[a:]."
            )
        if (start, stop) == (0, self.num_rows):
            return self
        table: Schedule = jax.device_get(self)
        rows = jax.tree.map(lambda leaf: leaf[start:stop], table.rows)
        first, last = rows.step[0] - table.rows.step[0], rows.step[-1] - table.rows.step[0]
        init_noise_sigma = table.init_noise_sigma
        if start:
            init_noise_sigma = np.hypot(1 if rows.alpha is None else rows.alpha[0], rows.sigma[0])
            init_noise_sigma = init_noise_sigma.astype(table.sigmas.dtype)
        rest = replace(
            table,
            rows=replace(rows, idle=None),
            sigmas=table.sigmas[first : last + 2],
            init_noise_sigma=init_noise_sigma,
            length=None,
            continues=self.continues or (start > 0 and reads_history(rows)),
        )
        if self.length is not None:
            rest = padded(rest, self.rows.index.shape[-1], self.sigmas.shape[-1])
        return put_like(rest, self.sigmas)

    def pad(self, num_rows: int, columns: Iterable[str] | None = None) -> Schedule:
        """The same run in a table of a fixed shape: one executable for every number of steps.

        The real length becomes a leaf, and `kd.sample` evaluates the network for the real rows
        only; with the same columns and two rows or more, bitwise as without padding. The rows
        after them are idle: they leave the state as it is. Counting, indexing, iterating and
        slicing go by the real rows.

        Args:
          num_rows: the rows of the new table, at least those of this one.
          columns: names of columns of Row that the executable is to have, so that tables of
            different samplers share it: ("noise_weight", "anchor_weight", "input_scale", ...).
            Those that this table has not are filled so that they change nothing. "anchor_weight"
            brings "advances". None: the columns that there are.

        Returns:
          A Schedule with rows [num_rows] and an int32 length; sigmas go on with zeros, to
          [num_rows + 1].

        Raises:
          ValueError: num_rows that is no integer or below the rows there are; columns that Row has
            not, or that leave out one of this table; a schedule that is padded to another size
            already; a stack.

        Example:
          >>> import kdiff_jax as kd
          >>> schedule = kd.dpm2(kd.levels(kd.noise_schedule(), 10)).pad(199)
          >>> schedule.num_rows, schedule.rows.sigma.shape, schedule.sigmas.shape
          (19, (199,), (200,))
        """
        num_rows = check_int("num_rows", num_rows, 1)
        if self.rows.index.ndim != 1:
            raise ValueError(
                f"the rows have shape {self.rows.index.shape}; pad lengthens one table: do it to "
                "each before stacking them."
            )
        size = self.rows.index.shape[-1]
        if self.length is not None and num_rows != size:
            raise ValueError(
                f"num_rows = {num_rows} but the schedule is already padded to {size} rows; pad the "
                "schedule before that."
            )
        if num_rows < size:
            raise ValueError(
                f"num_rows = {num_rows} is too small for a schedule of {size} rows; expected at "
                f"least {size}."
            )
        table = self if columns is None else with_columns(self, columns)
        return put_like(padded(table, num_rows, num_rows + 1), self.sigmas)

    def rows_at(self, i: jax.Array | np.ndarray | int) -> Row:
        """Every sample at its own row: row i[b] of table b, for a denoiser and `kd.step`.

        At or past the end of its table a sample gets an idle row, which leaves it as it is. It
        runs inside jit; in a loop by hand it is compiled once. An i on the device cannot be
        refused: where it is below 0 the row is NaN.

        Args:
          i: int32, counted from 0: [B], one a sample, or [B, F], one a frame of each sample (or
            one number for all tables of a stack).

        Returns:
          A Row with leaves of the shape of i: of a stack, from table b; of one table, all of it.

        Raises:
          ValueError: i that holds no integers, one below 0, or is of another shape.

        Example:
          >>> import jax.numpy as jnp, kdiff_jax as kd
          >>> noise = kd.noise_schedule()
          >>> tables = [kd.euler(kd.levels(noise, 10)), kd.dpm2(kd.levels(noise, 20))]
          >>> kd.stack(tables).rows_at(jnp.array([3, 38])).step.tolist()
          [3, 19]
        """
        numbers = as_array("i", i)
        shape, tables = numbers.shape, self.rows.index.shape[:-1]
        if not jnp.issubdtype(numbers.dtype, jnp.integer):
            raise ValueError(f"i is {numbers.dtype}; pass int32 row numbers, one a sample.")
        fits = shape[: len(tables)] == tables or (tables and not shape)
        if len(shape) > 2 or not fits or not (tables or shape):
            expected = list(tables) if tables else "[B]"
            raise ValueError(f"i has shape {list(shape)}; pass {expected}, one number a sample.")
        if not isinstance(i, jax.Array) and np.min(np.asarray(i), initial=0) < 0:
            raise ValueError(f"i = {shown(i)} is below 0; pass row numbers counted from 0.")
        return take_rows(self.rows, self.length, numbers)

    def to_json(self) -> str:
        """The table as JSON, to keep or to send: what `Schedule.from_json` reads again, to the bit.

        Every leaf with its dtype, of a padded table and of a stack too, and the static facts; but
        not where they are. Numbers are written so that they read back as the same floats.

        Raises:
          ValueError: a table that is traced, or that holds a NaN or an infinity.
        """
        return written(self.rows, {f.name: getattr(self, f.name) for f in fields(self)[1:]})

    @classmethod
    def from_json(cls, text: str | bytes) -> Schedule:
        """The table that `to_json` wrote, on JAX's default device.

        Args:
          text: what `to_json` returned; numbers in it may be edited.

        Raises:
          ValueError: text that is no such JSON: with fields that are missing, unknown, of another
            type or shape; float64 numbers without `jax_enable_x64`.

        Example:
          >>> import kdiff_jax as kd
          >>> text = kd.dpm2(kd.levels(kd.noise_schedule("scaled_linear"), 25)).to_json()
          >>> kd.Schedule.from_json(text)
          Schedule(25 steps, 49 rows, sigma 14.61 .. 0.02917)
        """
        # One transfer, as where a table is filled.
        return jax.device_put(cls(**read(text)))

    def __repr__(self) -> str:
        known = isinstance(self.sigmas, (np.ndarray, jax.Array))
        if not known or is_traced(*jax.tree.leaves(self)):
            return f"Schedule({', '.join(columns_of(self.rows))})"
        tables = self.rows.index.shape[:-1]
        counts = f"{plural(self.num_steps, 'step')}, {plural(self.num_rows, 'row')}"
        if tables:
            return f"Schedule({list(tables)} tables, at most {counts})"
        sigma = np.asarray(self.rows.sigma)
        ends = float(sigma[0]), float(sigma[self.num_rows - 1])
        padding = "" if self.length is None else f", padded to {self.rows.index.shape[-1]}"
        return f"Schedule({counts}{padding}, sigma {ends[0]:.4g} .. {ends[1]:.4g})"

    __eq__ = equal_or_refused


def with_columns(schedule: Schedule, columns: Iterable[str]) -> Schedule:
    """The same table with these columns, the new ones filled so that they change nothing."""
    if not isinstance(columns, Iterable) or isinstance(columns, (jax.Array, np.ndarray)):
        raise ValueError(f"columns = {shown(columns)}; pass names of columns of Row.")
    names = [columns] if isinstance(columns, str) else list(columns)
    wanted = {name if isinstance(name, str) else shown(name) for name in names}
    if "anchor_weight" in wanted:
        wanted.add("advances")
    always = {f.name for f in fields(Row)} - set(NEUTRAL) - {"idle"}
    if strange := wanted - set(NEUTRAL) - always:
        raise ValueError(
            f"columns names {shown(sorted(strange))}; expected columns of Row: "
            f"{', '.join(NEUTRAL)}."
        )
    have = set(columns_of(schedule.rows)) & set(NEUTRAL)
    if missing := have - wanted:
        raise ValueError(
            f"columns leaves out {sorted(missing)}, which this table uses; name all columns of "
            f"the tables that are to share an executable: {sorted(wanted | have)}."
        )
    shape, sigma = schedule.rows.index.shape, schedule.rows.sigma
    traced = is_traced(*jax.tree.leaves(schedule))
    full = jnp.full if traced else np.full
    # Built on the host: the executable of an eager operation would be another for every length.
    new: dict[str, Any] = {
        name: full(shape, NEUTRAL[name], bool if name == "advances" else sigma.dtype)
        for name in wanted & set(NEUTRAL) - have
    }
    return replace(schedule, rows=replace(schedule.rows, **new))


def padded(schedule: Schedule, num_rows: int, num_sigmas: int) -> Schedule:
    """The table lengthened by idle rows, which repeat the last one; on the host, or traced."""
    traced = is_traced(*jax.tree.leaves(schedule))
    xp = jnp if traced else np
    table = schedule if traced else jax.device_get(schedule)
    count = table.rows.index.shape[0]

    def pad(leaf: jax.Array) -> jax.Array:
        return xp.pad(leaf, (0, num_rows - count), mode="edge")

    length = xp.asarray(count, np.int32) if table.length is None else table.length
    rows = jax.tree.map(pad, replace(table.rows, idle=None))
    rows = replace(rows, idle=xp.arange(num_rows, dtype=np.int32) >= length)
    sigmas = xp.pad(table.sigmas, (0, num_sigmas - table.sigmas.shape[0]))
    return replace(table, rows=rows, sigmas=sigmas, length=length)
