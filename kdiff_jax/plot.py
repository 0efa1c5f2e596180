"""Pictures of levels, runs and tables: `kd.plot.levels`, `kd.plot.trajectory`, `kd.plot.table`.

    kd.plot.levels({"karras": levels}).figure.savefig("levels.png")

Each draws into the axes that it is given, or into a new figure, and returns the axes. It needs
matplotlib (`pip install "kdiff_jax[plot]"`), which is imported by the call. Nothing is shown and
pyplot is not used; a notebook shows `axes.figure`, or axes from `plt.subplots()`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from kdiff_jax._arrays import is_traced
from kdiff_jax._checks import check_batch, check_int, check_kind, check_vector, shown
from kdiff_jax._levels.levels import Levels
from kdiff_jax._table.row import Row
from kdiff_jax._table.schedule import Schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["levels", "table", "trajectory"]


def levels(grids: Mapping[str, Levels], *, ax: Axes | None = None) -> Axes:
    """Draws the noise levels of several grids: sigma, on a log scale, over the step.

    A level of 0, where a run closes, has no place on a log scale: its line leaves the picture at
    the lower edge.

    Args:
      grids: a name for each Levels.
      ax: the matplotlib Axes to draw into; None: those of a new figure.

    Returns:
      The Axes: a line a grid, with `levels.sigmas` over 0 .. N.

    Raises:
      ValueError: grids that are no such mapping, or empty; Levels that are traced or stacked; an
        ax that is none.
      ImportError: without matplotlib.

    Example:
      >>> import kdiff_jax as kd
      >>> noise = kd.noise_schedule("scaled_linear")
      >>> grids = {name: kd.levels(noise, 10, grid=name) for name in ("karras", "beta")}
      >>> ax = kd.plot.levels(grids)
      >>> [line.get_label() for line in ax.lines]
      ['karras', 'beta']
    """
    remedy = 'a mapping of a name to each Levels: {"karras": levels}'
    check_kind("grids", grids, Mapping, remedy)
    if not grids or not all(isinstance(name, str) for name in grids):
        raise ValueError(f"grids = {shown(dict(grids))} has no names; pass {remedy}.")
    for name, value in grids.items():
        sigmas = check_kind(f"grids[{name!r}]", value, Levels, "what kd.levels returns").sigmas
        if is_traced(sigmas) or sigmas.ndim != 1:
            raise ValueError(
                f"grids[{name!r}] = {shown(value)} is traced or a stack; pass the Levels of one "
                "run, outside of jit."
            )
    ax = _axes(ax, (6.0, 3.6))
    for name, value in grids.items():
        numbers = np.asarray(value.sigmas)
        ax.plot(np.arange(numbers.size), numbers, marker=".", label=name)
    ax.set_yscale("log")
    ax.locator_params(axis="x", integer=True)
    ax.set_xlabel("step")
    ax.set_ylabel("sigma")
    ax.grid(alpha=0.3)
    ax.legend()
    return ax


def trajectory(
    samples: jax.Array | np.ndarray,
    denoised: jax.Array | np.ndarray,
    sigmas: Any = None,
    *,
    sample: int = 0,
    count: int = 8,
    ax: Axes | None = None,
) -> Axes:
    """Draws a run as images: the sample after each step, and below it the prediction of x0.

    Both come from `save_fn` of `kd.sample`. Predictions are shown from -1 (black) to 1; a sample
    that holds noise is scaled down until 99 % of its numbers are inside.

    Args:
      samples: [N, B, H, W, C] `state.sample` of each step, with one or three channels.
      denoised: [N, B, H, W, C] `prediction.denoised` of each step.
      sigmas: None, or [N] what is written above the columns, as `row.sigma_reached`.
      sample: which one of the batch.
      count: how many steps are drawn at most, evenly chosen with the first and the last.
      ax: the matplotlib Axes to draw into; None: those of a new figure.

    Returns:
      The Axes, with one picture of all images.

    Raises:
      ValueError: arrays of another or of different shapes, traced or not finite; a sample or a
        count out of range; an ax that is none.
      ImportError: without matplotlib.

    Example:
      >>> import jax, jax.numpy as jnp, kdiff_jax as kd
      >>> schedule = kd.dpm2(kd.levels(kd.noise_schedule("scaled_linear"), 25))
      >>> denoise = kd.denoiser(lambda params, x, timestep: params * x)
      >>> x = kd.initial_sample(schedule, jax.random.key(0), (2, 8, 8, 3))
      >>> def save_fn(state, prediction, row):
      ...     return state.sample, prediction.denoised, row.sigma_reached
      >>> x0, saved = kd.sample(denoise, jnp.float32(0.1), schedule, x, save_fn=save_fn)
      >>> kd.plot.trajectory(*saved).images[0].get_array().shape  # 2 x 8 images and their frames
      (20, 80, 3)
    """
    both = [_images("samples", samples), _images("denoised", denoised)]
    if both[0].shape != both[1].shape:
        raise ValueError(
            f"samples has shape {both[0].shape} and denoised {both[1].shape}; pass what one "
            "save_fn returned."
        )
    steps, batch = both[0].shape[:2]
    if check_int("sample", sample, 0) >= batch:
        raise ValueError(f"sample = {sample} of a batch of {batch}; pass one below {batch}.")
    if sigmas is not None:
        sigmas = check_vector("sigmas", sigmas)
        if sigmas.size != steps:
            raise ValueError(f"sigmas has shape {sigmas.shape}; pass one a step, [{steps}].")
    chosen = np.unique(np.linspace(0, steps - 1, check_int("count", count, 1)).round().astype(int))
    if count == 1:
        chosen = np.array([steps - 1])
    rows = [np.stack([_scaled(image) for image in part[chosen, sample]]) for part in both]
    tiles = np.pad(np.stack(rows), [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)], constant_values=1.0)
    _, columns, height, width, channels = tiles.shape
    picture = tiles.transpose(0, 2, 1, 3, 4).reshape(2 * height, columns * width, channels)
    ax = _axes(ax, (1.0 * columns + 0.8, 2.0 * height / width + 0.4))
    ax.imshow(picture.squeeze(-1) if channels == 1 else picture, cmap="gray", vmin=0, vmax=1)
    names = [f"step {i + 1}" if sigmas is None else f"{sigmas[i]:.3g}" for i in chosen]
    ax.set_xticks((np.arange(columns) + 0.5) * width - 0.5, names)
    ax.set_yticks([0.5 * height - 0.5, 1.5 * height - 0.5], ["x", "denoised"])
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.spines[:].set_visible(False)
    return ax


def table(schedule: Schedule, *, ax: Axes | None = None) -> Axes:
    """Draws a table as a heat map: a line for each row, with its step, and what each column holds.

    The colour of a number is its share of the largest in its column: red above 0, blue below.
    Columns that are None are left out, and so are the rows of the padding. A slice,
    `schedule[:10]`, draws a part of a long table.

    Args:
      schedule: a table, from any sampler.
      ax: the matplotlib Axes to draw into; None: those of a new figure, which grows with the table.

    Returns:
      The Axes: an image [R, columns] of shares, and a text with three digits in each cell.

    Raises:
      ValueError: what is no Schedule, or one that is traced or a stack; an ax that is none.
      ImportError: without matplotlib.

    Example:
      >>> import kdiff_jax as kd
      >>> schedule = kd.dpm2(kd.levels(kd.noise_schedule("scaled_linear"), 4, grid="karras"))
      >>> kd.plot.table(schedule).images[0].get_array().shape
      (7, 9)
    """
    check_kind("schedule", schedule, Schedule, "a table, such as kd.dpm2(levels)")
    if is_traced(*jax.tree.leaves(schedule)) or schedule.rows.index.ndim != 1:
        raise ValueError(
            f"schedule = {shown(schedule)} is traced or a stack; pass one table, outside of jit."
        )
    rows: Row = jax.device_get(schedule.rows)
    left_out = ("index", "step", "idle")
    held = {f.name: getattr(rows, f.name) for f in fields(Row) if f.name not in left_out}
    columns = {name: column for name, column in held.items() if column is not None}
    numbers = np.stack([np.asarray(column, np.float64) for column in columns.values()], axis=1)
    numbers = numbers[: schedule.num_rows] + 0.0  # a -0 prints as a 0
    largest = np.abs(numbers).max(axis=0)
    numbers[np.abs(numbers) < 1e-12 * largest] = 0.0  # a timestep 0, found by interpolation
    shares = numbers / np.where(largest > 0, largest, 1)
    ax = _axes(ax, (0.85 * len(columns) + 1.0, min(0.24 * len(numbers) + 1.2, 200.0)))
    # Beyond 1, so that black numbers can be read on every colour.
    ax.imshow(shares, cmap="RdBu_r", vmin=-1.6, vmax=1.6, aspect="auto")
    for (i, j), number in np.ndenumerate(numbers):
        ax.text(j, i, f"{number:.3g}", ha="center", va="center", fontsize=8)
    names = [name.replace("_", "\n", 1) for name in columns]
    ax.set_xticks(np.arange(len(columns)), names, fontsize=8)
    labels = [f"row {row}, step {step}" for row, step in zip(rows.index, rows.step, strict=True)]
    labels = labels[: len(numbers)]
    ax.set_yticks(np.arange(len(numbers)), labels, fontsize=8)
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    return ax


def _axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """The axes to draw into; a new figure is made without pyplot, which would keep it."""
    try:
        from matplotlib.axes import Axes
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            'kd.plot needs matplotlib, which is not installed; pip install "kdiff_jax[plot]".'
        ) from None
    if ax is None:
        return Figure(figsize=size, layout="constrained").subplots()
    checked: Axes = check_kind("ax", ax, Axes, "axes of matplotlib, or leave it out")
    return checked


def _images(name: str, value: Any) -> np.ndarray:
    """[N, B, H, W, C] finite images in gray or in colours, on the host."""
    if is_traced(value):
        raise ValueError(f"{name} is traced; pass what the run returned, outside of jit.")
    array = check_batch(name, jax.device_get(value))  # which sees a NaN on the host alone
    if array.ndim != 5 or array.shape[-1] not in (1, 3):
        raise ValueError(
            f"{name} has shape {array.shape}; expected [N, B, H, W, C] with one channel or three: "
            "stack the steps by save_fn, and decode latents or choose channels of them."
        )
    return np.asarray(array, np.float32)


def _scaled(image: np.ndarray) -> np.ndarray:
    """An image from [-1, 1] to [0, 1]; one that is wider, with noise, is scaled down first."""
    width = np.quantile(np.abs(image), 0.99)
    return np.clip(image / max(float(width), 1.0) / 2 + 0.5, 0, 1)
