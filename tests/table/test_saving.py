"""A table as JSON, pickled, and in a checkpoint: the same leaves, to the bit."""

import dataclasses
import json
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import refusals
from samplers import NOISE, SAMPLERS, x64

import kdiff_jax as kd

structure: Any = jax.tree.structure


def assert_same_bits(got, expected):
    """Leaves of the same bits, in the same columns, that call the same executable."""
    assert structure(got) == structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert isinstance(a, jax.Array)
        assert a.aval == b.aval
        assert a.committed == b.committed
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_table_reads_back_as_it_was(name):
    few, many = SAMPLERS[name](3), SAMPLERS[name](5)
    stacked = kd.stack([few, many])
    tables = [few, many.pad(13), many[2:], stacked, kd.stack([stacked, stacked])]
    for table in tables:
        assert_same_bits(kd.Schedule.from_json(table.to_json()), table)
        assert_same_bits(pickle.loads(pickle.dumps(table)), table)


def test_what_a_table_says_of_itself_is_kept():
    flow = kd.euler(kd.levels(kd.flow_schedule(shift=3.0), 4))
    zero_snr = kd.noise_schedule("scaled_linear", rescale_zero_terminal_snr=True)
    stated = [flow, kd.dpm2(kd.levels(zero_snr, 4)), kd.dpm2(kd.levels(NOISE, 4))[3:]]
    facts = [(t.flow, t.zero_terminal_snr, t.continues) for t in stated]
    assert facts == [(True, False, False), (False, True, False), (False, False, True)]
    for table in stated:
        assert_same_bits(kd.Schedule.from_json(table.to_json().encode()), table)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_finite_float_is_exact(dtype):
    bits = np.random.default_rng(0).bytes(np.dtype(dtype).itemsize * 600)
    numbers = np.frombuffer(bits, dtype)
    info = np.finfo(dtype)
    special = [-0.0, info.max, info.min, info.tiny, info.smallest_subnormal, 0.1, 1 / 3]
    numbers = np.concatenate([numbers[np.isfinite(numbers)], np.asarray(special, dtype)])
    with x64():
        table = kd.euler(kd.levels(NOISE, len(numbers)))
        column = jnp.asarray(numbers)
        table = dataclasses.replace(
            table, rows=dataclasses.replace(table.rows, denoised_weight=column)
        )
        text = table.to_json()
        read = kd.Schedule.from_json(text)
        assert_same_bits(read, table)
        assert read.rows.denoised_weight.dtype == dtype
    # Another language reads the same numbers: as JSON has them, they are exact in float64.
    values = json.loads(text)["rows"]["denoised_weight"]["values"]
    assert np.asarray(values, np.float64).tobytes() == numbers.astype(np.float64).tobytes()


def test_the_text_holds_every_field_and_numbers_can_be_edited():
    held = json.loads(kd.dpm2(kd.levels(NOISE, 4)).pad(9).to_json())
    names = {f.name for f in dataclasses.fields(kd.Schedule)}
    assert set(held) == names | {"format", "version"}
    assert set(held["rows"]) == {"index", "step", "timestep", "sigma", "sigma_left"} | {
        *("sigma_reached", "denoised_weight", "epsilon_weight", "anchor_weight", "advances"),
        *("input_scale", "idle"),
    }
    held["rows"]["timestep"]["values"][0] = 981
    read = kd.Schedule.from_json(json.dumps(held))
    assert float(read[0].timestep) == 981


def test_a_checkpoint_of_orbax_restores_a_table(tmp_path):
    orbax = pytest.importorskip("orbax.checkpoint", reason="comes with flax")
    table = kd.dpm2_ancestral(kd.levels(NOISE, 4)).pad(9)
    other = kd.dpm2_ancestral(kd.levels(NOISE, 3)).pad(9)  # a template of the same columns
    with orbax.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "table", table)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "table", other)
    assert structure(restored) == structure(table)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(table), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


# --- refused ---------------------------------------------------------------------------------


def edited(*path: Any, **put: Any):
    """Reads a table whose object at `path` was updated; None takes a name away."""

    def read():
        held = json.loads(kd.dpm2(kd.levels(NOISE, 3)).pad(7).to_json())
        place = held
        for name in path:
            place = place[name]
        place.update(put)
        for name in [name for name, value in put.items() if value is None]:
            del place[name]
        return kd.Schedule.from_json(json.dumps(held))

    return read


def written_with(**columns: Any):
    table = kd.dpm2(kd.levels(NOISE, 3))
    return dataclasses.replace(table, rows=dataclasses.replace(table.rows, **columns)).to_json()


def float64_text():
    with x64():
        return kd.dpm2(kd.levels(NOISE, 3)).to_json()


def from_text(text: Any):
    return lambda: kd.Schedule.from_json(text)


INT = {"dtype": "int32"}
REFUSED: list[refusals.Refusal] = [
    (from_text("sigma = 3"), "'sigma = 3' is no JSON .*line 1"),
    (from_text({"format": 1}), "dict is no JSON .*to_json"),
    (from_text("[1, 2]"), "format 'list'.*expected 'kdiff_jax.Schedule'"),
    (from_text('{"sigmas": [1]}'), "format None.*expected 'kdiff_jax.Schedule'"),
    (edited(version=2), "version 2, .* reads version 1"),
    (edited(flow="yes"), "flow = 'yes'.*true or false"),
    (edited(continues=None), "continues = None.*true or false"),
    (edited(rows=[1]), r"rows is \[1\]; expected an object"),
    (edited("rows", sigma=None), r"rows lacks \['sigma'\] and has \[\]"),
    (edited("rows", weight={}), r"rows lacks \[\] and has \['weight'\]"),
    (edited(sigmas=None), r"lacks \['sigmas'\]"),
    (edited("rows", sigma=[1.0]), r"sigma is \[1.0\]; expected its dtype and values"),
    (edited("rows", "sigma", dtype="float16"), "sigma is 'float16'; expected float32 or float64"),
    (edited("rows", "index", dtype="float32"), "index is 'float32'; expected int32"),
    (edited("rows", "sigma", values=[[1.0], [1.0, 2.0]]), "sigma holds .*lists of one length"),
    (edited("rows", "sigma", values=["1.0"] * 7), "sigma holds .*expected float32 numbers"),
    (edited("rows", "sigma", values=[]), r"sigma holds \[\]; expected float32 numbers"),
    (edited("rows", "advances", values=[1] * 7), "advances holds .*expected bool"),
    (edited("rows", "index", values=[0.5] * 7), "index holds .*expected int32"),
    (edited("rows", "index", values=[2**40] * 7), "index holds numbers beyond int32"),
    (edited("rows", "sigma", values=[1e39] * 7), "sigma holds numbers beyond float32"),
    (edited("rows", "sigma", values=[float("nan")] * 7), "sigma holds numbers beyond float32"),
    (edited("rows", "sigma", values=[1.0] * 6), r"index has shape \(7,\) and .*sigma.*\(6,\)"),
    (edited("init_noise_sigma", values=[1.0]), r"the rest .*init_noise_sigma.*\(1,\)"),
    (edited("length", values=8), "length = 8 of a table of 7 rows"),
    (edited("length", values=0), "length = 0 of a table of 7 rows"),
    (edited(length=None), "length and idle come together"),
    (edited("rows", idle=None), "length and idle come together"),
    (from_text(float64_text()), "timestep|sigma.* is float64, .*jax_enable_x64"),
    (lambda: written_with(sigma=jnp.full(5, jnp.nan)), "sigma holds a NaN or an infinity"),
    (
        lambda: written_with(sigma=jnp.ones(5, jnp.bfloat16)),
        "sigma is 'bfloat16'; expected float32",
    ),
    (
        lambda: jax.jit(lambda table: table.to_json())(kd.dpm2(kd.levels(NOISE, 3))),
        "traced here .*outside of jit",
    ),
]


@refusals.every(REFUSED)
def test_what_is_no_table_is_refused(call, message):
    refusals.check(call, message)


def test_every_refusal_of_saving_is_reached():
    assert not refusals.unreached(["_table.saving"], REFUSED)
