"""Levels that are known in a program only: those of the host, or NaN where the host refuses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kdiff_jax as kd

NOISE = kd.noise_schedule("scaled_linear")
ZERO_SNR = kd.noise_schedule("scaled_linear", rescale_zero_terminal_snr=True)
FLOW = kd.flow_schedule(3.0)


def run(sigmas: Any) -> Any:
    """A number that every weight and level of a table has a part in."""
    rows = kd.dpm2(kd.levels(None, sigmas=sigmas)).rows
    places = jnp.arange(1.0, rows.sigma.shape[0] + 1)
    return jnp.sum(places * (jnp.asarray(rows.epsilon_weight) + rows.denoised_weight + rows.sigma))


def test_a_closing_0_is_dropped_where_it_can_be_seen_and_else_nothing_is_made_of_it() -> None:
    sigmas = jnp.array([10.0, 1.0])
    closed = jnp.append(sigmas, 0.0)
    on_host = run(closed)
    assert on_host == run(sigmas)
    compiled = jax.jit(jax.value_and_grad(run))
    value, slopes = compiled(sigmas)
    np.testing.assert_allclose(value, on_host, rtol=1e-5)
    # Under jax.grad alone the values are there: the run, and the slopes, of the levels without 0.
    np.testing.assert_allclose(jax.grad(run)(closed), [*slopes, 0], rtol=1e-4)
    assert np.all(np.isfinite(slopes))
    assert np.isnan(jax.jit(run)(closed))


def levels_of(noise: Any, **given: Any) -> np.ndarray:
    """[K, N] the levels of calls with one traced argument, [K, N] of it."""
    ((name, values),) = given.items()

    def traced(value: Any) -> Any:
        return kd.levels(noise, **{name: value}).sigmas[:-1]

    return np.asarray(jax.vmap(traced)(jnp.asarray(values, jnp.float32)))


BAD = [[1.0, 3.0], [3.0, 3.0], [3.0, -1.0], [3.0, 0.0], [3.0, np.nan], [1e20, 1.0], [1.0, 1e-39]]


def test_traced_levels_that_the_host_refuses_are_nan() -> None:
    for sigmas in BAD:
        if sigmas[-1] != 0:
            with pytest.raises(ValueError, match="sigmas"):
                kd.levels(None, sigmas=sigmas)
    for noise in (None, NOISE):
        found = levels_of(noise, sigmas=[*BAD, [3.0, 1.0]])
        assert np.all(np.isnan(found[:-1]))
        np.testing.assert_array_equal(found[-1], [3, 1])


def test_traced_levels_beyond_a_flow_and_timesteps_beyond_training_are_nan() -> None:
    assert np.all(np.isnan(levels_of(FLOW, sigmas=[[1.5, 0.5], [0.5, 0.7]])))
    for noise, bad in ((NOISE, [1000, 5]), (NOISE, [999.5, 5]), (FLOW, [1001, 5])):
        found = levels_of(noise, timesteps=[bad, [5, -1], [5, 5], [5, 9], [999, 40.5]])
        assert np.all(np.isnan(found[:-1]))
        expected = kd.levels(noise, timesteps=[999, 40.5]).sigmas[:-1]
        np.testing.assert_allclose(found[-1], expected, rtol=1e-5)


def test_traced_ends_and_etas_out_of_order_are_nan() -> None:
    def grid(low: Any) -> Any:
        return kd.levels(NOISE, 4, grid="karras", sigma_min=low, sigma_max=9.0).sigmas[:-1]

    found = jax.vmap(grid)(jnp.array([0.1, 10.0]))
    np.testing.assert_array_equal(np.isnan(found), [[False] * 4, [True] * 4])
    for noise in (NOISE, FLOW):
        levels = kd.levels(noise, 4)

        def weights(eta: Any, levels: kd.Levels = levels) -> Any:
            return kd.euler(levels, eta).rows.epsilon_weight

        # 500 is beyond the bound of each step that ends above 0; the closing one has none.
        found = jax.vmap(weights)(jnp.array([0.5, 500.0, -0.5]))
        np.testing.assert_array_equal(np.isnan(found[:, :3]), [[False] * 3, *[[True] * 3] * 2])
        assert np.all(np.isfinite(found[:, 3]))


def test_the_ends_of_zero_terminal_snr_are_those_of_the_host() -> None:
    t = np.array([0.0, 997.5, 998.0, 998.5, 999.0, 2000.0])
    expected = ZERO_SNR.sigma_at(t)
    np.testing.assert_allclose(jax.jit(ZERO_SNR.sigma_at)(t), expected, rtol=1e-5)
    assert np.isinf(expected[3:]).all()
    np.testing.assert_allclose(expected[2], ZERO_SNR.sigmas[998], rtol=1e-15)
    assert np.isfinite(jax.grad(ZERO_SNR.sigma_at)(998.0))
    sigma = np.array([0.03, 2000.0, 3000.0, np.inf])
    expected = ZERO_SNR.timestep_at(sigma)
    np.testing.assert_allclose(jax.jit(ZERO_SNR.timestep_at)(sigma), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="not positive"):
        NOISE.timestep_at(0.0)
    assert np.all(np.isnan(jax.vmap(NOISE.timestep_at)(jnp.array([0.0, -1.0]))))
    assert jax.grad(NOISE.timestep_at)(0.0) == 0


@pytest.mark.parametrize("noise", [NOISE, FLOW], ids=["beta", "flow"])
def test_traced_training_timesteps_out_of_range_are_nan(noise: Any) -> None:
    x0, eps = jnp.ones((4, 3)), jnp.full((4, 3), 2.0)
    last = 999 if noise is NOISE else 1000
    t = jnp.array([-5, 0, last, last + 1])
    for method in (noise.add_noise, noise.velocity)[: 2 if noise is NOISE else 1]:
        found = jax.jit(method)(x0, eps, t)
        np.testing.assert_array_equal(np.isnan(found[:, 0]), [True, False, False, True])
        np.testing.assert_allclose(found[1:3], method(x0[1:3], eps[1:3], t[1:3]), rtol=1e-6)
        with pytest.raises(ValueError, match="timesteps"):
            method(x0, eps, t)
