"""The example that stops in mid-trajectory: another process ends with the bits of the whole run."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

for package in ("flax", "safetensors", "matplotlib", "tqdm"):
    pytest.importorskip(package, reason="the examples need the extra 'examples'")

import resume
import scripts

import kdiff_jax as kd

# Five rows: after the third, DPM2 stands between the midpoint and the landing of its second step.
ARGUMENTS = ["--steps", "3", "--class", "3", "8", "--every", "3"]


def checksum(text):
    (found,) = re.findall(r"sha256 (\w+)", text)
    return found


@pytest.mark.slow
def test_interrupted_and_resumed_in_another_process_gives_the_same_bits(tmp_path):
    path = tmp_path / "run.npz"
    whole = checksum(scripts.run(resume, *ARGUMENTS))
    printed = scripts.run(resume, *ARGUMENTS, "--stop-after", "3", "--file", str(path))
    assert "stopped after row 3 of 5" in printed
    with np.load(path) as file:
        # Nothing of this would be needed at the end of a step, where they are equal.
        assert not np.array_equal(file["sample"], file["anchor"])
    ran = subprocess.run(
        [sys.executable, Path(resume.__file__), *ARGUMENTS, "--resume", path],
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert ran.returncode == 0, ran.stderr
    assert checksum(ran.stdout) == whole


@pytest.mark.parametrize("histories", [(), ("anchor",), ("denoised_1", "denoised_2")])
def test_a_file_keeps_all_of_the_state(tmp_path, histories):
    key = jax.random.key(4)
    names = ("sample", *histories)
    leaves = jax.random.normal(key, (3, 2, 5))
    saved = kd.State(**dict(zip(names, leaves, strict=False)))
    resume.save(tmp_path / "run.npz", saved, key, 7, {"seed": 1})
    state, again, row = resume.load(tmp_path / "run.npz", {"seed": 1})
    jax.tree.map(np.testing.assert_array_equal, state, saved)
    assert jax.random.key_data(again).tolist() == jax.random.key_data(key).tolist()
    assert row == 7
    assert [path.name for path in tmp_path.iterdir()] == ["run.npz"]


def test_files_of_another_run_and_other_files_are_refused(tmp_path):
    path = tmp_path / "run.npz"
    state = kd.State(jnp.zeros((1, 2)), jnp.zeros((1, 2)))
    resume.save(path, state, jax.random.key(0), 2, {"seed": 1, "steps": 12})
    with pytest.raises(ValueError, match=r"another run: seed differ.*\[1\].*\[2\].*arguments"):
        resume.load(path, {"seed": 2, "steps": 12})
    np.savez(tmp_path / "other.npz", sample=np.zeros(3))
    (tmp_path / "text.npz").write_text("no archive")
    path.write_bytes(path.read_bytes()[:100])
    for name in ("other.npz", "text.npz", "run.npz"):
        with pytest.raises(ValueError, match=f"{name} was not written by this script"):
            resume.load(tmp_path / name, {"seed": 1, "steps": 12})
