"""Configs of DPM-Solver, UniPC, Heun and TCD: diffusers' levels, timesteps and runs, recorded."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from samplers import relative_error, x64

import kdiff_jax as kd
from kdiff_jax.adapters import diffusers as kd_diffusers
from kdiff_jax.adapters.diffusers.levels import GRID_FLAGS

RECORDED = dict(np.load(Path(__file__).parents[1] / "golden" / "solvers.npz"))
ABOUT = json.loads(str(RECORDED.pop("about")))
CASES = ABOUT["cases"]
SHAPE = (2, 3, 1)


def network(params: Any, x: jax.Array, timestep: jax.Array) -> jax.Array:
    return params


def sampler_of(case: dict[str, Any]) -> kd_diffusers.DiffusersSampler:
    return kd_diffusers.from_config({"_class_name": case["class"], **case["config"]})


def skips_last(case: dict[str, Any]) -> bool:
    """A last step of diffusers from a level to itself."""
    sigmas = RECORDED.get(f"{case['number']}/sigmas")
    return sigmas is not None and bool(sigmas[-2] < sigmas[-1] * (1 + 1e-6))


for _number, _case in enumerate(CASES):
    _case["number"] = _number


def test_levels_and_timesteps_are_those_of_set_timesteps() -> None:
    for case in CASES:
        levels = sampler_of(case).levels(**case["call"])
        timesteps = RECORDED[f"{case['number']}/timesteps"]
        heun = "Heun" in case["class"]
        # Heun lists both halves of each step.
        timesteps = (timesteps[::2] if heun else timesteps)[: levels.num_steps]
        apart = np.abs(levels.timesteps - timesteps)
        if not heun:
            assert np.all(levels.timesteps % 1 == 0), case
        # A whole timestep may be a little less in their float32, and is then cut off: 999 to 998.
        between = levels.noise.timestep_at(levels.sigmas[: levels.num_steps])
        cut = (apart == 1) & (np.abs(between - np.round(between)) < 5e-2)
        cut &= any(case["config"].get(flag) for flag in GRID_FLAGS)
        assert np.all((apart < (1e-2 if heun else 1e-12)) | cut), (case, levels.timesteps)
        if case["class"] == "TCDScheduler":
            continue
        sigmas = RECORDED[f"{case['number']}/sigmas"]
        if heun:
            sigmas = np.array([*sigmas[:-1:2], sigmas[-1]])
        sigmas = sigmas[: levels.num_steps + 1]
        np.testing.assert_allclose(levels.sigmas, sigmas, 1e-9, err_msg=str(case))


def test_runs_are_those_of_diffusers() -> None:
    with x64():
        for case in CASES:
            check_run(case)


def estimates(
    sampler: kd_diffusers.DiffusersSampler, x: Any, alpha: float, sigma: float, out: Any
) -> tuple[Any, Any]:
    """D and epsilon from what the network returned, clipped as the config says; x of the table."""
    config = sampler.config
    size = 1.0 if sampler.flow else np.hypot(alpha, sigma)
    kind = config.get("prediction_type", "flow_prediction")
    if kind == "flow_prediction":
        d = x - sigma * out
    elif kind == "epsilon":
        d = (x - sigma * out) / alpha
    else:
        d = out if kind == "sample" else (alpha * x / size - sigma * out) / size
    if config.get("thresholding") and sampler.name != "tcd":
        flat = np.abs(d).reshape(len(d), -1)
        limit = np.quantile(flat, config["dynamic_thresholding_ratio"], axis=1)
        limit = np.clip(limit, 1, config["sample_max_value"]).reshape(-1, 1, 1)
        d = np.clip(d, -limit, limit) / limit
    if config.get("clip_sample"):
        d = np.clip(d, -config["clip_sample_range"], config["clip_sample_range"])
    return d, (x - alpha * d) / sigma


def check_run(case: dict[str, Any]) -> None:
    sampler, number = sampler_of(case), case["number"]
    levels = sampler.levels(**case["call"])
    schedule = sampler.schedule(**case["call"])
    if case["class"] == "TCDScheduler":
        schedule = kd.tcd(levels, case["gamma"])
    outputs = RECORDED[f"{number}/outputs"].astype(np.float64)
    samples = RECORDED[f"{number}/samples"]
    rng = np.random.default_rng(number)
    initial, noise = rng.standard_normal(SHAPE), rng.standard_normal((len(outputs), *SHAPE))
    # diffusers has samples of unit variance where the tables have alpha = 1.
    scaled = not sampler.flow and case["class"] not in ("TCDScheduler", "HeunDiscreteScheduler")
    columns = {k: np.asarray(v) for k, v in vars(schedule.rows).items() if v is not None}
    x = anchor = initial * float(schedule.init_noise_sigma)
    d = d_1 = d_2 = np.zeros(SHAPE)
    for i in range(len(schedule)):
        row = {name: column[i] for name, column in columns.items()}
        d_1, d_2 = d, d_1
        d, epsilon = estimates(sampler, x, row.get("alpha", 1.0), row["sigma"], outputs[i])
        terms = {"denoised": d, "epsilon": epsilon, "anchor": anchor, "noise": noise[i]}
        x = sum(row.get(f"{name}_weight", 0) * term for name, term in terms.items())
        x = x + row.get("denoised_weight_1", 0) * d_1 + row.get("denoised_weight_2", 0) * d_2
        anchor = x if row.get("advances", True) else anchor
        alpha = 1 / np.sqrt(1 + levels.sigmas[i + 1] ** 2) if scaled else 1
        error = relative_error(alpha * x, samples[i])
        assert error < 1e-6, (error, i, case)
    assert len(samples) == len(schedule) + skips_last(case)
    if skips_last(case):
        assert relative_error(samples[-1], samples[-2]) < 1e-6


def test_the_denoiser_reads_an_output_as_the_config_says() -> None:
    seen = set()
    for case in CASES:
        sampler = sampler_of(case)
        keys = ("prediction_type", "thresholding", "clip_sample")
        kind = (sampler.flow, sampler.name == "tcd", *map(case["config"].get, keys))
        if kind in seen:
            continue
        seen.add(kind)
        rows = sampler.schedule(**case["call"]).rows
        columns = {k: np.asarray(v)[-1] for k, v in vars(rows).items() if v is not None}
        ones = {name: np.ones_like(columns["sigma"]) for name in ("alpha", "input_scale")}
        row = kd.Row(**{k: jnp.asarray(v) for k, v in {**ones, **columns}.items()})
        out = RECORDED[f"{case['number']}/outputs"][-1]
        x = 2 * np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
        found = sampler.denoiser(network)(out, jnp.asarray(x), row)
        expected = estimates(sampler, x, columns.get("alpha", 1.0), columns["sigma"], out)
        for half, truth in zip((found.denoised, found.epsilon), expected, strict=True):
            assert relative_error(half, truth) < 1e-4, case
    assert len(seen) >= 12
