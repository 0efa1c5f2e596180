"""Records what the samplers of k-diffusion do, for `tests/adapters/test_k_diffusion.py`.

Needs torch and k-diffusion, which nothing else in the tests does. In an environment of its own:

    pip install torch==2.13.0 numpy scipy torchsde torchdiffeq tqdm
    pip install --no-deps k-diffusion==0.1.1.post1
    python tests/golden/generate_k_diffusion.py     # writes k_diffusion.npz beside this file

Recorded are runs of `sample_dpm_2` (churn), `sample_dpm_2_ancestral` and an LCM over random grids
and controls, with plain denoisers and with k-diffusion's wrappers of epsilon and v networks around
the small network of `recorded_k_diffusion.network`, in float64 and in float32; what its callback
received; and values of its functions for grids and levels. The noise is drawn beforehand in NumPy:
it stands in for `torch.randn_like`, or is handed over as the noise sampler.

k-diffusion 0.1.1.post1 has no `sample_lcm`: it is a sampler that user interfaces add to its own.
What is recorded is their loop, written here in torch, on k-diffusion's wrappers.

The float64 runs are the reference. In float32 k-diffusion computes sigma_down as a difference of
squares, and log and exp of the midpoint round on top; the script prints what that costs.

Left out: a quantized timestep within 1e-3 of a tie, where one rounding decides between two
integers; an eta beyond its bound, where k-diffusion drops the noise and this library refuses.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import math
import platform
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
recorded = importlib.import_module("recorded_k_diffusion")
truth = importlib.import_module("truth")

SEED = 20221127
COUNTS = {"dpm_2": 36, "dpm_2_ancestral": 30, "lcm": 18}


def _k_diffusion() -> tuple[Any, Any]:
    """Its modules of samplers and wrappers, without the training code that its __init__ imports."""
    spec = importlib.util.find_spec("k_diffusion")
    assert spec is not None, "k-diffusion is not installed"
    parent = types.ModuleType("k_diffusion")
    parent.__path__ = list(spec.submodule_search_locations or [])
    sys.modules["k_diffusion"] = parent
    if importlib.util.find_spec("torchvision") is None:
        for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
            sys.modules[name] = types.ModuleType(name)
        transforms: Any = sys.modules["torchvision.transforms"]
        transforms.functional = sys.modules["torchvision.transforms.functional"]
    modules = (importlib.import_module(f"k_diffusion.{name}") for name in ("sampling", "external"))
    return modules  # type: ignore[return-value]


SAMPLING, EXTERNAL = _k_diffusion()


def _sample_lcm(
    model: Any, x: Any, sigmas: Any, callback: Any, noise_sampler: Any, s_noise: list[float]
) -> Any:
    """`x = denoised + sigma_next * s_noise * z`, as user interfaces add it to k-diffusion."""
    ones = x.new_ones([x.shape[0]])
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * ones)
        callback({"x": x, "i": i, "sigma_hat": sigmas[i], "denoised": denoised})
        x = denoised
        if sigmas[i + 1] > 0:
            x = x + sigmas[i + 1] * s_noise[i] * noise_sampler(sigmas[i], sigmas[i + 1])
    return x


def _choice(rng: np.random.Generator, values: list[Any], odds: list[float] | None = None) -> Any:
    return values[rng.choice(len(values), p=odds)]


def _random_sigmas(rng: np.random.Generator, model: str, wrapper: Any) -> Any:
    """A grid in float64, closed by 0."""
    num_steps = int(_choice(rng, [rng.integers(1, 7), rng.integers(7, 31)]))
    low, high = math.exp(rng.uniform(-3.5, -1)), math.exp(rng.uniform(1.5, 2.6))
    kind = _choice(rng, ["karras", "exponential", "polyexponential", "vp", "random", "model"])
    if kind == "model" and model != "plain" and num_steps > 1:
        return wrapper.get_sigmas(num_steps)
    if kind == "karras" and num_steps > 1:
        return SAMPLING.get_sigmas_karras(num_steps, low, high, rng.uniform(3, 9))
    if kind == "exponential":
        return SAMPLING.get_sigmas_exponential(num_steps, low, high)
    if kind == "polyexponential":
        return SAMPLING.get_sigmas_polyexponential(num_steps, low, high, rng.uniform(0.5, 2))
    if kind == "vp":
        return SAMPLING.get_sigmas_vp(num_steps, rng.uniform(5, 10), 0.1, 0.01)
    levels = np.sort(np.exp(rng.uniform(math.log(low), math.log(high), num_steps)))[::-1]
    return torch.from_numpy(np.append(levels, 0))


def _random_controls(rng: np.random.Generator, sampler: str, sigmas: np.ndarray) -> dict[str, Any]:
    num_steps = len(sigmas) - 1
    if sampler == "dpm_2":
        cap = (math.sqrt(2) - 1) * num_steps
        controls = {"s_churn": _choice(rng, [0.0, rng.uniform(0.02, 0.99) * cap, 3 * cap])}
        controls["s_churn"] = _choice(rng, [controls["s_churn"], rng.uniform(0.05, 0.9) * cap])
        if rng.random() < 0.5:
            # A level of the grid itself is inside.
            ends = np.sort(rng.choice(sigmas[:-1], 2))
            controls |= {"s_tmin": float(ends[0]), "s_tmax": float(ends[1])}
        elif rng.random() < 0.5:
            controls |= {"s_tmin": rng.uniform(0, 0.5), "s_tmax": rng.uniform(1, 12)}
        if rng.random() < 0.5:
            controls["s_noise"] = rng.uniform(0.8, 1.1)
        return controls
    if sampler == "dpm_2_ancestral":
        ratio = sigmas[1:-1] / sigmas[:-2] if sigmas[-1] == 0 else sigmas[1:] / sigmas[:-1]
        bound = float(np.min(1 / np.sqrt((1 - ratio) * (1 + ratio)), initial=2.0))
        eta = _choice(rng, [0.0, 1.0, rng.uniform(0, 1), rng.uniform(0, 1), 0.6 + 0.4 * bound])
        return {"eta": eta, "s_noise": _choice(rng, [1.0, rng.uniform(0.5, 1.3)])}
    if rng.random() < 0.4:
        return {}
    return {"s_noise": rng.uniform(0.6, 1.2), "s_noise_end": rng.uniform(0.2, 1.0)}


def _wrapper(case: dict[str, Any], dtype: torch.dtype) -> Any:
    """The model as k-diffusion calls it: `model(x, sigma) -> denoised`."""
    weight, bias = (torch.from_numpy(a).to(dtype) for a in (recorded.WEIGHT, recorded.BIAS))

    def network(x: Any, time: Any) -> Any:
        return recorded.network(torch, case["network"], weight, bias, x, time.to(dtype))

    if case["model"] == "plain":
        return lambda x, sigma: recorded.denoised(torch, network, x, sigma)
    abar = torch.from_numpy(truth.alphas_cumprod(case["config"])).to(dtype)
    kinds = {"epsilon": "DiscreteEpsDDPMDenoiser", "v_prediction": "DiscreteVDDPMDenoiser"}
    return getattr(EXTERNAL, kinds[case["model"]])(network, abar, case["quantize"])


@contextlib.contextmanager
def _drawn(noise: Iterator[Any]) -> Iterator[None]:
    with mock.patch.object(torch, "randn_like", side_effect=noise):
        yield


def _run(case: dict[str, Any], arrays: dict[str, np.ndarray], dtype: torch.dtype) -> Any:
    """The final sample, and the sample that the callback was shown at each step."""
    model = _wrapper(case, dtype)
    x, sigmas, noise = (torch.from_numpy(arrays[k]).to(dtype) for k in ("x", "sigmas", "noise"))
    shown: list[np.ndarray] = []
    draws = iter(noise)
    options = dict(case["controls"])

    def callback(values: dict[str, Any]) -> None:
        shown.append(values["x"].to(torch.float64).numpy())

    def noise_sampler(sigma: Any, sigma_next: Any) -> Any:
        assert sigma > sigma_next
        return next(draws)

    if case["sampler"] == "lcm":
        first: Any = options.get("s_noise", 1.0)
        factors = np.linspace(first, options.get("s_noise_end", first), len(sigmas) - 1)
        final = _sample_lcm(model, x, sigmas, callback, noise_sampler, factors.tolist())
    elif case["sampler"] == "dpm_2":
        with _drawn(draws):
            final = SAMPLING.sample_dpm_2(
                model, x, sigmas, callback=callback, disable=True, **options
            )
    else:
        final = SAMPLING.sample_dpm_2_ancestral(
            model,
            x,
            sigmas,
            callback=callback,
            disable=True,
            noise_sampler=noise_sampler,
            **options,
        )
    return final.numpy(), np.stack(shown)


def _quantizes_clearly(case: dict[str, Any], run: Any) -> bool:
    """Whether no timestep of the run is close to a tie between two integers."""
    if not case.get("quantize"):
        return True
    timesteps: list[Any] = []
    exact = EXTERNAL.DiscreteSchedule.sigma_to_t

    def spy(self: Any, sigma: Any, quantize: Any = None) -> Any:
        timesteps.append(exact(self, sigma, False).numpy())
        return exact(self, sigma, quantize)

    with mock.patch.object(EXTERNAL.DiscreteSchedule, "sigma_to_t", spy):
        run()
    times = np.concatenate(timesteps)
    return bool(np.all(np.abs(times - np.floor(times) - 0.5) > 1e-3))


def _random_case(rng: np.random.Generator, sampler: str) -> tuple[dict, dict[str, np.ndarray]]:
    model = _choice(rng, ["plain", "epsilon", "v_prediction"])
    case: dict[str, Any] = {"sampler": sampler, "model": model}
    if model != "plain":
        case["config"] = _choice(rng, [recorded.SCALED_LINEAR, recorded.LINEAR])
        case["quantize"] = bool(rng.random() < 0.4)
    names = {"linear": (0.2, 0.8), "gain": (0.2, 0.5), "frequency": (1, 5), "phase": (0, 6)}
    case["network"] = {k: float(np.float32(rng.uniform(*ends))) for k, ends in names.items()}
    if model != "plain":
        case["network"]["frequency"] /= 1024
    sigmas = _random_sigmas(rng, model, _wrapper(case, torch.float64)).numpy().astype(np.float32)
    if len(sigmas) > 2 and rng.random() < 0.15:
        sigmas = sigmas[:-1]  # the first part of a run, as user interfaces split one
    case["controls"] = _random_controls(rng, sampler, sigmas.astype(np.float64))
    case["num_sigmas"] = len(sigmas)
    unit = rng.standard_normal(recorded.SHAPE).astype(np.float32)
    noise = rng.standard_normal((len(sigmas) - 1, *recorded.SHAPE)).astype(np.float32)
    return case, {"x": sigmas[0] * unit, "sigmas": sigmas, "noise": noise}


def _functions(rng: np.random.Generator) -> dict[str, Any]:
    """Arguments and float64 results of the functions for grids and levels."""
    found: dict[str, Any] = {"grids": [], "ancestral_steps": [], "levels": []}
    for _ in range(6):
        n = int(rng.integers(2, 9))
        low, high = math.exp(rng.uniform(-4, -1)), math.exp(rng.uniform(1, 4))
        for name, arguments in (
            ("get_sigmas_karras", [n, low, high, rng.uniform(3, 9)]),
            ("get_sigmas_exponential", [n, low, high]),
            ("get_sigmas_polyexponential", [n, low, high, rng.uniform(0.5, 2)]),
            ("get_sigmas_vp", [n, rng.uniform(10, 20), rng.uniform(0.05, 0.3), 1e-3]),
        ):
            found["grids"].append([name, arguments, getattr(SAMPLING, name)(*arguments).tolist()])
        for name, default in (("get_sigmas_karras", [4, 0.1, 10.0]), ("get_sigmas_vp", [5])):
            found["grids"].append([name, default, getattr(SAMPLING, name)(*default).tolist()])
    for _ in range(20):
        high = math.exp(rng.uniform(-1, 4))
        arguments = [high, high * rng.uniform(0.3, 0.95), _choice(rng, [0.0, 1.0, rng.random()])]
        step = SAMPLING.get_ancestral_step(*arguments)
        found["ancestral_steps"].append([arguments, [float(value) for value in step]])
    abar = torch.from_numpy(truth.alphas_cumprod(recorded.SCALED_LINEAR))
    wrapper = EXTERNAL.DiscreteEpsDDPMDenoiser(None, abar, False)
    sigma = torch.from_numpy(np.exp(rng.uniform(-4, 3, 30)))
    # Rounded beforehand: k-diffusion reads a timestep in float32.
    time = torch.from_numpy(rng.uniform(0, 999, 30).astype(np.float32).astype(np.float64))
    found["levels"] = {
        "sigma": sigma.tolist(),
        "sigma_to_t": wrapper.sigma_to_t(sigma).tolist(),
        "quantized": wrapper.sigma_to_t(sigma, quantize=True).tolist(),
        "t": time.tolist(),
        "t_to_sigma": wrapper.t_to_sigma(time).tolist(),
        "ends": [wrapper.sigma_min.item(), wrapper.sigma_max.item()],
        "all": wrapper.get_sigmas()[::100].tolist(),
    }
    return found


def main() -> None:
    torch.set_default_dtype(torch.float64)
    rng = np.random.default_rng(SEED)
    cases: list[dict[str, Any]] = []
    columns: dict[str, list[Any]] = {
        k: [] for k in ("x", "sigmas", "noise", "final", "final32", "shown")
    }
    for sampler, count in COUNTS.items():
        errors: list[float] = []
        while len(errors) < count:
            case, arrays = _random_case(rng, sampler)
            if not _quantizes_clearly(case, lambda c=case, a=arrays: _run(c, a, torch.float64)):
                continue
            final, shown = _run(case, arrays, torch.float64)
            single, _ = _run(case, arrays, torch.float32)
            assert np.all(np.isfinite(final)), case
            assert np.max(np.abs(final)) < 100, case
            errors.append(float(np.max(np.abs(single - final)) / np.max(np.abs(final))))
            cases.append(case)
            for name, value in arrays.items():
                columns[name].append(value)
            columns["final"].append(final)
            columns["final32"].append(single)
            columns["shown"].append(shown.astype(np.float32))
        spread = np.quantile(errors, [0.5, 0.9, 1.0])
        print(f"{sampler}: float32 against float64, median, 90 %, worst: {spread}")
    versions = {"k-diffusion": importlib.import_module("importlib.metadata").version("k-diffusion")}
    versions |= {"torch": torch.__version__, "numpy": np.__version__}
    versions["python"] = platform.python_version()
    text = {"cases": cases, "functions": _functions(rng), "versions": versions}
    joined: dict[str, Any] = {
        name: np.concatenate(parts) if name in ("sigmas", "noise", "shown") else np.stack(parts)
        for name, parts in columns.items()
    }
    np.savez_compressed(recorded.PATH, text=np.array(json.dumps(text)), **joined)
    print(f"{len(cases)} runs, {recorded.PATH.stat().st_size} bytes")


if __name__ == "__main__":
    main()
