"""Records what the flow-matching schedulers of diffusers do, for the tests of the adapter.

Needs torch and diffusers. In an environment of its own:

    pip install torch==2.13.0 diffusers==0.42.1 numpy scipy
    python tests/golden/generate_flow.py       # writes flow.npz beside this file

Of every case: the config, the arguments of `set_timesteps`, and the sigmas and timesteps that it
makes. Of those with steps also a run of `step`: the initial sample, the output of the network (a
fixed function of torch), the noise (drawn by NumPy, handed in place of `randn_tensor`) and the
sample after every step. The same versions make the same bytes again.
"""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
import diffusers.schedulers.scheduling_flow_match_euler_discrete as euler
import diffusers.schedulers.scheduling_flow_match_lcm as lcm
import numpy as np
import torch

HERE = Path(__file__).resolve().parent
SHAPE = (2, 3, 4, 4)
CLASSES = {
    "euler": "FlowMatchEulerDiscreteScheduler",
    "lcm": "FlowMatchLCMScheduler",
    "heun": "FlowMatchHeunDiscreteScheduler",
}


def random_config(name: str, rng: np.random.Generator) -> dict[str, Any]:
    """Random values of the keys that decide the levels."""
    config: dict[str, Any] = {"shift": round(float(rng.uniform(0.5, 6)), 3)}
    if name == "heun":
        return config
    if rng.random() < 0.5:
        config["use_dynamic_shifting"] = True
        config["time_shift_type"] = str(rng.choice(["exponential", "linear"], p=[0.7, 0.3]))
    if rng.random() < 0.3:
        config["shift_terminal"] = round(float(rng.uniform(0.02, 0.2)), 3)
    if rng.random() < 0.4:
        config[f"use_{rng.choice(['karras', 'exponential', 'beta'])}_sigmas"] = True
    if rng.random() < 0.2:
        config["num_train_timesteps"] = 400
    return config


def network(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """Any smooth function of the sample and the time will do."""
    return torch.sin(1.7 * sample) - 0.6 * sample + torch.cos(timestep / 300)


def record(name: str, config: dict[str, Any], call: dict[str, Any], steps: int | None) -> Any:
    """The levels of one config, and a run of as many steps as `steps`, or none."""
    rng = np.random.default_rng(steps)
    scheduler = getattr(diffusers, CLASSES[name])(**config)
    scheduler.set_timesteps(**call)
    arrays = {"sigmas": scheduler.sigmas.numpy(), "timesteps": scheduler.timesteps.numpy()}
    if steps is None:
        return arrays
    initial = rng.standard_normal(SHAPE, np.float32)
    noise = rng.standard_normal((steps, *SHAPE), np.float32)
    handed = iter(noise)
    for module in (euler, lcm):
        module.randn_tensor = lambda *_, **__: torch.from_numpy(next(handed))
    sample, outputs, samples = torch.from_numpy(initial), [], []
    for timestep in scheduler.timesteps:
        outputs.append(network(sample, timestep))
        sample = scheduler.step(outputs[-1], timestep, sample).prev_sample
        samples.append(sample)
    return {
        **arrays,
        "initial": initial,
        "noise": noise,
        "outputs": torch.stack(outputs).numpy(),
        "samples": torch.stack(samples).numpy(),
    }


def main() -> None:
    """Writes flow.npz."""
    rng, cases, arrays = np.random.default_rng(5), [], {}
    for number in range(60):
        name = ("euler", "lcm", "euler", "heun")[number % 4]
        config = random_config(name, rng)
        call: dict[str, Any] = {"num_inference_steps": int(rng.choice([1, 2, 4, 5, 8, 28, 50]))}
        if name != "heun":
            if config.get("use_dynamic_shifting"):
                call["mu"] = round(float(rng.uniform(0.3, 2)), 3)
            if rng.random() < 0.3:
                count = call.pop("num_inference_steps")
                call["sigmas"] = np.linspace(1, 1 / count, count).tolist()
        count = call.get("num_inference_steps") or len(call["sigmas"])
        if count == 1:
            config.pop("shift_terminal", None)  # diffusers divides by zero
        steps = count if name != "heun" and count <= 8 else None
        for key, value in record(name, config, call, steps).items():
            arrays[f"{number}/{key}"] = value
        cases.append({"scheduler": name, "config": config, "call": call, "steps": steps})
    made_by = {"python": platform.python_version()}
    made_by |= {package: version(package) for package in ("diffusers", "torch", "numpy", "scipy")}
    arrays["about"] = np.array(json.dumps({"made_by": made_by, "cases": cases}))
    np.savez_compressed(HERE / "flow.npz", **arrays)
    print(f"{len(cases)} cases, {(HERE / 'flow.npz').stat().st_size} bytes")


if __name__ == "__main__":
    main()
