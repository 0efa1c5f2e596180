"""The digits: shipped weights give digits of the class of the condition, training resumes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

for package in ("flax", "optax", "safetensors", "matplotlib", "tqdm"):
    pytest.importorskip(package, reason="the examples need the extra 'examples'")

import scripts
from safetensors.numpy import save_file

import digits
import mnist
import train_digits
import unet


@pytest.fixture(scope="module")
def params():
    return unet.load(digits.WEIGHTS)[1]


def test_shipped_weights_are_small(params):
    files = list(digits.WEIGHTS.parent.iterdir())
    assert sum(file.stat().st_size for file in files) <= 4e6
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) < 1.2e6


def test_script_draws_digits_dark_at_the_rim_and_bright_inside(tmp_path, monkeypatch):
    """What every MNIST digit is: a bright stroke in the middle of a black field."""
    output, drawn = tmp_path / "digits.png", scripts.kept_calls(monkeypatch, digits, "draw")
    printed = scripts.run(digits, "--steps", "6", "--rows", "1", "--output", str(output))
    assert scripts.is_picture(output)
    assert "DPM2: 6 steps, 11 network evaluations, guidance 1.5: each of twice" in printed
    assert "ancestral DPM2: 6 steps, 11 network evaluations" in printed
    assert "LCM: 6 steps, 6 network evaluations, guidance 1.5 distilled" in printed
    ((panels, _), _) = drawn[0]
    assert len(panels) == 3
    # Ancestral DPM2 is still noisy after so few steps.
    for _, images in (panels[0], panels[2]):
        (image,) = images
        rim = np.concatenate([image[:, :2].reshape(10, -1), image[:, -2:].reshape(10, -1)], axis=1)
        assert rim.mean() < -0.98
        assert np.all(image[:, 4:-4, 4:-4].max(axis=(1, 2)) > 0.8)
        # Mean of the training pixels in [-1, 1] is -0.74.
        assert -0.9 < image.mean() < -0.5


def test_network_predicts_the_noise_it_was_given(params):
    """Near pure noise any digit network must return the noise; a wrong sign fails at once."""
    noise = digits.training_noise()
    eps = jax.random.normal(jax.random.key(1), (4, 28, 28, 1))
    timesteps = jnp.full(4, 900, jnp.int32)
    x = noise.add_noise(jnp.full_like(eps, -1.0), eps, timesteps)
    out = unet.model_fn(params, x, timesteps.astype(jnp.float32), jnp.zeros(4, jnp.int32))
    assert float(jnp.mean((out - eps) ** 2)) < 1e-3


def test_weights_round_trip_and_refuse_another_network(params, tmp_path):
    unet.save(tmp_path / "weights.safetensors", params)
    again = unet.load(tmp_path / "weights.safetensors")[1]
    jax.tree.map(np.testing.assert_array_equal, params, again)
    save_file({"other": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="expected"):
        unet.load(tmp_path / "other.safetensors")


def test_fresh_weights_and_their_gradients_are_of_the_shapes_of_the_shipped_ones(params):
    def shapes(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)

    assert shapes(jax.eval_shape(unet.init_params, jax.random.key(0))) == shapes(params)
    batch = np.zeros((4, 28, 28, 1), np.uint8), np.zeros(4, np.int32), jax.random.key(0)
    slope = jax.grad(train_digits.loss_fn)
    assert shapes(jax.eval_shape(slope, params, digits.training_noise(), *batch)) == shapes(params)


def test_mnist_refuses_a_folder_without_the_files(tmp_path):
    with pytest.raises(ValueError, match="train-images"):
        mnist.load(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
def test_interrupted_training_ends_with_the_same_weights(tmp_path, monkeypatch):
    scripts.fake_mnist(tmp_path, 32)
    monkeypatch.setattr(train_digits, "unet", scripts.SmallUnet)

    def train(*extra: str) -> str:
        fixed = ["--data", str(tmp_path), "--batch", "4", "--seed", "1", "--steps", "4"]
        # optax promotes dtypes inside, as a user's program may.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return scripts.run(train_digits, *fixed, *extra)

    whole, resumed = tmp_path / "whole.safetensors", tmp_path / "resumed.safetensors"
    assert train("--out", str(whole)) == f"wrote {whole}\n"

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
    halfway = (tmp_path / "checkpoint" / "ema.safetensors").read_bytes()
    train("--out", str(resumed), *folder)
    assert resumed.read_bytes() == whole.read_bytes()
    # Weights that stand still would agree too.
    assert whole.read_bytes() != halfway


def test_distilled_network_refuses_a_scale_that_it_was_not_trained_on():
    with pytest.raises(ValueError, match="trained on scales from 1 to 3"):
        digits.lcm_cond(jnp.zeros(2, jnp.int32), 7.5)
