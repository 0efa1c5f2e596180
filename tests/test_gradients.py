"""Gradients through whole runs: right in both modes, and in bounded memory."""

import collections
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
from samplers import ELEMENTWISE, NOISE, SAMPLERS, relative_error

import kdiff_jax as kd

KEY = jax.random.key(31)
SHAPE = (2, 4)
REMATS = ("none", "rows", "segments")
elementwise = kd.denoiser(sp.elementwise_model)
every_remat = pytest.mark.parametrize("remat", REMATS)


def sampled(theta, schedule, **options):
    """A number that depends on the initial sample, the network and the whole table."""
    out = kd.sample(elementwise, theta["params"], schedule, theta["x"], KEY, **options)
    return jnp.sum(jnp.sin(out))


def theta_of(dtype):
    x = 3 * jax.random.normal(KEY, SHAPE, jnp.float32).astype(dtype)
    return {"x": x, "params": {name: jnp.asarray(v, dtype) for name, v in ELEMENTWISE.items()}}


def unrolled(theta, schedule):
    """The same number from a plain Python loop over the rows."""
    state = kd.init(schedule, theta["x"])
    for row in schedule:
        prediction = elementwise(theta["params"], state.sample, row)
        state = kd.step(state, row, prediction, key=KEY)
    return jnp.sum(jnp.sin(state.sample))


@pytest.mark.parametrize("name", ["euler", "dpm2", "ancestral", "lcm"])
def test_both_modes_match_finite_differences_and_the_unrolled_loop_in_float64(name):
    with sp.x64():
        schedule, theta = SAMPLERS[name](4), theta_of(jnp.float64)
        value = jax.jit(functools.partial(sampled, schedule=schedule))
        expected = jax.grad(unrolled)(theta, schedule)
        reverse = {
            remat: jax.grad(functools.partial(sampled, schedule=schedule, remat=remat))(theta)
            for remat in REMATS
        }
        for gradient in reverse.values():
            for got, leaf in zip(*map(jax.tree.leaves, (gradient, expected)), strict=True):
                assert relative_error(got, leaf) < 1e-11
        direction = jax.tree.map(
            lambda leaf: jnp.cos(1 + jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape),
            theta,
        )
        ends = [
            value(jax.tree.map(lambda at, d, h=h: at + h * d, theta, direction))
            for h in (1e-6, -1e-6)
        ]
        slope = float(ends[0] - ends[1]) / 2e-6
        products = jax.tree.map(lambda g, d: float(jnp.sum(g * d)), expected, direction)
        assert sum(jax.tree.leaves(products)) == pytest.approx(slope, rel=1e-6)
        for table in (schedule, schedule.pad(9)):
            forward = functools.partial(sampled, schedule=table)
            _, tangent = jax.jvp(forward, (theta,), (direction,))
            assert float(tangent) == pytest.approx(slope, rel=1e-6)


@every_remat
def test_the_network_is_traced_once_and_remat_changes_no_sample(remat):
    count: collections.Counter[str] = collections.Counter()

    def model_fn(params, x, timestep):
        count["traced"] += 1
        jax.debug.callback(lambda: count.update(evaluated=1))
        return params * x

    for steps in (1, 2, 6):
        count.clear()
        schedule = SAMPLERS["ancestral"](steps)
        run = kd.denoiser(model_fn), jnp.float32(0.1), schedule, jnp.ones(SHAPE), KEY
        got = kd.sample(*run, remat=remat)
        jax.effects_barrier()
        assert count == {"traced": 1, "evaluated": schedule.num_rows}
        assert relative_error(got, kd.sample(*run)) < 1e-6


@every_remat
def test_a_gradient_evaluates_the_network_as_often_as_is_said(remat):
    count: collections.Counter[str] = collections.Counter()

    def model_fn(params, x, timestep):
        def compute(x):
            count["evaluated"] += 1
            return np.sin(x)

        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        waves = jax.custom_jvp(lambda x: jax.pure_callback(compute, shape, x))

        @waves.defjvp
        def slope(primals, tangents):
            out = waves(*primals)
            return out, tangents[0] * out

        return params * waves(x)

    schedule = SAMPLERS["dpm2"](5)

    def total(x):
        out = kd.sample(kd.denoiser(model_fn), jnp.float32(0.1), schedule, x, remat=remat)
        return jnp.sum(out)

    jax.block_until_ready(jax.jit(jax.grad(total))(jnp.ones(SHAPE)))
    times = {"none": 1, "rows": 2, "segments": 3}[remat]
    assert count["evaluated"] == times * schedule.num_rows


def wide_model(params, x, timestep):
    """Its intermediates are 64 times as large as the sample."""
    hidden = jnp.tanh(x[:, :, None] * params)
    return jnp.mean(jnp.tanh(hidden * jnp.cos(hidden)), axis=2)


def scratch(steps, remat, save_fn=None):
    schedule = kd.euler_schedule(NOISE, steps)

    def total(x, params):
        out = kd.sample(kd.denoiser(wide_model), params, schedule, x, remat=remat, save_fn=save_fn)
        return jax.tree.reduce(jnp.add, jax.tree.map(lambda leaf: jnp.sum(jnp.cos(leaf)), out))

    args = jnp.ones((1, 1024)), jnp.ones((1, 1, 64))
    program = jax.jit(jax.grad(total)).lower(*args).compile()
    memory: Any = program.memory_analysis()
    return memory.temp_size_in_bytes / (4 * 1024)


def test_memory_grows_with_the_samples_of_rows_or_of_segments_only():
    growth = {remat: (scratch(100, remat) - scratch(36, remat)) / 64 for remat in REMATS}
    # In samples a row: the network's intermediates; the sample; its share of 2 sqrt(R).
    assert growth["none"] > 64
    assert 0.5 < growth["rows"] < 4
    assert growth["segments"] < 0.5


def test_what_is_saved_is_remembered_once_not_once_a_row():
    def save_fn(state, prediction, row):
        return state.sample

    for remat in REMATS:
        without, saving = scratch(36, remat), scratch(36, remat, save_fn)
        assert saving - without < 2 * 36 + 4, remat


@pytest.mark.parametrize("name", ["euler", "ancestral"])
def test_a_padded_schedule_says_that_it_has_no_reverse_mode(name):
    schedule = SAMPLERS[name](3).pad(9)
    total = functools.partial(sampled, schedule=schedule)
    theta = theta_of(jnp.float32)
    for call in (jax.grad(total), jax.jit(jax.grad(total)), jax.jacrev(total)):
        with pytest.raises(ValueError, match=r"padded schedule has no reverse mode.*before pad"):
            call(theta)
    slopes = jax.jit(jax.jacfwd(total))(theta)
    expected = jax.grad(functools.partial(sampled, schedule=SAMPLERS[name](3)))(theta)
    for got, leaf in zip(*map(jax.tree.leaves, (slopes, expected)), strict=True):
        assert relative_error(got, leaf) < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unroll": 0}, "unroll = 0 is too small"),
        ({"unroll": 1.5}, "unroll = 1.5 is not an integer"),
        ({"unroll": True}, "unroll = True is not an integer"),
        ({"remat": "all"}, "remat = 'all' is not known; choose one of 'none', 'rows', 'segments'"),
        ({"remat": None}, "remat = None is not known"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sampled(theta_of(jnp.float32), SAMPLERS["dpm2"](3), **options)
