"""What a type checker finds in a caller's code: wrong names of options, and what a call returns."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="the type checker comes with the extra 'dev'")

ROOT = Path(__file__).parents[2]
# jax itself takes four seconds to check, and what is checked here needs one class of it.
JAX = "from typing import Any\nclass Array: ...\ndef __getattr__(name: str) -> Any: ...\n"
CONFIGURATION = """
[mypy]
ignore_missing_imports = true
[mypy-numpy.*,scipy.*]
follow_imports = skip
[mypy-kdiff_jax.*]
follow_imports = silent
"""
# Every line with a comment is an error, and no other line is one.
CALLER = """
from typing import assert_type

import jax
import kdiff_jax as kd


def run(params: dict[str, jax.Array], x: jax.Array, key: jax.Array) -> None:
    noise = kd.noise_schedule("scaled_linear")
    kd.noise_schedule("scaled-linear")  # error
    levels = kd.levels(noise, 4, grid="karras", timestep_spacing="trailing")
    kd.levels(noise, 4, grid="karas")  # error
    kd.levels(noise, 4, timestep_spacing="even")  # error
    schedule = kd.dpm2(levels.start_at(2))
    kd.dpm2(noise)  # error
    denoise = kd.denoiser(lambda params, x, timestep: x, "v_prediction")
    kd.denoiser(lambda params, x, timestep: x, "velocity")  # error

    assert_type(kd.sample(denoise, params, schedule, x, key), jax.Array)
    state = kd.init(schedule, x)
    assert_type(kd.sample(denoise, params, schedule[1:], state, remat="rows"), jax.Array)
    kd.sample(denoise, params, schedule, x, remat="all")  # error

    def sigma(state: kd.State, prediction: kd.Prediction, row: kd.Row) -> jax.Array:
        return row.sigma

    def only_state(state: kd.State) -> jax.Array:
        return state.sample

    def step(state: kd.State, prediction: kd.Prediction, row: kd.Row) -> dict[str, int]:
        return {"step": 1}

    x0, saved = kd.sample(denoise, params, schedule, x, key, save_fn=step)
    assert_type(x0, jax.Array)
    assert_type(saved, dict[str, int])
    assert_type(kd.sample(denoise, params, schedule, x, save_fn=sigma), tuple[jax.Array, jax.Array])
    assert_type(kd.sample(denoise, params, schedule, x, save_fn=sigma), jax.Array)  # error
    kd.sample(denoise, params, schedule, x, save_fn=only_state)  # error
    assert_type(schedule[0], kd.Row)
    assert_type(schedule[1:], kd.Schedule)
"""


def test_wrong_names_and_results_are_errors_of_the_type_checker(tmp_path):
    package = tmp_path / "jax"
    package.mkdir()
    (package / "__init__.pyi").write_text(JAX)
    (tmp_path / "mypy.ini").write_text(CONFIGURATION)
    (tmp_path / "caller.py").write_text(CALLER)
    options = ["--config-file", "mypy.ini", "--cache-dir", "cache", "--no-error-summary"]
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "caller.py"],
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert not ran.stderr
    found = {int(number) for number in re.findall(r"^caller\.py:(\d+): error", ran.stdout, re.M)}
    lines = enumerate(CALLER.split("\n"), 1)
    expected = {number for number, line in lines if line.endswith("# error")}
    assert len(expected) == 8
    assert found == expected, ran.stdout
