"""Records what the multistep schedulers of diffusers do, for the tests of 2M, 3M and UniPC.

Needs torch and diffusers. In an environment of its own:

    pip install torch==2.13.0 diffusers==0.42.1 numpy scipy
    python tests/golden/generate_multistep.py       # writes multistep.npz beside this file

Of every case: the config, the levels (float32, as the scheduler makes them), and the sample after
every step of a run of `step`, in float64: the module's float32 is replaced by float64, so that what
is compared is the algorithm. `loss` is how far the run in float32 ends from it, at the sample's
largest value. The initial sample and the noise are drawn by NumPy from the number of the case. The
same versions make the same bytes again.
"""

import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
import diffusers.schedulers.scheduling_dpmsolver_multistep as dpm
import diffusers.schedulers.scheduling_unipc_multistep as unipc
import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from multistep import SHAPE, drawn, network

SDE = {"algorithm_type": "sde-dpmsolver++"}
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
KARRAS, FLOW = (
    {"use_karras_sigmas": True},
    {
        "use_flow_sigmas": True,
        "flow_shift": 3.0,
        "prediction_type": "flow_prediction",
    },
)
# N, and the keys that are not their default: order 2, dpmsolver++, midpoint, lower_order_final.
DPM: list[tuple[int, dict[str, Any]]] = [
    (6, {"solver_order": 1}),
    (6, {"solver_order": 1, **SDE}),
    (4, {}),
    (25, {"solver_type": "heun", "timestep_spacing": "leading", "steps_offset": 1}),
    (12, {**KARRAS}),
    (50, {"timestep_spacing": "trailing"}),
    (8, {**SDE}),
    (16, {"solver_type": "heun", **SDE, **KARRAS}),
    (16, {"final_sigmas_type": "sigma_min", **KARRAS}),
    (12, {**FLOW}),
    (8, {**FLOW, **SDE}),
    (5, {"solver_order": 3}),
    (12, {"solver_order": 3, "solver_type": "heun", **KARRAS}),
    (12, {"solver_order": 3, "lower_order_final": False, **KARRAS}),
    (20, {"solver_order": 3, **FLOW}),
    (12, {"solver_order": 3, **SDE, **KARRAS}),
]
UNIPC: list[tuple[int, dict[str, Any]]] = [
    (4, {}),
    (20, {**KARRAS}),
    (50, {"timestep_spacing": "trailing"}),
    (10, {"disable_corrector": list(range(10)), **KARRAS}),
    (8, {**FLOW}),
    (20, {**FLOW, "flow_shift": 5.0}),
]


class InFloat64:
    """torch, for the module of a scheduler that casts to `torch.float32`."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def run(name: str, config: dict[str, Any], steps: int, number: int, exact: bool) -> Any:
    """The scheduler after its run, and the sample after every step."""
    for module in (dpm, unipc):
        module.torch = torch
    scheduler = getattr(diffusers, name)(**SCALED, **config)
    scheduler.set_timesteps(steps)
    dtype = torch.float64 if exact else torch.float32
    if exact:
        scheduler.sigmas = scheduler.sigmas.to(torch.float64)
        for module in (dpm, unipc):
            module.torch = InFloat64()
    initial, noise = drawn(number, steps)
    handed = iter(noise)
    dpm.randn_tensor = lambda *_, **__: torch.from_numpy(next(handed)).to(dtype)
    sample, samples = torch.from_numpy(initial).to(dtype), []
    for i, timestep in enumerate(scheduler.timesteps):
        out = network(sample.numpy().astype(np.float64), float(scheduler.sigmas[i]))
        sample = scheduler.step(torch.from_numpy(out).to(dtype), timestep, sample).prev_sample
        assert sample.dtype == dtype
        samples.append(sample.numpy())
    return scheduler, np.array(samples)


def main() -> None:
    """Writes multistep.npz."""
    cases, arrays = [], {}
    both = [("DPMSolverMultistepScheduler", *case) for case in DPM]
    both += [("UniPCMultistepScheduler", *case) for case in UNIPC]
    for number, (name, steps, config) in enumerate(both):
        scheduler, samples = run(name, config, steps, number, exact=True)
        _, rounded = run(name, config, steps, number, exact=False)
        loss = float(np.max(np.abs(rounded[-1] - samples[-1])) / np.max(np.abs(samples[-1])))
        arrays[f"{number}/sigmas"] = scheduler.sigmas.numpy().astype(np.float32)
        arrays[f"{number}/samples"] = samples
        cases.append({"scheduler": name, "steps": steps, "config": config, "loss": loss})
        print(f"{number:2d} {name[:5]} {steps:2d} {loss:.1e} {config}")
    made_by = {"python": platform.python_version()}
    made_by |= {package: version(package) for package in ("diffusers", "torch", "numpy")}
    arrays["about"] = np.array(json.dumps({"made_by": made_by, "cases": cases}))
    np.savez_compressed(HERE / "multistep.npz", **arrays)
    print(f"{len(cases)} cases of {SHAPE}, {(HERE / 'multistep.npz').stat().st_size} bytes")


if __name__ == "__main__":
    main()
