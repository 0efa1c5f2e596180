"""The way between two noises: norms, angles, and noise that stays noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
from samplers import relative_error

import kdiff_jax as kd

slerp = jax.jit(kd.slerp)


@jax.jit
def slopes(first, second, fraction):
    """Of the sum of the result, with respect to each of the three."""
    return jax.grad(lambda *args: kd.slerp(*args).sum(), (0, 1, 2))(first, second, fraction)


def pair(shape=(6, 35)):
    return jax.random.normal(jax.random.key(0), (2, *shape))


def angle(a, b):
    a, b = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (a, b))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.arccos(np.clip(np.sum(a * b, axis=1) / lengths, -1, 1))


def test_the_norm_is_kept_and_the_angle_divided():
    both = np.asarray(pair()).reshape(2, 6, 5, 7)
    first, second = both / np.sqrt(np.sum(both**2, axis=(2, 3), keepdims=True)) * 4
    fraction = np.array([0.0, 0.1, 0.3, 0.5, 0.9, 1.0], np.float32)
    got = kd.slerp(first, second, fraction)
    norms = np.linalg.norm(np.asarray(got, np.float64).reshape(6, -1), axis=1)
    np.testing.assert_allclose(norms, 4, rtol=1e-6)
    whole = angle(first, second)
    np.testing.assert_allclose(angle(first, got), fraction * whole, atol=1e-3)
    np.testing.assert_allclose(angle(got, second), (1 - fraction) * whole, atol=1e-3)
    np.testing.assert_array_equal(got[0], first[0])
    np.testing.assert_array_equal(got[5], second[5])


def test_between_noises_there_is_noise_where_a_straight_mixture_is_too_weak():
    first, second = pair((10, 20_000))
    for fraction in (0.2, 0.5):
        got = np.asarray(slerp(first, second, fraction), np.float64)
        assert abs(np.var(got) - 1) < 3.5 * np.sqrt(2 / got.size) + 1e-3
    assert np.var((first + second) / 2) < 0.6


@pytest.mark.parametrize("case", ["same", "nearly", "parallel", "nothing"])
def test_noises_without_an_angle_are_mixed_straight_and_have_gradients(case):
    first, other = np.asarray(pair((2, 8)))
    second = {
        "same": first,
        "nearly": first + np.float32(1e-6) * other,
        "parallel": 2 * first,
        "nothing": np.zeros_like(first),
    }[case]
    fraction = 0.25
    if case != "nothing":
        straight = (1 - fraction) * first + fraction * second
        assert relative_error(slerp(first, second, fraction), straight) < 1e-6
    assert all(np.all(np.isfinite(slope)) for slope in slopes(first, second, fraction))


def test_in_float64_and_in_low_precision():
    first, second = pair((2, 8))
    assert slerp(first.astype(jnp.bfloat16), second, 0.5).dtype == jnp.float32
    with sp.x64():
        first = jnp.asarray(np.asarray(first), jnp.float64)
        assert slerp(first, second, 0.5).dtype == jnp.float64


@pytest.mark.parametrize(
    ("shapes", "message"), [(((2, 3), (2, 4)), "differ"), (((), ()), "first is a scalar")]
)
def test_other_shapes_are_refused(shapes, message):
    first, second = map(jnp.ones, shapes)
    with pytest.raises(ValueError, match=message):
        kd.slerp(first, second, 0.5)
