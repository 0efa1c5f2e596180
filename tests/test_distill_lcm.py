"""The distillation: its grid, the teacher's step, the student at its start, and resuming."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kdiff_jax as kd

for package in ("flax", "optax", "safetensors", "matplotlib", "tqdm"):
    pytest.importorskip(package, reason="the examples need the extra 'examples'")

import distill_lcm
import training
from test_examples import fake_mnist

import digits
import unet

NOISE = digits.training_noise()
SHAPE = (4, 28, 28, 1)
LABELS = jnp.arange(4, dtype=jnp.int32)


@pytest.fixture(scope="module")
def teacher():
    """Random weights everywhere, so that nothing is zero by its start."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32),
        unet.init_params(jax.random.key(0)),
    )


def test_student_starts_as_the_teacher_and_then_heeds_the_scale(teacher, tmp_path):
    student = unet.with_guidance(teacher)
    x = jax.random.normal(jax.random.key(2), SHAPE)
    timestep = jnp.array([0.0, 19.0, 499.0, 999.0])
    scale = jnp.array([1.0, 1.5, 2.0, 8.0])
    expected = unet.model_fn(teacher, x, timestep, LABELS)

    def said(params):
        return unet.model_fn(params, x, timestep, {"label": LABELS, "scale": scale})

    np.testing.assert_array_equal(said(student), expected)
    told = jax.tree.map(lambda leaf: jnp.where(jnp.all(leaf == 0), leaf + 0.01, leaf), student)
    assert np.all(np.abs(said(told) - expected).max(axis=(1, 2, 3)) > 1e-4)

    unet.save(tmp_path / "student.safetensors", told, np.float32)
    again = unet.load(tmp_path / "student.safetensors")[1]
    np.testing.assert_array_equal(said(again), said(told))


@pytest.mark.parametrize("solver", distill_lcm.SOLVERS)
def test_table_runs_down_the_grid_that_lcm_samples_on(solver):
    table = distill_lcm.distillation_table(NOISE, solver, 50)
    heads = distill_lcm.rows_at(table, jnp.arange(51))
    np.testing.assert_array_equal(heads.timestep, [*range(999, 0, -20), 0])
    for steps in (1, 2, 4, 8):
        assert set(kd.lcm_schedule(NOISE, steps).rows.timestep.tolist()) <= set(range(19, 1000, 20))


@pytest.mark.parametrize("solver", distill_lcm.SOLVERS)
def test_teacher_step_is_a_step_of_a_run(solver, teacher):
    """Four samples at four places of the grid: each as in a run of its own, guided by its scale."""
    table = distill_lcm.distillation_table(NOISE, solver, 50)
    step, scale = jnp.array([0, 20, 40, 49]), jnp.array([1.0, 1.5, 2.0, 3.0])
    x = jax.random.normal(jax.random.key(3), SHAPE) * table.sigmas[step][:, None, None, None]
    got = distill_lcm.teacher_step(teacher, table, x, step, LABELS, scale)
    for i in range(4):
        denoise = kd.guided(distill_lcm.TEACHER, scale[i], jnp.int32(unet.NO_CLASS))
        ends = table.start_at(int(step[i]))
        state = kd.init(ends, x[i : i + 1])
        for row in ends:
            prediction = denoise(teacher, state.sample, row, LABELS[i : i + 1])
            state = kd.step(state, row, prediction)
            if row.advances:
                break
        size = float(jnp.abs(state.sample).max())
        np.testing.assert_allclose(got[i], state.sample[0], atol=1e-5 * size)


def test_student_is_the_identity_where_the_grid_ends(teacher):
    """At timestep 0 there is nothing to learn; this is what anchors the consistency function."""
    table = distill_lcm.distillation_table(NOISE, "euler", 50)
    row = distill_lcm.rows_at(table, jnp.full(4, 50))
    x = jax.random.normal(jax.random.key(4), SHAPE)
    cond = digits.lcm_cond(LABELS, 2.0)
    said = distill_lcm.STUDENT(unet.with_guidance(teacher), x, row, cond).denoised
    np.testing.assert_allclose(said, x, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
def test_interrupted_distillation_ends_with_the_same_weights(teacher, tmp_path, monkeypatch):
    fake_mnist(tmp_path, 32)
    unet.save(tmp_path / "teacher.safetensors", teacher)
    fixed = ["--data", str(tmp_path), "--teacher", str(tmp_path / "teacher.safetensors")]

    def distil(*extra: str) -> None:
        arguments = ["distill_lcm.py", *fixed, "--batch", "4", "--steps", "4", "--seed", "1"]
        monkeypatch.setattr(sys, "argv", [*arguments, *extra])
        with jax.numpy_dtype_promotion("standard"):  # optax multiplies counts with rates
            distill_lcm.main()

    whole, resumed = tmp_path / "whole.safetensors", tmp_path / "resumed.safetensors"
    distil("--out", str(whole))

    def two_steps(num_images: int, batch: int, seed: int, start: int, stop: int):
        yield from training.batches(num_images, batch, seed, start, 2)
        raise KeyboardInterrupt

    folder = ("--checkpoint", str(tmp_path / "checkpoint"))
    with monkeypatch.context() as patch:
        patch.setattr(distill_lcm, "batches", two_steps)
        with pytest.raises(KeyboardInterrupt):
            distil("--out", str(resumed), *folder)
    assert not resumed.exists()
    with pytest.raises(ValueError, match="another --checkpoint folder"):
        distil("--out", str(resumed), "--solver", "dpm2", *folder)
    distil("--out", str(resumed), *folder)
    assert resumed.read_bytes() == whole.read_bytes()

    with pytest.raises(ValueError, match="told no guidance scale"):
        distil("--out", str(resumed), "--init", str(tmp_path / "teacher.safetensors"))
