"""The distillation: its grid, the teacher's step, the student at its start, and resuming."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kdiff_jax as kd

for package in ("flax", "optax", "safetensors", "matplotlib", "tqdm"):
    pytest.importorskip(package, reason="the examples need the extra 'examples'")

import distill_lcm
import scripts
import training

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
        lambda leaf: np.asarray(leaf) + 0.1 * rng.standard_normal(leaf.shape, np.float32),
        unet.load(digits.WEIGHTS)[1],
    )


def test_student_starts_as_the_teacher_and_then_heeds_the_scale(teacher, tmp_path):
    student = unet.with_guidance(teacher)
    x = jax.random.normal(jax.random.key(2), SHAPE)
    timestep = jnp.array([0.0, 19.0, 499.0, 999.0])
    scale = jnp.array([1.0, 1.5, 2.0, 8.0])
    expected = unet.model_fn(teacher, x, timestep, LABELS)

    def output(params):
        return unet.model_fn(params, x, timestep, {"label": LABELS, "scale": scale})

    np.testing.assert_array_equal(output(student), expected)
    moved = jax.tree.map(np.asarray, student)
    moved = jax.tree.map(lambda leaf: leaf + np.float32(0.01) * np.all(leaf == 0), moved)
    assert np.all(np.abs(output(moved) - expected).max(axis=(1, 2, 3)) > 1e-4)

    unet.save(tmp_path / "student.safetensors", moved, np.float32)
    again = unet.load(tmp_path / "student.safetensors")[1]
    np.testing.assert_array_equal(output(again), output(moved))


@pytest.mark.parametrize("solver", distill_lcm.SOLVERS)
def test_table_runs_down_the_grid_that_lcm_samples_on(solver):
    table = distill_lcm.distillation_table(NOISE, solver, 50)
    heads = distill_lcm.rows_at(table, jnp.arange(51))
    np.testing.assert_array_equal(heads.timestep, [*range(999, 0, -20), 0])
    for steps in (1, 2, 4, 8):
        assert set(kd.lcm_levels(NOISE, steps).timesteps.tolist()) <= set(range(19, 1000, 20))


def small_model(params, x, timestep, cond):
    """A network of class and timestep that compiles in no time."""
    level = timestep / 1000 + 0.1 * cond.astype(jnp.float32)
    return params["gain"] * jnp.tanh(x * level[:, None, None, None]) + params["shift"]


@pytest.mark.parametrize("solver", distill_lcm.SOLVERS)
def test_teacher_step_is_a_step_of_a_run(solver, monkeypatch):
    """Four samples at four places of the grid: each as in a run of its own, guided by its scale."""
    small = kd.denoiser(small_model)
    monkeypatch.setattr(distill_lcm, "TEACHER", small)
    params = {"gain": jnp.float32(0.9), "shift": jnp.float32(0.2)}
    table = distill_lcm.distillation_table(NOISE, solver, 50)
    step, scale = jnp.array([0, 20, 40, 49]), jnp.array([1.0, 1.5, 2.0, 3.0])
    x = jax.random.normal(jax.random.key(3), SHAPE) * table.sigmas[step][:, None, None, None]
    got = jax.jit(distill_lcm.teacher_step)(params, table, x, step, LABELS, scale)
    predict = jax.jit(lambda denoise, *arguments: denoise(*arguments))
    for i in range(4):
        denoise = kd.guided(small, scale[i], jnp.int32(unet.NO_CLASS))
        state = kd.init(table, x[i : i + 1])
        for row in table[distill_lcm.rows_in_step(table) * int(step[i]) :]:
            prediction = predict(denoise, params, state.sample, row, LABELS[i : i + 1])
            state = kd.step(state, row, prediction)
            if row.advances is None or row.advances:
                break
        size = float(jnp.abs(state.sample).max())
        np.testing.assert_allclose(got[i], state.sample[0], atol=1e-5 * size)


def test_student_is_the_identity_where_the_grid_ends(teacher):
    """At timestep 0 there is nothing to learn; this is what anchors the consistency function."""
    table = distill_lcm.distillation_table(NOISE, "euler", 50)
    row = distill_lcm.rows_at(table, jnp.full(4, 50))
    x = jax.random.normal(jax.random.key(4), SHAPE)
    cond = digits.lcm_cond(LABELS, 2.0)
    output = distill_lcm.STUDENT(unet.with_guidance(teacher), x, row, cond).denoised
    np.testing.assert_allclose(output, x, rtol=1e-4)


def test_gradients_are_of_the_shapes_of_the_weights(teacher):
    """The loss with the U-Net itself, without compiling it."""
    student, table = unet.with_guidance(teacher), distill_lcm.distillation_table(NOISE, "euler", 50)
    batch = np.zeros(SHAPE, np.uint8), LABELS, jax.random.key(0)
    loss = functools.partial(distill_lcm.loss_fn, huber=0.01, even_levels=True)
    scales = jnp.array([1.0, 3.0])
    found = jax.eval_shape(jax.grad(loss), student, student, teacher, table, scales, *batch)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, student)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
def test_interrupted_distillation_ends_with_the_same_weights(tmp_path, monkeypatch, capsys):
    small = kd.denoiser(scripts.SmallUnet.model_fn)
    monkeypatch.setattr(distill_lcm, "unet", scripts.SmallUnet)
    monkeypatch.setattr(distill_lcm, "TEACHER", small)
    monkeypatch.setattr(distill_lcm, "STUDENT", kd.consistency(small))
    scripts.fake_mnist(tmp_path, 32)
    first = tmp_path / "teacher.safetensors"
    unet.save(first, scripts.SmallUnet.init_params(jax.random.key(0)))
    fixed = ["--data", str(tmp_path), "--teacher", str(first), "--batch", "4", "--seed", "1"]

    def distil(*extra: str) -> None:
        with jax.numpy_dtype_promotion("standard"):  # optax multiplies counts with rates
            scripts.run(distill_lcm, *fixed, "--steps", "4", *extra)

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
    halfway = (tmp_path / "checkpoint" / "ema.safetensors").read_bytes()
    with pytest.raises(SystemExit):
        distil("--out", str(resumed), "--solver", "dpm2", *folder)
    assert "another --checkpoint folder" in capsys.readouterr().err
    distil("--out", str(resumed), *folder)
    assert resumed.read_bytes() == whole.read_bytes()
    # Weights that stand still would agree too.
    assert whole.read_bytes() != halfway

    with pytest.raises(SystemExit):
        distil("--out", str(resumed), "--init", str(first))
    assert "without a guidance scale" in capsys.readouterr().err
