"""Configs of DPM-Solver, UniPC, Heun, TCD, DDIM: levels, timesteps and runs that were recorded."""

import json
from collections import defaultdict
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
        if case["class"] in ("TCDScheduler", "DDIMScheduler"):
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


def schedule_of(case: dict[str, Any]) -> kd.Schedule:
    sampler = sampler_of(case)
    levels = sampler.levels(**case["call"])
    if case["class"] == "TCDScheduler":
        return kd.tcd(levels, case["gamma"])
    if case["class"] == "DDIMScheduler":
        return kd.euler(levels, case["gamma"])
    return sampler.schedule(**case["call"])


def drawn(case: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The initial sample before its scale, and one array of noise a row."""
    rng, count = np.random.default_rng(case["number"]), len(RECORDED[f"{case['number']}/outputs"])
    initial = rng.standard_normal(SHAPE).astype(np.float32)
    return initial, rng.standard_normal((count, *SHAPE)).astype(np.float32)


def units(case: dict[str, Any]) -> np.ndarray:
    """What the sample after each row is multiplied by: diffusers has samples of unit variance where
    the tables have alpha = 1."""
    sampler = sampler_of(case)
    sigmas = np.asarray(sampler.levels(**case["call"]).sigmas, np.float64)[1:]
    one = sampler.flow or case["class"] in ("TCDScheduler", "HeunDiscreteScheduler")
    return np.ones(len(schedule_of(case))) if one else 1 / np.sqrt(1 + sigmas**2)


def check_run(case: dict[str, Any]) -> None:
    sampler, number = sampler_of(case), case["number"]
    schedule, scales = schedule_of(case), units(case)
    outputs = RECORDED[f"{number}/outputs"].astype(np.float64)
    samples = RECORDED[f"{number}/samples"]
    initial, noise = drawn(case)
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
        error = relative_error(scales[i] * x, samples[i])
        assert error < 1e-6, (error, i, case)
    assert len(samples) == len(schedule) + skips_last(case)
    if skips_last(case):
        assert relative_error(samples[-1], samples[-2]) < 1e-6


# --- float32 ----------------------------------------------------------------------------------

KINDS: tuple[Any, ...] = ("epsilon", "v_prediction", "sample")
# Clipped estimates are the same code for all samplers, and would each be a program of their own.
IN_FLOAT32 = [
    case for case in CASES if not any(map(case["config"].get, ("thresholding", "clip_sample")))
]


@jax.jit
def in_float32(
    table: kd.Schedule, kinds: jax.Array, x: jax.Array, outputs: jax.Array, noise: jax.Array
) -> jax.Array:
    """The samples after every row, of all cases in one batch, each handed its own outputs."""
    names = ("flow_prediction",) if table.flow else KINDS
    denoisers = [kd.denoiser(network, kind) for kind in names]

    def body(state: kd.State, at: Any) -> Any:
        i, out, z = at
        row = table.rows_at(i)
        each = [denoise(out, state.sample, row) for denoise in denoisers]
        prediction = jax.tree.map(lambda *halves: jnp.choose(kinds, halves, mode="clip"), *each)
        state = kd.step(state, row, prediction, noise=z)
        return state, state.sample

    rows = jnp.arange(len(outputs))
    return jax.lax.scan(body, kd.init(table, x), (rows, outputs, noise))[1]


def errors_in_float32(cases: list[dict[str, Any]]) -> list[float]:
    """Of each case, the largest error after any row, relative to the largest value there."""
    tables = [schedule_of(case) for case in cases]
    most, count, given = max(map(len, tables)), SHAPE[0], []
    for case, table in zip(cases, tables, strict=True):
        outputs, (initial, noise) = RECORDED[f"{case['number']}/outputs"], drawn(case)
        room = [(0, most - len(table)), *[(0, 0)] * len(SHAPE)]
        kind = case["config"].get("prediction_type")
        kinds = np.full((count, 1, 1), KINDS.index(kind) if kind in KINDS else 0)
        long = (np.pad(array[: len(table)], room) for array in (outputs, noise))
        given.append((kinds, initial * table.init_noise_sigma, *long))
    arrays = [
        jnp.concatenate(parts, axis)
        for parts, axis in zip(zip(*given, strict=True), (0, 0, 1, 1), strict=True)
    ]
    batch = kd.stack([table for table in tables for _ in range(count)])
    found = np.asarray(in_float32(batch, *arrays), np.float64)
    errors = []
    for i, (case, table) in enumerate(zip(cases, tables, strict=True)):
        ours = found[: len(table), count * i : count * (i + 1)] * units(case).reshape(-1, 1, 1, 1)
        truth = RECORDED[f"{case['number']}/samples"][: len(table)]
        errors.append(max(map(relative_error, ours, truth)))
    return errors


def sampler_name(case: dict[str, Any]) -> str:
    """The class, and what of it docs/accuracy.md lists apart."""
    config, name = case["config"], case["class"]
    if name == "DPMSolverMultistepScheduler":
        name += f", order {config.get('solver_order', 2)}"
    name += ", corrector off in some steps" if config.get("disable_corrector") else ""
    return name + (", SDE" if "sde" in config.get("algorithm_type", "") else "")


def test_float32_is_no_worse_than_that_of_diffusers() -> None:
    found: dict[str, list[Any]] = defaultdict(list)
    for flow in (False, True):
        cases = [case for case in IN_FLOAT32 if sampler_of(case).flow is flow]
        for case, error in zip(cases, errors_in_float32(cases), strict=True):
            found[sampler_name(case)].append((error, case["loss"]))
            if flow:
                found[sampler_name(case) + ", flow"].append((error, case["loss"]))
    found = {name: pairs for name, pairs in found.items() if len(pairs) > 1}
    for name, pairs in found.items():
        ours, theirs = np.array(pairs).T
        figures = (f"{np.median(v):.1e}, {np.max(v):.1e}" for v in (ours, theirs))
        print(f"{name}, {len(pairs)} cases: {'; '.join(figures)}")
        # On a flow the two round equally often, and the draw decides.
        factor = 1.5 if name.endswith("flow") else 1.0
        assert np.median(ours) <= factor * np.median(theirs), name
        assert max(ours) <= factor * max(theirs), name
    assert len(found) == 15


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
