"""A sampler as a table: Schedule, its slicing and its padding."""

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdiff_jax._checks import check_int, is_traced, share
from kdiff_jax._row import IDLE, take_row, take_rows
from kdiff_jax._row import Row as Row
from kdiff_jax._row import State as State

# Static facts that let `kd.sample` leave work out; a table without them is always right.
PROMISES = ("deterministic", "anchorless", "unit_alpha", "alternating")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Schedule:
    """The rows of a run, an immutable pytree; `schedule.rows` is the `xs` of a `lax.scan`.

    Made by `euler_schedule`, `dpm2_schedule`, `dpm2_ancestral_schedule` or `lcm_schedule`. Its
    numbers are leaves: a table of the same length never recompiles, nor does one of any length
    after `pad`. What a builder promises about its tables, whatever the numbers, is static and
    lets `kd.sample` leave work out. `kd.stack` gives the leaves of many tables a leading axis B.

    Attributes:
      rows: a Row with leaves [R].
      sigmas: [N + 1] the sigma at which each outer step starts, and the closing 0.
      init_noise_sigma: scalar, the standard deviation that initial noise is given.
      length: None, or int32: the rows of a padded table that are real, the first ones.
      deterministic: no row draws noise.
      anchorless: no row reads the anchor.
      unit_alpha: alpha is 1 in every row.
      alternating: rows come in pairs, a midpoint `D + ...` and a landing `anchor + ...`, and one
        more, `D + ...`, is the last. Clear it where you edit those weights:
        an even `unroll` does not read them.
      zero_terminal_snr: the first row may hold no signal at all (alpha = 0), or for DPM2 and
        Euler next to none (sigma = 4096); refused for an epsilon network.
      flow: the rows are levels of a rectified flow, alpha + sigma = 1.
    """

    rows: Row
    sigmas: jax.Array
    init_noise_sigma: jax.Array
    length: Any = None
    deterministic: bool = field(default=False, metadata={"static": True})
    anchorless: bool = field(default=False, metadata={"static": True})
    unit_alpha: bool = field(default=False, metadata={"static": True})
    alternating: bool = field(default=False, metadata={"static": True})
    zero_terminal_snr: bool = field(default=False, metadata={"static": True})
    flow: bool = field(default=False, metadata={"static": True})

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
        """R, the evaluations of the network: 2N - 1 for DPM2, N for Euler and LCM.

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
        return np.asarray(self.length)

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, i: int) -> Row:
        """Row i, scalar leaves; negative counts from the end, IndexError outside."""
        if self.rows.index.ndim != 1:
            raise ValueError(
                f"the rows have shape {self.rows.index.shape}, those of a stack; take "
                "schedule.rows_at(i), one row a table."
            )
        if is_traced(i):
            return take_row(self.rows, i)
        try:
            i = operator.index(i)
        except TypeError:
            raise TypeError(
                f"a schedule is indexed by one integer, got {i!r}; to drop the first outer steps "
                "take schedule.start_at(step)."
            ) from None
        if is_traced(self.length):
            return take_row(self.rows, np.int32(i) if i >= 0 else self.length + np.int32(i))
        if not -self.num_rows <= i < self.num_rows:
            raise IndexError(f"row {i} of a schedule with {self.num_rows} rows")
        return take_row(self.rows, np.int32(i % self.num_rows))

    def __iter__(self) -> Iterator[Row]:
        return (self[i] for i in range(self.num_rows))

    def start_at(self, step: int) -> "Schedule":
        """The rest of the run from an outer step on, for image-to-image.

        Noise the image to the first row's level with `kd.add_noise(schedule[0], x0, eps)`. The
        noise of every row stays what it is in the whole run. `init_noise_sigma` becomes
        `sqrt(alpha^2 + sigma^2)` of the row that is now first. A padded table keeps its shape.

        Args:
          step: the outer steps to drop, from 0 to N - 1; a half step cannot be asked for.

        Returns:
          A Schedule of N - step outer steps.

        Raises:
          ValueError: a step that is no integer, negative, or leaves nothing; a stack, or a padded
            table whose length is traced.

        Example:
          >>> import kdiff_jax as kd
          >>> schedule = kd.dpm2_schedule(kd.noise_schedule(), 10).start_at(4)
          >>> schedule.num_steps, schedule.num_rows
          (6, 11)
        """
        step = check_int("step", step, 0)
        self._check_one_table("start_at cuts")
        if step >= self.num_steps:
            raise ValueError(
                f"step = {step} is past the end of a schedule of {self.num_steps} outer steps; "
                f"expected at most {self.num_steps - 1}."
            )
        if step == 0:
            return self
        if self.length is not None:
            rest = _without_padding(self).start_at(step)
            return padded(rest, self.rows.index.shape[-1], self.sigmas.shape[-1])
        rows_per_step = 1 if self.num_rows == self.num_steps else 2
        traced = is_traced(*jax.tree.leaves(self))
        table = self if traced else jax.tree.map(np.asarray, self)
        rows = jax.tree.map(lambda leaf: leaf[rows_per_step * step :], table.rows)
        rest = replace(
            table,
            rows=rows,
            sigmas=table.sigmas[step:],
            init_noise_sigma=(jnp if traced else np).hypot(rows.alpha[0], rows.sigma[0]),
        )
        return put(rest)

    def start_at_strength(self, strength: float) -> "Schedule":
        """The last `floor(N * strength)` of the N outer steps, for image-to-image.

        What the image-to-image pipelines of diffusers run. `lcm_schedule(noise, N, strength=)`
        is the other meaning of a strength: exactly N steps below it.

        Args:
          strength: in (0, 1]; 1 keeps every step, and with few steps a small one leaves none.

        Returns:
          A Schedule, as from `start_at`.

        Raises:
          ValueError: a strength outside (0, 1], or one that leaves no step.

        Example:
          >>> import kdiff_jax as kd
          >>> kd.dpm2_schedule(kd.noise_schedule(), 25).start_at_strength(0.3).num_steps
          7

        Source: `get_timesteps` of diffusers' StableDiffusionImg2ImgPipeline.
        """
        kept = share(self.num_steps, strength)
        if kept < 1:
            raise ValueError(
                f"strength = {strength} leaves none of {self.num_steps} outer steps; raise it to "
                f"at least {1 / self.num_steps}, or take more steps."
            )
        return self.start_at(self.num_steps - kept)

    def pad(self, num_rows: int, *, general: bool = False) -> "Schedule":
        """The same run in a table of a fixed shape: one executable for every number of steps.

        The real length becomes a leaf, and `kd.sample` evaluates the network for the real rows
        only, bitwise as without padding. The rows after them repeat the levels of the last one and
        leave the sample as it is: `x_next = anchor`, which is the sample at the end of a run.
        Counting, indexing, iterating and `start_at` go by the real rows.

        Args:
          num_rows: the rows of the new table, at least those of this one.
          general: also drop what the builder promises (deterministic, anchorless, unit_alpha,
            alternating), so that tables of different builders share an executable too.

        Returns:
          A Schedule with rows [num_rows] and an int32 length; sigmas go on with zeros, to
          [num_rows + 1] where a row may be a step, else to [(num_rows + 1) // 2 + 1].

        Raises:
          ValueError: num_rows that is no integer or below the rows there are; a schedule that is
            padded to another size already; a stack.

        Example:
          >>> import kdiff_jax as kd
          >>> schedule = kd.dpm2_schedule(kd.noise_schedule(), 10).pad(199)
          >>> schedule.num_rows, schedule.rows.sigma.shape, schedule.sigmas.shape
          (19, (199,), (101,))
        """
        num_rows = check_int("num_rows", num_rows, 1)
        self._check_one_table("pad lengthens")
        size = self.rows.index.shape[-1]
        if self.length is not None and num_rows != size:
            raise ValueError(
                f"num_rows = {num_rows} but the schedule is already padded to {size} rows; pad the "
                "schedule that its builder gave."
            )
        if num_rows < size:
            raise ValueError(
                f"num_rows = {num_rows} is too small for a schedule of {size} rows; expected at "
                f"least {size}."
            )
        one_row_a_step = general or self.anchorless
        num_steps = num_rows if one_row_a_step else (num_rows + 1) // 2
        table = padded(self, num_rows, max(num_steps + 1, self.sigmas.shape[-1]))
        if general:
            none: dict[str, Any] = dict.fromkeys(PROMISES, False)
            table = replace(table, **none)
        return table

    def rows_at(self, i: Any) -> Row:
        """Every sample at its own row: row i[b] of table b, for `denoise` and `kd.step`.

        At or past the end of its table a sample gets an idle row, which leaves it as it is. It
        runs inside jit; in a loop by hand it is compiled once.

        Args:
          i: int32 [B], counted from 0 (or one number for all tables of a stack).

        Returns:
          A Row with leaves [B]: of a stack, from table b; of one table, all from that one.

        Raises:
          ValueError: i that holds no integers, or is of another shape than [B].

        Example:
          >>> import jax.numpy as jnp, kdiff_jax as kd
          >>> noise = kd.noise_schedule()
          >>> tables = kd.stack([kd.euler_schedule(noise, 10), kd.dpm2_schedule(noise, 20)])
          >>> tables.rows_at(jnp.array([3, 38])).step.tolist()
          [3, 19]
        """
        shape, tables = jnp.shape(i), self.rows.index.shape[:-1]
        if not jnp.issubdtype(jnp.result_type(i), jnp.integer):
            raise ValueError(f"i is {jnp.result_type(i)}; pass int32 row numbers, one a sample.")
        if len(shape) > 1 or (tables and shape not in ((), tables)) or not (tables or shape):
            expected = list(tables) if tables else "[B]"
            raise ValueError(f"i has shape {list(shape)}; pass {expected}, one number a sample.")
        return take_rows(self.rows, self.length, i)

    def _check_one_table(self, what: str) -> None:
        if self.rows.index.ndim != 1:
            raise ValueError(
                f"the rows have shape {self.rows.index.shape}; {what} one table: do it to each "
                "before stacking them."
            )


def padded(schedule: Schedule, num_rows: int, num_sigmas: int) -> Schedule:
    traced = is_traced(*jax.tree.leaves(schedule))
    xp: Any = jnp if traced else np
    table = schedule if traced else jax.tree.map(np.asarray, schedule)

    def pad(leaf: Any, size: int, **how: Any) -> Any:
        how = how or {"mode": "edge"}
        return xp.pad(leaf, (0, size - leaf.shape[0]), **how)

    rows = Row(
        **{
            f.name: pad(
                getattr(table.rows, f.name),
                num_rows,
                **({"constant_values": IDLE[f.name]} if f.name in IDLE else {}),
            )
            for f in fields(Row)
        }
    )
    length = np.int32(table.rows.index.shape[0]) if table.length is None else table.length
    sigmas = pad(table.sigmas, num_sigmas, constant_values=0)
    return put(replace(table, rows=rows, sigmas=sigmas, length=length))


def _without_padding(schedule: Schedule) -> Schedule:
    num_rows, num_steps = schedule.num_rows, schedule.num_steps
    rows = jax.tree.map(lambda leaf: np.asarray(leaf)[:num_rows], schedule.rows)
    return replace(schedule, rows=rows, sigmas=schedule.sigmas[: num_steps + 1], length=None)


def build_schedule(
    columns: dict[str, Any], sigmas: Any, init_noise_sigma: Any, **facts: bool
) -> Schedule:
    """Rounds a table's float64 columns once, to JAX's default float, and puts it on the device.

    The levels that the outer steps leave and reach are read from sigmas, `[N + 1]`.
    """
    dtypes = {"index": np.int32, "step": np.int32, "timestep": np.float32, "advances": np.bool_}
    floating = jax.dtypes.canonicalize_dtype(np.float64)
    num_rows, step = len(columns["index"]), columns["step"]
    columns = {**columns, "sigma_left": sigmas[step], "sigma_reached": sigmas[step + 1]}

    def cast(value: Any, dtype: Any, shape: tuple[int, ...]) -> Any:
        if is_traced(value):
            return jnp.broadcast_to(value.astype(dtype), shape)
        array = np.asarray(value, dtype)
        return array if array.shape == shape else np.full(shape, array)

    rows = Row(
        **{
            f.name: cast(columns[f.name], dtypes.get(f.name, floating), (num_rows,))
            for f in fields(Row)
        }
    )
    schedule = Schedule(
        rows=rows,
        sigmas=cast(sigmas, floating, (len(sigmas),)),
        init_noise_sigma=cast(init_noise_sigma, floating, ()),
        **facts,
    )
    return put(schedule)


def put(schedule: Schedule) -> Schedule:
    if is_traced(*jax.tree.leaves(schedule)):
        return jax.tree.map(jnp.asarray, schedule)
    # One transfer, no program: an operation on each leaf would compile anew for every length.
    return jax.device_put(schedule)
