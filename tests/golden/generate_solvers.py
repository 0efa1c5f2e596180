"""Records DPM-Solver, UniPC, Heun, TCD and DDIM of diffusers by their configs, for the tests.

Needs torch and diffusers. In an environment of its own:

    pip install torch==2.13.0 diffusers==0.42.1 numpy scipy
    python tests/golden/generate_solvers.py       # writes solvers.npz beside this file

Of every case: the config, the arguments of `set_timesteps`, its timesteps, and, made in float64
(the float32 of the module is replaced), its sigmas and the sample after every `step`. The network
is a fixed function of torch, rounded to float32, and recorded; the initial sample and the noise are
drawn by NumPy from the number of the case, as float32. `loss` is how far the same run in float32,
handed the same outputs and noise, is from those samples: the largest error after any step, relative
to the largest value. Of every class: its defaults. The same versions make the same bytes again.
"""

import contextlib
import json
import platform
import warnings
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

HERE = Path(__file__).resolve().parent
SHAPE = (2, 3, 1)
MULTISTEP, SINGLESTEP = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
UNIPC, HEUN, TCD = "UniPCMultistepScheduler", "HeunDiscreteScheduler", "TCDScheduler"
FLOW_HEUN, DDIM = "FlowMatchHeunDiscreteScheduler", "DDIMScheduler"
COUNTS = {MULTISTEP: 44, SINGLESTEP: 18, UNIPC: 30, HEUN: 10, FLOW_HEUN: 3, TCD: 8, DDIM: 10}
STEPS = [4, 5, 6, 7, 8, 10, 12, 14, 15, 16, 20, 25, 50]
GRIDS = ["karras", "exponential", "beta"]
MODULES: list[Any] = [
    import_module(f"diffusers.schedulers.scheduling_{name}")
    for name in (
        "dpmsolver_multistep",
        "dpmsolver_singlestep",
        "unipc_multistep",
        "heun_discrete",
        "flow_match_heun_discrete",
        "tcd",
        "ddim",
    )
]
SANA: dict[str, Any] = {
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
    "prediction_type": "flow_prediction",
}
# Beside the random ones: published ones, and corners.
CHOSEN: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (MULTISTEP, SANA, {"num_inference_steps": 20}),
    (MULTISTEP, {**SANA, "flow_shift": 1.0}, {"num_inference_steps": 27}),
    (MULTISTEP, {**SANA, "use_dynamic_shifting": True}, {"num_inference_steps": 9, "mu": 0.8}),
    (UNIPC, SANA, {"num_inference_steps": 50}),
    (UNIPC, {**SANA, "flow_shift": 5.0}, {"num_inference_steps": 10}),
    (UNIPC, SANA, {"sigmas": np.linspace(1, 1 / 8, 8).tolist()}),
    (UNIPC, {**SANA, "shift_terminal": 0.1}, {"num_inference_steps": 6}),
    (UNIPC, {**SANA, "use_dynamic_shifting": True}, {"num_inference_steps": 7, "mu": 1.15}),
    (
        UNIPC,
        {**SANA, "use_dynamic_shifting": True, "time_shift_type": "linear"},
        {"num_inference_steps": 7, "mu": 1.15},
    ),
    (SINGLESTEP, {**SANA, "solver_type": "heun"}, {"num_inference_steps": 8}),
    (TCD, {}, {"num_inference_steps": 7, "original_inference_steps": 40}),
    (TCD, {}, {"timesteps": [999, 500, 20], "num_inference_steps": None}),
    (TCD, {}, {"num_inference_steps": 4, "strength": 0.6}),
    (MULTISTEP, {"solver_order": 3, "solver_type": "heun"}, {"num_inference_steps": 1}),
    (UNIPC, {}, {"num_inference_steps": 1}),
    (SINGLESTEP, {}, {"num_inference_steps": 1}),
    (
        MULTISTEP,
        {"algorithm_type": "deis", "solver_type": "logrho", "final_sigmas_type": "sigma_min"},
        {"num_inference_steps": 6},
    ),
]


class Float64:
    """torch or NumPy, for a module that casts to float32."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, "float64" if name == "float32" else name)


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """The modules of the schedulers, computing in float64."""
    for module in MODULES:
        module.torch, module.np = Float64(torch), Float64(np)
    yield
    for module in MODULES:
        module.torch, module.np = torch, np


def random_config(name: str, steps: int, rng: np.random.Generator) -> dict[str, Any]:
    """Random values of the keys that decide the levels, the table and how the output is read."""
    if name == FLOW_HEUN:
        return {"shift": round(float(rng.uniform(0.5, 6)), 3)}
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    choices: list[dict[str, Any]] = [betas, {"beta_schedule": "linear"}, betas]
    config = dict(choices[rng.integers(3)])
    config["prediction_type"] = str(rng.choice(["epsilon", "v_prediction", "sample"]))
    if name == TCD:
        return config
    if name == DDIM:
        spacing = str(rng.choice(["leading", "trailing"]))
        return config | {"clip_sample": False, "timestep_spacing": spacing}
    if rng.random() < 0.15 and name != HEUN:
        config = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}
    if name != SINGLESTEP:
        config["timestep_spacing"] = str(rng.choice(["linspace", "leading", "trailing"]))
        config["steps_offset"] = int(rng.integers(0, 3))
    if rng.random() < 0.45:
        config[f"use_{rng.choice(GRIDS)}_sigmas"] = True
    if name == HEUN:
        clip = round(float(rng.uniform(0.5, 2)), 2)
        return config | ({"clip_sample": True, "clip_sample_range": clip} if clip < 1 else {})
    return config | random_solver(name, steps, config, rng)


def random_solver(
    name: str, steps: int, others: dict[str, Any], rng: np.random.Generator
) -> dict[str, Any]:
    """Random values of the keys that choose the table."""
    config: dict[str, Any] = {}
    grid = any(others.get(f"use_{of}_sigmas") for of in GRIDS)
    if rng.random() < 0.2:
        config |= {"thresholding": True, "dynamic_thresholding_ratio": 0.9}
        config["sample_max_value"] = round(float(rng.uniform(1, 3)), 2)
    if rng.random() < 0.4 and (name == MULTISTEP or not grid):
        config["final_sigmas_type"] = "sigma_min"
    low = "final_sigmas_type" in config
    if name == UNIPC:
        if low:
            config["lower_order_final"] = bool(rng.random() < 0.5)
        if rng.random() < 0.5:
            kept = rng.random(steps) < rng.choice([0.0, 0.5, 0.8])
            config["disable_corrector"] = np.flatnonzero(~kept).tolist()
        if others["prediction_type"] == "v_prediction" and others["beta_schedule"] != "linear":
            config["rescale_betas_zero_snr"] = bool(rng.random() < 0.5)
        return config
    config["solver_type"] = str(rng.choice(["midpoint", "heun"]))
    config["lower_order_final"] = bool(rng.random() < 0.5)
    if name == SINGLESTEP:
        return config | {"solver_order": int(rng.choice([1, 2, 2, 2]))}
    config["euler_at_final"] = bool(rng.random() < 0.3)
    config["solver_order"] = int(rng.choice([1, 2, 2, 3]))
    if low and grid:
        # A last step of length 0 is NaN in diffusers in the other forms.
        return config | {"solver_type": "midpoint"}
    if rng.random() < 0.35 and config["solver_order"] < 3:
        config["algorithm_type"] = "sde-dpmsolver++"
    elif rng.random() < 0.15 and not grid:
        config["use_lu_lambdas"] = not low
    return config


def network(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """Any smooth function of the sample and the time will do."""
    out = torch.sin(1.7 * sample) - 0.6 * sample + torch.cos(timestep.double() / 300)
    return out.float().double()


def run(
    number: int, scheduler: Any, gamma: float, given: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """What the network returned, and the sample after every step; in float32 what it returned is
    given."""
    dtype = torch.float64 if given is None else torch.float32
    initial, draws = drawn_for(number, len(scheduler.timesteps))
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # else it begins at the second of two equal timesteps
    sample = torch.from_numpy(initial).to(dtype) * getattr(scheduler, "init_noise_sigma", 1)
    noise = iter(draws)
    for module in MODULES:
        module.randn_tensor = lambda *_, **__: torch.from_numpy(next(noise)).to(dtype)
    outputs, samples = [], []
    for i, timestep in enumerate(scheduler.timesteps):
        scaled = sample
        if hasattr(scheduler, "scale_model_input"):
            scaled = scheduler.scale_model_input(sample, timestep)
        out = network(scaled, timestep) if given is None else torch.from_numpy(given[i])
        outputs.append(out)
        stochastic = isinstance(scheduler, diffusers.TCDScheduler | diffusers.DDIMScheduler)
        options = {"eta": gamma} if stochastic else {}
        sample = scheduler.step(out, timestep, sample, **options).prev_sample
        assert sample.dtype == dtype
        samples.append(sample)
    found = {
        "outputs": torch.stack(outputs).numpy().astype(np.float32),
        "samples": torch.stack(samples).numpy(),
    }
    assert np.all(np.isfinite(found["samples"])), scheduler.config
    return found


def drawn_for(number: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The initial sample of a case before its scale, and one array of noise a step: float32."""
    rng = np.random.default_rng(number)
    initial = rng.standard_normal(SHAPE).astype(np.float32)
    return initial, rng.standard_normal((steps, *SHAPE)).astype(np.float32)


def main() -> None:
    """Writes solvers.npz."""
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    rng, arrays = np.random.default_rng(3), {}
    drawn = list(CHOSEN)
    for name, count in COUNTS.items():
        for _ in range(count):
            # Where N does not divide T, DDIM of diffusers lands beside its own next timestep.
            steps = int(rng.choice(STEPS if name != DDIM else [4, 5, 8, 10, 20, 25, 50]))
            config = random_config(name, steps, rng)
            drawn.append((name, config, {"num_inference_steps": steps}))
    for i, steps in enumerate(STEPS):  # what float32 loses on a flow and in order 3 differs little
        sana = {**SANA, "flow_shift": [1.0, 3.0, 5.0, 8.0][i % 4]}
        third = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
        third |= {"solver_order": 3, "use_karras_sigmas": i % 2 == 1}
        for name, config in ((UNIPC, sana), (MULTISTEP, sana), (MULTISTEP, third)):
            drawn.append((name, config, {"num_inference_steps": steps}))
    cases = []
    for number, (name, config, call) in enumerate(drawn):
        given = {k: np.array(v) if k == "sigmas" else v for k, v in call.items()}
        plain = getattr(diffusers, name)(**config)
        plain.set_timesteps(**given)
        gamma = round(float(rng.uniform(0, 1)), 2)
        with in_float64():
            scheduler = getattr(diffusers, name)(**config)
            scheduler.set_timesteps(**given)
            found = run(number, scheduler, gamma)
        rounded = run(number, plain, gamma, found["outputs"])["samples"]
        error, size = (
            np.max(np.abs(a), axis=(1, 2, 3))
            for a in (rounded - found["samples"], found["samples"])
        )
        arrays[f"{number}/timesteps"] = plain.timesteps.numpy().astype(np.float32)
        if name not in (TCD, DDIM):
            arrays[f"{number}/sigmas"] = scheduler.sigmas.numpy()
        arrays |= {f"{number}/{key}": value for key, value in found.items()}
        loss = float(f"{np.max(error / size):.3g}")
        about_it = {"class": name, "config": config, "call": call, "gamma": gamma}
        cases.append({**about_it, "loss": loss})
    made_by = {"python": platform.python_version()}
    made_by |= {package: version(package) for package in ("diffusers", "torch", "numpy", "scipy")}
    defaults = {
        name: {
            key: parameter.default
            for key, parameter in signature(getattr(diffusers, name).__init__).parameters.items()
            if key != "self"
        }
        for name in COUNTS
    }
    about = {"made_by": made_by, "defaults": defaults, "cases": cases}
    arrays["about"] = np.array(json.dumps(about))
    np.savez_compressed(HERE / "solvers.npz", **arrays)
    print(f"{len(cases)} cases, {(HERE / 'solvers.npz').stat().st_size} bytes")


if __name__ == "__main__":
    main()
