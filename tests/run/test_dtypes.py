"""Which dtype the sample, the network's input and the noise have; samples of every rank."""

import jax
import jax.numpy as jnp
import pytest
import samplers as sp
from samplers import ELEMENTWISE, MIXING, SAMPLERS, relative_error, run_by_hand

import kdiff_jax as kd
from kdiff_jax._table.schedule import NEUTRAL

N, SHAPE = 4, (4, 8)
KEY = jax.random.key(11)
elementwise = kd.denoiser(sp.elementwise_model)
mixing = kd.denoiser(sp.mixing_model, "v_prediction")


def start(name, steps=N, shape=SHAPE):
    schedule = SAMPLERS[name](steps)
    return schedule, kd.initial_sample(schedule, KEY, shape)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, jnp.bfloat16) for name in ("dpm2", "ancestral", "lcm")),
        ("dpm2", jnp.float16),
        ("dpm2", jnp.float32),
    ],
)
def test_the_state_is_float32_whatever_x_and_the_network_are(name, dtype):
    schedule, x = start(name)
    x = x.astype(dtype)
    low = kd.denoiser(sp.elementwise_model, dtype=dtype)
    got = kd.sample(low, ELEMENTWISE, schedule, x, KEY)
    states = run_by_hand(low, ELEMENTWISE, schedule, x, KEY)
    assert {got.dtype, *(leaf.dtype for leaf in jax.tree.leaves(states))} == {jnp.dtype("float32")}
    full = kd.sample(elementwise, ELEMENTWISE, schedule, x.astype(jnp.float32), KEY)
    # The network's rounding passes, at most a few units of its precision; the state adds none.
    assert relative_error(got, full) <= 4 * float(jnp.finfo(dtype).eps)


@pytest.mark.parametrize("name", sp.ONE_OF_EACH)
def test_histories_are_float32_whatever_dtype_a_denoiser_returns(name):
    schedule, x = start(name)
    low = kd.Prediction(x.astype(jnp.bfloat16), x.astype(jnp.bfloat16))
    state = kd.init(schedule, x.astype(jnp.bfloat16))
    after = kd.step(state, schedule[1], low, key=KEY)
    for leaves in map(jax.tree.leaves, (state, after)):
        assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", ["ancestral", "unipc"])
def test_matmul_precision_is_about_the_network_alone(name):
    schedule, x = start(name)

    def products(denoise, params):
        run = jax.jit(kd.sample).lower(denoise, params, schedule, x, KEY)
        return [line for line in run.as_text().splitlines() if "stablehlo.dot" in line]

    with jax.default_matmul_precision("highest"):
        assert products(elementwise, ELEMENTWISE) == []
        ours = products(mixing, MIXING)
    assert ours
    assert all("HIGHEST" in line for line in ours)
    assert not any("HIGHEST" in line for line in products(mixing, MIXING))


def test_the_network_sees_its_dtype_and_a_float32_timestep():
    seen = []

    def model_fn(params, x, timestep):
        seen.append((x.dtype, timestep.dtype, timestep.shape))
        return x

    schedule, x = start("dpm2")
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32, None):
        kd.denoiser(model_fn, dtype=dtype)(None, x.astype(jnp.bfloat16), schedule[0])
    inputs = ["bfloat16", "float16", "float32", "float32"]
    assert seen == [(jnp.dtype(name), jnp.dtype("float32"), (4,)) for name in inputs]


@pytest.mark.parametrize("name", SAMPLERS)
def test_float64_stays_float64_under_x64(name):
    with sp.x64():
        schedule, x = start(name)
        assert x.dtype == schedule.sigmas.dtype == schedule.rows.sigma.dtype == jnp.float64
        weights = [v for n, v in vars(schedule.rows).items() if "weight" in n and v is not None]
        assert {weight.dtype for weight in weights} == {jnp.dtype("float64")}
        noise = [kd.row_noise(KEY, row, SHAPE) for row in schedule]
        padded = schedule.pad(9, tuple(NEUTRAL))  # every column of any sampler, in one program
        got = kd.sample(mixing, MIXING, padded, x, KEY)
        assert got.dtype == jnp.float64
        assert {z.dtype for z in noise} == {jnp.dtype("float32")}
        expected = sp.run_in_numpy(mixing, MIXING, schedule, x, noise)
        assert relative_error(got, expected) < 1e-13
        single = kd.sample(mixing, MIXING, padded, x.astype(jnp.float32), KEY)
        assert single.dtype == jnp.float32


SHAPES = (3,), (3, 4), (3, 2, 2), (3, 2, 1, 2), (3, 1, 2, 2, 1)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *(("ancestral", shape) for shape in SHAPES),
        *((name, shape) for name in ("dpm2", "lcm") for shape in (SHAPES[0], SHAPES[-1])),
    ],
)
def test_samples_of_rank_1_to_5(name, shape):
    schedule, x = start(name, 2, shape)
    noise = [kd.row_noise(KEY, row, shape) for row in schedule]
    got = kd.sample(elementwise, ELEMENTWISE, schedule, x, KEY)
    assert got.shape == shape
    expected = sp.run_in_numpy(jax.jit(elementwise), ELEMENTWISE, schedule, x, noise)
    assert relative_error(got, expected) < 2e-6
