"""Exactly N steps below a strength, for every builder; and the way between two noises."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from samplers import NOISE, SAMPLERS, relative_error

import kdiff_jax as kd


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "lcm"])
@pytest.mark.parametrize("strength", [1.0, 0.75, 0.58, 0.3, 0.07])
def test_exactly_as_many_steps_are_the_end_of_a_longer_run(name, strength):
    schedule = kd.img2img_schedule(SAMPLERS[name], 7, strength)
    whole = SAMPLERS[name](int(7 / Fraction(str(strength))))
    assert schedule.num_steps == 7
    rows = schedule.num_rows
    for got, full in zip(jax.tree.leaves(schedule.rows), jax.tree.leaves(whole.rows), strict=True):
        np.testing.assert_array_equal(got, full[-rows:])
    first = schedule[0]
    assert float(first.step) == whole.num_steps - 7
    if strength < 1:
        level = np.hypot(float(first.alpha), float(first.sigma))
        assert float(schedule.init_noise_sigma) == pytest.approx(level, rel=1e-6)


@settings(deadline=None, max_examples=50)
@given(steps=st.integers(1, 30), percent=st.integers(1, 100))
def test_the_longer_run_is_the_floor_of_the_exact_quotient(steps, percent):
    asked = []

    def schedule_fn(total):
        asked.append(total)
        return kd.euler_schedule(NOISE, total)

    assert kd.img2img_schedule(schedule_fn, steps, percent / 100).num_steps == steps
    assert asked == [steps * 100 // percent]


def test_both_meanings_of_a_strength_begin_at_the_same_level():
    """Half of 40 steps, and 20 steps below a half."""
    kept = SAMPLERS["dpm2"](40).start_at_strength(0.5)
    exact = kd.img2img_schedule(SAMPLERS["dpm2"], 20, 0.5)
    for one, other in zip(jax.tree.leaves(kept), jax.tree.leaves(exact), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SAMPLERS["dpm2"], 0, 0.5), "num_steps = 0"),
        ((SAMPLERS["dpm2"], 5, 0.0), "strength = 0"),
        ((SAMPLERS["dpm2"], 5, 1.2), r"\(0, 1\]"),
        ((lambda n: kd.dpm2_schedule(NOISE, 5), 5, 0.5), r"schedule_fn\(10\) built 5"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        kd.img2img_schedule(*arguments)


# --- between two noises ----------------------------------------------------------------------


def pair(shape=(6, 5, 7)):
    return jax.random.normal(jax.random.key(0), (2, *shape))


def angle(a, b):
    a, b = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (a, b))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.arccos(np.clip(np.sum(a * b, axis=1) / lengths, -1, 1))


def test_slerp_keeps_the_norm_and_divides_the_angle():
    first, second = pair()
    lengths = jnp.sqrt(jnp.sum(jnp.stack([first, second]) ** 2, axis=(2, 3), keepdims=True))
    first, second = jnp.stack([first, second]) / lengths * 4
    fraction = jnp.array([0.0, 0.1, 0.3, 0.5, 0.9, 1.0])
    got = kd.slerp(first, second, fraction)
    norms = np.linalg.norm(np.asarray(got, np.float64).reshape(6, -1), axis=1)
    np.testing.assert_allclose(norms, 4, rtol=1e-6)
    whole = angle(first, second)
    np.testing.assert_allclose(angle(first, got), fraction * whole, atol=1e-3)
    np.testing.assert_allclose(angle(got, second), (1 - fraction) * whole, atol=1e-3)
    np.testing.assert_array_equal(got[0], first[0])
    np.testing.assert_array_equal(got[5], second[5])


def test_slerp_of_noise_is_noise_where_a_straight_mixture_is_too_weak():
    first, second = pair((10, 20_000))
    for fraction in (0.2, 0.5):
        got = np.asarray(kd.slerp(first, second, fraction), np.float64)
        assert abs(np.var(got) - 1) < 3.5 * np.sqrt(2 / got.size) + 1e-3
    assert np.var((first + second) / 2) < 0.6


@pytest.mark.parametrize("case", ["same", "nearly", "parallel", "nothing"])
def test_slerp_of_noises_without_an_angle_is_straight_and_has_gradients(case):
    first, other = pair((2, 8))
    second = {
        "same": first,
        "nearly": first + 1e-6 * other,
        "parallel": 2 * first,
        "nothing": jnp.zeros_like(first),
    }[case]
    fraction = 0.25
    got = kd.slerp(first, second, fraction)
    if case != "nothing":
        straight = (1 - fraction) * first + fraction * second
        assert relative_error(got, straight) < 1e-6
    for argument in (0, 1, 2):
        gradient = jax.grad(lambda a, b, f: kd.slerp(a, b, f).sum(), argument)(
            first, second, fraction
        )
        assert np.all(np.isfinite(gradient))


def test_slerp_in_float64_and_in_low_precision():
    first, second = pair()
    assert kd.slerp(first.astype(jnp.bfloat16), second, 0.5).dtype == jnp.float32
    with sp.x64():
        first = jnp.asarray(np.asarray(first), jnp.float64)
        assert kd.slerp(first, second, 0.5).dtype == jnp.float64


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((), ())])
def test_slerp_refuses_other_shapes(shapes):
    first, second = map(jnp.ones, shapes)
    with pytest.raises(ValueError, match="differ"):
        kd.slerp(first, second, 0.5)
