"""Noise from elsewhere: what a `noise_fn` receives, when it is called, and noise from an array."""

import collections
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from programs import compilations, copies_in_loops
from samplers import ELEMENTWISE, MIXING, NOISE, SAMPLERS, STOCHASTIC, relative_error

import kdiff_jax as kd
from kdiff_jax._table.schedule import NEUTRAL

N, SHAPE = 4, (3, 8)
KEY = jax.random.key(31)
mixing = kd.denoiser(sp.mixing_model)
elementwise = kd.denoiser(sp.elementwise_model)
every_stochastic = pytest.mark.parametrize("name", STOCHASTIC)
# One executable for the padded tables of all samplers.
COLUMNS = tuple(NEUTRAL)
RUNS: dict[str, dict[str, Any]] = {"scan": {}, "unroll": {"unroll": 2}, "remat": {"remat": "rows"}}
FUNCTIONS: dict[str, Any] = {
    "row_noise": lambda: kd.row_noise,
    "brownian": lambda: kd.brownian_noise(1e-3, 1e3, depth=9),
    "given": lambda: kd.given_noise(given()),
}
from_elsewhere = pytest.mark.parametrize("function", ["brownian", "given"])
COLLECTIVE = r"all-reduce|all-gather|all-to-all|collective-|reduce-scatter"
two_samplers = pytest.mark.parametrize("name", ["ancestral", "lcm"])
every_function = pytest.mark.parametrize("function", FUNCTIONS)


def start(name, steps=N, shape=SHAPE):
    schedule = SAMPLERS[name](steps)
    return schedule, kd.initial_sample(schedule, KEY, shape)


def given(steps=N, shape=SHAPE):
    return jnp.asarray(np.random.default_rng(5).normal(size=(steps, *shape)), jnp.float32)


# --- the seam --------------------------------------------------------------------------------


@every_stochastic
def test_row_noise_is_the_noise_fn_that_there_is_without_one(name):
    schedule, x = start(name)
    run = functools.partial(kd.sample, elementwise, ELEMENTWISE, x=x, key=KEY)
    ways: list[Any] = [(schedule.pad(9, COLUMNS), {})]
    if name == "ancestral":
        ways += [(schedule, {}), (schedule, RUNS["remat"])]
    for table, options in ways:
        expected = run(schedule=table, **options)
        got = run(schedule=table, noise_fn=kd.row_noise, **options)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("name", "way"), [*(("ancestral", way) for way in RUNS), ("lcm", "unroll")]
)
def test_it_is_traced_once_and_called_in_noise_rows_only(name, way):
    schedule, x = start(name)
    count: collections.Counter[str] = collections.Counter()
    called: list[int] = []

    def noise_fn(key, row, shape):
        count["traced"] += 1
        assert shape == SHAPE
        assert key.shape == SHAPE[:1]
        assert row.sigma_left.shape == ()
        jax.debug.callback(lambda index: called.append(int(index)), row.index)
        return kd.row_noise(key, row, shape)

    run = functools.partial(kd.sample, mixing, MIXING, schedule, x, KEY)
    got = run(noise_fn=noise_fn, **RUNS[way]).block_until_ready()
    jax.effects_barrier()
    assert count["traced"] == 1
    assert sorted(called) == np.flatnonzero(schedule.rows.noise_weight).tolist()
    assert relative_error(got, run()) < 1e-6


def test_it_is_given_the_keys_of_the_samples_or_none():
    schedule, x = start("lcm", 2)
    keys = jax.random.split(KEY, SHAPE[0])
    folded = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(SHAPE[0]))
    for key, expected in ((keys, keys), (KEY, folded)):
        seen: list[Any] = []

        def noise_fn(key, row, shape, seen=seen):
            jax.debug.callback(seen.append, jax.random.key_data(key))
            return jnp.zeros(shape)

        kd.sample(mixing, MIXING, schedule, x, key, noise_fn=noise_fn).block_until_ready()
        jax.effects_barrier()
        np.testing.assert_array_equal(seen[0], jax.random.key_data(expected))
    with pytest.raises(ValueError, match="None is no PRNG key"):
        kd.sample(mixing, MIXING, schedule, x, noise_fn=kd.row_noise)


@from_elsewhere
@two_samplers
def test_by_hand_it_gives_the_noise_of_the_run(name, function):
    schedule, x = start(name)
    noise_fn = FUNCTIONS[function]()
    state = kd.init(schedule, x)
    for row in schedule:
        z = noise_fn(KEY, row, SHAPE)
        assert z.dtype == jnp.float32
        assert np.all(np.isfinite(z))
        state = kd.step(state, row, mixing(MIXING, state.sample, row), noise=z)
    got = kd.sample(mixing, MIXING, schedule, x, KEY, noise_fn=noise_fn)
    assert relative_error(got, state.sample) < 5e-6


@from_elsewhere
def test_padded_stacked_cut_unrolled_or_recomputed_it_is_the_same_noise(function):
    (schedule, x), (lcm, of_lcm) = start("ancestral"), start("lcm")
    noise_fn = FUNCTIONS[function]()
    run = functools.partial(kd.sample, mixing, MIXING, key=KEY, noise_fn=noise_fn)
    expected = run(schedule=schedule, x=x)
    np.testing.assert_array_equal(run(schedule=schedule.pad(9), x=x), expected)
    recomputed = run(schedule=schedule, x=x, unroll=2, remat="segments")
    assert relative_error(recomputed, expected) < 5e-6
    stacked = kd.stack([schedule, schedule.pad(9), lcm])
    together = run(schedule=stacked, x=jnp.concatenate([x[:2], of_lcm[2:]]))
    assert relative_error(together[:2], expected[:2]) < 5e-6
    assert relative_error(together[2:], run(schedule=lcm, x=of_lcm)[2:]) < 5e-6
    state = kd.init(schedule, x)
    for row in (row for row in schedule if row.step == 0):
        z = noise_fn(KEY, row, SHAPE)
        state = kd.step(state, row, mixing(MIXING, state.sample, row), noise=z)
    rest = schedule[2:].pad(9)
    assert relative_error(run(schedule=rest, x=state), expected) < 5e-6


@every_function
def test_no_copy_of_the_sample_and_no_array_of_noise_in_the_program(function):
    shape = (3, 1031)
    noise_fn = kd.given_noise(given(N, shape)) if function == "given" else FUNCTIONS[function]()
    for name in ("ancestral", "lcm"):
        schedule = SAMPLERS[name](N)
        run = functools.partial(kd.sample, elementwise, noise_fn=noise_fn)
        program: Any = jax.jit(run).lower(ELEMENTWISE, schedule, jnp.ones(shape), KEY).compile()
        assert copies_in_loops(program.as_text(), shape) == []
        scratch = program.memory_analysis().temp_size_in_bytes / (4 * np.prod(shape))
        anchors = 0 if schedule.rows.anchor_weight is None else 1
        sums = 1 if function == "brownian" else 0
        assert scratch < anchors + sums + 0.3, (name, scratch)


@pytest.mark.parametrize(("name", "function"), [("ancestral", "brownian"), ("lcm", "given")])
def test_sharded_it_is_the_same_noise_without_collectives(name, function):
    shape = (8, 16)
    schedule, x = start(name, shape=shape)
    keys = jax.random.split(KEY, 8)
    noise_fn = kd.given_noise(given(N, shape)) if function == "given" else FUNCTIONS[function]()
    expected = kd.sample(elementwise, ELEMENTWISE, schedule, x, keys, noise_fn=noise_fn)
    mesh = Mesh(np.array(jax.devices()), ("batch",))
    axes = (("batch",), (), (None, "batch"))
    batched, everywhere, steps = (NamedSharding(mesh, PartitionSpec(*names)) for names in axes)
    placed = jax.device_put((ELEMENTWISE, schedule), everywhere)
    noise_fn = jax.device_put(noise_fn, steps if function == "given" else everywhere)

    def run(params, schedule, x, keys, noise_fn):
        return kd.sample(elementwise, params, schedule, x, keys, noise_fn=noise_fn)

    args = (*placed, *jax.device_put((x, keys), batched), noise_fn)
    program = jax.jit(run).lower(*args).compile()
    assert re.findall(COLLECTIVE, str(program.as_text())) == []
    got = program(*args)
    assert len(got.sharding.device_set) == 8
    assert relative_error(got, expected) < 1e-6


# --- noise from an array ---------------------------------------------------------------------


@every_stochastic
def test_given_noise_is_that_of_the_outer_step(name):
    schedule, x = start(name)
    noise, state = given(), kd.init(schedule.pad(9, COLUMNS), x)
    two = jnp.stack([noise[::-1], noise], 1) if name == "sde" else noise  # it draws twice a step
    for table in (schedule, schedule[int(np.searchsorted(schedule.rows.step, 2)) :]):
        padded = table.pad(9, COLUMNS)
        got = kd.sample(mixing, MIXING, padded, state, noise_fn=kd.given_noise(two))
        by_row = [noise[int(row.step)] for row in table]
        if name == "sde":
            by_row = [two[int(row.step), int(row.advances)] for row in table]
        expected = sp.run_in_numpy(mixing, MIXING, table, x, by_row)
        assert relative_error(got, expected) < 2e-6


def test_in_a_stack_each_sample_has_the_noise_of_its_own_steps():
    tables = [SAMPLERS[name](steps) for name, steps in (("lcm", 4), ("ancestral", 3))]
    tables.append(kd.lcm(kd.lcm_levels(NOISE, 4).start_at(2)))
    stacked = kd.stack(tables)
    x = kd.initial_sample(stacked, KEY, SHAPE)
    # The last step of the longest table draws none: its entry may be missing.
    noise_fn = kd.given_noise(given(3))
    got = kd.sample(mixing, MIXING, stacked, x, noise_fn=noise_fn)
    for b, table in enumerate(tables):
        own = kd.given_noise(given(3)[:, b : b + 1])
        alone = kd.sample(mixing, MIXING, table, x[b : b + 1], noise_fn=own)
        assert relative_error(got[b : b + 1], alone) < 1e-6


def test_a_step_that_draws_noise_past_the_end_of_the_array_is_refused_or_gives_nan():
    schedule, x = start("ancestral")
    run = functools.partial(kd.sample, mixing, MIXING, schedule=schedule, x=x)
    assert np.all(np.isfinite(run(noise_fn=kd.given_noise(given(N - 1)))))
    short = kd.given_noise(given(N - 2))
    with pytest.raises(ValueError, match=r"shape \(2, 3, 8\), 2 steps, and step 2 of the"):
        run(noise_fn=short)
    # Where the table is traced nothing is known before it runs.
    traced = jax.jit(lambda schedule: run(schedule=schedule, noise_fn=short))
    assert np.all(np.isnan(traced(schedule)))


def test_its_numbers_are_leaves_that_do_not_recompile_and_have_gradients(caplog):
    schedule, x = start("ancestral", shape=(3, 9))
    noise = given(N, (3, 9))

    def run(noise, path=1e4):
        fn = kd.given_noise(noise)
        by_path = kd.brownian_noise(sigma_max=path)
        out = kd.sample(elementwise, ELEMENTWISE, schedule, x, KEY, noise_fn=fn)
        return out + kd.sample(elementwise, ELEMENTWISE, schedule, x, KEY, noise_fn=by_path)

    programs = compilations(caplog, lambda: run(noise))
    assert sum(re.search(r"Compiling (jit\()?run\b", name) is not None for name in programs) == 2
    other = noise + 1
    assert compilations(caplog, lambda: run(other, 5e3)) == []

    def total(noise):
        fn = kd.given_noise(noise)
        return jnp.sum(kd.sample(elementwise, ELEMENTWISE, schedule, x, noise_fn=fn))

    slope = jax.jit(jax.grad(total))(noise)
    assert np.all(np.asarray(slope[: N - 1]) != 0)
    assert not np.any(slope[N - 1])  # the closing step draws none
    with sp.x64():
        table, at = SAMPLERS["ancestral"](N), jnp.asarray(noise, jnp.float64)
        wide = jnp.asarray(x, jnp.float64)
        way = jnp.asarray(np.random.default_rng(6).normal(size=noise.shape))

        def value(h):
            fn = kd.given_noise(at + h * way)
            return float(jnp.sum(kd.sample(elementwise, ELEMENTWISE, table, wide, noise_fn=fn)))

        expected = (value(1e-5) - value(-1e-5)) / 2e-5
    assert float(np.sum(np.asarray(slope) * np.asarray(way))) == pytest.approx(expected, rel=1e-4)


# --- refusals --------------------------------------------------------------------------------


def test_what_cannot_be_meant_is_refused():
    ancestral, x = start("ancestral")
    run = functools.partial(kd.sample, mixing, MIXING, ancestral, x, KEY)
    not_callable: Any = given()
    with pytest.raises(ValueError, match=r"given_noise\(array\)"):
        run(noise_fn=not_callable)
    with pytest.raises(ValueError, match=r"returned float32\[8\] for a sample of float32\[3, 8\]"):
        run(noise_fn=lambda key, row, shape: jnp.zeros(shape[1:]))
    with pytest.raises(ValueError, match=r"what noise_fn returned is int32"):
        run(noise_fn=lambda key, row, shape: jnp.zeros(shape, jnp.int32))
    with pytest.raises(ValueError, match=r"noise has shape \(4, 5, 8\) and the sample \(3, 8\)"):
        run(noise_fn=kd.given_noise(jnp.zeros((4, 5, 8))))
    with pytest.raises(ValueError, match=r"pass \[N, B, \.\.\.\]"):
        kd.given_noise(jnp.zeros(4))
    with pytest.raises(ValueError, match="int32"):
        kd.given_noise(jnp.zeros((4, 3), jnp.int32))
    with pytest.raises(ValueError, match="no key"):
        kd.sample(mixing, MIXING, ancestral, x)
    for schedule in (SAMPLERS["dpm2"](3), SAMPLERS["euler"](3)):
        with pytest.raises(ValueError, match=r"draws no noise.*kd\.dpm2_ancestral"):
            kd.sample(mixing, MIXING, schedule, x, noise_fn=kd.row_noise)
