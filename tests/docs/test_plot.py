"""What `kd.plot` draws: the numbers that it was given, into the axes that it was given."""

import dataclasses
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from refusals import Refusal, check, every

import kdiff_jax as kd

NOISE = kd.noise_schedule("scaled_linear")
LEVELS = kd.levels(NOISE, 12, grid="karras")
TABLE = kd.dpm2_ancestral(LEVELS)
# Of each sample and step another gray, all inside [-1, 1]; [N, B, H, W, C].
GRAYS = np.linspace(-1, 1, 5 * 2 * 3 * 4).reshape(5, 2, 3, 4, 1).astype(np.float32)


def test_a_line_for_each_grid_holds_its_levels():
    grids = {"karras": LEVELS, "cut": LEVELS.start_at(5), "up": LEVELS.reversed()}
    ax = kd.plot.levels(grids)
    assert [line.get_label() for line in ax.lines] == list(grids)
    assert ax.get_legend() is not None
    for line, levels in zip(ax.lines, grids.values(), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), levels.sigmas)
        np.testing.assert_array_equal(line.get_xdata(), np.arange(levels.num_steps + 1))
    assert ax.get_yscale() == "log"


def tiles_of(ax: Any, height: int, width: int) -> np.ndarray:
    """[2, columns, H, W, ...] the images of a picture, without their frames of one pixel."""
    picture = np.asarray(ax.images[0].get_array())
    rows, columns = picture.shape[0] // (height + 2), picture.shape[1] // (width + 2)
    picture = picture.reshape(rows, height + 2, columns, width + 2, *picture.shape[2:])
    return picture.swapaxes(1, 2)[:, :, 1:-1, 1:-1]


@pytest.mark.parametrize(
    ("count", "steps"), [(8, [0, 1, 2, 3, 4]), (3, [0, 2, 4]), (2, [0, 4]), (1, [4])]
)
def test_a_trajectory_is_the_images_of_one_sample(count, steps):
    ax = kd.plot.trajectory(GRAYS, -jnp.asarray(GRAYS), sample=1, count=count)
    got = tiles_of(ax, 3, 4)
    np.testing.assert_allclose(got[0], (GRAYS[steps, 1, ..., 0] + 1) / 2, atol=1e-6)
    np.testing.assert_allclose(got[1], (1 - GRAYS[steps, 1, ..., 0]) / 2, atol=1e-6)
    assert [label.get_text() for label in ax.get_xticklabels()] == [f"step {i + 1}" for i in steps]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["x", "denoised"]


def test_a_sample_with_noise_is_scaled_and_colours_are_kept():
    colours = np.repeat(GRAYS, 3, axis=-1) * np.array([1.0, 0.5, -1.0], np.float32)
    ax = kd.plot.trajectory(colours * 1000, colours, np.arange(5) / 3)
    got = tiles_of(ax, 3, 4)
    np.testing.assert_allclose(got[1], (colours[:, 0] + 1) / 2, atol=1e-6)
    for image, noisy in zip(got[0], colours[:, 0], strict=True):
        largest = np.quantile(np.abs(noisy), 0.99)
        np.testing.assert_allclose(image, np.clip(noisy / largest / 2 + 0.5, 0, 1), atol=1e-6)
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels == ["0", "0.333", "0.667", "1", "1.33"]


@pytest.mark.parametrize(
    "table", [TABLE, TABLE.pad(40), TABLE[7:], kd.lcm(kd.lcm_levels(NOISE, 4))]
)
def test_a_table_is_its_numbers_and_their_shares(table):
    ax = kd.plot.table(table)
    names = [label.get_text().replace("\n", "_") for label in ax.get_xticklabels()]
    rows = [vars(row) for row in table]
    have = {f.name for f in dataclasses.fields(kd.Row) if getattr(table.rows, f.name) is not None}
    assert set(names) == have - {"index", "step", "idle"}
    expected = np.array([[float(row[name]) for name in names] for row in rows])
    # The timestep of the lowest level is a 0 of float64: 1.3e-15 says nothing to a reader.
    expected[np.abs(expected) < 1e-12 * np.abs(expected).max(axis=0)] = 0
    texts = [float(text.get_text()) for text in ax.texts]
    np.testing.assert_allclose(np.reshape(texts, expected.shape), expected, rtol=5.1e-3)
    shares = np.asarray(ax.images[0].get_array())
    np.testing.assert_allclose(shares * np.abs(expected).max(axis=0), expected, rtol=1e-6)
    labels = [f"row {int(row['index'])}, step {int(row['step'])}" for row in rows]
    assert [label.get_text() for label in ax.get_yticklabels()] == labels


DRAWN = [
    lambda **kw: kd.plot.levels({"a": LEVELS}, **kw),
    lambda **kw: kd.plot.trajectory(GRAYS, GRAYS, **kw),
    lambda **kw: kd.plot.table(TABLE, **kw),
]


@pytest.mark.parametrize("draw", DRAWN)
def test_axes_are_those_given_or_of_a_figure_that_pyplot_does_not_know(draw, tmp_path):
    left, right = Figure().subplots(1, 2)
    assert draw(ax=right) is right
    assert not left.has_data()
    assert right.has_data()
    settings, figure = dict(pyplot.rcParams), draw().figure
    figure.savefig(tmp_path / "a.png", dpi=20)  # and it is drawn without a warning
    assert dict(pyplot.rcParams) == settings
    assert pyplot.get_fignums() == []


REFUSED: list[Refusal] = [
    (lambda: kd.plot.levels(LEVELS), "grids = Levels"),  # type: ignore[arg-type]
    (lambda: kd.plot.levels({}), "grids = {} has no names"),
    (lambda: kd.plot.levels({1: LEVELS}), "grids = {1: .* has no names"),  # type: ignore[dict-item]
    (lambda: kd.plot.levels({"a": TABLE}), r"grids\['a'\] = Schedule"),  # type: ignore[dict-item]
    (lambda: kd.plot.levels({"a": LEVELS}, ax=3), "ax = 3"),  # type: ignore[arg-type]
    (lambda: kd.plot.trajectory(GRAYS[0], GRAYS), r"samples has shape \(2, 3, 4, 1\)"),
    (lambda: kd.plot.trajectory(GRAYS, GRAYS[..., [0] * 4]), r"denoised has shape .*, 4\)"),
    (lambda: kd.plot.trajectory(GRAYS, GRAYS[1:]), r"samples has shape .* and denoised \(4"),
    (lambda: kd.plot.trajectory(GRAYS * np.nan, GRAYS), "samples holds a NaN"),
    (lambda: kd.plot.trajectory(GRAYS, jnp.asarray(GRAYS) * jnp.nan), "denoised holds a NaN"),
    (lambda: kd.plot.trajectory(GRAYS, GRAYS, [1.0, 0.0]), r"sigmas has shape \(2,\)"),
    (lambda: kd.plot.trajectory(GRAYS, GRAYS, sample=2), "sample = 2 of a batch of 2"),
    (lambda: kd.plot.trajectory(GRAYS, GRAYS, count=0), "count = 0 is too small"),
    (lambda: kd.plot.table(LEVELS), "schedule = Levels"),  # type: ignore[arg-type]
    (lambda: kd.plot.table(kd.stack([TABLE] * 2)), r"schedule = Schedule\(\[2\] tables"),
    (lambda: jax.jit(lambda t: kd.plot.table(t) and 0)(TABLE), "schedule = .* is traced"),
    (lambda: jax.jit(lambda x: kd.plot.trajectory(x, x) and 0)(GRAYS), "samples is traced"),
    (
        lambda: jax.jit(lambda s: kd.plot.levels({"a": kd.levels(NOISE, sigmas=s)}) and 0)(
            jnp.array([3.0, 2.0])
        ),
        r"grids\['a'\] = .* is traced",
    ),
]


@every(REFUSED)
def test_refused_by_name(call, message):
    check(call, message)


# That importing kdiff_jax leaves matplotlib alone is seen in test_house.py.
@pytest.mark.parametrize("draw", DRAWN)
def test_without_matplotlib_the_error_says_how_to_get_it(draw, monkeypatch):
    for name in ("matplotlib.axes", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r'pip install "kdiff_jax\[plot\]"'):
        draw()
