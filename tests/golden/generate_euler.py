"""Records what diffusers' Euler, ancestral Euler and DDIM do, for the tests of the adapter.

Needs torch and diffusers. In an environment of its own:

    pip install torch==2.13.0 diffusers==0.42.1 numpy scipy
    python tests/golden/generate_euler.py       # writes euler.npz beside this file

Of every case: the config, N, eta of DDIM, and the timesteps and sigmas that `set_timesteps` makes.
Of those with steps also a run of `step`: the initial sample, the output of the network (a fixed
function of torch), the noise (drawn by NumPy, handed in place of `randn_tensor`) and the sample
after every step. The same versions make the same bytes again.
"""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
import diffusers.schedulers.scheduling_ddim as ddim
import diffusers.schedulers.scheduling_euler_ancestral_discrete as ancestral
import numpy as np
import torch

HERE = Path(__file__).resolve().parent
SHAPE = (2, 3, 3, 2)
CLASSES = ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DDIMScheduler"]


def random_config(name: str, rng: np.random.Generator) -> dict[str, Any]:
    """Random values of the keys that decide the levels and how the output is read."""
    config: dict[str, Any] = {"beta_schedule": str(rng.choice(["linear", "scaled_linear"]))}
    config["beta_start"] = round(float(rng.uniform(1e-4, 1e-3)), 5)
    config["beta_end"] = round(float(rng.uniform(0.01, 0.02)), 4)
    config["prediction_type"] = str(rng.choice(["epsilon", "v_prediction"]))
    config["timestep_spacing"] = str(rng.choice(["linspace", "leading", "trailing"]))
    config["steps_offset"] = int(rng.integers(0, 3))
    if name == "DDIMScheduler":
        config["prediction_type"] = str(rng.choice(["epsilon", "v_prediction", "sample"]))
        config["set_alpha_to_one"] = bool(rng.random() < 0.5)
        config["clip_sample"] = bool(rng.random() < 0.4)
        config["clip_sample_range"] = round(float(rng.uniform(0.5, 2)), 2)
        if rng.random() < 0.3:
            config |= {"thresholding": True, "dynamic_thresholding_ratio": 0.9}
            config["sample_max_value"] = round(float(rng.uniform(1, 3)), 2)
    else:
        if config["prediction_type"] == "v_prediction" and rng.random() < 0.5:
            # Larger betas leave less than 2**-24 before the last timestep: not descending there.
            config |= {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
            config["rescale_betas_zero_snr"] = True
        if name == "EulerDiscreteScheduler" and rng.random() < 0.5:
            config[f"use_{rng.choice(['karras', 'exponential', 'beta'])}_sigmas"] = True
    return config


def network(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """Any smooth function of the sample and the time will do."""
    return torch.sin(1.7 * sample) - 0.6 * sample + torch.cos(timestep / 300)


def record(name: str, config: dict[str, Any], count: int, eta: float, run: bool) -> Any:
    """The levels of one config, and a run of its steps."""
    rng = np.random.default_rng(count)
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(count)
    arrays = {"timesteps": scheduler.timesteps.double().numpy()}
    if name != "DDIMScheduler":
        arrays["sigmas"] = scheduler.sigmas.numpy()
        arrays["init_noise_sigma"] = np.asarray(float(scheduler.init_noise_sigma))
    if not run:
        return arrays
    initial = rng.standard_normal(SHAPE, np.float32)
    noise = rng.standard_normal((count, *SHAPE), np.float32)
    handed = iter(noise)
    for module in (ancestral, ddim):
        module.randn_tensor = lambda *_, **__: torch.from_numpy(next(handed))
    sample = torch.from_numpy(initial) * scheduler.init_noise_sigma
    options = {"eta": eta} if name == "DDIMScheduler" else {}
    outputs, samples = [], []
    for timestep in scheduler.timesteps:
        outputs.append(network(scheduler.scale_model_input(sample, timestep), timestep))
        sample = scheduler.step(outputs[-1], timestep, sample, **options).prev_sample
        samples.append(sample)
    return {
        **arrays,
        "initial": initial,
        "noise": noise,
        "outputs": torch.stack(outputs).numpy(),
        "samples": torch.stack(samples).numpy(),
    }


def main() -> None:
    """Writes euler.npz."""
    rng, cases, arrays = np.random.default_rng(11), [], {}
    for number in range(90):
        name = CLASSES[number % 3]
        config, eta = random_config(name, rng), 0.0
        count = int(rng.choice([2, 4, 5, 8, 25, 50]))
        if name == "DDIMScheduler":
            eta = float(rng.choice([0.0, 0.4, 1.0]))
            if not config["set_alpha_to_one"] and config["timestep_spacing"] == "leading":
                config["steps_offset"] += 1  # else a last step from t = 0 to t = 0
            if not config["set_alpha_to_one"] and config["timestep_spacing"] == "linspace":
                config |= {"clip_sample": False, "thresholding": False}  # the same: refused
        # DDIM does not step to the timestep that it visits next on a linspace.
        run = number < 60 and count <= 8
        run &= (name, config["timestep_spacing"]) != ("DDIMScheduler", "linspace")
        for key, value in record(name, config, count, eta, run).items():
            arrays[f"{number}/{key}"] = value
        cases.append({"class": name, "config": config, "steps": count, "eta": eta, "run": run})
    made_by = {"python": platform.python_version()}
    made_by |= {package: version(package) for package in ("diffusers", "torch", "numpy", "scipy")}
    arrays["about"] = np.array(json.dumps({"made_by": made_by, "cases": cases}))
    np.savez_compressed(HERE / "euler.npz", **arrays)
    print(f"{len(cases)} cases, {(HERE / 'euler.npz').stat().st_size} bytes")


if __name__ == "__main__":
    main()
