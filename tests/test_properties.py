"""What must hold for every sampler of the table in `samplers.py`, whatever its rows hold."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
from samplers import ELEMENTWISE, MIXING, SAMPLERS, STOCHASTIC, relative_error, run_by_hand

import kdiff_jax as kd

N, SHAPE = 4, (4, 8)
KEY = jax.random.key(11)
elementwise = kd.denoiser(sp.elementwise_model)
mixing = kd.denoiser(sp.mixing_model, "v_prediction")
every_sampler = pytest.mark.parametrize("name", SAMPLERS)
every_stochastic_sampler = pytest.mark.parametrize("name", STOCHASTIC)
main_samplers = pytest.mark.parametrize("name", ["dpm2", "ancestral", "lcm"])


def start(name, steps=N, shape=SHAPE):
    schedule = SAMPLERS[name](steps)
    return schedule, kd.initial_sample(schedule, KEY, shape)


def rows_at(schedule, places):
    """A row with leaves [B], each sample's its own."""
    return jax.tree.map(lambda leaf: leaf[np.array(places)], schedule.rows)


def key_of(schedule, key=KEY):
    return None if schedule.deterministic else key


@functools.partial(jax.jit, static_argnames="denoise")
def scanned_by_hand(denoise, params, schedule, x, key):
    def body(state, row):
        return kd.step(state, row, denoise(params, state.sample, row), key=key), None

    return jax.lax.scan(body, kd.init(schedule, x), schedule.rows)[0].sample


# --- by hand, scanned by hand, kd.sample -----------------------------------------------------


@every_sampler
def test_by_hand_and_scanned_equal_sample(name):
    schedule, x = start(name)
    whole = kd.sample(mixing, MIXING, schedule, x, key_of(schedule))
    by_hand = run_by_hand(mixing, MIXING, schedule, x, key_of(schedule))[-1].sample
    scanned = scanned_by_hand(mixing, MIXING, schedule, x, key_of(schedule))
    assert relative_error(by_hand, whole) < 1e-6
    assert relative_error(scanned, whole) < 1e-6


@every_sampler
def test_sample_is_the_line_of_the_design_in_float64(name):
    schedule, x = start(name)
    noise = [kd.row_noise(KEY, row, SHAPE) for row in schedule]
    expected = sp.run_in_numpy(mixing, MIXING, schedule, x, noise)
    assert relative_error(kd.sample(mixing, MIXING, schedule, x, KEY), expected) < 2e-6


@every_stochastic_sampler
def test_by_hand_scanned_and_sample_draw_the_same_noise_bitwise(name):
    schedule, x = start(name)
    for k, row in enumerate(schedule):
        z = kd.row_noise(KEY, row, SHAPE)
        only = sp.keep_noise_of(schedule, k)
        run = sp.identity_denoise, None, only, x, KEY
        np.testing.assert_array_equal(kd.sample(*run), z)
        np.testing.assert_array_equal(scanned_by_hand(*run), z)
        np.testing.assert_array_equal(run_by_hand(*run)[-1].sample, z)


@main_samplers
def test_not_jitted_equals_jitted(name):
    schedule, x = start(name, 2, (2, 3))
    jitted = kd.sample(elementwise, ELEMENTWISE, schedule, x, key_of(schedule))
    with jax.disable_jit():
        eager = kd.sample(elementwise, ELEMENTWISE, schedule, x, key_of(schedule))
    assert relative_error(eager, jitted) < 1e-6


# --- resuming --------------------------------------------------------------------------------


@every_sampler
def test_resumed_at_any_outer_step_equals_uninterrupted(name):
    schedule, x = start(name)
    states = run_by_hand(mixing, MIXING, schedule, x, key_of(schedule))
    whole = kd.sample(mixing, MIXING, schedule, x, key_of(schedule))
    for step in range(N):
        rest = schedule.start_at(step)
        sample = states[schedule.num_rows - rest.num_rows].sample
        resumed = run_by_hand(mixing, MIXING, rest, sample, key_of(schedule))[-1]
        # The same compiled step on the same numbers, so bitwise.
        np.testing.assert_array_equal(resumed.sample, states[-1].sample)
        if step == N // 2:
            scanned = kd.sample(mixing, MIXING, rest, sample, key_of(schedule))
            assert relative_error(scanned, whole) < 1e-6


@every_stochastic_sampler
def test_resumed_sample_draws_the_noise_of_the_whole_run_bitwise(name):
    schedule, x = start(name)
    rest = schedule.start_at(2)
    first = schedule.num_rows - rest.num_rows
    for k in range(rest.num_rows):
        z = kd.row_noise(KEY, schedule[first + k], SHAPE)
        only = sp.keep_noise_of(rest, k)
        np.testing.assert_array_equal(kd.sample(sp.identity_denoise, None, only, x, KEY), z)


# --- neighbours, batches, rows of a batch ----------------------------------------------------


@every_sampler
def test_a_sample_depends_on_no_neighbour_order_or_batch_size(name):
    # 16 floats fill the widest vector register. What is left of a batch beyond full registers is
    # compiled into other instructions, whose last bit may differ (in JAX 0.6 and 0.12 it does).
    schedule, x = start(name, shape=(4, 16))
    keys = jax.random.split(KEY, len(x))

    def run(chosen):
        return kd.sample(elementwise, ELEMENTWISE, schedule, x[chosen], keys[chosen])

    whole = run(np.arange(4))
    for chosen in ([2, 0, 3, 1], [3, 3, 3, 3], [2], [0, 1, 2, 3, 3, 2, 1]):
        np.testing.assert_array_equal(run(np.array(chosen)), whole[np.array(chosen)])


@every_sampler
def test_each_sample_at_its_own_step_equals_each_run_alone(name):
    schedule, x = start(name, 3, (3, 8))
    keys = jax.random.split(KEY, 3)
    starts = [2, 0, 1]
    alone = [
        run_by_hand(mixing, MIXING, schedule.start_at(s), x[b : b + 1], keys[b : b + 1])[-1]
        for b, s in enumerate(starts)
    ]
    last = schedule.num_rows - 1
    first = np.array([schedule.num_rows - schedule.start_at(s).num_rows for s in starts])
    state = kd.init(schedule, x)
    for i in range(schedule.num_rows):
        rows = rows_at(schedule, np.minimum(first + i, last))
        after = kd.step(state, rows, mixing(MIXING, state.sample, rows), key=keys)
        running = jnp.asarray(first + i <= last)[:, None]
        state = jax.tree.map(lambda new, old, r=running: jnp.where(r, new, old), after, state)
    expected = np.concatenate([np.asarray(end.sample) for end in alone])
    assert relative_error(state.sample, expected) < 1e-6


@every_sampler
def test_a_sweep_under_vmap_equals_each_schedule_alone(name):
    schedule, x = start(name)
    other = SAMPLERS[name](N + 1).start_at(1)
    sweep = jax.tree.map(lambda *leaves: jnp.stack(leaves), schedule, other)

    def run(schedule):
        return kd.sample(mixing, MIXING, schedule, x, key_of(schedule))

    swept = jax.vmap(run)(sweep)
    for got, alone in zip(swept, (schedule, other), strict=True):
        assert relative_error(got, run(alone)) < 1e-6


@pytest.mark.parametrize("devices", [1, 2, 8])
@main_samplers
def test_sharded_over_devices_is_bitwise_the_same_without_collectives(name, devices):
    schedule, x = start(name, 3, (8, 16))
    expected = kd.sample(elementwise, ELEMENTWISE, schedule, x, key_of(schedule))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("batch",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    run = elementwise, ELEMENTWISE, schedule, jax.device_put(x, sharding), key_of(schedule)
    np.testing.assert_array_equal(got := kd.sample(*run), expected)
    assert len(got.sharding.device_set) == devices
    program = str(jax.jit(kd.sample).lower(*run).compile().as_text())
    for collective in ("all-reduce", "all-gather", "all-to-all", "collective-", "reduce-scatter"):
        assert collective not in program


# --- keys and noise --------------------------------------------------------------------------


@every_stochastic_sampler
def test_one_key_is_one_folded_key_a_sample(name):
    schedule, x = start(name)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(len(x)))
    np.testing.assert_array_equal(kd.initial_sample(schedule, keys, SHAPE), x)
    one = kd.sample(elementwise, ELEMENTWISE, schedule, x, KEY)
    many = kd.sample(elementwise, ELEMENTWISE, schedule, x, keys)
    np.testing.assert_array_equal(one, many)


@every_stochastic_sampler
def test_legacy_keys_are_the_typed_keys_they_hold(name):
    schedule, x = start(name)
    for typed in (KEY, jax.random.split(KEY, len(x))):
        expected = kd.sample(elementwise, ELEMENTWISE, schedule, x, typed)
        legacy = jax.random.key_data(typed)
        got = kd.sample(elementwise, ELEMENTWISE, schedule, x, legacy)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_keys_whose_noise_depends_on_neighbours_are_refused(impl):
    schedule, x = start("ancestral")
    key = jax.random.key(0, impl=impl)
    for call in (
        lambda: kd.initial_sample(schedule, key, SHAPE),
        lambda: kd.row_noise(key, schedule[1], SHAPE),
        lambda: kd.sample(elementwise, ELEMENTWISE, schedule, x, key),
        lambda: run_by_hand(elementwise, ELEMENTWISE, schedule, x, key),
    ):
        with pytest.raises(ValueError, match=f"{impl}.*threefry2x32"):
            call()
    with pytest.raises(ValueError, match="key"):
        kd.row_noise(jax.random.key_data(key), schedule[1], SHAPE)


@every_stochastic_sampler
def test_noise_handed_in_equals_its_key(name):
    schedule, x = start(name)
    for row, state in zip(
        schedule, run_by_hand(mixing, MIXING, schedule, x, KEY)[:-1], strict=True
    ):
        prediction = mixing(MIXING, state.sample, row)
        by_key = kd.step(state, row, prediction, key=KEY)
        by_noise = kd.step(state, row, prediction, noise=kd.row_noise(KEY, row, SHAPE))
        assert relative_error(by_noise.sample, by_key.sample) < 1e-6


# --- dtypes and ranks ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@main_samplers
def test_the_state_is_float32_whatever_x_and_the_network_are(name, dtype):
    schedule, x = start(name)
    x = x.astype(dtype)
    low = kd.denoiser(sp.elementwise_model, dtype=dtype)
    got = kd.sample(low, ELEMENTWISE, schedule, x, key_of(schedule))
    states = run_by_hand(low, ELEMENTWISE, schedule, x, key_of(schedule))
    assert {got.dtype, *(leaf.dtype for leaf in jax.tree.leaves(states))} == {jnp.dtype("float32")}
    full = kd.sample(elementwise, ELEMENTWISE, schedule, x.astype(jnp.float32), key_of(schedule))
    # The network's rounding passes, at most a few units of its precision; the state adds none.
    assert relative_error(got, full) <= 4 * float(jnp.finfo(dtype).eps)


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


@every_sampler
def test_float64_stays_float64_under_x64(name):
    with sp.x64():
        schedule, x = start(name)
        noise = [kd.row_noise(KEY, row, SHAPE) for row in schedule]
        got = kd.sample(mixing, MIXING, schedule, x, key_of(schedule))
        assert got.dtype == x.dtype == schedule.rows.sigma.dtype == jnp.float64
        assert {z.dtype for z in noise} == {jnp.dtype("float32")}
        expected = sp.run_in_numpy(mixing, MIXING, schedule, x, noise)
        assert relative_error(got, expected) < 1e-13
        single = kd.sample(mixing, MIXING, schedule, x.astype(jnp.float32), key_of(schedule))
        assert single.dtype == jnp.float32


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 2, 2), (3, 2, 1, 2), (3, 1, 2, 2, 1)])
@main_samplers
def test_samples_of_rank_1_to_5(name, shape):
    schedule, x = start(name, 2, shape)
    noise = [kd.row_noise(KEY, row, shape) for row in schedule]
    got = kd.sample(elementwise, ELEMENTWISE, schedule, x, key_of(schedule))
    assert got.shape == shape
    expected = sp.run_in_numpy(elementwise, ELEMENTWISE, schedule, x, noise)
    assert relative_error(got, expected) < 2e-6


# --- predictions and guidance ----------------------------------------------------------------

COND, UNCOND = np.array([0.5, -1, 2, 0], np.float32), np.float32(0.25)
ONE_SCALE, SCALES = np.float32(3), np.array([0, 1, 2.5, 7], np.float32)


def denoisers():
    for prediction_type in ("epsilon", "v_prediction", "sample"):
        base = kd.denoiser(sp.mixing_model, prediction_type)
        guided = kd.guided(base, SCALES, UNCOND)
        yield from (base, guided, kd.clipped(guided, 0.8), kd.thresholded(guided, 0.7, 1.5))
        yield from (kd.consistency(base), kd.consistency(kd.clipped(guided)))
        yield kd.guided(kd.consistency(kd.thresholded(base)), ONE_SCALE, UNCOND)


@pytest.mark.parametrize("name", ["ancestral", "lcm"])
def test_x_is_alpha_denoised_plus_sigma_epsilon_for_every_denoiser(name):
    schedule, x = start(name)
    for row in (schedule[0], schedule[-1], rows_at(schedule, [3, 0, 2, 1])):
        alpha, sigma = (np.reshape(v, (-1, 1)).astype(float) for v in (row.alpha, row.sigma))
        for denoise in denoisers():
            said = denoise(MIXING, x, row, COND)
            parts = alpha * np.asarray(said.denoised), sigma * np.asarray(said.epsilon)
            size = np.max(np.abs([*parts, x]))
            assert np.max(np.abs(parts[0] + parts[1] - x)) < 1e-6 * size, denoise


@pytest.mark.parametrize("scale", [ONE_SCALE, SCALES], ids=["scalar", "one a sample"])
def test_guidance_is_its_formula(scale):
    schedule, x = start("ancestral")
    for row in (schedule[2], rows_at(schedule, [0, 1, 2, 3])):
        with_cond = mixing(MIXING, x, row, COND)
        without = mixing(MIXING, x, row, np.full(4, UNCOND))
        guided = kd.guided(mixing, scale, UNCOND)(MIXING, x, row, COND)
        for half in ("denoised", "epsilon"):
            c, u = np.asarray(getattr(with_cond, half)), np.asarray(getattr(without, half))
            expected = u + np.reshape(scale, (-1, 1)) * (c - u)
            assert relative_error(getattr(guided, half), expected) < 1e-6


@pytest.mark.parametrize("name", ["ancestral", "lcm"])
@pytest.mark.parametrize("inner", ["clipped", "thresholded"])
def test_guidance_composes_with_clipping_thresholding_and_consistency(name, inner):
    schedule, x = start(name)
    row = schedule[1]
    guided = kd.guided(kd.denoiser(sp.mixing_model, "sample"), SCALES, UNCOND)
    limited = kd.clipped(guided, 0.9) if inner == "clipped" else kd.thresholded(guided, 0.7, 1.5)
    got = kd.consistency(limited, timestep_scaling=2e-3)(MIXING, x, row, COND).denoised

    d = np.asarray(guided(MIXING, x, row, COND).denoised, np.float64)
    limit = 0.9
    if inner == "thresholded":
        limit = np.clip(np.quantile(np.abs(d), 0.7, axis=1, keepdims=True), 1, 1.5)
    d = np.clip(d, -limit, limit) / (limit if inner == "thresholded" else 1)
    time = float(row.timestep) * 2e-3
    xs = float(row.input_scale) * np.asarray(x)
    expected = time / np.hypot(time, 0.5) * d + 0.25 / (time**2 + 0.25) * xs
    assert relative_error(got, expected) < 1e-6
