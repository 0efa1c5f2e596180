"""Clipped noise against NumPy, through `kd.sample` and by the name that ComfyUI has for it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kdiff_jax as kd
from kdiff_jax.adapters import k_diffusion as K

KEY, SHAPE = jax.random.key(0), (2, 3, 40)
FLOW = kd.lcm(kd.levels(kd.flow_schedule(), sigmas=[1.0, 0.6, 0.3]).end_at(2), s_noise=0.8)


def clipped(z: Any, bound: float) -> np.ndarray:
    most = bound * np.std(z, axis=(1, 2), ddof=1, keepdims=True)
    return np.clip(z, -most, most)


def test_the_noise_of_each_sample_is_clipped_at_its_own_deviations() -> None:
    z = np.asarray(kd.row_noise(KEY, FLOW[0], SHAPE))
    found = kd.clipped_noise(1.5)(KEY, FLOW[0], SHAPE)
    np.testing.assert_allclose(found, clipped(z, 1.5), rtol=1e-6)
    assert np.mean(found != z) > 0.05
    # No sample depends on its neighbours, also where each has a bound of its own.
    keys = jax.random.split(KEY, 2)
    both = kd.clipped_noise(jnp.array([1.5, 0.5]))(keys, FLOW[0], SHAPE)
    alone = kd.clipped_noise(0.5)(keys[1:], FLOW[0], (1, *SHAPE[1:]))
    np.testing.assert_array_equal(both[1:], alone)
    np.testing.assert_array_equal(kd.clipped_noise(20.0)(KEY, FLOW[0], SHAPE), z)


def test_a_run_on_a_flow_and_by_comfyui_s_name() -> None:
    noise, x = np.random.default_rng(0).normal(size=(2, *SHAPE)), jnp.zeros(SHAPE)
    denoise = kd.denoiser(lambda params, x, t: x / (t / 1000)[:, None, None], "flow_prediction")
    noise_fn = kd.clipped_noise(1.2, kd.given_noise(jnp.asarray(noise, jnp.float32)))
    found = kd.sample(denoise, None, FLOW, x, noise_fn=noise_fn)  # D = 0
    np.testing.assert_allclose(found, 0.3 * 0.8 * clipped(noise[1], 1.2), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"noise has shape \(1, 2, 3, 40\)"):
        kd.clipped_noise(1.2, kd.given_noise(jnp.zeros((1, *SHAPE)))).check_run(FLOW, SHAPE)

    def still(x: jax.Array, sigma: jax.Array) -> jax.Array:
        return x

    draws = iter(noise)
    found = K.sample_lcm(
        still,
        x,
        [4.0, 2.0, 1.0],
        noise_sampler=lambda *_: next(draws),
        s_noise=0.5,
        noise_clip_std=1.2,
    )
    expected = 0.5 * (2 * clipped(noise[0], 1.2) + clipped(noise[1], 1.2))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kd.clipped_noise(0.0), "bound = 0.0"),
        (lambda: kd.clipped_noise(2.0, "noise"), "noise_fn = 'noise' is not callable"),  # type: ignore
        (lambda: kd.clipped_noise(2.0)(KEY, FLOW[0], (2, 1)), "one number a sample"),
    ],
)
def test_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
