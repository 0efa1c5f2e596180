"""Records the grids of k-diffusion and diffusers, for the tests of grids and zero SNR.

Needs torch, diffusers and k-diffusion. In an environment of its own:

    pip install torch==2.13.0 diffusers==0.42.1 -e "."
    pip install --no-deps k-diffusion==0.1.1
    python tests/golden/generate_grids.py      # writes grids.npz beside this file

What is recorded, without the closing 0, for random values of every parameter:

* `get_sigmas_karras`, `_exponential`, `_polyexponential` and `_vp` of k-diffusion, in float64:
  torch's default dtype is set to it, which is what `linspace` follows;
* `_convert_to_karras`, `_convert_to_exponential` and `_convert_to_beta` of diffusers, which compute
  in float64 whatever they are given;
* the training sigmas of `EulerDiscreteScheduler` with `rescale_betas_zero_snr`, ascending, in
  float32 as it builds them and with its module's float32 replaced by float64.

The recordings say which versions made them. The same versions make the same bytes again.
"""

import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
import diffusers.schedulers.scheduling_euler_discrete as scheduling_euler_discrete
import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))
sys.path.insert(0, str(HERE))

import generate

import rivals

SEED = 5
CASES_OF_EACH = 12
SHAPES = ("squaredcos_cap_v2", "linear", "scaled_linear")


def ends(rng: np.random.Generator) -> dict[str, float]:
    low = float(10 ** rng.uniform(-3, -0.5))
    return {"sigma_min": low, "sigma_max": low * float(10 ** rng.uniform(0.5, 4))}


def k_diffusion_grids(rng: np.random.Generator) -> list[tuple[str, dict[str, Any], np.ndarray]]:
    sampling, _ = rivals._k_diffusion()
    found = []
    torch.set_default_dtype(torch.float64)
    for _ in range(CASES_OF_EACH):
        for name in ("karras", "exponential", "polyexponential", "vp"):
            arguments: dict[str, Any] = {} if name == "vp" else ends(rng)
            if name == "karras":
                arguments["rho"] = float(rng.uniform(1, 10))
            elif name == "polyexponential":
                arguments["rho"] = float(rng.uniform(0.5, 3))
            elif name == "vp":
                arguments["beta_d"] = float(rng.uniform(5, 25))
                arguments["beta_min"] = float(rng.uniform(0.05, 1))
                arguments["eps_s"] = float(10 ** rng.uniform(-3.5, -1.5))
            count = int(rng.integers(1, 41))
            sigmas = getattr(sampling, f"get_sigmas_{name}")(count, **arguments)
            found.append((name, arguments, sigmas[:-1].numpy()))
    torch.set_default_dtype(torch.float32)
    return found


def diffusers_grids(rng: np.random.Generator) -> list[tuple[str, dict[str, Any], np.ndarray]]:
    scheduler = diffusers.EulerDiscreteScheduler()
    found = []
    for _ in range(CASES_OF_EACH):
        for name in ("karras", "exponential", "beta"):
            arguments = ends(rng)
            extra = {"alpha": float(rng.uniform(0.4, 2)), "beta": float(rng.uniform(0.4, 2))}
            extra = extra if name == "beta" else {}
            both = [arguments["sigma_max"], arguments["sigma_min"]]
            given = torch.tensor(both, dtype=torch.float64)
            convert = getattr(scheduler, f"_convert_to_{name}")
            sigmas = convert(given, int(rng.integers(1, 41)), **extra)
            found.append((name, arguments | extra, np.asarray(sigmas)))
    return found


def zero_snr_levels(rng: np.random.Generator) -> list[tuple[str, dict[str, Any], np.ndarray]]:
    found = []
    for shape in SHAPES:
        for count in (1000, 200):
            config = {
                "beta_schedule": shape,
                "num_train_timesteps": count,
                "beta_start": round(float(rng.uniform(0.5, 1)) / count, 6),
                "beta_end": round(float(rng.uniform(10, 18)) / count, 6),
            }

            def build(config: dict[str, Any] = config) -> np.ndarray:
                euler = diffusers.EulerDiscreteScheduler(rescale_betas_zero_snr=True, **config)
                return np.asarray(euler.sigmas[:-1].flip(0))

            found.append(("zero_snr_float32", config, build()))
            module: Any = scheduling_euler_discrete
            module.torch = generate._Wider(torch, torch.float64)
            found.append(("zero_snr", config, build()))
            module.torch = torch
    return found


def main() -> None:
    rng = np.random.default_rng(SEED)
    cases = k_diffusion_grids(rng) + diffusers_grids(rng) + zero_snr_levels(rng)
    packages = ("diffusers", "k-diffusion", "torch", "numpy", "scipy")
    header = {
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "cases": [{"name": name, "arguments": arguments} for name, arguments, _ in cases],
    }
    arrays: dict[str, Any] = {str(i): sigmas for i, (_, _, sigmas) in enumerate(cases)}
    np.savez_compressed(HERE / "grids.npz", header=np.array(json.dumps(header)), **arrays)
    print(f"{len(cases)} grids, {(HERE / 'grids.npz').stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
