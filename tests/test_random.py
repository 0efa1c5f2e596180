"""Threefry written out: the bits of `jax.random.normal`, by a program without its rolled loop."""

import functools
import importlib
import re

import jax
import jax.extend.random
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
from samplers import SAMPLERS, STOCHASTIC

import kdiff_jax as kd
from kdiff_jax._random import normal

KEYS = jax.random.split(jax.random.key(11), 3)
SHAPES = [(), (1,), (7,), (2, 3, 5, 7), (65_537,), (2, 257, 256)]
EMPTY = [(0,), (3, 0), (0, 2**33)]
DATA = {
    "nothing": (),
    "domain and rows": (jnp.uint32(0x73746570), jnp.asarray([0, 48, -1], jnp.int32)),
}
COLLECTIVE = r"all-reduce|all-gather|all-to-all|collective-permute"


def oracle(keys, data, shape):
    """What `normal` is to give, by jax.random alone."""
    for item in data:
        keys = jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(item, keys.shape))
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def same_bits(got, expected):
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32), strict=True)


def lowered(function, *args, platform="cpu"):
    return jax.jit(function).trace(*args).lower(lowering_platforms=(platform,)).as_text()


def compiled(function, *args):
    return jax.jit(function).lower(*args).compile().as_text()


def loops(program):
    return len(re.findall(r"\bwhile\(", program))


# --- the same bits ---------------------------------------------------------------------------


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
@pytest.mark.parametrize("shape", SHAPES + EMPTY)
def test_the_bits_are_those_of_jax_random(shape, data):
    same_bits(normal(KEYS, data, shape), oracle(KEYS, data, shape))


def test_the_bits_are_those_of_jax_random_for_many_keys():
    words = np.random.default_rng(0).integers(0, 2**32, (4096, 2), np.uint32)
    words[:4] = [[0, 0], [2**32 - 1] * 2, [0, 2**32 - 1], [2**31, 1]]
    keys = jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32")
    rows = jnp.arange(4096)
    same_bits(normal(keys, (rows,), (33,)), oracle(keys, (rows,), (33,)))


def test_the_tails_are_those_of_jax_random():
    # erf_inv has another branch where 1 - u^2 < exp(-5), |z| > 2.94; a million draws reach 4.
    z = np.asarray(normal(KEYS[:1], (), (1_000_000,)))
    assert z.min() < -4
    assert z.max() > 4
    same_bits(z, oracle(KEYS[:1], (), (1_000_000,)))


def test_the_bits_do_not_change_under_x64():
    data = DATA["domain and rows"]
    expected = np.asarray(oracle(KEYS, data, (3, 5)))
    with sp.x64():
        same_bits(normal(KEYS, data, (3, 5)), expected)
        wide = tuple(jnp.asarray(item, jnp.int64) for item in data)
        same_bits(normal(KEYS, wide, (3, 5)), expected)


def under_vmap(draw, keys, rows):
    return jax.vmap(lambda key, row: draw(key[None], (row,), (5,))[0])(keys, rows)


def under_nested_vmap(draw, keys, rows):
    def grid(key):
        return jax.vmap(lambda row: draw(key[None], (row,), (5,)))(rows)

    return jax.vmap(grid)(keys)


def under_scan(draw, keys, rows):
    return jax.lax.scan(lambda carry, row: (carry, draw(keys, (row,), (5,))), 0, rows)[1]


def under_cond(draw, keys, rows):
    def one(row):
        return jax.lax.cond(row > 0, lambda: draw(keys, (row,), (5,)), lambda: jnp.zeros((3, 5)))

    return jax.lax.map(one, rows)


def under_a_batched_cond(draw, keys, rows):
    def one(row):
        return jax.lax.cond(row > 0, lambda: draw(keys, (row,), (5,)), lambda: jnp.zeros((3, 5)))

    return jax.vmap(one)(rows)


def under_grad(draw, keys, rows):
    def loss(weights):
        return jnp.sum(weights * jax.checkpoint(lambda row: draw(keys, (row,), (5,)))(rows))

    return jax.grad(loss)(jnp.ones((3, 5)))


def without_jit(draw, keys, rows):
    with jax.disable_jit():
        return draw(keys, (rows,), (5,))


@pytest.mark.parametrize(
    "under",
    [
        under_vmap,
        under_nested_vmap,
        under_scan,
        under_cond,
        under_a_batched_cond,
        under_grad,
        without_jit,
    ],
)
def test_the_bits_are_the_same_under_every_transformation(under):
    draw = functools.partial(under, normal)
    rows = jnp.arange(3)
    got = (draw if under is without_jit else jax.jit(draw))(KEYS, rows)
    same_bits(got, under(oracle, KEYS, rows))


@pytest.mark.parametrize("axis", ["batch", "sample"])
def test_sharded_the_bits_are_the_same_without_collectives(axis):
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
    program = run.lower(placed).compile().as_text()
    assert re.findall(COLLECTIVE, program or "") == []
    assert loops(program) == 0
    got = run(placed)
    assert len(got.sharding.device_set) == 8
    assert {part.data.size for part in got.addressable_shards} == {8 * 6}
    same_bits(got, oracle(keys, (jnp.uint32(5),), (8, 6)))


def test_under_shard_map_the_bits_are_the_same():
    if hasattr(jax, "shard_map"):
        shard_map = jax.shard_map
    else:
        shard_map = importlib.import_module("jax.experimental.shard_map").shard_map
    keys = jax.random.split(KEYS[0], 8)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
    spec = jax.sharding.PartitionSpec("batch")
    draw = shard_map(lambda k: normal(k, (), (5,)), mesh=mesh, in_specs=spec, out_specs=spec)
    same_bits(jax.jit(draw)(keys), oracle(keys, (), (5,)))


# --- the program that makes them -------------------------------------------------------------


def test_on_cpu_and_there_alone_the_rounds_are_written_out():
    def draw(keys):
        return normal(keys, (jnp.uint32(5),), (3, 5))

    # Twenty rounds for the fold and twenty for the sample, an xor in each.
    cpu = lowered(draw, KEYS)
    assert "threefry2x32" not in cpu
    assert cpu.count("stablehlo.xor") >= 40
    for platform in ("cuda", "tpu"):
        assert "threefry2x32" in lowered(draw, KEYS, platform=platform)
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
    same_bits(exported.call(words), oracle(KEYS, (), (3, 5)))


def test_an_export_with_a_symbolic_shape_gives_the_same_bits():
    export = jax_export()
    words = jax.random.key_data(KEYS)

    def draw(words, x):
        return normal(jax.random.wrap_key_data(words), (), x.shape)

    x = jax.ShapeDtypeStruct(export.symbolic_shape("height, 4"), jnp.float32)
    exported = export.export(jax.jit(draw), platforms=("cpu",))(words, x)
    same_bits(exported.call(words, jnp.zeros((6, 4))), oracle(KEYS, (), (6, 4)))


def null_program(name, shape, unroll=1):
    schedule = SAMPLERS[name](4)
    keys = jax.random.split(jax.random.key(0), shape[0])
    x = kd.initial_sample(schedule, keys, shape)
    denoise = kd.denoiser(lambda params, x, timestep: params * x)
    run = functools.partial(kd.sample, denoise, unroll=unroll)
    return jax.jit(run).lower(np.float32(0.1), schedule, x, keys).compile()


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_stochastic_run_has_one_loop_its_own(name):
    assert loops(null_program(name, (2, 4, 16, 16)).as_text()) == 1


@pytest.mark.parametrize(
    ("name", "unroll"), [*((name, 1) for name in STOCHASTIC), ("ancestral", 2)]
)
def test_the_noise_is_added_where_it_is_made(name, unroll):
    shape = (2, 4, 64, 64)
    scratch = null_program(name, shape, unroll).memory_analysis().temp_size_in_bytes
    # In samples: the bits, and the anchor that a loop in pairs need not carry; no normal numbers.
    anchors = 0 if SAMPLERS[name](4).anchorless or unroll == 2 else 1
    assert scratch / (4 * np.prod(shape)) < 1 + anchors + 0.1


# --- where jax.random is called instead ------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 5, 7), (3, 0)])
def test_with_the_old_counters_jax_random_is_called(shape):
    data = DATA["domain and rows"]

    def draw(keys, data):
        return normal(keys, data, shape)

    new = normal(KEYS, data, shape)
    with jax.threefry_partitionable(False):
        got = normal(KEYS, data, shape)
        same_bits(got, oracle(KEYS, data, shape))
        if got.size:
            assert loops(compiled(draw, KEYS, data)) > 0
    if got.size > 3:  # at size 1 the two layouts of the counters agree
        assert np.any(np.asarray(got) != np.asarray(new))
    # The flag is of the trace: nothing of the other setting is kept.
    same_bits(normal(KEYS, data, shape), new)


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
    same_bits(got, oracle(keys, (jnp.int32(4),), (3, 5)))
    same = jax.random.wrap_key_data(words, impl="threefry2x32")
    assert np.any(np.asarray(got) != np.asarray(normal(same, (jnp.int32(4),), (3, 5))))
