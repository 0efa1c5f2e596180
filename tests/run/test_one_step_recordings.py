"""Recorded runs of diffusers: HeunDiscrete, FlowMatchHeun, TCD and DDIM with eta.

The yardstick is a float64 truth from the papers' formulas, which is handed what the network
returned in the recording; diffusers has its noise levels in float32.
"""

import json
import math
from pathlib import Path
from typing import Any

import k_truth
import numpy as np
import pytest
import samplers as sp
import truth
from recordings import relative_error
from samplers import NOISE

import kdiff_jax as kd

RECORDED = dict(np.load(Path(__file__).parents[1] / "golden" / "one_step.npz"))
CASES = [
    {**case, **{k: RECORDED[f"{i}/{k}"] for k in ("initial", "noise", "outputs", "samples")}}
    | {"timesteps": RECORDED[f"{i}/timesteps"]}
    for i, case in enumerate(json.loads(str(RECORDED["about"]))["cases"])
]
DDIM = [case for case in CASES if case["class"] == "DDIMScheduler"]


def estimates(case: dict[str, Any], x: Any, alpha: float, sigma: float, out: Any) -> Any:
    """D and epsilon from what the network returned for `x = alpha x0 + sigma eps`, unit variance or
    on the line of a flow."""
    kind = case["config"].get("prediction_type", "epsilon")
    if case["class"].startswith("Flow"):
        return x - sigma * out, x + alpha * out
    if kind == "epsilon":
        return (x - sigma * out) / alpha, out
    return alpha * x - sigma * out, sigma * x + alpha * out


# --- in float64 from the papers --------------------------------------------------------------


def heun_truth(case: dict[str, Any]) -> np.ndarray:
    """The last sample: Karras et al. 2022, Algorithm 1."""
    if case["class"].startswith("Flow"):
        shift, steps = case["config"]["shift"], case["steps"]

        def shifted(s: Any) -> Any:
            return shift * s / (1 + (shift - 1) * s)

        # Its sigma_min is a level that was shifted, and is shifted again.
        sigmas = np.append(shifted(np.linspace(1, shifted(0.001), steps)), 0)
    else:
        config = {**case["config"], "_class_name": case["class"]}
        sigmas = truth.sigma_grid(config, case["steps"], round_timesteps=False)[0]
    outputs = iter(case["outputs"].astype(np.float64))

    def denoised(x: Any, sigma: float) -> Any:
        if case["class"].startswith("Flow"):
            return estimates(case, x, 1 - sigma, sigma, next(outputs))[0]
        scale = 1 / math.sqrt(1 + sigma**2)
        return estimates(case, x * scale, scale, sigma * scale, next(outputs))[0]

    return k_truth.k_sample_heun(denoised, case["initial"], sigmas)


def ddim_truth(case: dict[str, Any]) -> np.ndarray:
    """Song et al. 2020, equations 12 and 16, with eta; [N, ...]."""
    config = {**case["config"], "_class_name": case["class"]}
    abar, steps = truth.alphas_cumprod(config), case["timesteps"].astype(int)
    after = [*abar[steps[1:]], 1.0 if config.get("set_alpha_to_one", True) else abar[0]]
    x, samples = case["initial"].astype(np.float64), []
    for t, b, out, z in zip(steps, after, case["outputs"], case["noise"], strict=True):
        a = abar[t]
        std = case["eta"] * math.sqrt((1 - b) / (1 - a)) * math.sqrt(1 - a / b)
        d, eps = estimates(case, x, math.sqrt(a), math.sqrt(1 - a), out.astype(np.float64))
        x = math.sqrt(b) * d + math.sqrt(1 - b - std**2) * eps + std * z
        samples.append(x)
    return np.stack(samples)


def tcd_truth(case: dict[str, Any]) -> np.ndarray:
    """Zheng et al. 2024; the last step goes to t = 0 and draws nothing; [N, ...]."""
    config = {**case["config"], "_class_name": "LCMScheduler"}
    abar, steps = truth.alphas_cumprod(config), [*case["timesteps"].astype(int), 0]
    x, samples = case["initial"].astype(np.float64), []
    for i, (out, z) in enumerate(zip(case["outputs"], case["noise"], strict=True)):
        a, b = abar[steps[i]], abar[steps[i + 1]]
        s = abar[math.floor(round((1 - case["eta"]) * steps[i + 1], 9))]
        d, eps = estimates(case, x, math.sqrt(a), math.sqrt(1 - a), out.astype(np.float64))
        x = math.sqrt(b / s) * (math.sqrt(s) * d + math.sqrt(1 - s) * eps)
        x = x + math.sqrt(1 - b / s) * z
        samples.append(x)
    return np.stack(samples)


# --- the tables ------------------------------------------------------------------------------


def noise_of(case: dict[str, Any]) -> kd.NoiseSchedule:
    config = case["config"]
    return kd.noise_schedule(
        config["beta_schedule"],
        beta_start=config["beta_start"],
        beta_end=config["beta_end"],
        rescale_zero_terminal_snr=config.get("rescale_betas_zero_snr", False),
    )


def schedule_of(case: dict[str, Any]) -> kd.Schedule:
    config, steps = case["config"], case["steps"]
    if case["class"].startswith("Flow"):
        return kd.heun(kd.levels(kd.flow_schedule(config["shift"]), steps))
    if "Heun" in case["class"]:
        names: list[Any] = ["karras", "exponential", "beta"]
        grid = next((name for name in names if f"use_{name}_sigmas" in config), None)
        spacing = config.get("timestep_spacing", "linspace")
        levels = kd.levels(noise_of(case), steps, grid=grid, timestep_spacing=spacing)
        return kd.heun(levels)
    if case["class"] == "DDIMScheduler" and config.get("set_alpha_to_one", True):
        return kd.euler(kd.levels(noise_of(case), timesteps=case["timesteps"]), case["eta"])
    # Runs that end at t = 0, with the noise of that level left.
    timesteps = [*case["timesteps"], 0]
    if case["class"] == "DDIMScheduler":
        return kd.euler(kd.levels(noise_of(case), timesteps=timesteps).end_at(steps), case["eta"])
    levels = kd.lcm_levels(noise_of(case), timesteps=timesteps).end_at(steps)
    return kd.tcd(levels, case["eta"])


def run(case: dict[str, Any], schedule: kd.Schedule) -> np.ndarray:
    """The sample after every row of the table, in units of variance 1 but for Heun."""
    rows = {k: v for k, v in vars(schedule.rows).items() if v is not None}
    rows = {name: np.asarray(column, np.float64) for name, column in rows.items()}
    outputs, samples = case["outputs"].astype(np.float64), []
    noise = case["noise"] if len(case["noise"]) else np.zeros_like(outputs)
    sigma, alpha = rows["sigma"], rows.get("alpha", np.ones(len(outputs)))
    scale = rows.get("input_scale", np.ones(len(outputs)))
    x = case["initial"].astype(np.float64)
    if case["class"] == "DDIMScheduler":
        x = x / scale[0]
    anchor = x
    for i, out in enumerate(outputs):
        d, eps = estimates(case, x * scale[i], alpha[i] * scale[i], sigma[i] * scale[i], out)
        terms = {"denoised": d, "epsilon": eps, "anchor": anchor, "noise": noise[i]}
        x = sum(rows[f"{k}_weight"][i] * v for k, v in terms.items() if f"{k}_weight" in rows)
        anchor = x if "advances" not in rows or rows["advances"][i] else anchor
        samples.append(x)
    if case["class"] == "DDIMScheduler":
        after = np.asarray(schedule.sigmas, np.float64)[1:]
        samples = [x / math.sqrt(1 + s**2) for x, s in zip(samples, after, strict=True)]
    return np.stack(samples)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['class']}, {case['steps']}")
def test_recorded_runs(case: dict[str, Any]) -> None:
    schedule = schedule_of(case)
    # diffusers looks the timesteps of a grid up in float32.
    np.testing.assert_allclose(schedule.rows.timestep, case["timesteps"], 2e-7, 2e-2)
    ours, theirs = run(case, schedule), case["samples"]
    if "Heun" in case["class"]:
        ours, theirs, exact = ours[-1:], theirs[-1:], heun_truth(case)[None]
    else:
        exact = (tcd_truth if "TCD" in case["class"] else ddim_truth)(case)
    loss = relative_error(theirs, exact)
    print(f"diffusers {loss:.1e}, ours {relative_error(ours, exact):.1e}")
    assert loss < 5e-5  # else it would be another formula
    assert relative_error(ours, exact) < max(1e-6, loss / 2)


def test_there_are_recordings_of_every_kind() -> None:
    assert json.loads(str(RECORDED["about"]))["made_by"]["diffusers"] == "0.42.1"
    counts = {case["class"]: case["steps"] for case in CASES}
    assert len(counts) == 4
    assert len(CASES) >= 30


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_euler_is_ddim_and_its_eta_that_of_ddim(eta: float) -> None:
    # Equations 12 and 16 in float64, to the accuracy of that; diffusers has no part in it.
    levels = kd.levels(NOISE, timesteps=list(range(981, -1, -20)))
    with sp.x64():
        schedule = kd.euler(levels, eta)
    rng = np.random.default_rng(0)
    count = len(schedule)
    case = {
        "class": "DDIMScheduler",
        "config": {"beta_schedule": "scaled_linear"},
        "eta": eta,
        "timesteps": levels.timesteps,
        "initial": rng.normal(size=(2, 3)),
        **{name: rng.normal(size=(count, 2, 3)) for name in ("outputs", "noise")},
    }
    assert relative_error(run(case, schedule), ddim_truth(case)) < 1e-12
