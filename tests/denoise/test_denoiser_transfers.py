"""A call of a denoiser whose arguments are on the device sends nothing to it."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import kdiff_jax as kd


@jax.jit
def model_fn(params, x, timestep, cond):
    return (params * cond[:, None]).astype(x.dtype) * x


NOISE = kd.noise_schedule("scaled_linear")
X, COND, PARAMS = jnp.ones((2, 3)), jnp.ones(2), jnp.float32(0.1)
PLAIN, ZERO = kd.denoiser(model_fn), jnp.float32(0)
ROWS = {
    "dpm2": kd.dpm2(kd.levels(NOISE, 3))[0],
    "[B]": kd.dpm2(kd.levels(NOISE, 3)).rows_at(jnp.array([0, 2])),
}
DENOISERS: dict[str, Any] = {
    "epsilon": PLAIN,
    "v_prediction": kd.denoiser(model_fn, "v_prediction", jnp.bfloat16),
    "sample": kd.denoiser(model_fn, "sample"),
    "edm": kd.edm_denoiser(model_fn),
    "continuous": kd.continuous(PLAIN, "angle"),
    "clipped": kd.clipped(PLAIN),
    "thresholded": kd.thresholded(PLAIN),
    "consistency": kd.consistency(PLAIN),
    "inpainted": kd.inpainted(PLAIN, X, X, X),
    "guided": kd.guided(PLAIN, 2.0, ZERO, interval=(0.1, 3.0), rescale=0.7),
    "guided by two calls": kd.guided(PLAIN, 2.0, ZERO, rescale=0.7, batched=False),
    "per step": kd.guided(PLAIN, jnp.ones(3), ZERO, per_step=True),
    "projected": kd.projected(PLAIN, 2.0, ZERO, norm_threshold=1.0),
    "cfg_plus_plus": kd.cfg_plus_plus(PLAIN, 0.6, ZERO),
    "autoguided": kd.autoguided(PLAIN, 2.0),
    "rescaled v": kd.guided(PLAIN, 2.0, ZERO, rescale=0.7, rescale_of="v_prediction"),
}


@pytest.mark.parametrize("name", DENOISERS)
def test_a_call_transfers_nothing(name):
    params = (PARAMS, PARAMS) if name == "autoguided" else PARAMS
    for row in ROWS.values():
        with jax.transfer_guard("disallow"):
            DENOISERS[name](params, X, row, COND)


def test_an_embedding_transfers_nothing():
    with jax.transfer_guard("disallow"):
        kd.guidance_embedding(COND, 8)
