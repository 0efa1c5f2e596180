"""Denoisers that callers write, and values one a sample under guidance."""

import functools

import jax
import jax.numpy as jnp
import pytest
from samplers import MIXING, NOISE, mixing_model, relative_error, run_by_hand

import kdiff_jax as kd

mixing = kd.denoiser(mixing_model, "v_prediction")


def start():
    schedule = kd.dpm2_schedule(NOISE, 4)
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


def test_a_value_one_a_sample_inside_the_doubled_batch_is_refused():
    schedule, x = start()
    inside = kd.guided(kd.clipped(mixing, jnp.ones(4)), 2.0, jnp.float32(0))
    with pytest.raises(ValueError, match="the batch is doubled"):
        kd.sample(inside, MIXING, schedule, x, cond=jnp.ones(4))
    around = kd.clipped(kd.guided(mixing, jnp.full(4, 2.0), jnp.float32(0)), jnp.ones(4))
    assert kd.sample(around, MIXING, schedule, x, cond=jnp.ones(4)).shape == x.shape
