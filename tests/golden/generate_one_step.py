"""Records HeunDiscrete, FlowMatchHeun, TCD and DDIM with eta of diffusers, for tests/run.

Needs torch and diffusers. In an environment of its own:

    pip install torch==2.13.0 diffusers==0.42.1 numpy scipy
    python tests/golden/generate_one_step.py       # writes one_step.npz beside this file

Of every case: the config, the number of steps, eta, the timesteps, the initial sample, what the
network returned (a fixed function of torch), the noise (drawn by NumPy, handed in place of
`randn_tensor`) and the sample after every evaluation. The same versions make the same bytes again.
"""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
import diffusers.schedulers.scheduling_ddim as ddim
import diffusers.schedulers.scheduling_tcd as tcd
import numpy as np
import torch

HERE = Path(__file__).resolve().parent
SHAPE = (2, 3)
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
LINEAR = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}
V = {"prediction_type": "v_prediction"}


def heun_cases() -> list[tuple[str, dict[str, Any], int, float | None]]:
    name = "HeunDiscreteScheduler"
    spacings = [{"timestep_spacing": s} for s in ("linspace", "leading", "trailing")]
    grids = [{f"use_{g}_sigmas": True} for g in ("karras", "exponential", "beta")]
    found = [(name, {**SD, **spacing}, n, None) for spacing in spacings for n in (4, 10, 50)]
    found += [(name, {**LINEAR, **grid}, n, None) for grid in grids for n in (4, 25)]
    return [
        *found,
        (name, {**SD, **V, **grids[0]}, 10, None),
        (name, {**SD, **spacings[2]}, 1, None),
    ]


def cases() -> list[tuple[str, dict[str, Any], int, float | None]]:
    """Class name, config, steps, eta (TCD calls its gamma so)."""
    flow = [
        ("FlowMatchHeunDiscreteScheduler", {"shift": shift}, n, None)
        for shift, n in ((1.0, 4), (3.0, 10), (1.7, 50))
    ]
    trailing = {"timestep_spacing": "trailing"}
    no_end = {"set_alpha_to_one": False, "steps_offset": 1}
    plain = {**SD, "clip_sample": False}
    of_ddim = [
        ("DDIMScheduler", {**plain, **extra}, n, eta)
        for extra, n, eta in (
            (trailing, 4, 0.0),
            (trailing, 10, 0.3),
            (trailing, 50, 1.0),
            (no_end, 10, 0.5),
            (no_end, 50, 1.0),
            ({**V, **trailing, **LINEAR}, 10, 1.0),
        )
    ]
    no_signal = {**V, "rescale_betas_zero_snr": True}
    of_tcd = [
        ("TCDScheduler", {**SD, "clip_sample": False, **extra}, n, gamma)
        for extra, n, gamma in (
            ({}, 4, 0.3),
            ({}, 8, 0.0),
            ({}, 8, 1.0),
            ({"set_alpha_to_one": False}, 4, 0.5),
            ({}, 1, 0.3),
            (V, 6, 0.9),
            (no_signal, 4, 0.3),
            ({"original_inference_steps": 100}, 50, 0.7),
        )
    ]
    return heun_cases() + flow + of_ddim + of_tcd


def network(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """Any smooth function of the sample and the time will do."""
    return torch.sin(1.7 * sample) - 0.6 * sample + torch.cos(timestep / 300)


def record(name: str, config: dict[str, Any], steps: int, eta: float | None) -> Any:
    """A run of `step`."""
    rng = np.random.default_rng(steps)
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(steps)
    initial = rng.standard_normal(SHAPE, np.float32) * np.float32(
        getattr(scheduler, "init_noise_sigma", 1)
    )
    noise = rng.standard_normal((len(scheduler.timesteps), *SHAPE), np.float32)
    options = {} if eta is None else {"eta": eta}
    sample, outputs, samples = torch.from_numpy(initial), [], []
    for timestep, z in zip(scheduler.timesteps, noise, strict=True):
        for module in (ddim, tcd):
            module.randn_tensor = lambda *_, z=z, **__: torch.from_numpy(z)
        scaled = sample
        if hasattr(scheduler, "scale_model_input"):
            scaled = scheduler.scale_model_input(sample, timestep)
        outputs.append(network(scaled, timestep))
        sample = scheduler.step(outputs[-1], timestep, sample, **options).prev_sample
        samples.append(sample)
    return {
        "timesteps": scheduler.timesteps.double().numpy(),
        "initial": initial,
        "noise": noise if eta is not None else noise[:0],
        "outputs": torch.stack(outputs).numpy(),
        "samples": torch.stack(samples).numpy(),
    }


def main() -> None:
    """Writes one_step.npz."""
    arrays, about = {}, []
    for number, (name, config, steps, eta) in enumerate(cases()):
        for key, value in record(name, config, steps, eta).items():
            arrays[f"{number}/{key}"] = value
        about.append({"class": name, "config": config, "steps": steps, "eta": eta})
    made_by = {"python": platform.python_version()}
    made_by |= {package: version(package) for package in ("diffusers", "torch", "numpy", "scipy")}
    arrays["about"] = np.array(json.dumps({"made_by": made_by, "cases": about}))
    np.savez_compressed(HERE / "one_step.npz", **arrays)
    print(f"{len(about)} cases, {(HERE / 'one_step.npz').stat().st_size} bytes")


if __name__ == "__main__":
    main()
