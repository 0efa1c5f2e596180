"""The example that learns a grid: its levels always descend, its gradient is right, it learns."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
from hypothesis import given, settings
from hypothesis import strategies as st

for package in ("flax", "optax", "safetensors", "matplotlib", "tqdm"):
    pytest.importorskip(package, reason="the examples need the extra 'examples'")

import learn_grid

import digits
import kdiff_jax as kd

NOISE = digits.training_noise()
ENDS = float(NOISE.sigmas[0]), float(NOISE.sigmas[-1])
# Two pixels of data with standard deviations 0.3 and 1.5: no grid suits both.
STD = np.array([0.3, 1.5])


def gaussian_denoise(params, x, row, cond=None):
    """The exact denoiser of Gaussian data with mean 0."""
    variance = jnp.asarray(STD**2, x.dtype)[None]
    epsilon = row.sigma.astype(x.dtype) / (variance + row.sigma.astype(x.dtype) ** 2) * x
    return kd.Prediction(x - row.sigma.astype(x.dtype) * epsilon, epsilon)


def gaussian_data(count, seed):
    """(z, no cond, target): the closed-form solution of the ODE from sigma_max * z down to 0."""
    z = np.random.default_rng(seed).normal(size=(count, 2)).astype(np.float32)
    return jnp.asarray(z), None, jnp.asarray(z * ENDS[1] * STD / np.hypot(STD, ENDS[1]), z.dtype)


def held_out_error(sigmas):
    z, cond, target = gaussian_data(256, 1)
    schedule = learn_grid.dpm2_on(NOISE, sigmas)
    images = learn_grid.run(gaussian_denoise, None, schedule, z, cond)
    return float(jnp.mean(learn_grid.squared_errors(images, target)))


to_grid = jax.jit(functools.partial(learn_grid.to_grid, ends=ENDS))


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.floats(-6, 6, width=32), min_size=7, max_size=7))
def test_levels_descend_inside_the_ends_whatever_theta_is(theta):
    sigmas = np.asarray(to_grid(np.array(theta, np.float32)))
    assert ENDS[0] < sigmas[-1]
    assert sigmas[0] < ENDS[1]
    assert np.all(np.diff(sigmas) < 0)


def test_theta_of_a_grid_is_that_grid_moved_off_the_ends():
    inside = np.geomspace(100, 0.02, 6)
    again = np.asarray(learn_grid.to_grid(learn_grid.from_grid(inside, ENDS), ENDS))
    np.testing.assert_allclose(again, inside, 1e-5)
    whole = np.geomspace(ENDS[1], ENDS[0], 6)
    again = np.asarray(learn_grid.to_grid(learn_grid.from_grid(whole, ENDS), ENDS))
    assert np.all(np.abs(np.log(again / whole)) < 0.011 * np.log(ENDS[1] / ENDS[0]))


@jax.jit
def loss_of_levels(sigmas, shift):
    network, params = kd.denoiser(sp.elementwise_model), {"gain": 0.7, "shift": shift}
    z = jnp.linspace(-2, 2, 6, dtype=sigmas.dtype).reshape(2, 3)
    images = learn_grid.run(network, params, learn_grid.dpm2_on(NOISE, sigmas), z, None)
    return jnp.sum(images**2)


value_and_slope = jax.jit(jax.value_and_grad(loss_of_levels))


@pytest.mark.parametrize(("shift", "h", "rel"), [(0.0, 1e-6, 1e-5), (0.3, 1e-3, 1e-3)])
def test_the_gradient_in_the_levels_is_that_of_finite_differences_in_float64(shift, h, rel):
    """The timestep is float32: where it moves the network's output, differences are rough."""
    with sp.x64():
        sigmas = jnp.array([120.0, 11.0, 2.0, 0.4])
        _, slope = value_and_slope(sigmas, shift)
        for i, sigma in enumerate(sigmas.tolist()):
            move = h * sigma * np.eye(4)[i]
            above, below = (value_and_slope(x, shift)[0] for x in (sigmas + move, sigmas - move))
            expected = (above - below) / (2 * h * sigma)
            assert float(slope[i]) == pytest.approx(float(expected), rel=rel)


def test_the_learned_grid_beats_the_start_on_exact_gaussian_data():
    grids = learn_grid.known_grids(NOISE, 4)
    errors = {name: held_out_error(sigmas) for name, sigmas in grids.items()}
    start = min(errors, key=lambda name: errors[name])
    problem = gaussian_denoise, None, NOISE, ENDS
    # optax promotes dtypes inside, as a user's program may.
    with jax.numpy_dtype_promotion("standard"):
        learned, losses = learn_grid.learn(problem, grids[start], gaussian_data(64, 0), 60)
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    assert held_out_error(learned) < 0.5 * errors[start]


def test_the_shipped_grid_is_a_grid_and_beats_the_others():
    content = json.loads(digits.WEIGHTS.parents[1].joinpath("learn_grid.json").read_text())
    schedule = learn_grid.dpm2_on(NOISE, content["grids"]["learned"])
    assert (schedule.num_steps, schedule.num_rows) == (content["steps"], content["evaluations"])
    errors = content["held_out_squared_error"]
    known = learn_grid.known_grids(NOISE, content["steps"])
    for name, sigmas in known.items():
        np.testing.assert_allclose(content["grids"][name], sigmas, 1e-4)
        assert errors["learned"] < 0.5 * errors[name]
