"""The example that differentiates through a whole run: the digits become what is wanted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

for package in ("flax", "optax", "safetensors", "matplotlib", "tqdm"):
    pytest.importorskip(package, reason="the examples need the extra 'examples'")

import optimise_noise

import digits
import kdiff_jax as kd
import unet


@pytest.mark.slow
def test_the_loss_goes_down_and_the_class_changes():
    """Of zeros, empty in the middle, it finds noise whose "zeros" have ink there."""
    params = unet.load(digits.WEIGHTS)[1]
    schedule = digits.digits_schedule("dpm2", 3)
    z = kd.initial_sample(schedule, jax.random.key(1), (2, 28, 28, 1)) / schedule.init_noise_sigma
    middle = np.zeros((28, 28), np.float32)
    middle[10:18, 11:17] = 1 / 48
    weight = np.zeros((784, 10), np.float32)
    weight[:, 1], weight[:, 0] = 8 * middle.ravel(), -8 * middle.ravel()
    # The two classes meet where the mean of the middle is -0.5: a quarter of it is ink.
    bias = np.array([-4, 4] + 8 * [-99], np.float32)
    classifier = {"weight": jnp.asarray(weight), "bias": jnp.asarray(bias)}
    ask, want = jnp.zeros(2, jnp.int32), jnp.ones(2, jnp.int32)

    def ink(z):
        images = optimise_noise.sample_digits(params, schedule, z, ask)
        return np.mean(np.asarray(images)[:, 10:18, 11:17, 0], axis=(1, 2))

    assert np.all(ink(optimise_noise.onto_shell(z)) < -0.5)
    run = params, schedule, ask, classifier, want
    # optax promotes dtypes inside, as a user's program may.
    with jax.numpy_dtype_promotion("standard"):
        found, losses = optimise_noise.optimise(run, z, iterations=4, learning_rate=0.2)
    assert losses[-1] < 0.5 * losses[0]
    assert np.all(ink(found) > -0.5)
    np.testing.assert_allclose(np.linalg.norm(np.reshape(found, (2, -1)), axis=1), 28, rtol=1e-5)
