"""Thresholding's quantile by bisection against the one of JAX, which sorts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp

import kdiff_jax as kd
from kdiff_jax._denoise.quantile import _neighbours, quantile

RATIOS = np.array([0, 0.3, 0.5, 0.995, 1], np.float32)


def numbers(shape, dtype=np.float32):
    """Not negative, over 60 orders of magnitude, with ties, zeros and a subnormal number."""
    rng = np.random.default_rng(0)
    x = np.exp(rng.normal(size=shape) * (1 if min(shape) < 3 else 15)).astype(dtype)
    if len(shape) > 1:
        x[:, ::3], x[:, 1::7] = x[:, -1:], 0
    x.reshape(-1)[-1] = np.finfo(dtype).tiny / 8
    return x


def sorting(x, ratio):
    return jnp.quantile(x.reshape(x.shape[0], -1), ratio, axis=1)


each_ratio = jax.jit(jax.vmap(quantile, (None, 0)))


@pytest.mark.parametrize("shape", [(2, 5, 4), (1, 1), (3, 1000), (4,)])
def test_the_numbers_of_every_place_are_those_of_a_sort(shape):
    x = numbers(shape)
    ordered = np.sort(x.reshape(shape[0], -1), axis=1)
    last = ordered.shape[1] - 1
    ranks = np.array([0, 1, 2, last // 2, last - 1, last], np.int32).clip(0, last)
    got = jax.jit(jax.vmap(_neighbours, (None, 0)))(jnp.asarray(x), jnp.asarray(ranks))
    np.testing.assert_array_equal(np.asarray(got[0]).T, ordered[:, ranks])
    np.testing.assert_array_equal(np.asarray(got[1]).T, ordered[:, (ranks + 1).clip(0, last)])


@pytest.mark.parametrize("shape", [(3, 7), (1, 1), (3, 1000)])
def test_it_is_the_quantile_of_jax(shape):
    x = jnp.asarray(numbers(shape))
    expected = [sorting(x, ratio) for ratio in RATIOS]
    # Compiled together, a product and a sum may round once.
    np.testing.assert_array_max_ulp(np.asarray(each_ratio(x, RATIOS)), np.stack(expected), 1)


def test_in_float64():
    with sp.x64():
        x = jnp.asarray(numbers((3, 50), np.float64))
        ratios = jnp.asarray([0.3, 0.995, 1.0])
        expected = np.stack([sorting(x, ratio) for ratio in ratios])
        got = np.asarray(each_ratio(x, ratios))
        assert got.dtype == np.float64
        np.testing.assert_array_max_ulp(got, expected, 1)


def test_infinite_numbers_and_nan():
    x = np.arange(1, 16, dtype=np.float32).reshape(3, 5)
    x[0, 2:4], x[1, 1] = np.inf, np.nan
    got = np.asarray(each_ratio(jnp.asarray(x), RATIOS))
    expected = np.stack([sorting(jnp.asarray(x), ratio) for ratio in RATIOS])
    np.testing.assert_allclose(got, expected, rtol=2e-7)
    assert np.all(np.isnan(got[:, 1]))


def test_its_gradient_is_that_of_the_numbers_it_lies_between():
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.permutation(40).reshape(2, 20) + 0.5, jnp.float32)

    def total(function, x, ratio):
        return jnp.sum(function(x, ratio) * jnp.array([1.0, -3.0]))

    gradients = jax.jit(jax.grad(total, (1, 2)), static_argnums=0)
    for ratio in (np.float32(0.33), np.float32(1)):
        got, expected = gradients(quantile, x, ratio), gradients(sorting, x, ratio)
        np.testing.assert_allclose(got[0], expected[0], atol=1e-6)
        np.testing.assert_allclose(got[1], expected[1], rtol=1e-6)
    # A central difference along one direction; the numbers are 1 apart, so none passes another.
    along = rng.uniform(-1, 1, x.shape).astype(np.float32)
    value = jax.jit(lambda x: total(quantile, x, np.float32(0.33)))
    far = [value(x + h * along) for h in (-0.25, 0.25)]
    _, slope = jax.jvp(value, (x,), (along,))
    np.testing.assert_allclose(slope, (far[1] - far[0]) / 0.5, rtol=1e-5)


def test_equal_numbers_share_the_gradient():
    x = jnp.array([[3.0, 1.0, 3.0, 0.0, 3.0]])
    got = jax.jit(jax.grad(lambda x: quantile(x, jnp.float32(0.75))[0]))(x)
    np.testing.assert_allclose(got, [[1 / 3, 0, 1 / 3, 0, 1 / 3]], rtol=1e-6)


def test_a_nan_makes_the_whole_sample_nan_and_no_other():
    network = kd.denoiser(lambda params, x, timestep: x, "sample")
    row = kd.euler(kd.levels(kd.noise_schedule(), 3))[1]
    x = jnp.ones((2, 8)).at[0, 3].set(jnp.nan)
    got = jax.jit(kd.thresholded(network))(None, x, row).denoised
    assert np.all(np.isnan(got[0]))
    assert np.all(np.isfinite(got[1]))


def test_a_thresholded_run_sorts_nothing():
    network = kd.thresholded(kd.denoiser(lambda params, x, timestep: 0.1 * x))
    schedule = kd.euler(kd.levels(kd.noise_schedule(), 3))
    program = jax.jit(kd.sample).lower(network, None, schedule, jnp.ones((2, 8))).as_text()
    assert "stablehlo.sort" not in program
