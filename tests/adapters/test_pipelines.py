"""The levels that pipelines of diffusers run, recorded from their own code, and our recipes."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kdiff_jax as kd
from kdiff_jax.adapters import diffusers as kd_diffusers

ROOT = Path(__file__).parents[2]
RECORDED = json.loads((ROOT / "tests" / "golden" / "pipelines.json").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "flow.md").read_text(encoding="utf-8")
# The block of the page with the recipes, which begins with the numbers that it is shown for.
SIZES = "num_steps, tokens = 28, 4096\n"
(RECIPES,) = (
    block
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    if SIZES in block
)


def recipe(run: dict[str, Any]) -> kd.Levels:
    """What the page makes of these numbers."""
    names: dict[str, Any] = {}
    sizes = f"num_steps, tokens = {run['steps']}, {run['tokens']}\n"
    exec(RECIPES.replace(SIZES, sizes).replace("shift=5.0", f"shift={shift_of(run)}"), names)
    name = run["pipeline"].removesuffix("Pipeline").lower()
    if name == "flux" and not run["config"]["use_dynamic_shifting"]:
        name = "schnell"
    return names[name]


def shift_of(run: dict[str, Any]) -> float:
    return run["config"].get("flow_shift", 5.0)


def name_of(run: dict[str, Any]) -> str:
    return f"{run['pipeline']}-{run['steps']}-{run['tokens']}-{shift_of(run)}"


@pytest.mark.parametrize("run", RECORDED["levels"], ids=name_of)
def test_the_recipes_of_the_page_are_the_levels_of_the_pipelines(run: dict[str, Any]) -> None:
    levels = recipe(run)
    np.testing.assert_allclose(levels.sigmas, run["sigmas"], rtol=1e-6, atol=1e-7)
    # The timesteps of UniPC are whole: nothing is left to rounding.
    exact = "Wan" in run["pipeline"]
    np.testing.assert_allclose(levels.timesteps, run["timesteps"], rtol=0 if exact else 1e-6)


@pytest.mark.parametrize(
    "run", [run for run in RECORDED["levels"] if "Wan" not in run["pipeline"]], ids=name_of
)
def test_the_adapter_takes_what_the_pipelines_pass(run: dict[str, Any]) -> None:
    steps = run["steps"]
    sampler = kd_diffusers.from_config(run["config"], sampler="dpm2")
    call: dict[str, Any] = {"num_inference_steps": steps}
    if "sigmas" in run["passed"]:
        call = {"sigmas": np.linspace(1, 1 / steps, steps)}
    if run["config"].get("use_dynamic_shifting"):
        call["image_seq_len"] = run["tokens"]
    levels = sampler.levels(**call)
    np.testing.assert_allclose(levels.sigmas, run["sigmas"], rtol=1e-6)
    np.testing.assert_allclose(levels.timesteps, run["timesteps"], rtol=1e-6)


@pytest.mark.parametrize("name", RECORDED["strengths"])
def test_flows_round_a_strength_up_and_stable_diffusion_down(name: str) -> None:
    # (28, 0.6) is 16.8 steps: 17 on a flow, 16 in Stable Diffusion.
    assert RECORDED["strengths"][name][0] == [28, 0.6, 16 if "eDiffusionI" in name else 17]
    for steps, strength, kept in RECORDED["strengths"][name]:
        levels = kd.levels(kd.flow_schedule(3.0), steps)
        if "eDiffusionI" in name:
            if (steps, strength) == (50, 0.58):  # int(50 * 0.58) is 28, a step too few
                kept += 1
            if kept:  # none is refused here
                assert levels.start_at_strength(strength).num_steps == kept
        else:
            assert levels.start_at(int(steps - steps * strength)).num_steps == kept
