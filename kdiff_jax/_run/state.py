"""State: what a step hands to the next one, and how it begins."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from kdiff_jax._arrays import on_own_mesh, state_dtype
from kdiff_jax._checks import brought, check_batch
from kdiff_jax._table.check import check_schedule
from kdiff_jax._table.row import Row
from kdiff_jax._table.schedule import Schedule


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Where a trajectory is: all that a step reads besides its row and the prediction.

    A history that no row reads is None, and is not carried.

    Attributes:
      sample: [B, ...] the sample at the next row's noise level.
      anchor: None, or [B, ...] the sample at the start of the current outer step.
      denoised_1: None, or [B, ...] the estimate of x0 of the row before.
      denoised_2: None, or [B, ...] the estimate of x0 two rows before.

    Example:
      >>> import jax.numpy as jnp, kdiff_jax as kd
      >>> schedule = kd.dpmpp_2m(kd.levels(kd.noise_schedule("scaled_linear"), 4))
      >>> kd.init(schedule, jnp.zeros((2, 8)))
      State(sample, denoised_1: float32[2, 8])
    """

    sample: jax.Array
    anchor: jax.Array | None = None
    denoised_1: jax.Array | None = None
    denoised_2: jax.Array | None = None

    def __repr__(self) -> str:
        names = ", ".join(
            name for name in ("sample", *HISTORIES) if getattr(self, name) is not None
        )
        shape = list(getattr(self.sample, "shape", ()))
        return f"State({names}: {getattr(self.sample, 'dtype', '?')}{shape})"


HISTORIES = ("anchor", "denoised_1", "denoised_2")


def init(schedule: Schedule, x: jax.Array | State) -> State:
    """The state at the start of a run, for stepping by hand.

    The anchor begins as x, the estimates of earlier rows as 0; what no row reads is None.

    Args:
      schedule: the run.
      x: [B, ...] a sample at the level of `schedule[0]`; or a State that was saved before that
        row, which is checked and handed on.

    Returns:
      A State in float32 (float64 where x is), whatever the dtype of x.

    Raises:
      ValueError: a schedule that is none; a sample that is no array, without a batch axis or not
        of a floating dtype; a raw sample for a
        slice of rows that read a history, or a State of other columns than the rows read.

    Example:
      >>> import jax, kdiff_jax as kd
      >>> schedule = kd.dpm2(kd.levels(kd.noise_schedule("scaled_linear"), 25))
      >>> x = kd.initial_sample(schedule, jax.random.key(0), (2, 8))
      >>> kd.init(schedule, x)
      State(sample, anchor: float32[2, 8])
    """
    x = check_start(schedule, x)
    return begun(schedule.rows, x)


def check_start(schedule: Schedule, x: jax.Array | State) -> jax.Array | State:
    """What a run may begin with; a raw sample in the dtype of its state."""
    check_schedule(schedule)
    if isinstance(x, State):
        check_state(x, schedule.rows)
        # One that was saved in half precision goes on in the dtype of a state.
        return x if _in_state_dtype(x) else jax.tree.map(check_sample, x)
    if schedule.continues:
        reads = histories_of(schedule.rows)
        raise ValueError(
            f"these rows are a slice that reads {' and '.join(reads)} of the rows before it, and "
            "got a sample alone; pass the State that was saved there in place of x. To begin a run "
            "later, for image to image, cut its levels: kd.levels(...).start_at(step)."
        )
    return check_sample(x)


def begun(rows: Row, x: jax.Array | State) -> State:
    """The State of a checked sample; compiled with the loop, where its zeros cost nothing."""
    if isinstance(x, State):
        return x
    reads = histories_of(rows)
    none_yet = on_own_mesh(jnp.zeros_like)(x) if "denoised_1" in reads else x
    return State(x, **{name: x if name == "anchor" else none_yet for name in reads})


def histories_of(rows: Row) -> tuple[str, ...]:
    """Which histories of a State these rows read."""
    reads_2 = rows.denoised_weight_2 is not None
    reads = {
        "anchor": rows.anchor_weight is not None,
        "denoised_1": reads_2 or rows.denoised_weight_1 is not None,
        "denoised_2": reads_2,
    }
    return tuple(name for name in HISTORIES if reads[name])


def check_state(state: State, rows: Row) -> None:
    """Refuses a State that holds no arrays of one shape, or other histories than the rows read."""
    if not isinstance(state, State):
        raise ValueError(
            f"state is {brought(state)}; expected a State: pass kd.init(schedule, x), or what the "
            "step before returned."
        )
    reads = histories_of(rows)
    holds = tuple(name for name in HISTORIES if getattr(state, name) is not None)
    if holds != reads:
        raise ValueError(
            f"the State holds {' and '.join(holds) or 'no history'} and the rows read "
            f"{' and '.join(reads) or 'none'}; pass the State of a run with the same columns, from "
            "kd.init or from the steps before."
        )
    for name in ("sample", *holds):
        leaf = check_batch(f"state.{name}", getattr(state, name))
        if leaf.shape != state.sample.shape:
            raise ValueError(
                f"state.{name} has shape {leaf.shape} and state.sample {state.sample.shape}; pass "
                "the State of one run."
            )


def _in_state_dtype(state: State) -> bool:
    return state.sample.dtype in (np.float32, np.float64)


def check_sample(x: jax.Array) -> jax.Array:
    """The sample as an array of its state's dtype."""
    x = check_batch("x", x)
    return x if x.dtype == np.float32 else x.astype(state_dtype(x))
