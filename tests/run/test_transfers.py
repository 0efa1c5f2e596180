"""No hidden transfers: what is sent to a device is sent openly, where arguments are there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers import NOISE

import kdiff_jax as kd

KEY = jax.random.key(0)
LEVELS = kd.levels(NOISE, 3)
ANCESTRAL = kd.dpm2_ancestral(LEVELS)
PADDED, STACK = ANCESTRAL.pad(9), kd.stack([ANCESTRAL, ANCESTRAL])
X, SCALE = jnp.ones((2, 3)), jnp.float32(0.1)
OTHER, ANGLES, AT = X - 2, jnp.linspace(0, 1, 2), jnp.array([0, 1])
DENOISE = kd.denoiser(lambda params, x, timestep: params * x)
ROW, STATE = ANCESTRAL[1], kd.init(ANCESTRAL, X)
PREDICTION = DENOISE(SCALE, X, ROW)
GIVEN, PATH = kd.given_noise(jnp.ones((3, 2, 3))), kd.brownian_noise()


def run(schedule=ANCESTRAL, x=X, key=KEY, **options):
    return kd.sample(DENOISE, SCALE, schedule, x, key, **options)


CALLS = {
    "levels": lambda: kd.levels(kd.noise_schedule(), 3, grid="karras"),
    "flow": lambda: kd.euler(kd.levels(kd.flow_schedule(3.0), 3)),
    "lcm": lambda: kd.lcm(kd.lcm_levels(NOISE, 3)),
    "dpm2": lambda: kd.dpm2(LEVELS),
    "rows": lambda: [*ANCESTRAL, ANCESTRAL[-1], PADDED[1]],
    "slices": lambda: (ANCESTRAL[2:], PADDED[2:], ANCESTRAL.pad(7)),
    "stack": lambda: kd.stack([ANCESTRAL, ANCESTRAL]),
    "rows_at": lambda: (STACK.rows_at(AT), ANCESTRAL.rows_at(AT)),
    "json": lambda: kd.Schedule.from_json(ANCESTRAL.to_json()),
    "denoise": lambda: DENOISE(SCALE, X, ROW),
    "wrappers": lambda: (kd.clipped(DENOISE), kd.guided(DENOISE, 2.0, X), kd.thresholded(DENOISE)),
    "guiders": lambda: (
        kd.cfg_plus_plus(DENOISE, 0.6, X),
        kd.projected(DENOISE, 2.0, X, eta=0.3, norm_threshold=2.0),
        kd.autoguided(DENOISE, 2.0),
    ),
    "clipped": lambda: kd.clipped(DENOISE)(SCALE, X, ROW),
    "initial_sample": lambda: kd.initial_sample(ANCESTRAL, KEY, (2, 3)),
    "row_noise": lambda: kd.row_noise(KEY, ROW, (2, 3)),
    "add_noise": lambda: kd.add_noise(ROW, X, OTHER),
    "given_noise": lambda: kd.given_noise(OTHER[None])(None, ROW, (2, 3)),
    "brownian_noise": lambda: kd.brownian_noise(0.01, 20.0)(KEY, ROW, (2, 3)),
    "slerp": lambda: (kd.slerp(X, OTHER, ANGLES), kd.slerp(X, OTHER, 0.3)),
    "init": lambda: kd.init(ANCESTRAL, X),
    "step": lambda: kd.step(STATE, ROW, PREDICTION, key=KEY),
    "step, noise": lambda: kd.step(STATE, ROW, PREDICTION, noise=X),
    "sample": run,
    "sample, padded": lambda: run(PADDED),
    "sample, stacked": lambda: run(STACK),
    "sample, resumed": lambda: run(ANCESTRAL[2:], STATE),
    "sample, progress": lambda: run(progress=True),
    "sample, saved": lambda: run(save_fn=lambda state, prediction, row: state.sample),
    "sample, given": lambda: run(noise_fn=GIVEN, key=None),
    "sample, path": lambda: run(noise_fn=PATH),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_passes_the_transfer_guard(name):
    if name == "sample, progress":
        pytest.importorskip("tqdm")
    with jax.transfer_guard("disallow"):
        CALLS[name]()


def test_the_guard_stops_what_is_sent_by_itself():
    with jax.transfer_guard("disallow"), pytest.raises(Exception, match="Disallowed host-to-dev"):
        X + np.float32(1)
