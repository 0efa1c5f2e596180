"""Denoisers that callers write, and values one a sample under guidance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers import MIXING, NOISE, mixing_model, relative_error, run_by_hand

import kdiff_jax as kd

mixing = kd.denoiser(mixing_model, "v_prediction")


def start():
    schedule = kd.dpm2(kd.levels(NOISE, 4))
    return schedule, kd.initial_sample(schedule, jax.random.key(0), (4, 8))


class OwnDenoiser:
    def __call__(self, params, x, row, cond=None):
        return kd.Prediction(params * x, (1 - params) * x / row.sigma)


def own_denoise(params, x, row, cond=None):
    return OwnDenoiser()(params, x, row, cond)


@pytest.mark.parametrize("denoise", [own_denoise, OwnDenoiser(), functools.partial(own_denoise)])
def test_any_callable_of_the_signature_is_a_denoiser(denoise):
    schedule, x = start()
    params = jnp.float32(0.4)
    by_hand = run_by_hand(own_denoise, params, schedule, x)[-1].sample
    assert relative_error(kd.sample(denoise, params, schedule, x), by_hand) < 1e-6


def test_a_denoiser_may_read_the_units_of_a_row_that_the_table_leaves_out():
    """alpha and input_scale are None in one table or the other: rows have the constant 1 there."""

    def denoise(params, x, row, cond=None):
        denoised = params * row.input_scale * x
        return kd.Prediction(denoised, (x - row.alpha * denoised) / row.sigma)

    flow = kd.dpm2(kd.levels(kd.flow_schedule(), 4))
    for schedule in (start()[0], flow):
        assert (schedule.rows.alpha is None) != (schedule.rows.input_scale is None)
        x, params = jnp.ones((4, 8)), jnp.float32(0.4)
        by_hand = run_by_hand(denoise, params, schedule, x)[-1].sample
        assert relative_error(kd.sample(denoise, params, schedule, x), by_hand) < 1e-6


def test_a_value_one_a_sample_inside_the_doubled_batch_is_refused():
    schedule, x = start()
    inside = kd.guided(kd.clipped(mixing, jnp.ones(4)), 2.0, jnp.float32(0))
    with pytest.raises(ValueError, match="the batch is doubled"):
        kd.sample(inside, MIXING, schedule, x, cond=jnp.ones(4))
    around = kd.clipped(kd.guided(mixing, jnp.full(4, 2.0), jnp.float32(0)), jnp.ones(4))
    assert kd.sample(around, MIXING, schedule, x, cond=jnp.ones(4)).shape == x.shape


def test_a_value_one_a_sample_is_welcome_inside_two_calls():
    schedule, x = start()
    clip, scales = np.array([0.5, 0.6, 0.7, 0.8]), np.array([0, 1, 2.5, 7])
    cond, uncond = np.array([0.5, -1, 2, 0], np.float32), np.array([0.25, 1, 0, -0.5], np.float32)
    denoise = kd.guided(kd.clipped(mixing, clip), scales, uncond, batched=False)
    prediction = denoise(MIXING, x, schedule[1], cond)
    for b in range(4):
        alone = kd.guided(kd.clipped(mixing, clip[b]), scales[b], uncond[b])
        one = alone(MIXING, x[b : b + 1], schedule[1], cond[b : b + 1])
        assert relative_error(prediction.denoised[b : b + 1], one.denoised) < 1e-6


def test_an_error_inside_of_the_network_stays_its_own():
    def network(params, x, timestep):
        return len(3)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="has no len") as refused:
        kd.denoiser(network)(None, jnp.ones((2, 3)), kd.dpm2(kd.levels(kd.noise_schedule(), 3))[0])
    assert "arrays of JAX: docs/networks.md" in refused.value.__notes__[0]

    class OfNoSignature:
        __signature__ = "none"
        __call__ = staticmethod(network)

    with pytest.raises(TypeError, match="has no len"):
        kd.denoiser(OfNoSignature())(
            None, jnp.ones((2, 3)), kd.dpm2(kd.levels(kd.noise_schedule(), 3))[0]
        )
