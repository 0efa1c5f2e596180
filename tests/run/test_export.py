"""Runs that are exported: written down, loaded in another process, and run there to the same bits.

The other process knows kdiff_jax, the artefacts and the tables as JSON, and nothing of this file.
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
from jax.experimental.compilation_cache import compilation_cache
from samplers import COLUMNS, MIXING, NOISE, ONE_OF_EACH, SAMPLERS

import kdiff_jax as kd
from kdiff_jax._run.export import TYPES, rebuilt

pytest.importorskip("flatbuffers", reason="jax.export writes with it: pip install flatbuffers")
export = pytest.importorskip("jax.export", reason="JAX 0.6 wants absl for it: pip install absl-py")

KEY, SHAPE, SIZE = jax.random.key(3), (3, 8), 11
START = np.random.default_rng(1).normal(0, 14.6, SHAPE).astype(np.float32)
# JAX 0.6.0 takes a while_loop on CPU out of its cache as one of no iterations; 0.6.2 is right.
CACHES = jax.__version_info__ >= (0, 6, 2)
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
mixing = kd.denoiser(sp.mixing_model, "v_prediction")
structure: Any = jax.tree.structure


def run(params, schedule, x, key):
    return kd.sample(mixing, params, schedule, x, key)


def shapes_of(*values):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), values)


def exported(function, *values, platforms=None):
    return export.export(jax.jit(function), platforms=platforms)(*shapes_of(*values))


def reloaded(function, *values):
    return export.deserialize(exported(function, *values).serialize())


# --- another process -------------------------------------------------------------------------

# One artefact for each set of columns, and a stack; each with all the tables that it is to run.
ARTEFACTS: dict[str, list[kd.Schedule]] = {
    one: [
        SAMPLERS[name](steps).pad(SIZE)
        for name in SAMPLERS
        if COLUMNS[name] == COLUMNS[one]
        for steps in (2, 5)
    ]
    for one in ONE_OF_EACH
}
ARTEFACTS["stack"] = [
    kd.stack([SAMPLERS[name](steps).pad(SIZE) for name, steps in runs])
    for runs in (
        (("ancestral", 2), ("ancestral_half_eta", 5), ("ancestral", 4)),
        (("ancestral_half_eta", 3), ("ancestral", 3), ("ancestral", 5)),
    )
]

OTHER_PROCESS = """
import collections, json, pathlib, sys
import jax, jax.export
import numpy as np
import kdiff_jax as kd

folder = pathlib.Path(sys.argv[1])
params = dict(np.load(folder / "params.npz"))
cache = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: cache.update([event.split("/")[-1]]))
found = {}
jax.block_until_ready(jax.jit(lambda x: x * 3 + 2)(np.float32(1)))
found["control"] = cache["cache_hits"], cache["cache_misses"]
for artefact in sorted(folder.glob("*.bin")):
    run = jax.export.deserialize(artefact.read_bytes())
    for table in sorted(folder.glob(artefact.stem + ".*.json")):
        schedule = kd.Schedule.from_json(table.read_text())
        key = jax.random.key(3)
        x = kd.initial_sample(schedule, key, (3, 8))
        cache.clear()
        np.save(table.with_suffix(".npy"), run.call(params, schedule, x, key))
        found[table.stem] = cache["cache_hits"], cache["cache_misses"]
    cache.clear()
    if artefact.stem == "dpm2":
        denoise = kd.denoiser(lambda params, x, timestep: params["weight"][0, 0] * x)
        kd.sample(denoise, params, schedule, x).block_until_ready()
        found["sample"] = cache["cache_hits"], cache["cache_misses"]
print(json.dumps(found))
"""


@functools.cache
def artefact_of(name):
    schedule = ARTEFACTS[name][0]
    x = kd.initial_sample(schedule, KEY, SHAPE)
    return exported(run, MIXING, schedule, x, KEY, platforms=PLATFORMS)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """What another process makes of the artefacts, for all tables of all of them."""
    folder = tmp_path_factory.mktemp("exported")
    np.savez(folder / "params.npz", weight=MIXING["weight"])
    for name, tables in ARTEFACTS.items():
        (folder / f"{name}.bin").write_bytes(artefact_of(name).serialize())
        for i, table in enumerate(tables):
            (folder / f"{name}.{i}.json").write_text(table.to_json())
    programs, environment = str(folder / "programs"), dict(os.environ)
    if CACHES:
        compile_two_into(programs)
        environment["JAX_COMPILATION_CACHE_DIR"] = programs
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    command = [sys.executable, "-c", OTHER_PROCESS, str(folder)]
    ran = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return folder, json.loads(ran.stdout)


def compile_two_into(folder):
    """One artefact and one run of DPM2, compiled here into a persistent cache; and a control."""
    options = {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0,
    }
    before = {name: getattr(jax.config, name) for name in options}
    # Read and not called before, or JAX has the programs at hand and compiles none.
    loaded = export.deserialize(artefact_of("dpm2").serialize())
    denoise = kd.denoiser(lambda params, x, timestep: params["weight"][0, 0] * x)
    table, x = ARTEFACTS["dpm2"][0], jnp.asarray(START)
    try:
        for name, value in options.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        jax.jit(lambda x: x * 3 + 2)(np.float32(1)).block_until_ready()
        loaded.call(MIXING, table, x, KEY)
        kd.sample(denoise, MIXING, table, x).block_until_ready()
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


# One test for all of them: spread over workers, each would start a process of its own.
def test_artefacts_run_in_another_process_to_the_same_bits(elsewhere):
    folder, _ = elsewhere
    different = []
    for name, tables in ARTEFACTS.items():
        for i, table in enumerate(tables):
            x = kd.initial_sample(table, KEY, SHAPE)
            expected = np.asarray(kd.sample(mixing, MIXING, table, x, KEY))
            assert np.all(np.isfinite(expected))
            got = np.load(folder / f"{name}.{i}.npy")
            if got.tobytes() != expected.tobytes():
                different.append((name, i))
    assert different == []


@pytest.mark.skipif(not CACHES, reason="JAX 0.6.0 takes a loop out of its cache wrongly")
def test_the_persistent_cache_hits_in_another_process_and_tables_share_a_program(elsewhere):
    _, found = elsewhere
    if found.pop("control") != [1, 0]:
        pytest.skip("the cache of JAX itself takes nothing back on this CPU (its issue 38445)")
    taken = {name for name, (hits, misses) in found.items() if hits and not misses}
    compiled = {name for name, (hits, misses) in found.items() if misses}
    assert taken == {"dpm2.0", "sample"}
    assert compiled == {f"{name}.0" for name in ARTEFACTS if name != "dpm2"}


@pytest.mark.parametrize("name", ARTEFACTS)
def test_one_artefact_is_lowered_for_every_platform(name):
    assert artefact_of(name).platforms == PLATFORMS
    # No check was turned off, so every operation in it is one that JAX promises to keep.
    assert not artefact_of(name).disabled_safety_checks


def test_every_sampler_is_in_an_artefact():
    assert sum(len(tables) for tables in ARTEFACTS.values()) == 2 * len(SAMPLERS) + 2


# --- what is written of the types ------------------------------------------------------------


def values_of_a_run():
    state = kd.State(jnp.ones((2, 3)), denoised_1=jnp.zeros((2, 3)))
    zero_snr = kd.noise_schedule("linear", rescale_zero_terminal_snr=True)
    flow = kd.flow_schedule(shift=3.0, num_train_timesteps=500)
    part = kd.dpm2(kd.levels(zero_snr, 5))[2:].pad(9)
    yield from (state, kd.Prediction(state.sample, state.sample))
    yield from (part, part.rows_at(np.array([1, 4])), kd.stack([part, part]))
    yield kd.levels(NOISE, 4).churned(s_churn=1.0)
    yield kd.levels(zero_snr, 4).start_at(2)
    yield kd.levels(flow, 4).end_at(3)
    yield kd.levels(None, sigmas=[3.0, 1.0])


def test_every_value_of_a_run_passes_through_an_artefact():
    values = tuple(values_of_a_run())
    loaded = reloaded(lambda *values: values, *values)
    back = loaded.call(*values)
    assert loaded.in_tree == structure((values, {}))
    assert structure(back) == structure(values)
    for got, expected in zip(jax.tree.leaves(back), jax.tree.leaves(values), strict=True):
        np.testing.assert_array_equal(got, np.asarray(expected, got.dtype))


def test_every_public_class_but_the_denoiser_is_registered():
    public = {value for value in vars(kd).values() if isinstance(value, type)}
    assert public - {kd.Denoiser} <= set(TYPES)
    parts = {type(value.noise) for value in values_of_a_run() if isinstance(value, kd.Levels)}
    assert parts <= set(TYPES)
    assert {type(value) for value in values_of_a_run()} | parts == set(TYPES)


def test_a_step_and_its_state_are_exported():
    schedule = kd.dpm2(kd.levels(NOISE, 2))

    def step(params, state, row):
        prediction = mixing(params, state.sample, row)
        return kd.step(state, row, prediction), prediction

    state = kd.init(schedule, jnp.asarray(START))
    loaded, compiled = reloaded(step, MIXING, state, schedule[0]), jax.jit(step)
    other = state
    for row in schedule:
        state, prediction = loaded.call(MIXING, state, row)
        assert isinstance(prediction, kd.Prediction)
        other, _ = compiled(MIXING, other, row)
    assert structure(state) == structure(other)
    np.testing.assert_array_equal(state.sample, other.sample)


def test_an_artefact_of_an_earlier_version_has_no_later_column():
    held = {"arrays": ["sample", "anchor"], "static": {}}
    assert rebuilt(kd.State, held, [1.0, 2.0]) == kd.State(1.0, 2.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arrays", "static"),
    [
        (["sample", "anchor", "denoised_3"], {}),
        (["anchor", "sample"], {}),
        (["anchor"], {}),
        (["sample"], {"flow": True}),
    ],
)
def test_an_artefact_of_other_fields_is_refused(arrays, static):
    held = {"arrays": arrays, "static": static}
    with pytest.raises(ValueError, match=r"exported with a State of .*denoised_1.*export it again"):
        rebuilt(kd.State, held, [1.0] * len(arrays))


# --- what an artefact takes ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda levels: kd.dpm2(levels).pad(SIZE), r"args\[1\].rows.noise_weight is a .*NoneType"),
        (lambda levels: kd.dpm2_ancestral(levels), r"args\[1\].length is a .*NoneType"),
        (lambda levels: kd.dpm2_ancestral(levels).pad(9), r"args\[1\].* \(?9\b|Shape mismatch"),
        (
            lambda levels: dataclasses.replace(
                kd.dpm2_ancestral(levels).pad(SIZE), zero_terminal_snr=True
            ),
            r"args\[1\].*(metadata|pytree)",
        ),
    ],
)
def test_another_table_is_refused_by_name(change, named):
    name = next(name for name in ONE_OF_EACH if COLUMNS[name] == COLUMNS["ancestral"])
    loaded = export.deserialize(artefact_of(name).serialize())
    table = change(kd.levels(NOISE, 4))
    with pytest.raises(ValueError, match=named):
        loaded.call(MIXING, table, jnp.ones(SHAPE), KEY)


def test_a_batch_of_any_size_is_one_artefact():
    schedule = kd.dpm2_ancestral(kd.levels(NOISE, 3))
    params, table, _, _ = shapes_of(MIXING, schedule, jnp.ones(SHAPE), KEY)
    (batch,) = export.symbolic_shape("batch")
    x_shape = jax.ShapeDtypeStruct((batch, 8), np.float32)
    keys_shape = jax.ShapeDtypeStruct((batch,), KEY.dtype)
    artefact = export.export(jax.jit(run))(params, table, x_shape, keys_shape)
    loaded = export.deserialize(artefact.serialize())
    keys = jax.random.split(KEY, 5)
    x = kd.initial_sample(schedule, keys, (5, 8))
    expected = run(MIXING, schedule, x, keys)
    np.testing.assert_array_equal(loaded.call(MIXING, schedule, x, keys), expected)


# --- compiled before it is called ------------------------------------------------------------


def test_an_artefact_takes_the_memory_of_a_donated_sample():
    loaded = export.deserialize(artefact_of("dpm2").serialize())
    table, x = ARTEFACTS["dpm2"][0], jnp.asarray(START)
    expected = run(MIXING, table, x, KEY)
    got = jax.jit(loaded.call, donate_argnums=2)(MIXING, table, x, KEY)
    np.testing.assert_array_equal(got, expected)
    assert x.is_deleted()


def test_a_run_is_compiled_from_shapes_alone():
    schedule, x = kd.dpm2(kd.levels(NOISE, 5)).pad(SIZE), jnp.asarray(START)
    shapes = shapes_of(MIXING, schedule, x, KEY)
    compiled = jax.jit(run, donate_argnums=2).lower(*shapes).compile()
    other = kd.dpm2(kd.levels(NOISE, 3)).pad(SIZE)
    expected = run(MIXING, other, x, KEY)
    np.testing.assert_array_equal(compiled(MIXING, other, x, KEY), expected)
    assert x.is_deleted()
