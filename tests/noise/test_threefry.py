"""Threefry written out: the bits of `jax.random`, its normal numbers within 3 ulp; not needed."""

import functools
import importlib
import re

import jax
import jax.extend.random
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
from samplers import ELEMENTWISE, SAMPLERS, STOCHASTIC

import kdiff_jax as kd
from kdiff_jax._noise import threefry
from kdiff_jax._noise.keyed import normal
from kdiff_jax._table.schedule import NEUTRAL

KEYS = jax.random.split(jax.random.key(11), 3)
SHAPES = [(), (7,), (2, 3, 5, 7), (2, 257, 256)]  # the last past 2^16 counters
EMPTY = [(0,), (3, 0), (0, 2**33)]
DATA = {
    "nothing": (),
    "domain and rows": (jnp.uint32(0x73746570), jnp.asarray([0, 48, -1], jnp.int32)),
}
COLLECTIVE = r"all-reduce|all-gather|all-to-all|collective-permute"
# Every column of the stochastic samplers: so their tables share an executable.
COLUMNS = tuple(NEUTRAL)


def folded(keys, data):
    for item in data:
        keys = jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(item, keys.shape))
    return keys


@functools.partial(jax.jit, static_argnums=1)
def normal_by_jax(keys, shape):
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


@functools.partial(jax.jit, static_argnums=1)
def bits_by_jax(keys, shape):
    return jax.vmap(lambda key: jax.random.bits(key, shape, jnp.uint32))(keys)


def oracle(keys, data, shape):
    """What `normal` is to give, by jax.random alone."""
    return normal_by_jax(folded(keys, data), shape)


def same_numbers(got, expected, ulp=3):
    """float32 numbers at most so many units in the last place apart; 0 for the same bits."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.dtype == expected.dtype == np.float32
    assert got.shape == expected.shape
    places = (x.view(np.int32).astype(np.int64) for x in (got, expected))
    # Of negative numbers the bits fall where the number rises.
    got, expected = (np.where(place < 0, -(2**31) - place, place) for place in places)
    assert np.max(np.abs(got - expected), initial=0) <= ulp


def lowered(function, *args, platform="cpu"):
    return jax.jit(function).trace(*args).lower(lowering_platforms=(platform,)).as_text()


def compiled(function, *args):
    return jax.jit(function).lower(*args).compile().as_text()


def loops(program):
    return len(re.findall(r"\bwhile\(", program))


# --- the same numbers ------------------------------------------------------------------------


written_out_bits = jax.jit(threefry.random_bits, static_argnums=2)


# Without anything folded in, the same draw of another key: one shape of it.
@pytest.mark.parametrize(
    ("data", "shape"), [("nothing", (7,)), *(("domain and rows", shape) for shape in SHAPES)]
)
def test_the_bits_are_those_of_jax_random(data, shape):
    data = DATA[data]
    bits, expected = written_out_bits(KEYS, data, shape), bits_by_jax(folded(KEYS, data), shape)
    assert bits.dtype == jnp.uint32
    np.testing.assert_array_equal(bits, expected, strict=True)


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        ("nothing", (2, 3, 5, 7)),
        *(("domain and rows", shape) for shape in ((), (2, 3, 5, 7), *EMPTY)),
    ],
)
def test_the_normal_numbers_are_those_of_jax_random(data, shape):
    data = DATA[data]
    same_numbers(normal(KEYS, data, shape), oracle(KEYS, data, shape))


def test_the_bits_are_those_of_jax_random_for_many_keys():
    words = np.random.default_rng(0).integers(0, 2**32, (4096, 2), np.uint32)
    words[:4] = [[0, 0], [2**32 - 1] * 2, [0, 2**32 - 1], [2**31, 1]]
    keys = jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32")
    data = (jnp.arange(4096),)
    bits, expected = written_out_bits(keys, data, (33,)), bits_by_jax(folded(keys, data), (33,))
    np.testing.assert_array_equal(bits, expected, strict=True)


def test_the_tails_are_those_of_jax_random():
    # erf_inv has another branch where 1 - u^2 < exp(-5), |z| > 2.94; a million draws reach 4.
    z = np.asarray(normal(KEYS[:1], (), (1_000_000,)))
    assert z.min() < -4
    assert z.max() > 4
    same_numbers(z, oracle(KEYS[:1], (), (1_000_000,)))


def test_the_numbers_do_not_change_under_x64():
    data = DATA["domain and rows"]
    expected = np.asarray(oracle(KEYS, data, (3, 5)))
    with sp.x64():
        wide = tuple(jnp.asarray(item, jnp.int64) for item in data)
        same_numbers(normal(KEYS, wide, (3, 5)), expected)


def draw_one(key, row):
    return normal(key[None], (row,), (5,))


def under_nested_vmap(keys, rows):
    return jax.vmap(lambda row: jax.vmap(lambda key: draw_one(key, row)[0])(keys))(rows)


def under_scan(keys, rows):
    return jax.lax.scan(lambda carry, row: (carry, normal(keys, (row,), (5,))), 0, rows)[1]


def where_row_is_above_0(keys, row):
    return jax.lax.cond(row > 0, lambda: normal(keys, (row,), (5,)), lambda: jnp.zeros((3, 5)))


def under_cond(keys, rows):
    return jax.lax.map(functools.partial(where_row_is_above_0, keys), rows)


def under_a_batched_cond(keys, rows):
    return jax.vmap(functools.partial(where_row_is_above_0, keys))(rows)


def under_grad(keys, rows):
    def loss(weights):
        return jnp.sum(weights * jax.checkpoint(lambda row: normal(keys, (row,), (5,)))(rows))

    return jax.grad(loss)(jnp.ones((3, 5)))


def without_jit(keys, rows):
    with jax.disable_jit():
        return draw_one(keys[2], rows[1])[0]


@pytest.mark.parametrize(
    ("under", "part"),
    [
        (under_nested_vmap, lambda each: each),
        (under_scan, lambda each: each),
        (under_cond, lambda each: np.concatenate([0 * each[:1], each[1:]])),
        (under_a_batched_cond, lambda each: np.concatenate([0 * each[:1], each[1:]])),
        (under_grad, lambda each: each[np.arange(3), np.arange(3)]),  # row b for key b
        (without_jit, lambda each: each[1, 2]),
    ],
    ids=lambda value: value.__name__.replace("<lambda>", ""),
)
def test_the_numbers_are_the_same_under_every_transformation(under, part):
    # Every row of every key, [rows, keys, 5], outside of any transformation.
    each = np.stack([oracle(KEYS, (jnp.int32(row),), (5,)) for row in range(3)])
    got = (under if under is without_jit else jax.jit(under))(KEYS, jnp.arange(3))
    same_numbers(got, part(each))


@pytest.mark.parametrize("axis", ["batch", "sample"])
def test_sharded_the_numbers_are_the_same_without_collectives(axis):
    keys = jax.random.split(KEYS[0], 8)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("devices",))
    spec = jax.sharding.PartitionSpec
    by = spec("devices") if axis == "batch" else spec(None, "devices")
    run = jax.jit(
        lambda keys: normal(keys, (jnp.uint32(5),), (8, 6)),
        out_shardings=jax.sharding.NamedSharding(mesh, by),
    )
    placed = jax.device_put(
        keys, jax.sharding.NamedSharding(mesh, spec("devices" if axis == "batch" else None))
    )
    program = run.lower(placed).compile()
    text = program.as_text() or ""
    assert re.findall(COLLECTIVE, text) == []
    assert loops(text) == 0
    got = program(placed)
    assert len(got.sharding.device_set) == 8
    assert {part.data.size for part in got.addressable_shards} == {8 * 6}
    same_numbers(got, oracle(keys, (jnp.uint32(5),), (8, 6)))


def test_under_shard_map_the_numbers_are_the_same():
    if hasattr(jax, "shard_map"):
        shard_map = jax.shard_map
    else:
        shard_map = importlib.import_module("jax.experimental.shard_map").shard_map
    keys = jax.random.split(KEYS[0], 8)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
    spec = jax.sharding.PartitionSpec("batch")
    draw = shard_map(lambda k: normal(k, (), (5,)), mesh=mesh, in_specs=spec, out_specs=spec)
    same_numbers(jax.jit(draw)(keys), oracle(keys, (), (5,)))


# --- the program that makes them -------------------------------------------------------------


def test_on_every_platform_the_rounds_are_written_out():
    def draw(keys):
        return normal(keys, (jnp.uint32(5),), (3, 5))

    # Twenty rounds for the fold and twenty for the sample, an xor in each.
    for platform in ("cpu", "cuda", "tpu"):
        program = lowered(draw, KEYS, platform=platform)
        assert "threefry2x32" not in program
        assert program.count("stablehlo.xor") >= 40
    assert loops(compiled(draw, KEYS)) == 0
    # That the loop of JAX's own threefry would have been seen:
    assert loops(compiled(lambda keys: oracle(keys, (jnp.uint32(5),), (3, 5)), KEYS)) > 0


def jax_export():
    return pytest.importorskip("jax.export", reason="in JAX 0.6 jax.export needs absl")


def test_one_export_serves_cpu_and_accelerators():
    export = jax_export()
    words = jax.random.key_data(KEYS)

    def draw(words):
        return normal(jax.random.wrap_key_data(words), (), (3, 5))

    exported = export.export(jax.jit(draw), platforms=("cpu", "cuda", "tpu"))(words)
    same_numbers(exported.call(words), oracle(KEYS, (), (3, 5)))


def test_an_export_with_a_symbolic_shape_gives_the_same_numbers():
    export = jax_export()
    words = jax.random.key_data(KEYS)

    def draw(words, x):
        return normal(jax.random.wrap_key_data(words), (), x.shape)

    x = jax.ShapeDtypeStruct(export.symbolic_shape("height, 4"), jnp.float32)
    exported = export.export(jax.jit(draw), platforms=("cpu",))(words, x)
    same_numbers(exported.call(words, jnp.zeros((6, 4))), oracle(KEYS, (), (6, 4)))


# --- where jax.random is called instead ------------------------------------------------------


def test_the_package_works_without_it(monkeypatch):
    """One batch with it and a larger one without: another shape is another program."""
    denoise = kd.denoiser(sp.elementwise_model)
    tables = {name: SAMPLERS[name](4).pad(8, COLUMNS) for name in STOCHASTIC}
    keys = jax.random.split(jax.random.key(5), 5)

    def runs(batch):
        for name, schedule in tables.items():
            x = kd.initial_sample(schedule, keys[:batch], (batch, 11))
            row = schedule[int(np.flatnonzero(np.asarray(schedule.rows.noise_weight))[0])]
            z = kd.row_noise(keys[:batch], row, (batch, 11))
            state = kd.init(schedule, x)
            stepped = kd.step(state, row, kd.Prediction(x, z), key=keys[:batch]).sample
            x0 = kd.sample(denoise, ELEMENTWISE, schedule, x, keys[:batch])
            yield name, tuple(np.asarray(array)[:3] for array in (x, z, stepped, x0))

    def loops_of(width):  # another width is another program
        run = functools.partial(kd.sample, denoise, ELEMENTWISE, tables["ancestral"])
        return loops(compiled(run, jax.ShapeDtypeStruct((5, width), jnp.float32), keys))

    written_out = dict(runs(3))
    assert loops_of(12) == 1  # its own
    monkeypatch.setattr(threefry, "is_written_out", lambda keys, shape: False)
    without = dict(runs(5))
    assert written_out.keys() == without.keys() == set(STOCHASTIC)
    for name, arrays in written_out.items():
        x, z, stepped, x0 = zip(arrays, without[name], strict=True)
        same_numbers(*x, ulp=4)
        same_numbers(*z)
        assert sp.relative_error(*stepped) < 5e-7
        assert sp.relative_error(*x0) < 1e-6
    assert loops_of(13) > 1


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (3, 0)])
def test_with_the_old_counters_jax_random_is_called(shape):
    data = DATA["domain and rows"]

    def draw(keys, data):
        return normal(keys, data, shape)

    new = normal(KEYS, data, shape)
    with jax.threefry_partitionable(False):
        got = normal(KEYS, data, shape)
        same_numbers(got, oracle(KEYS, data, shape))
        if got.size:
            assert loops(compiled(draw, KEYS, data)) > 0
    if got.size:
        assert np.any(np.asarray(got) != np.asarray(new))
    # The flag is of the trace: nothing of the other setting is kept.
    same_numbers(normal(KEYS, data, shape), new, ulp=0)


def test_keys_of_another_implementation_draw_with_their_own():
    def bits(key, bit_width, shape):
        assert bit_width == 32
        return jax.lax.iota(jnp.uint32, int(np.prod(shape))).reshape(shape) * key[0]

    impl = jax.extend.random.define_prng_impl(
        key_shape=(2,),
        seed=lambda seed: jnp.stack([seed, seed]).astype(jnp.uint32),
        split=lambda key, shape: jnp.broadcast_to(key, (*shape, 2)),
        random_bits=bits,
        fold_in=lambda key, data: key * jnp.uint32(3) + jnp.asarray(data).astype(jnp.uint32),
        name="kdiff_jax_test",
    )
    words = jnp.asarray([[1, 2], [2**27, 3]], jnp.uint32)
    keys = jax.random.wrap_key_data(words, impl=impl)
    got = normal(keys, (jnp.int32(4),), (3, 5))
    same_numbers(got, oracle(keys, (jnp.int32(4),), (3, 5)))
    same = jax.random.wrap_key_data(words, impl="threefry2x32")
    assert np.any(np.asarray(got) != np.asarray(normal(same, (jnp.int32(4),), (3, 5))))
