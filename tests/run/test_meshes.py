"""On every kind of mesh a run gives the same samples, and no device waits for another.

Every kind of run on one kind of mesh, and every mesh with every way of giving keys, but not all of
them with each other: `python benchmarks/meshes.py` does that.
"""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import mesh_cases as mc
import numpy as np
import pytest
import samplers as sp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from samplers import SAMPLERS

import kdiff_jax as kd

CHOSEN = [
    ("euler_ancestral, padded", "automatic", "copied x"),
    ("guided, two calls, interval", "automatic", "one key"),
    ("dpm2_churn, gradient", "automatic", "sharded keys"),
    ("progress", "automatic", "copied keys"),
    ("three guiders, clipped noise", "automatic", "sharded keys"),
    ("three guiders, clipped noise", "explicit", "sharded keys"),
    ("clipped", "explicit", "one key"),
    ("guided", "explicit", "sharded keys"),
    ("euler_ancestral, saved", "explicit", "copied keys"),
    ("lcm", "explicit", "copied x"),
    ("brownian", "set_mesh", "one key"),
    ("guided stack", "set_mesh", "sharded keys"),
    ("dpm2_churn, saved", "set_mesh", "copied keys"),
    ("mixed stack", "set_mesh", "copied x"),
    ("lcm, gradient", "shard_map", "one key"),
    ("thresholded", "shard_map", "sharded keys"),
    ("consistency", "shard_map, unchecked", "one key"),
    ("unipc, stacked", "shard_map, unchecked", "sharded keys"),
]


def test_the_chosen_ones_hold_every_mesh_with_every_way_of_giving_keys():
    assert {(mesh, keys) for _, mesh, keys in CHOSEN} == set(mc.pairs())


@pytest.mark.parametrize(("name", "mesh", "keys"), CHOSEN)
def test_a_run_on_a_mesh_gives_the_same_samples_and_does_not_communicate(name, mesh, keys):
    if reason := mc.missing(mesh, mc.CASES[name]):
        pytest.skip(reason)
    case = mc.CASES[name]
    hlo, got = mc.program(case, mesh, keys)
    for a, b in zip(got, mc.reference(case, keys, mesh), strict=True):
        assert a.shape == b.shape
        assert sp.relative_error(a, b) < 1e-6
    assert mc.unexpected(case, mesh, keys, hlo) == set()


def test_what_a_concatenated_guidance_would_communicate_is_seen():
    def concatenated(params, x, row, cond):
        both = mc.plain(params, jnp.concatenate([x, x]), row, jnp.concatenate([cond, 0 * cond]))
        return jax.tree.map(lambda halves: halves[:8] - halves[8:], both)

    case = mc.Case(mc.of("euler"), concatenated, conditional=True)
    hlo, _ = mc.program(case, "automatic", "one key")
    assert mc.unexpected(case, "automatic", "one key", hlo)


class ByHand(mc.Case):
    """Both kinds of noise, and a history that begins as zeros and is carried by the scan."""

    def run(self, schedule, x, keys, cond):
        state = kd.init(schedule, x)

        def body(state, i):
            row = schedule.rows_at(jnp.full(mc.BATCH, i))
            prediction = mc.plain(jnp.float32(0.3), state.sample, row)
            state = kd.step(state, row, prediction, key=keys)
            z = kd.brownian_noise(depth=1)(keys, row, x.shape)
            return kd.step(state, row, prediction, noise=z), None

        return (jax.lax.scan(body, state, jnp.arange(schedule.num_rows))[0].sample,)


def with_histories():
    rows = (schedule := SAMPLERS["ancestral"](2)).rows
    weights = dict.fromkeys(("denoised_weight_1", "denoised_weight_2"), 0.1 * rows.sigma)
    return dataclasses.replace(schedule, rows=dataclasses.replace(rows, **weights))


def test_by_hand_in_a_program_of_the_caller_nothing_is_gathered():
    case = ByHand(with_histories)
    if reason := mc.missing("explicit", case):
        pytest.skip(reason)
    hlo, (got,) = mc.program(case, "explicit", "sharded keys")
    (expected,) = mc.reference(case, "sharded keys", "explicit")
    assert sp.relative_error(got, expected) < 1e-6
    assert mc.unexpected(case, "explicit", "sharded keys", hlo) == set()


# --- a stack: the longest table is found before the run --------------------------------------


def test_the_lengths_of_a_sharded_stack_are_compared_before_the_run(monkeypatch):
    run = sys.modules["kdiff_jax._run.sample"]
    compiled, programs = run.run, []

    def watched(*arguments, **options):
        programs.append(compiled.lower(*arguments, **options).compile().as_text())
        return compiled(*arguments, **options)

    case = mc.CASES["mixed stack"]
    x, keys, _ = mc.data()
    mesh = Mesh(np.array(jax.devices()[:8]), ("batch",))
    placed = NamedSharding(mesh, PartitionSpec("batch"))
    schedule = case.schedule()
    expected = kd.sample(mc.plain, jnp.float32(0.3), schedule, x, keys)
    monkeypatch.setattr(run, "run", watched)
    sharded = (jax.device_put(value, placed) for value in (schedule, x, keys))
    got = kd.sample(mc.plain, jnp.float32(0.3), *sharded)
    np.testing.assert_array_equal(got, expected)
    assert mc.collectives(programs[0]) == set()


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_with_all_lengths_on_each_device_a_stack_does_not_communicate(kind):
    case = mc.CASES["mixed stack"]
    if kind == "Explicit" and (reason := mc.missing("explicit", case)):
        pytest.skip(reason)
    mesh = jax.make_mesh((8,), ("batch",), **mc.axis_types(kind))
    batched, everywhere = (NamedSharding(mesh, spec) for spec in (mc.SHARDED, mc.COPIED))
    schedule, (x, keys, _) = case.schedule(), mc.data()
    assert len(set(np.asarray(schedule.length))) > 1
    lengths = jax.device_put(schedule.length, everywhere)
    placed, x, keys = jax.device_put((schedule, x, keys), batched)
    placed = dataclasses.replace(placed, length=lengths)
    hlo, (got,) = mc.compiled(case.run, placed, x, keys, None)
    assert mc.collectives(hlo) == set()
    (expected,) = mc.reference(case, "sharded keys", "automatic")
    assert sp.relative_error(got, expected) < 1e-6


# --- the same bits ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("denoise", "guided"),
    [
        (kd.clipped(kd.consistency(mc.plain), 30.0), False),
        (kd.thresholded(mc.WRAPPERS["guided, two calls, interval"], 0.9, 40.0), True),
    ],
    ids=["clipped consistency", "thresholded guidance"],
)
def test_wrapped_networks_give_the_same_bits_on_several_devices(denoise, guided):
    # 192 numbers a sample, and a network that adds no product of a row's own numbers: LLVM rounds
    # such a sum once or twice, as it takes the product out of its loop or not.
    x, _, cond = mc.data((8, 8, 8, 3))
    run = denoise, jnp.float32(0.3), sp.SAMPLERS["euler"](3)
    expected = kd.sample(*run, x, cond=cond if guided else None)
    for count in (2, 8):
        mesh = Mesh(np.array(jax.devices()[:count]), ("batch",))
        x, cond = jax.device_put((x, cond), NamedSharding(mesh, PartitionSpec("batch")))
        np.testing.assert_array_equal(kd.sample(*run, x, cond=cond if guided else None), expected)
