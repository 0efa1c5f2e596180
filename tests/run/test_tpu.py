"""What the TPU compiler makes of the samplers: its programs are read, and none of them runs."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import samplers as sp
from samplers import SAMPLERS

import kdiff_jax as kd
import tpu_report
import tpu_scans
from kdiff_jax._noise import keyed
from tpu_program import Program

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "tpu_compile.json"
# Samples of scratch: the anchor, or the ring of one estimate or two and the one that is written.
HELD = {"euler": 0, "tcd": 0, "heun": 1, "2s": 1, "sde": 1}
HELD |= {"2m": 2, "2m sde": 2, "3m": 3, "unipc": 3}
with_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the TPU compiler, is not installed: pip install libtpu, on Linux",
)

# As libtpu writes it, shortened: 3 rows, a draw under a condition, a copy, and one into VMEM, S(1).
TEXT = """HloModule jit_run

%fused (p: f32[4,8]) -> f32[4,8] {
  ROOT %transpose.1 = f32[4,8]{1,0} transpose(%p), dimensions={0,1}
}

%same (p.1: f32[4,8]) -> f32[4,8] {
  ROOT %p.1 = f32[4,8]{1,0} parameter(0)
}

%draw (p.2: f32[4,8]) -> f32[4,8] {
  %xor.1 = u32[4,8]{1,0} xor(%a, %b), backend_config={"estimated_cycles":"50"}
  ROOT %p.2 = f32[4,8]{1,0} parameter(0)
}

%cond (p.3: (s32[], f32[4,8])) -> pred[] {
  %constant.1 = s32[] constant(3)
  ROOT %lt = pred[] compare(%i, %constant.1), direction=LT
}

%body (p.4: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %xor.2 = u32[2]{0} xor(%c, %d), backend_config={"estimated_cycles":"1"}
  %copy.1 = f32[4,8]{1,0:T(8,128)} copy(%x), backend_config={"estimated_cycles":"10"}
  %copy.2 = f32[4,8]{1,0:T(8,128)S(1)} copy(%x)
  %copy.3 = s32[]{:T(128)} copy(%i)
  %fusion = f32[4,8]{1,0} fusion(%x), kind=kLoop, calls=%fused
  %drawn = f32[4,8]{1,0} conditional(%p, %x, %x), branch_computations={%same, %draw}
  ROOT %tuple = (s32[], f32[4,8]) tuple(%i, %drawn)
}

ENTRY %main (x: f32[4,8]) -> f32[4,8] {
  %all-reduce.1 = f32[] all-reduce(%s), to_apply=%add, backend_config={"estimated_cycles":"7"}
  %while.1 = (s32[], f32[4,8]{1,0}) while(%t), condition=%cond, body=%body
  %callback = (f32[], u32[]) send(%s), channel_id=1, is_host_transfer=true
}
"""


def test_a_text_is_read():
    program = Program(TEXT)
    assert [line.split()[0] for line in program.copies(32)] == ["%copy.1", "%fusion"]
    assert program.copies(33) == []
    assert len(program.random_bits(32)) == 1
    assert program.free_random_bits(32) == []
    assert len(program.free_random_bits(4)) == 1
    assert (program.collectives(), program.collectives(in_loops=False)) == ([], ["all-reduce"])
    assert len(program.host_transfers()) == 1
    # Outside the loop 7; in three rows 10 + 1; and 50 in the two of them that draw.
    assert program.cycles(rows=3, draws=2) == pytest.approx(7 + 3 * 11 + 2 * 50)


def test_a_fault_in_the_text_is_seen():
    line = next(line for line in TEXT.split("\n") if "all-reduce(" in line)
    inside = TEXT.replace("  %copy.2", line + "\n  %copy.2")
    assert Program(inside).collectives() == ["all-reduce"]
    always = TEXT.replace(
        "conditional(%p, %x, %x), branch_computations={%same, %draw}", "call(%draw)"
    )
    assert len(Program(always).free_random_bits(32)) == 1
    with pytest.raises(ValueError, match="no loop"):
        Program(TEXT.replace(" while(", " call(")).collectives()


@pytest.mark.parametrize("name", tpu_scans.SCANS)
def test_the_scans_by_hand_are_the_same_samplers(name, monkeypatch):
    def noise(keys, index, x):
        return keyed.draw(keys, keyed.STEP_DOMAIN, index, x.shape)

    monkeypatch.setattr(tpu_scans, "_noise", noise)
    schedule = SAMPLERS[name](4)
    keys = jax.random.split(jax.random.key(0), 3) if sp.draws(schedule) else None
    x = kd.initial_sample(schedule, jax.random.key(1), (3, 8))

    def model(x, timestep):
        return sp.elementwise_model(sp.ELEMENTWISE, x, timestep)

    expected = kd.sample(kd.denoiser(sp.elementwise_model), sp.ELEMENTWISE, schedule, x, keys)
    table = tpu_scans.table_of(name, schedule)
    for scan in tpu_scans.SCANS[name].values():
        got = jax.jit(scan, static_argnums=0)(model, x, keys, table)
        assert jnp.max(jnp.abs(got - expected)) < 2e-6 * jnp.max(jnp.abs(x))


def test_the_docs_show_what_was_found():
    found = json.loads(RESULTS.read_text())
    page = (ROOT / "docs" / "tpu.md").read_text()
    assert page == tpu_report.with_tables(page, found)
    assert page.count("| dpm2 |") == 1
    for package in ("jax", "libtpu"):
        assert found["versions"][package] in page
    assert not tpu_report.failed(found)
    assert found["planted"] == {"noise": True, "carry": True}
    for generation, cases in found["generations"].items():
        held = {name: round(cases[name]["scratch"]) for name in HELD}
        assert held == HELD, generation


# --- with the compiler -----------------------------------------------------------------------


def compile_for_tpu(*options):
    """The exit status and what is printed, in a process of its own: it sets up JAX otherwise."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    script = ROOT / "benchmarks" / "tpu_compile.py"
    command = [sys.executable, script, "--no-write", "--what", "programs", *options]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return run.returncode, run.stdout + run.stderr


@with_compiler
@pytest.mark.slow
def test_the_samplers_compile_for_a_tpu_within_their_bounds():
    cases = ["euler", "dpm2", "ancestral", "lcm", "heun", "2s", "2m", "unipc", "tcd", "save"]
    cases += ["guided, two calls", "digits U-Net, dpm2"]
    status, printed = compile_for_tpu("--generations", "v5e:2x2", "--cases", *cases)
    assert status == 0, printed
    assert printed.count("kept") == len(cases), printed


@with_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("plant", "case", "fault"),
    [
        ("noise", "ancestral", "random bits in every row"),
        ("carry", "dpm2", "2 copies of a sample in a loop"),
    ],
)
def test_a_planted_fault_is_found(plant, case, fault):
    status, printed = compile_for_tpu(
        "--generations", "v5e:2x2", "--cases", case, "--planted", plant
    )
    assert status == 1
    assert fault in printed
