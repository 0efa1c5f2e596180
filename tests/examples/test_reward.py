"""The example of policy gradients: its loss, and that a network of ten numbers learns by it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

for package in ("flax", "optax", "safetensors", "matplotlib", "tqdm"):
    pytest.importorskip(package, reason="the examples need the extra 'examples'")

import reward

import kdiff_jax as kd


def test_the_loss_is_that_of_ppo():
    """Schulman et al. 2017, equation 7; no gradient where a ratio has gone as far as it may."""
    log_ratio = np.array([0, 0.05, 0.3, -0.3, 0.3, -0.3], np.float32)
    advantage = np.array([1, -2, 1, 1, -1, -1], np.float32)
    value, slope = jax.value_and_grad(reward.surrogate)(jnp.asarray(log_ratio), advantage, 0.1)
    ratio = np.exp(log_ratio.astype(np.float64))
    terms = np.minimum(ratio * advantage, np.clip(ratio, 0.9, 1.1) * advantage)
    assert float(value) == pytest.approx(-terms.mean(), rel=1e-6)
    counts = np.array([1, 1, 0, 1, 1, 0])
    np.testing.assert_allclose(slope, -counts * ratio * advantage / 6, rtol=1e-5)


def test_advantages_compare_within_a_class():
    found = reward.advantages(jnp.array([1.0, 3.0, 10.0, 14.0]), 2)
    np.testing.assert_allclose(found, np.array([-1, 1, -2, 2]) / np.sqrt(2.5), rtol=1e-5)


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["thicker", "thinner"])
def test_ink_is_learned_from_rewards_alone(sign, monkeypatch):
    """A network of one grey a class, to which it adds some of the noise that is to be rewarded."""

    def grey(params, x, timestep, label):
        return jnp.tanh(params[label])[:, None, None, None] + x / 4

    monkeypatch.setattr(reward, "denoise", kd.denoiser(grey, "sample"))
    # Of levels that are near each other: where a row draws next to nothing, its density is noise.
    schedule = kd.euler(kd.levels(None, sigmas=[4.0, 3.0, 2.0, 1.0]), eta=1.0)
    labels, before = jnp.repeat(jnp.arange(10), 4), jnp.zeros(10)
    # optax promotes dtypes inside, as a user's program may.
    with jax.numpy_dtype_promotion("standard"):
        params, curve = reward.train((before, schedule, labels), sign, 10, 0.1, 0.1, 0)
    assert np.all(np.isfinite(params))
    assert sign * (curve[-1] - curve[0]) > 0.3
