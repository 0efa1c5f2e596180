"""Gradients through whole runs: right in both modes, and in bounded memory."""

import collections
import dataclasses
import functools
import itertools
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


by_hand = jax.jit(jax.grad(unrolled))
reverse = {remat: jax.jit(jax.grad(functools.partial(sampled, remat=remat))) for remat in REMATS}


@jax.jit
def forward(theta, direction, schedule):
    return jax.jvp(functools.partial(sampled, schedule=schedule), (theta,), (direction,))


def of_one_shape(schedule):
    """Five rows with the columns of every sampler: all tables share the programs of one."""
    sigmas = jnp.pad(schedule.sigmas, (0, 6 - len(schedule.sigmas)))
    return dataclasses.replace(sp.widened(schedule), sigmas=sigmas)


STEPS = {"dpm2": 3, "ancestral": 3, "lcm": 5, "tcd": 5, "unipc": 5}


@pytest.mark.parametrize(
    ("name", "columns"), [("dpm2", "its own"), *((name, "all") for name in STEPS)]
)
def test_both_modes_match_finite_differences_and_the_unrolled_loop_in_float64(name, columns):
    with sp.x64():
        schedule, theta = SAMPLERS[name](STEPS[name]), theta_of(jnp.float64)
        schedule = of_one_shape(schedule) if columns == "all" else schedule
        expected = by_hand(theta, schedule)
        for remat in REMATS if columns == "all" else ("none",):
            gradient = reverse[remat](theta, schedule)
            for got, leaf in zip(*map(jax.tree.leaves, (gradient, expected)), strict=True):
                assert relative_error(got, leaf) < 1e-11
        direction = jax.tree.map(
            lambda leaf: jnp.cos(1 + jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape),
            theta,
        )
        products = jax.tree.map(lambda g, d: float(jnp.sum(g * d)), expected, direction)
        for table in (schedule, schedule.pad(9)):
            _, tangent = forward(theta, direction, table)
            ends = [
                forward(
                    jax.tree.map(lambda at, d, h=h: at + h * d, theta, direction), direction, table
                )[0]
                for h in (1e-6, -1e-6)
            ]
            slope = float(ends[0] - ends[1]) / 2e-6
            assert float(tangent) == pytest.approx(slope, rel=1e-6)
            assert sum(jax.tree.leaves(products)) == pytest.approx(slope, rel=1e-6)


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
        assert relative_error(got, sp.run_by_hand(*run)[-1].sample) < 1e-6


@every_remat
def test_a_gradient_evaluates_the_network_as_often_as_is_documented(remat):
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


@functools.cache
def scratch(steps, remat, save_fn=None):
    schedule = kd.euler(kd.levels(NOISE, steps))

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
def test_a_padded_schedule_has_forward_mode_and_in_reverse_the_error_of_jax(name):
    schedule = SAMPLERS[name](3).pad(9)
    total = functools.partial(sampled, schedule=schedule)
    theta = theta_of(jnp.float32)
    for call in (jax.grad(total), jax.jit(jax.grad(total))):
        with pytest.raises(ValueError, match="Reverse-mode differentiation does not work"):
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


# --- gradients for the levels and the numbers of a sampler -----------------------------------

THETA: dict[str, Any] = {
    "z": 0.4,
    "gain": 0.7,
    "shift": 0.3,
    "sigma_max": 9.0,
    "sigma_min": 0.05,
    "rho": 6.0,
}
DRAW = ("ancestral", "2m_sde", "2s", "sde")
BUILDERS: dict[str, Any] = {
    "euler": kd.euler,
    "dpm2": kd.dpm2,
    "ancestral": kd.dpm2_ancestral,
    "2m_sde": kd.dpmpp_2m,
    "3m": kd.dpmpp_3m,
    "unipc": kd.unipc,
    "heun": kd.heun,
    "2s": kd.dpmpp_2s_ancestral,
    "sde": kd.dpmpp_sde,
}


ONE_ROW_A_STEP = ("euler", "2m_sde", "3m", "unipc")
TWO_ROWS_A_STEP = ("dpm2", "ancestral", "heun", "2s", "sde")


def tables_of(theta, names):
    levels = kd.levels(
        NOISE, 4, grid="karras", **{k: theta[k] for k in ("sigma_max", "sigma_min", "rho")}
    )
    extra = {k: theta[k] for k in ("eta", "s_noise") if k in theta}
    return [BUILDERS[name](levels, **(extra if name in DRAW else {})) for name in names]


def losses(theta, names):
    """[len(names)], a number from a run of each sampler, all of them in one program."""
    schedule = kd.stack(tables_of(theta, names))
    z = theta["z"] + jnp.linspace(-1, 1, 6)
    x = schedule.init_noise_sigma[:, None] * z[None]
    params = {"gain": theta["gain"], "shift": theta["shift"]}
    out = kd.sample(elementwise, params, schedule, x, jax.random.split(KEY, len(names)))
    return jnp.sum(jnp.sin(out), axis=1)


@pytest.mark.parametrize("names", [ONE_ROW_A_STEP, TWO_ROWS_A_STEP])
def test_gradients_for_a_grid_match_finite_differences(names):
    with sp.x64():
        theta = THETA | {"eta": 0.6, "s_noise": 1.1}
        theta = {k: jnp.asarray(v, jnp.float64) for k, v in theta.items()}
        run = functools.partial(losses, names=names)

        @jax.jit
        def values_and_gradients(theta):
            values, pullback = jax.vjp(run, theta)
            return values, jax.vmap(pullback)(jnp.eye(len(names), dtype=values.dtype))[0]

        _, gradient = values_and_gradients(theta)
        for k, at in theta.items():
            h = 1e-3 * at
            ends = [np.asarray(values_and_gradients(theta | {k: at + d})[0]) for d in (h, -h)]
            expected = (ends[0] - ends[1]) / (2 * float(h))
            # Timesteps reach the network in float32 and change slope at every training level.
            np.testing.assert_allclose(gradient[k], expected, rtol=2e-3, err_msg=k)


def test_gradients_are_finite_at_the_edges():
    @jax.jit
    @jax.grad
    def gradient(theta):
        return losses(THETA | theta, ["ancestral"])[0]

    for eta, s_noise in ((0.0, 1.0), (1.0, 0.0)):
        slopes = gradient({"eta": jnp.float32(eta), "s_noise": jnp.float32(s_noise)})
        assert all(np.isfinite(slope) for slope in slopes.values())


@pytest.mark.parametrize("name", ["dpm2", "ancestral", "lcm", "unipc"])
def test_gradient_for_the_initial_sample_and_params_is_finite_and_not_zero(name):
    gradient = jax.jit(jax.grad(functools.partial(sampled, schedule=SAMPLERS[name](4))))
    for leaf in jax.tree.leaves(gradient(theta_of(jnp.float32))):
        assert np.all(np.isfinite(leaf))
        assert np.all(np.asarray(leaf) != 0)


# --- gradients in the weights of a table -----------------------------------------------------

WEIGHTS = (
    "denoised_weight",
    "epsilon_weight",
    "anchor_weight",
    "denoised_weight_1",
    "denoised_weight_2",
)


def test_gradients_in_weights_that_are_exactly_0_match_finite_differences():
    # A term is left out where its weight is 0, but its derivative is not 0 there.
    with sp.x64():
        table = SAMPLERS["dpm2"](3)
        rows = table.rows
        zeros = jnp.zeros_like(rows.sigma)
        rows = dataclasses.replace(rows, denoised_weight_1=zeros, denoised_weight_2=zeros)
        weights = {name: getattr(rows, name) for name in WEIGHTS}
        theta = theta_of(jnp.float64)

        @jax.jit
        def value(weights, remat="none"):
            edited = dataclasses.replace(table, rows=dataclasses.replace(rows, **weights))
            return sampled(theta, edited)

        gradient = jax.jit(jax.grad(value))(weights)
        direction = jax.jit(lambda w, d: jax.jvp(value, (w,), (d,))[1])
        seen = 0
        for name, i in itertools.product(WEIGHTS, range(table.num_rows)):
            one = jnp.zeros_like(rows.sigma).at[i].set(1.0)
            ends = [value(weights | {name: weights[name] + h * one}) for h in (1e-6, -1e-6)]
            expected = float(ends[0] - ends[1]) / 2e-6
            assert float(gradient[name][i]) == pytest.approx(expected, rel=1e-6, abs=1e-8), (
                name,
                i,
            )
            tangent = {k: one if k == name else zeros for k in WEIGHTS}
            assert float(direction(weights, tangent)) == pytest.approx(expected, rel=1e-6, abs=1e-8)
            seen += float(weights[name][i]) == 0 and abs(expected) > 1e-3
        # Of each column, at least the rows that have a value to weigh.
        assert seen >= 10


def test_a_noise_weight_of_exactly_0_draws_nothing_and_has_no_gradient():
    levels, x = kd.levels(NOISE, 3), jnp.ones((2, 3))
    denoise = kd.denoiser(lambda params, x, timestep: params * x)

    @jax.jit
    @jax.grad
    def slope(s_noise):
        schedule = kd.dpm2_ancestral(levels, s_noise=s_noise)
        return jnp.sum(kd.sample(denoise, jnp.float32(0.1), schedule, x, jax.random.key(0)))

    assert float(slope(jnp.float32(0))) == 0
    # The loss is linear in s_noise, so that this slope is the one at 0 as well.
    assert abs(float(slope(jnp.float32(1e-6)))) > 1
