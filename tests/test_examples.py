"""The examples: shipped weights give digits of the class asked for, training learns and resumes."""

import gzip
import struct
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kdiff_jax as kd

for package in ("flax", "optax", "safetensors", "matplotlib", "tqdm"):
    pytest.importorskip(package, reason="the examples need the extra 'examples'")

import digits
import mnist
import train_digits
import unet


@pytest.fixture(scope="module")
def params():
    return unet.load(digits.WEIGHTS)[1]


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def fake_mnist(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = rng.integers(0, 10, count, dtype=np.uint8)
    for prefix in ("train", "t10k"):
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", labels)


def test_shipped_weights_are_small():
    files = list(digits.WEIGHTS.parent.iterdir())
    assert sum(file.stat().st_size for file in files) <= 4e6
    assert sum(leaf.size for leaf in jax.tree.leaves(unet.load(digits.WEIGHTS)[1])) < 1.2e6


def test_digits_are_dark_at_the_rim_and_bright_inside(params):
    """What every MNIST digit is: a bright stroke in the middle of a black field."""
    schedule = digits.digits_schedule("dpm2", 6)
    labels = jnp.arange(10, dtype=jnp.int32)
    x = kd.initial_sample(schedule, jax.random.key(0), (10, 28, 28, 1))
    images = kd.sample(digits.digits_denoiser(1.5), params, schedule, x, cond=labels)
    image = np.asarray(images)[..., 0]
    rim = np.concatenate([image[:, :2].reshape(10, -1), image[:, -2:].reshape(10, -1)], axis=1)
    assert rim.mean() < -0.98
    assert np.all(image[:, 4:-4, 4:-4].max(axis=(1, 2)) > 0.8)
    # Mean of the training pixels in [-1, 1] is -0.74.
    assert -0.9 < image.mean() < -0.5


def test_network_predicts_the_noise_it_was_given(params):
    """Near pure noise any digit network must say the noise back; a wrong sign fails at once."""
    noise = digits.training_noise()
    eps = jax.random.normal(jax.random.key(1), (4, 28, 28, 1))
    timesteps = jnp.full(4, 900, jnp.int32)
    x = noise.add_noise(jnp.full_like(eps, -1.0), eps, timesteps)
    out = unet.model_fn(params, x, timesteps.astype(jnp.float32), jnp.zeros(4, jnp.int32))
    assert float(jnp.mean((out - eps) ** 2)) < 1e-3


def test_weights_round_trip_and_refuse_another_network(params, tmp_path):
    unet.save(tmp_path / "weights.safetensors", params)
    again = unet.load(tmp_path / "weights.safetensors")[1]
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, again))
    from safetensors.numpy import save_file

    save_file({"other": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="expected"):
        unet.load(tmp_path / "other.safetensors")


def test_mnist_refuses_a_folder_without_the_files(tmp_path):
    with pytest.raises(ValueError, match="train-images"):
        mnist.load(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
def test_interrupted_training_ends_with_the_same_weights(tmp_path, monkeypatch):
    fake_mnist(tmp_path, 32)

    def train(*extra: str) -> None:
        arguments = ["train_digits.py", "--data", str(tmp_path), "--batch", "4", "--seed", "1"]
        monkeypatch.setattr(sys, "argv", [*arguments, "--steps", "4", *extra])
        # optax promotes dtypes inside, as a user's program may.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            train_digits.main()

    whole, resumed = tmp_path / "whole.safetensors", tmp_path / "resumed.safetensors"
    train("--out", str(whole))

    every_step = train_digits.batches

    def two_steps(num_images: int, batch: int, seed: int, start: int, stop: int):
        yield from every_step(num_images, batch, seed, start, 2)
        raise KeyboardInterrupt

    folder = ("--checkpoint", str(tmp_path / "checkpoint"))
    with monkeypatch.context() as patch:
        patch.setattr(train_digits, "batches", two_steps)
        with pytest.raises(KeyboardInterrupt):
            train("--out", str(resumed), *folder)
    assert not resumed.exists()
    train("--out", str(resumed), *folder)
    assert resumed.read_bytes() == whole.read_bytes()


def test_digits_script_writes_its_picture(tmp_path, monkeypatch, capsys):
    output = tmp_path / "digits.png"
    arguments = ["--steps", "2", "--class", "3", "7", "--rows", "1", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["digits.py", *arguments])
    digits.main()
    assert output.read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "ancestral DPM2: 2 steps, 3 network evaluations" in said
    assert "LCM: 2 steps, 2 network evaluations, guidance 1.5 distilled" in said


def test_distilled_network_refuses_a_scale_that_it_was_not_taught():
    with pytest.raises(ValueError, match="taught scales from 1 to 3"):
        digits.lcm_cond(jnp.zeros(2, jnp.int32), 7.5)
