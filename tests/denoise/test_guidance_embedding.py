"""The guidance embedding: the published formula, in whichever dtype and under every transform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers import x64

import kdiff_jax as kd


def truth(w, dim: int) -> np.ndarray:
    """The formula one number at a time, in float64."""
    half = dim // 2
    out = np.zeros((len(w), dim))
    for b, scale in enumerate(w):
        for i in range(half):
            angle = 1000.0 * float(scale) * 10_000.0 ** (-i / (half - 1))
            out[b, i], out[b, half + i] = np.sin(angle), np.cos(angle)
    return out


@pytest.mark.parametrize("dim", [4, 5, 96, 255, 256, 512])
def test_values(dim):
    w = np.array([0.0, 0.001, 0.5, 1.0, 7.5, 14.0], np.float32)
    embedding = np.asarray(kd.guidance_embedding(jnp.asarray(w), dim))
    assert embedding.dtype == np.float32
    assert embedding.shape == (6, dim)
    # The angles reach 1000 w, and float32 rounds them in relative terms: twice half an ulp.
    error = np.abs(embedding - truth(w, dim)).max(axis=1)
    assert np.all(error <= 1.3e-7 * (1.0 + 1000.0 * w)), error


def test_values_in_float64():
    with x64():
        w = np.array([0.0, 0.3, 7.5, 14.0])
        embedding = kd.guidance_embedding(jnp.asarray(w), 256)
        assert embedding.dtype == jnp.float64
        np.testing.assert_allclose(embedding, truth(w, 256), rtol=0, atol=1e-11)


def test_known_values_of_scale_one():
    """w = 0, no guidance: all sines are 0 and all cosines 1; an odd dim ends in a 0."""
    embedding = np.asarray(kd.guidance_embedding(jnp.zeros(1), 7))[0]
    np.testing.assert_array_equal(embedding, [0, 0, 0, 1, 1, 1, 0])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32])
def test_low_precision_and_whole_scales_are_embedded_in_float32(dtype):
    w = jnp.array([1, 2, 7]).astype(dtype)
    embedding = kd.guidance_embedding(w, 64)
    assert embedding.dtype == jnp.float32
    np.testing.assert_array_equal(embedding, kd.guidance_embedding(jnp.array([1.0, 2.0, 7.0]), 64))


def test_transforms():
    w = jnp.array([0.5, 1.5])
    plain = kd.guidance_embedding(w, 32)
    jitted = jax.jit(kd.guidance_embedding, static_argnums=1)(w, 32)
    np.testing.assert_allclose(jitted, plain, atol=3e-4)
    gradient = jax.grad(lambda w: kd.guidance_embedding(w, 32).sum())(w)
    assert gradient.shape == (2,)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize(
    ("w", "dim", "message"),
    [
        (1.5, 256, r"shape \(\)"),
        (np.ones((2, 1)), 256, r"shape \(2, 1\)"),
        (np.array([1.0, np.nan]), 256, "NaN"),
        (np.array([1.0, np.inf]), 256, "infinity"),
        (["2.0"], 256, "real numbers"),
        (np.array([True]), 256, "real numbers"),
        (np.ones(2), 3, "at least 4"),
        (np.ones(2), 256.0, "integer"),
        (np.ones(2), True, "integer"),
    ],
)
def test_refusals(w, dim, message):
    with pytest.raises(ValueError, match=message):
        kd.guidance_embedding(w, dim)


def test_refuses_a_traced_scalar():
    with pytest.raises(ValueError, match=r"jnp\.full"):
        jax.jit(lambda w: kd.guidance_embedding(w, 8))(jnp.float32(1.0))
