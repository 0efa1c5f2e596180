"""Rectified flow: its tables, grids and shifts, its training data, and what is refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flows import BUILDERS, FLOW, SD3, every_builder
from samplers import relative_error, run_by_hand

import kdiff_jax as kd


def network(params, x, timestep):
    return jnp.sin(1.7 * x) - 0.6 * x


# --- tables and grids ------------------------------------------------------------------------


@every_builder
def test_rows_are_levels_of_the_flow(name):
    schedule = BUILDERS[name](SD3, 7)
    rows = schedule.rows
    np.testing.assert_allclose(rows.alpha + rows.sigma, 1, atol=1e-7)
    np.testing.assert_allclose(rows.timestep, 1000 * np.asarray(rows.sigma), rtol=1e-6)
    np.testing.assert_array_equal(rows.input_scale, 1)
    assert schedule.flow
    assert not schedule.unit_alpha
    assert not schedule.alternating
    assert float(schedule.init_noise_sigma) == 1
    assert float(rows.denoised_weight[-1]) == 1


@every_builder
def test_levels_and_timesteps_are_taken_verbatim(name):
    levels = [0.95, 0.6, 0.25, 0.1]
    for given in ({"sigmas": levels}, {"sigmas": [*levels, 0]}):
        schedule = BUILDERS[name](SD3, **given)
        np.testing.assert_allclose(schedule.sigmas, [*levels, 0], rtol=1e-7)
    schedule = BUILDERS[name](SD3, timesteps=[950, 600.5, 250, 100])
    np.testing.assert_allclose(schedule.sigmas, [0.95, 0.6005, 0.25, 0.1, 0], rtol=1e-7)


def test_shifts_are_their_formulas():
    t = np.linspace(1, 0.01, 30)
    for shift in (0.4, 1.0, 3.0):
        expected = shift * t / (1 + (shift - 1) * t)
        np.testing.assert_allclose(kd.flow_schedule(shift).shifted(t), expected, rtol=1e-14)
        odds = expected / (1 - expected + 1e-300)
        np.testing.assert_allclose(odds[1:], shift * t[1:] / (1 - t[1:]), rtol=1e-12)
    flux = kd.flow_schedule(image_seq_len=4096)
    np.testing.assert_allclose(flux.shifted(t), np.exp(1.15) / (np.exp(1.15) + 1 / t - 1))
    stretched = kd.flow_schedule(2.0, shift_terminal=0.1).shifted(t)
    plain = kd.flow_schedule(2.0).shifted(t)
    assert (stretched[0], stretched[-1]) == (1, pytest.approx(0.1))
    np.testing.assert_allclose((1 - stretched) * (1 - plain[-1]), (1 - plain) * 0.9, atol=1e-15)
    assert kd.flow_schedule(2.0, shift_terminal=0.1).shifted([1.0]).tolist() == [1.0]


@every_builder
def test_a_traced_shift_gives_the_table_and_finite_gradients(name):
    def table(shift):
        rows = BUILDERS[name](kd.flow_schedule(shift), 5).rows
        return jnp.stack([leaf for leaf in jax.tree.leaves(rows) if leaf.dtype == jnp.float32])

    np.testing.assert_allclose(jax.jit(table)(2.5), table(2.5), rtol=1e-5, atol=2e-6)
    slopes = jax.jit(jax.jacfwd(table))(2.5)
    assert np.all(np.isfinite(slopes))
    assert np.any(slopes != 0)


def test_a_traced_eta_has_finite_gradients_at_0():
    def weights(eta):
        return kd.dpm2_ancestral_schedule(SD3, 5, eta=eta).rows.noise_weight

    slopes = jax.jit(jax.jacrev(weights))
    assert all(np.all(np.isfinite(slopes(eta))) for eta in (0.0, 0.5, 1.0))


def test_training_data_and_its_velocity():
    x0, eps = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    t = jnp.array([0.0, 250.0, 1000.0])
    noised = FLOW.add_noise(x0, eps, t)
    share = np.array([0, 0.25, 1])[:, None]
    np.testing.assert_allclose(noised, (1 - share) * x0 + share * eps, atol=1e-6)
    np.testing.assert_allclose(FLOW.velocity(x0, eps, t), eps - x0, atol=1e-6)
    # The network that says this velocity gives x0 and eps back, at every level.
    for row in kd.dpm2_schedule(SD3, 3):
        x = kd.add_noise(row, x0, eps)
        denoise = kd.denoiser(lambda params, x, timestep: params, "flow_prediction")
        said = denoise(FLOW.velocity(x0, eps), x, row)
        np.testing.assert_allclose(said.denoised, x0, atol=2e-6)
        np.testing.assert_allclose(said.epsilon, eps, atol=2e-6)


@every_builder
def test_runs_by_hand_unrolled_padded_and_resumed_are_one(name):
    schedule, key = BUILDERS[name](SD3, 4), jax.random.key(1)
    x, denoise = kd.initial_sample(schedule, key, (2, 8)), kd.denoiser(network, "flow_prediction")
    whole = kd.sample(denoise, None, schedule, x, key)
    states = run_by_hand(denoise, None, schedule, x, key)
    assert relative_error(states[-1].sample, whole) < 1e-6
    for same in (
        kd.sample(denoise, None, schedule, x, key, unroll=2),
        kd.sample(denoise, None, schedule.pad(12), x, key),
        kd.sample(denoise, None, kd.stack([schedule, schedule]), x, key),
    ):
        assert relative_error(same, whole) < 1e-6
    rest = schedule.start_at(2)
    halfway = states[schedule.num_rows - rest.num_rows].sample
    assert relative_error(kd.sample(denoise, None, rest, halfway, key), whole) < 1e-6


# --- refusals --------------------------------------------------------------------------------

VP = kd.noise_schedule()
BAD: Any = 2.5
REFUSED = [
    (lambda: kd.flow_schedule(0.0), "shift = 0.0"),
    (lambda: kd.flow_schedule(2.0, mu=1.0), "shift and mu were given"),
    (lambda: kd.flow_schedule(mu=1.0, image_seq_len=9), "mu and image_seq_len were given"),
    (lambda: kd.flow_schedule(image_seq_len=BAD), "image_seq_len = 2.5"),
    (lambda: kd.flow_schedule(image_seq_len=9, max_image_seq_len=256), "two lengths"),
    (lambda: kd.flow_schedule(shift_terminal=1.0), "shift_terminal = 1.0"),
    (lambda: kd.flow_schedule(num_train_timesteps=0), "num_train_timesteps = 0"),
    (lambda: kd.dpm2_schedule(FLOW, 5, timestep_spacing="leading"), "'leading'"),
    (lambda: kd.dpm2_schedule(FLOW, 5, steps_offset=1), "steps_offset = 1"),
    (lambda: kd.dpm2_schedule(FLOW, 5, grid="karras", sigma_max=2.0), "sigma_max = 2.0"),
    (lambda: kd.dpm2_schedule(FLOW, sigmas=[1.2, 0.5]), "begin at 1.2"),
    (lambda: kd.dpm2_schedule(FLOW, timesteps=[1001, 5]), "begin at 1.001"),
    (lambda: kd.dpm2_schedule(kd.flow_schedule(num_train_timesteps=1), 5), "'trailing'"),
    (lambda: kd.dpm2_ancestral_schedule(FLOW, sigmas=[1, 0.5], eta=2.0), "eta below 2"),
    (lambda: kd.lcm_schedule(FLOW, 4, original_steps=50), "original_steps with a rectified flow"),
    (lambda: kd.lcm_schedule(FLOW, 4, strength=0.5), "strength with a rectified flow"),
    (lambda: kd.lcm_schedule(VP, 4, timestep_spacing="trailing"), "timestep_spacing without"),
    (lambda: FLOW.add_noise(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.ones(3)), "one a sample"),
    (lambda: FLOW.velocity(jnp.ones((2, 3)), jnp.ones((3, 2))), "differ"),
    (lambda: kd.stack([kd.dpm2_schedule(n, 3) for n in (FLOW, VP)]), "stack them apart"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_networks_of_another_process_are_refused():
    x, flow, vp = jnp.ones((2, 3)), kd.dpm2_schedule(FLOW, 3), kd.dpm2_schedule(VP, 3)
    for prediction_type in ("epsilon", "v_prediction"):
        denoise = kd.clipped(kd.denoiser(network, prediction_type))
        with pytest.raises(ValueError, match=r"rectified flow.*'flow_prediction'"):
            kd.sample(denoise, None, flow, x)
    with pytest.raises(ValueError, match=r"rectified flow.*kd\.flow_schedule"):
        kd.sample(kd.denoiser(network, "flow_prediction"), None, vp, x)
    assert np.all(np.isfinite(kd.sample(kd.denoiser(network, "sample"), None, flow, x)))
