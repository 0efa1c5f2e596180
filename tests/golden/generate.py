"""Records what the schedulers of diffusers do, for `tests/recordings.py` and the tests that use it.

Needs torch and diffusers, which nothing else in the tests does. In an environment of its own:

    pip install torch==2.13.0 diffusers==0.42.1 numpy scipy
    python tests/golden/generate.py            # writes recordings.npz beside this file
    python tests/golden/generate.py --check    # only compares what is there with the truth

Either prints three errors for each scheduler: of diffusers, of the truth with every float32 value
rounded, and of diffusers computing in float64. The last is below 1e-11 everywhere, at a median of
5e-16: truth and diffusers are the same algorithm, and all that separates them is rounding.

The recordings say which versions made them. The same versions make the same bytes again.

What is recorded: runs of `KDPM2DiscreteScheduler`, `KDPM2AncestralDiscreteScheduler` and
`LCMScheduler` over random values of all of their parameters, with the small fixed network of
`recordings.network` evaluated by torch in float32, the noise drawn beforehand and handed to the
scheduler in place of `randn_tensor`, and the sample after every evaluation. Image-to-image runs
start from the scheduler's own `add_noise`, as the pipelines do. `recordings.Case` describes what a
record holds.

What is left out, because diffusers is wrong there and not just inexact (each has its own test):

* one step with linspace or leading spacing, which starts at t = 0: at least 2 steps here;
* trailing spacing with an extra step, at t = -1 (`_trailing_has_extra_step`);
* leading spacing whose offset passes T - 1, more steps than T;
* `prediction_type="sample"` in the two DPM2 schedulers, which raise;
* an odd begin index; and looking rows up by their timestep: `set_begin_index` is always called;
* ancestral runs where float32 cancels in sigma_down until it is wrong by 1 % or more, or NaN
  (squaredcos_cap_v2, few steps; `_sigma_down_is_lost`);
* an LCM strength where `int(count * strength)` falls one short of the product (`_floors_alike`);
* epsilon with zero terminal SNR; thresholding with `sample_max_value` below 1.

Left out because one rounding in float32 decides between two integers, so that neither is wrong:

* Karras grids with a timestep within 2e-3 of a tie before rounding (`_rounds_clearly`).

One thing is repaired instead: after custom LCM timesteps with a strength below 1,
`num_inference_steps` still counts the timesteps dropped, so diffusers adds noise on the last
step. It is set to the number that is left, and everything else is as diffusers does it.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import importlib
import io
import itertools
import json
import math
import platform
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import scipy
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
recordings = importlib.import_module("recordings")
truth = importlib.import_module("truth")

SEED = 20240229
COUNTS = {"dpm2": 72, "dpm2_ancestral": 72, "lcm": 66}
CLASSES = {"dpm2": recordings.KDPM2, "dpm2_ancestral": recordings.ANCESTRAL, "lcm": recordings.LCM}
MODULES = {
    "dpm2": "diffusers.schedulers.scheduling_k_dpm_2_discrete",
    "dpm2_ancestral": "diffusers.schedulers.scheduling_k_dpm_2_ancestral_discrete",
    "lcm": "diffusers.schedulers.scheduling_lcm",
}
SHAPES = [(2, 8), (3, 2, 2, 3), (1, 4, 4, 2), (2, 2, 5)]
SHAPE_ODDS = [0.5, 0.25, 0.1, 0.15]

Random = np.random.Generator


# --- random configurations -------------------------------------------------------------------


def _choice(rng: Random, values: list[Any], odds: list[float] | None = None) -> Any:
    return values[rng.choice(len(values), p=odds)]


def _chance(rng: Random, probability: float) -> bool:
    return bool(rng.random() < probability)


def _digits(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")


def _trained_betas(rng: Random, count: int) -> list[float]:
    """Betas of a shape that no `beta_schedule` has: a sigmoid, a power or a random walk."""
    low, high = rng.uniform(0.1, 1.0) / count, rng.uniform(8.0, 20.0) / count
    ramp = np.linspace(0, 1, count)
    shape = _choice(rng, ["sigmoid", "power", "walk"])
    if shape == "sigmoid":
        ramp = 1 / (1 + np.exp(-12 * (ramp - 0.5)))
    elif shape == "power":
        ramp = ramp ** rng.uniform(0.7, 3.0)
    else:
        ramp = np.cumsum(rng.uniform(0, 1, count))
        ramp /= ramp[-1]
    return [_digits(beta, 5) for beta in np.minimum(low + ramp * (high - low), 0.9)]


def _noise_levels(rng: Random) -> dict[str, Any]:
    """The keys that the three schedulers share."""
    count = _choice(rng, [1000, 100, 250, 400, 2000], [0.76, 0.06, 0.07, 0.06, 0.05])
    config: dict[str, Any] = {"num_train_timesteps": count}
    kind = _choice(
        rng, ["default", "linear", "scaled_linear", "squaredcos_cap_v2"], [0.1, 0.35, 0.35, 0.2]
    )
    if kind != "default":
        config["beta_schedule"] = kind
    if kind in ("linear", "scaled_linear") and (count != 1000 or _chance(rng, 0.7)):
        config["beta_start"] = _digits(math.exp(rng.uniform(math.log(1e-4), math.log(2e-3))))
        config["beta_end"] = _digits(min(rng.uniform(8.0, 22.0) / count, 0.5))
    if _chance(rng, 0.13):
        config["num_train_timesteps"] = count = _choice(rng, [100, 150, 240])
        config["trained_betas"] = _trained_betas(rng, count)
    return config


def _kdpm2(rng: Random) -> tuple[dict[str, Any], dict[str, Any]]:
    config = _noise_levels(rng)
    config["prediction_type"] = _choice(rng, ["epsilon", "v_prediction"], [0.6, 0.4])
    spacing = _choice(rng, ["linspace", "leading", "trailing"])
    config["timestep_spacing"] = spacing
    grid = _choice(rng, [None, "karras", "exponential", "beta"], [0.4, 0.24, 0.18, 0.18])
    if grid is not None:
        config[f"use_{grid}_sigmas"] = True
    num_steps = int(_choice(rng, [rng.integers(2, 13), rng.integers(13, 31), rng.integers(31, 61)]))
    if _chance(rng, 0.5):
        config["steps_offset"] = int(rng.integers(1, 4))
    call: dict[str, Any] = {"num_inference_steps": num_steps, "begin_index": 0}
    if _chance(rng, 0.3):
        call["begin_index"] = int(rng.integers(1, num_steps))
    return config, call


def _lcm(rng: Random) -> tuple[dict[str, Any], dict[str, Any]]:
    config = _noise_levels(rng)
    count = config["num_train_timesteps"]
    config["prediction_type"] = _choice(rng, ["epsilon", "sample", "v_prediction"])
    if config["prediction_type"] != "epsilon":
        config["rescale_betas_zero_snr"] = _chance(rng, 0.4)
    if _chance(rng, 0.4):
        config["original_inference_steps"] = int(_choice(rng, [20, 25, 40, 60, 100]))
    if _chance(rng, 0.4):
        config["clip_sample"] = True
        config["clip_sample_range"] = _digits(rng.uniform(0.7, 2.5), 3)
    if _chance(rng, 0.3):
        config["thresholding"] = True
        config["dynamic_thresholding_ratio"] = _digits(rng.uniform(0.6, 0.999), 3)
        config["sample_max_value"] = _digits(_choice(rng, [1.0, rng.uniform(1.0, 4.0)]), 3)
    if _chance(rng, 0.4):
        config["timestep_scaling"] = _digits(_choice(rng, [1.0, 0.05, rng.uniform(2.0, 20.0)]), 3)
    config["set_alpha_to_one"] = _chance(rng, 0.5)
    config["steps_offset"] = int(rng.integers(0, 3))
    config["timestep_spacing"] = _choice(rng, ["leading", "linspace", "trailing"])

    call: dict[str, Any] = {"begin_index": 0}
    strength = _digits(rng.uniform(0.3, 1.0), 2)
    if _chance(rng, 0.6):
        original = config.get("original_inference_steps", 50)
        if _chance(rng, 0.3):
            original = call["original_inference_steps"] = int(_choice(rng, [10, 20, 50, 80, 100]))
        if _chance(rng, 0.4):
            call["strength"] = strength
        most = max(1, math.floor(original * call.get("strength", 1.0)))
        call["num_inference_steps"] = int(rng.integers(1, min(most, _choice(rng, [5, 9, 60])) + 1))
        if call["num_inference_steps"] > 1 and _chance(rng, 0.35):
            call["begin_index"] = int(rng.integers(1, call["num_inference_steps"]))
    else:
        length = int(rng.integers(2, 10))
        first = count - 1 if _chance(rng, 0.6) else int(rng.integers(count // 2, count))
        last = _choice(rng, [0, int(rng.integers(1, count // 10))], [0.15, 0.85])
        middle = rng.choice(np.arange(last + 1, first), length - 2, replace=False)
        call["timesteps"] = [first, *sorted((int(t) for t in middle), reverse=True), last]
        if _chance(rng, 0.5):
            call["strength"] = strength
        elif _chance(rng, 0.3):
            call["begin_index"] = int(rng.integers(1, length))
    return config, call


def _network(rng: Random, prediction: str, count: int) -> dict[str, Any]:
    """Coefficients with which an output of that type keeps its trajectories bounded."""
    if prediction == "epsilon":
        # Not gain = 0: out would be x itself at T - 1, an equality that hides the cancellation.
        values = [1.0, -rng.uniform(0.7, 1.0), rng.uniform(0.005, 0.03), rng.uniform(0.2, 0.6)]
    elif prediction == "v_prediction":
        values = [rng.uniform(-0.2, 0.2) for _ in range(2)]
        values += [rng.uniform(0.2, 0.6), rng.uniform(-0.3, 0.3)]
    else:
        values = [rng.uniform(0.2, 0.5), rng.uniform(-0.2, 0.2)]
        values += [rng.uniform(0.3, 0.7), rng.uniform(-0.3, 0.3)]
    values += [rng.uniform(1.0, 6.0) / count, rng.uniform(0, 2 * math.pi)]
    names = ["linear", "linear_slope", "gain", "gain_slope", "frequency", "phase"]
    network: dict[str, Any] = {k: float(np.float32(v)) for k, v in zip(names, values, strict=True)}
    return {**network, "num_train_timesteps": count}


# --- what is left out ------------------------------------------------------------------------


def _trailing_has_extra_step(config: dict[str, Any], call: dict[str, Any]) -> bool:
    if config["timestep_spacing"] != "trailing":
        return False
    count, num_steps = config["num_train_timesteps"], call["num_inference_steps"]
    return bool(len(np.arange(count, 0, -count / num_steps)) != num_steps)


def _passes_the_end(config: dict[str, Any], call: dict[str, Any]) -> bool:
    count, num_steps = config["num_train_timesteps"], call["num_inference_steps"]
    if num_steps > count:
        return True
    last = (num_steps - 1) * (count // num_steps) + config.get("steps_offset", 0)
    return bool(config["timestep_spacing"] == "leading" and last > count - 1)


def _rounds_clearly(config: dict[str, Any], call: dict[str, Any]) -> bool:
    if not config.get("use_karras_sigmas"):
        return True
    _, timesteps = truth.sigma_grid(config, call["num_inference_steps"], round_timesteps=False)
    return bool(np.all(np.abs(timesteps % 1 - 0.5) > 2e-3))


def _floors_alike(config: dict[str, Any], call: dict[str, Any]) -> bool:
    original = call.get("original_inference_steps") or config.get("original_inference_steps", 50)
    count = len(call["timesteps"]) if "timesteps" in call else original
    product = count * call.get("strength", 1.0)
    return bool(int(product) == math.floor(round(product, 9)))


def _sigma_down_is_lost(scheduler: Any, config: dict[str, Any], call: dict[str, Any]) -> bool:
    config = {"_class_name": recordings.ANCESTRAL, **config}
    sigmas, _ = truth.sigma_grid(config, call["num_inference_steps"])
    pairs = itertools.pairwise(sigmas[:-1])
    exact = np.array([truth.ancestral_levels(high, low)[0] for high, low in pairs])
    held = scheduler.sigmas_down.numpy()[::2][: len(exact)]  # d0, d1, d1, d2, d2, ...
    return not np.all(np.abs(held / exact - 1) < 0.01)  # "not all": NaN is lost too


def _left_out(name: str, config: dict[str, Any], call: dict[str, Any]) -> str | None:
    """Why a configuration is not recorded; None where it is. The reasons stand at the top."""
    if name != "lcm":
        if _trailing_has_extra_step(config, call):
            return "trailing, extra step"
        if _passes_the_end(config, call):
            return "timesteps beyond T - 1"
        return None if _rounds_clearly(config, call) else "Karras timestep at a tie"
    if not _floors_alike(config, call):
        return "LCM strength, floor of a product"
    original = call.get("original_inference_steps") or config.get("original_inference_steps", 50)
    if original > config["num_train_timesteps"]:
        return "more original steps than T"
    if not len(truth.lcm_timesteps(config, call)):
        return "no timestep left"
    return None


# --- running diffusers -----------------------------------------------------------------------


def _torch_network(net: Any, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """`recordings.network` in torch float32."""
    flat = x.reshape(x.shape[0], -1)
    timestep = timestep.to(torch.float32)
    early = 1 - (timestep + 1) / net.num_train_timesteps
    wave = torch.cos(net.frequency * timestep + net.phase)
    weight, bias = torch.from_numpy(net.weight), torch.from_numpy(net.bias)
    hidden = torch.tanh(flat @ weight + wave * bias)
    linear = net.linear + net.linear_slope * early**2
    gain = net.gain + net.gain_slope * early
    out: torch.Tensor = (linear * flat + gain * hidden).reshape(x.shape)
    return out


@contextlib.contextmanager
def _handed_noise(name: str, noise: Iterator[np.ndarray]) -> Iterator[None]:
    """Within, the scheduler's `randn_tensor` takes the next array of `noise`."""
    if name == "dpm2":  # deterministic
        yield
        return
    module: Any = importlib.import_module(MODULES[name])
    original = module.randn_tensor
    module.randn_tensor = lambda shape, **_: torch.from_numpy(next(noise)).reshape(tuple(shape))
    try:
        yield
    finally:
        module.randn_tensor = original


def _run(
    name: str, config: dict[str, Any], call: dict[str, Any], net: Any, rng: Random, shape: Any
) -> Any:
    """One case, recorded; None where diffusers has lost sigma_down."""
    scheduler = getattr(diffusers, CLASSES[name])(**config)
    arguments = {key: value for key, value in call.items() if key != "begin_index"}
    scheduler.set_timesteps(**arguments)
    timesteps, begin = scheduler.timesteps, call["begin_index"]
    if name == "lcm":
        scheduler.num_inference_steps = len(timesteps)  # the repair of the docstring
        num_rows, first_row = len(timesteps), begin
        noise_rows = list(range(first_row, num_rows - 1))
        sigmas = np.zeros(0, np.float32)
    else:
        num_rows, first_row = 2 * call["num_inference_steps"] - 1, 2 * begin
        # Half steps draw nothing, nor does the last row, where sigma_up is 0.
        noise_rows = list(range(first_row + 1, num_rows, 2)) if name == "dpm2_ancestral" else []
        # diffusers holds s0, s1, s1, s2, s2, ..., 0, 0, 0
        sigmas = scheduler.sigmas.numpy()[::2].copy()
    if name == "dpm2_ancestral" and _sigma_down_is_lost(scheduler, config, call):
        return None
    assert len(timesteps) == num_rows
    scheduler.set_begin_index(first_row)

    normal = torch.from_numpy(rng.standard_normal(shape, np.float32))
    clean = None
    if begin > 0 or call.get("strength") is not None:
        clean = torch.from_numpy(0.6 * rng.standard_normal(shape, np.float32))
        sample = scheduler.add_noise(clean, normal, timesteps[first_row].repeat(shape[0]))
    else:
        sample = normal * scheduler.init_noise_sigma
    initial = sample.numpy().copy()

    noise = rng.standard_normal((len(noise_rows), *shape), np.float32)
    drawn = iter(noise)
    samples = []
    with _handed_noise(name, drawn):
        for timestep in timesteps[first_row:]:
            out = _torch_network(net, scheduler.scale_model_input(sample, timestep), timestep)
            sample = scheduler.step(out, timestep, sample).prev_sample
            samples.append(sample.numpy().copy())
    assert next(drawn, None) is None, "fewer draws than noise rows"
    assert np.all(np.isfinite(samples))
    return recordings.Case(
        name="",
        config=json.loads(scheduler.to_json_string()),
        call={**dict.fromkeys(_CALL_KEYS), **call},
        network=net,
        initial=initial,
        clean=None if clean is None else clean.numpy(),
        clean_noise=None if clean is None else normal.numpy(),
        noise_rows=tuple(noise_rows),
        noise=noise,
        timesteps=timesteps.numpy().astype(np.float64),
        sigmas=sigmas,
        init_noise_sigma=float(scheduler.init_noise_sigma),
        samples=np.stack(samples),
    )


_CALL_KEYS = ["num_inference_steps", "timesteps", "original_inference_steps", "strength"]


def generate() -> tuple[list[Any], dict[int, tuple[np.ndarray, np.ndarray]], dict[str, int]]:
    """All cases, the weights by network size, and how often each reason left a case out."""
    weights = {}
    for size in sorted({math.prod(shape[1:]) for shape in SHAPES}):
        rng = np.random.default_rng([SEED, 0, size])
        weight = rng.standard_normal((size, size)) * (0.5 / math.sqrt(size))
        weights[size] = weight.astype(np.float32), rng.standard_normal(size).astype(np.float32)

    cases = []
    left_out: collections.Counter[str] = collections.Counter()
    for family, (name, count) in enumerate(COUNTS.items(), start=1):
        attempt = found = 0
        while found < count:
            rng = np.random.default_rng([SEED, family, attempt])
            attempt += 1
            config, call = (_lcm if name == "lcm" else _kdpm2)(rng)
            reason = _left_out(name, {"_class_name": CLASSES[name], **config}, call)
            if reason is not None:
                left_out[reason] += 1
                continue
            shape = _choice(rng, SHAPES, SHAPE_ODDS)
            if config.get("thresholding"):
                shape = (3, 2, 2, 3)  # diffusers thresholds nothing of rank 2
            coefficients = _network(rng, config["prediction_type"], config["num_train_timesteps"])
            net = recordings.Network(*weights[math.prod(shape[1:])], **coefficients)
            case = _run(name, config, call, net, rng, shape)
            if case is None:
                left_out["ancestral, sigma_down lost in float32"] += 1
                continue
            cases.append(dataclasses.replace(case, name=f"{name}/{found:03d}"))
            found += 1
    return cases, weights, dict(left_out)


# --- writing and checking --------------------------------------------------------------------


def write(path: Path, cases: list[Any], weights: dict[int, tuple[np.ndarray, np.ndarray]]) -> None:
    """One file: all float32 values end to end, all float64 values, a JSON header to cut them."""
    records, floats, doubles = [], [], []
    for case in cases:
        coefficients = dataclasses.asdict(case.network)
        del coefficients["weight"], coefficients["bias"]
        records.append(
            {
                "name": case.name,
                "config": case.config,
                "call": case.call,
                "network": coefficients,
                "shape": case.initial.shape,
                "from_clean": case.clean is not None,
                "noise_rows": case.noise_rows,
                "num_rows": len(case.timesteps),
                "num_sigmas": len(case.sigmas),
                "num_evaluations": len(case.samples),
                "init_noise_sigma": case.init_noise_sigma,
            }
        )
        floats.append(case.initial)
        floats += [] if case.clean is None else [case.clean, case.clean_noise]
        floats += [case.noise, case.sigmas, case.samples]
        doubles.append(case.timesteps)
    header = {
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        },
        "seed": SEED,
        "network_sizes": sorted(weights),
        "cases": records,
    }
    arrays = {
        "header": np.frombuffer(json.dumps(header).encode(), np.uint8),
        "float32": np.concatenate([array.ravel() for array in floats]),
        "float64": np.concatenate(doubles),
        **{f"weight_{size}": weight for size, (weight, _) in weights.items()},
        **{f"bias_{size}": bias for size, (_, bias) in weights.items()},
    }
    # An .npz written by hand: its members carry no date, so the same values are the same bytes.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as stored:
        for key, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, allow_pickle=False)
            info = zipfile.ZipInfo(f"{key}.npy")
            info.compress_type = zipfile.ZIP_DEFLATED
            stored.writestr(info, member.getvalue(), compresslevel=9)


class _Wider:
    """A module in which float32 is float64."""

    def __init__(self, module: Any, float64: Any) -> None:
        self._module, self.float32 = module, float64

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@contextlib.contextmanager
def _double_precision(name: str) -> Iterator[None]:
    """Within, the scheduler's module computes in float64 what it computes in float32 otherwise."""
    module: Any = importlib.import_module(MODULES[name])
    module.torch, module.np = _Wider(torch, torch.float64), _Wider(np, np.float64)
    try:
        yield
    finally:
        module.torch, module.np = torch, np


def _replay_in_double(case: Any) -> np.ndarray:
    """diffusers itself on a recorded case, in float64 throughout, with the truth's network."""
    name = case.name.split("/")[0]
    arguments = {k: v for k, v in case.call.items() if k != "begin_index" and v is not None}
    noise = iter(case.noise.astype(np.float64))
    samples = []
    with _double_precision(name), _handed_noise(name, noise):
        scheduler = getattr(diffusers, CLASSES[name]).from_config(case.config)
        scheduler.set_timesteps(**arguments)
        if name == "lcm":
            scheduler.num_inference_steps = len(scheduler.timesteps)
            # An int64 timestep times a number is float32 in torch, whatever the samples are.
            scalings = scheduler.get_scalings_for_boundary_condition_discrete
            scheduler.get_scalings_for_boundary_condition_discrete = lambda t: scalings(t.double())
        scheduler.set_begin_index(case.first_row)
        sample = torch.from_numpy(case.initial).double()
        for timestep in scheduler.timesteps[case.first_row :]:
            scaled = scheduler.scale_model_input(sample, timestep).numpy()
            out = torch.from_numpy(recordings.network(case.network, scaled, float(timestep)))
            sample = scheduler.step(out, timestep, sample).prev_sample
            samples.append(sample.numpy().copy())
    return np.stack(samples)


def check(path: Path, *, worst: int = 12) -> None:
    """Prints the error of diffusers to the truth, and the error that float32 cannot avoid."""
    rows = []
    for case in recordings.load_cases(path):
        exact = truth.replay(case).samples
        floor = recordings.relative_error(truth.replay(case, round32=True).samples, exact)
        double = recordings.relative_error(_replay_in_double(case), exact)
        rows.append((recordings.relative_error(case.samples, exact), floor, double, case))
    for name in [*COUNTS, "all"]:
        chosen = [row for row in rows if name in (row[-1].name.split("/")[0], "all")]
        for column, label in enumerate(("diffusers", "rounded truth", "in float64")):
            errors = np.array([row[column] for row in chosen])
            quantiles = np.quantile(errors, [0.5, 0.9, 1.0])
            text = " ".join(f"{value:9.2e}" for value in quantiles)
            print(f"{name:15s} {len(chosen):4d} {label:14s} median, 90 %, worst: {text}")
    for error, floor, _, case in sorted(rows, key=lambda row: -row[0])[:worst]:
        config = {
            key: value
            for key, value in case.config.items()
            if value not in (False, None) and key not in ("_class_name", "_diffusers_version")
        }
        if "trained_betas" in config:
            config["trained_betas"] = "..."
        call = {key: value for key, value in case.call.items() if value}
        print(f"{error:9.2e} {floor:9.2e} {case.name} {call} {config}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the truth only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    diffusers.utils.logging.set_verbosity_error()
    if not arguments.check:
        cases, weights, left_out = generate()
        write(recordings.RECORDINGS, cases, weights)
        print(f"{len(cases)} cases, {recordings.RECORDINGS.stat().st_size / 1e6:.2f} MB")
        for reason, count in sorted(left_out.items()):
            print(f"left out {count:4d}: {reason}")
    check(recordings.RECORDINGS)


if __name__ == "__main__":
    main()
