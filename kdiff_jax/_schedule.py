"""A sampler as a table: Row (one evaluation of the network), Schedule (all of them), State."""

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdiff_jax._checks import check_int, is_traced, share


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Row:
    """What one evaluation of the network needs, and what the step after it does.

        x_next = anchor_weight * anchor + denoised_weight * D + epsilon_weight * epsilon
                 + noise_weight * z

    Every leaf is a scalar; [R] in a Schedule; [B] puts each sample of a batch at its own row.

    Attributes:
      index: int32, the row's place in the table it was built in; names its noise.
      step: int32, the outer step that the row belongs to.
      timestep: float32, what the network is told.
      alpha: weight of x0 in the sample, `x = alpha * x0 + sigma * eps`.
      sigma: weight of eps in the sample.
      input_scale: what the sample is multiplied by before the network sees it.
      anchor_weight: weight of the sample at the start of the outer step.
      denoised_weight: weight of the estimate of x0.
      epsilon_weight: weight of the estimate of eps.
      noise_weight: weight of fresh unit Gaussian noise; 0 draws none.
      advances: bool, whether the outer step ends here, so that the anchor moves on.
    """

    index: jax.Array
    step: jax.Array
    timestep: jax.Array
    alpha: jax.Array
    sigma: jax.Array
    input_scale: jax.Array
    anchor_weight: jax.Array
    denoised_weight: jax.Array
    epsilon_weight: jax.Array
    noise_weight: jax.Array
    advances: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Where a trajectory is: all that a step reads besides its row.

    Attributes:
      sample: [B, ...] the sample at the next row's noise level.
      anchor: [B, ...] the sample at the start of the current outer step.
    """

    sample: jax.Array
    anchor: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Schedule:
    """The rows of a run, an immutable pytree; `schedule.rows` is the `xs` of a `lax.scan`.

    Made by `euler_schedule`, `dpm2_schedule`, `dpm2_ancestral_schedule` or `lcm_schedule`. Its
    numbers are leaves: a table of the same length never recompiles. What a builder promises
    about its tables, whatever the numbers, is static and lets `kd.sample` leave work out.

    Attributes:
      rows: a Row with leaves [R].
      sigmas: [N + 1] the sigma at which each outer step starts, and the closing 0.
      init_noise_sigma: scalar, the standard deviation that initial noise is given.
      deterministic: no row draws noise.
      anchorless: no row reads the anchor.
      unit_alpha: alpha is 1 in every row.
      zero_terminal_snr: the first row may hold no signal at all (alpha = 0).
    """

    rows: Row
    sigmas: jax.Array
    init_noise_sigma: jax.Array
    deterministic: bool = field(default=False, metadata={"static": True})
    anchorless: bool = field(default=False, metadata={"static": True})
    unit_alpha: bool = field(default=False, metadata={"static": True})
    zero_terminal_snr: bool = field(default=False, metadata={"static": True})

    @property
    def num_steps(self) -> int:
        """N, the outer steps."""
        return self.sigmas.shape[-1] - 1

    @property
    def num_rows(self) -> int:
        """R, the evaluations of the network: 2N - 1 for DPM2, N for Euler and LCM."""
        return self.rows.index.shape[-1]

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, i: int) -> Row:
        """Row i, scalar leaves; negative counts from the end, IndexError outside."""
        if is_traced(i):
            return _take(self.rows, i)
        try:
            i = operator.index(i)
        except TypeError:
            raise TypeError(
                f"a schedule is indexed by one integer, got {i!r}; to drop the first outer steps "
                "take schedule.start_at(step)."
            ) from None
        if not -self.num_rows <= i < self.num_rows:
            raise IndexError(f"row {i} of a schedule with {self.num_rows} rows")
        return _take(self.rows, np.int32(i % self.num_rows))

    def __iter__(self) -> Iterator[Row]:
        return (self[i] for i in range(self.num_rows))

    def start_at(self, step: int) -> "Schedule":
        """The rest of the run from an outer step on, for image-to-image.

        Noise the image to the first row's level with `kd.add_noise(schedule[0], x0, eps)`. The
        noise of every row stays what it is in the whole run. `init_noise_sigma` becomes
        `sqrt(alpha^2 + sigma^2)` of the row that is now first.

        Args:
          step: the outer steps to drop, from 0 to N - 1; a half step cannot be asked for.

        Returns:
          A Schedule of N - step outer steps.

        Raises:
          ValueError: a step that is no integer, negative, or leaves nothing.

        Example:
          >>> import kdiff_jax as kd
          >>> schedule = kd.dpm2_schedule(kd.noise_schedule(), 10).start_at(4)
          >>> schedule.num_steps, schedule.num_rows
          (6, 11)
        """
        step = check_int("step", step, 0)
        if step >= self.num_steps:
            raise ValueError(
                f"step = {step} is past the end of a schedule of {self.num_steps} outer steps; "
                f"expected at most {self.num_steps - 1}."
            )
        if step == 0:
            return self
        rows_per_step = 1 if self.num_rows == self.num_steps else 2
        if self.rows.index.ndim != 1 and not is_traced(self.rows.index):
            raise ValueError(
                f"the rows have shape {self.rows.index.shape}; start_at cuts one table: cut each "
                "before stacking them."
            )
        traced = is_traced(*jax.tree.leaves(self))
        table = self if traced else jax.tree.map(np.asarray, self)
        rows = jax.tree.map(lambda leaf: leaf[rows_per_step * step :], table.rows)
        rest = replace(
            table,
            rows=rows,
            sigmas=table.sigmas[step:],
            init_noise_sigma=(jnp if traced else np).hypot(rows.alpha[0], rows.sigma[0]),
        )
        return _put(rest)

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


@jax.jit
def _take(rows: Row, i: Any) -> Row:
    # Compiled: an eager gather of eleven leaves costs twenty times as much.
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False), rows)


def build_schedule(
    columns: dict[str, Any], sigmas: Any, init_noise_sigma: Any, **facts: bool
) -> Schedule:
    """Rounds a table's float64 columns once, to JAX's default float, and puts it on the device."""
    dtypes = {"index": np.int32, "step": np.int32, "timestep": np.float32, "advances": np.bool_}
    floating = jax.dtypes.canonicalize_dtype(np.float64)
    num_rows = len(columns["index"])

    def cast(value: Any, dtype: Any, shape: tuple[int, ...]) -> Any:
        if is_traced(value):
            return jnp.broadcast_to(value.astype(dtype), shape)
        return np.broadcast_to(np.asarray(value, dtype), shape)

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
    return _put(schedule)


def _put(schedule: Schedule) -> Schedule:
    if is_traced(*jax.tree.leaves(schedule)):
        return jax.tree.map(jnp.asarray, schedule)
    # One transfer, no program: an operation on each leaf would compile anew for every length.
    return jax.device_put(schedule)
