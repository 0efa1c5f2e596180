"""A batch over several devices: no device waits for another, and the samples stay the same bits."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from samplers import ELEMENTWISE, ONE_OF_EACH, SAMPLERS, STOCHASTIC

import kdiff_jax as kd

# 16 floats a sample: what is left beyond full vector registers may round otherwise, and how much
# is left depends on the share of the batch that a device has.
STEPS, SHAPE = 3, (8, 16)
KEY = jax.random.key(3)
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "reduce-scatter",
)
elementwise = kd.denoiser(sp.elementwise_model)
MAIN = ["dpm2", "ancestral", "lcm"]
main_samplers = pytest.mark.parametrize("name", MAIN)


def batch_sharding(devices):
    """The batch axis over the first `devices` devices, and a copy on each of them."""
    mesh = Mesh(np.array(jax.devices()[:devices]), ("batch",))
    return NamedSharding(mesh, PartitionSpec("batch")), NamedSharding(mesh, PartitionSpec())


def start(name, shape=SHAPE):
    schedule = SAMPLERS[name](STEPS)
    return schedule, kd.initial_sample(schedule, KEY, shape)


def key_of(keys, batch):
    return KEY if keys == "one key" else jax.random.split(KEY, batch)


def place(keys, batched, everywhere):
    """[B] keys go with their samples, one key goes everywhere."""
    return jax.device_put(keys, batched if keys.ndim else everywhere)


def compiled(*run, **options):
    return jax.jit(kd.sample, **options).lower(*run).compile()


def found_collectives(program):
    return [name for name in COLLECTIVES if name in program.as_text()]


# --- no device waits for another -------------------------------------------------------------


def check_shares(name, key):
    batched, everywhere = batch_sharding(8)
    shape = (24, 5, 16)
    schedule, x = start(name, shape)
    placed = jax.device_put((ELEMENTWISE, schedule), everywhere)
    key = place(key, batched, everywhere)
    program = compiled(elementwise, *placed, jax.device_put(x, batched), key)
    assert found_collectives(program) == []
    assert program.output_shardings.is_equivalent_to(batched, len(shape))
    # Noise that every device drew for the whole batch would need no collective either.
    sizes = set(re.findall(r"\w\d+\[(\d+)[,\]]", program.as_text()))
    assert "3" in sizes
    assert "24" not in sizes


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_no_collectives_and_each_device_has_its_own_samples_only(name):
    check_shares(name, KEY)


@pytest.mark.parametrize("name", [name for name in ONE_OF_EACH if name in STOCHASTIC])
def test_no_collectives_and_own_samples_only_with_a_key_for_each_sample(name):
    check_shares(name, jax.random.split(KEY, 24))


def test_collectives_are_seen_where_samples_do_mix():
    batched, _ = batch_sharding(8)
    schedule, x = start("dpm2")

    def mixing(params, x, timestep):
        return x - jnp.mean(x, axis=0, keepdims=True)

    run = kd.denoiser(mixing), None, schedule, jax.device_put(x, batched)
    assert found_collectives(compiled(*run)) == ["all-reduce"]


# --- the same bits ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "devices", "name"),
    [("one key", n, name) for n in (1, 2, 8) for name in MAIN]
    + [("[B] keys", n, name) for n in (2, 8) for name in ("euler_ancestral", "ancestral", "lcm")],
)
def test_sharded_over_devices_is_bitwise_the_same(keys, devices, name):
    schedule, x = start(name)
    key = key_of(keys, len(x))
    expected = kd.sample(elementwise, ELEMENTWISE, schedule, x, key)
    batched, everywhere = batch_sharding(devices)
    params = jax.device_put(ELEMENTWISE, everywhere)
    run = elementwise, params, schedule, jax.device_put(x, batched), place(key, batched, everywhere)
    if devices == 2:  # compiled once, looked into and run; eight devices are looked into above
        program = compiled(*run)
        assert found_collectives(program) == []
        got = program(*run)
    else:
        got = kd.sample(*run)
    np.testing.assert_array_equal(got, expected)
    assert len(got.sharding.device_set) == devices


def exact_model(params, x, timestep):
    """Every number of a sample from all of them, bitwise alike however the sums are ordered.

    Whole numbers below 2^24 add without rounding. A plain matrix product of another number of rows
    is another program, whose last bit differs.
    """
    whole = jnp.round(16 * jnp.clip(x, -8, 8))
    return (whole @ params["whole"]) / 1024


@main_samplers
def test_a_data_parallel_network_inside_one_jit_gives_the_same_bits(name):
    batched, everywhere = batch_sharding(8)

    def data_parallel(params, x, timestep):
        # What the network of a training framework does to its own activations.
        x = jax.lax.with_sharding_constraint(x, batched)
        return jax.lax.with_sharding_constraint(exact_model(params, x, timestep), batched)

    weights = np.random.default_rng(0).integers(-3, 4, (16, 16)).astype(np.float32)
    params = {"whole": jnp.asarray(weights)}
    schedule = SAMPLERS[name](STEPS)

    def run(model_fn):
        def whole_run(params, key):
            x = kd.initial_sample(schedule, key, SHAPE)
            return kd.sample(kd.denoiser(model_fn), params, schedule, x, key)

        return whole_run

    expected = jax.jit(run(exact_model))(params, KEY)
    # Neither the noise nor the samples are ever on one device.
    sharded = jax.jit(run(data_parallel), in_shardings=everywhere, out_shardings=batched)
    assert found_collectives(sharded.lower(params, KEY).compile()) == []
    got = sharded(params, KEY)
    np.testing.assert_array_equal(got, expected)
    assert got.addressable_shards[0].data.shape == (1, 16)


# --- the noise is drawn where it is used -----------------------------------------------------


def test_initial_and_row_noise_of_sharded_keys_are_those_of_each_key():
    schedule = SAMPLERS["ancestral"](STEPS)
    keys = jax.random.split(KEY, 8)
    batched, _ = batch_sharding(8)
    placed = jax.device_put(keys, batched)
    for draw in (
        lambda keys: kd.initial_sample(schedule, keys, SHAPE),
        lambda keys: kd.row_noise(keys, schedule[1], SHAPE),
    ):
        program = jax.jit(draw).lower(placed).compile()
        assert found_collectives(program) == []
        np.testing.assert_array_equal(program(placed), jax.jit(draw)(keys))


# --- donation --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "devices"), [("ancestral", 1), ("ancestral", 8), ("dpm2", 8)])
def test_a_donated_sample_gives_its_memory_to_the_result(name, devices):
    schedule, x = start(name)
    batched, _ = batch_sharding(devices)
    expected = np.asarray(kd.sample(elementwise, ELEMENTWISE, schedule, x, KEY))
    bytes_a_device = x.nbytes // devices
    # A copy, so that the x above is not donated with it.
    donated = jax.device_put(np.array(x), batched)
    run = elementwise, ELEMENTWISE, schedule, donated, KEY
    program = compiled(*run, donate_argnums=3)
    assert program.memory_analysis().alias_size_in_bytes == bytes_a_device
    got = program(*run)
    assert donated.is_deleted()
    assert not x.is_deleted()
    np.testing.assert_array_equal(got, expected)


def test_nothing_is_donated_unasked():
    schedule, x = start("ancestral")
    run = elementwise, ELEMENTWISE, schedule, x, KEY
    assert compiled(*run).memory_analysis().alias_size_in_bytes == 0
    kd.sample(*run)
    assert not x.is_deleted()


# --- meshes whose axes are part of the type --------------------------------------------------


@pytest.mark.skipif(jax.__version_info__ < (0, 9), reason="JAX makes such meshes from 0.9 on")
@pytest.mark.parametrize("keys", ["one key", "[B] keys"])
@pytest.mark.parametrize("name", [*MAIN, "unipc"])
def test_the_mesh_that_jax_makes_by_default_gives_the_same_bits(name, keys):
    schedule, x = start(name)
    keys = key_of(keys, len(x))
    expected = kd.sample(elementwise, ELEMENTWISE, schedule, x, keys)
    sharding = NamedSharding(jax.make_mesh((8,), ("batch",)), PartitionSpec("batch"))
    keys = jax.device_put(keys, sharding) if keys.ndim else keys
    got = kd.sample(elementwise, ELEMENTWISE, schedule, jax.device_put(x, sharding), keys)
    assert got.sharding.is_equivalent_to(sharding, x.ndim)
    np.testing.assert_array_equal(got, expected)
