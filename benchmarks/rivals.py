"""The other libraries, each called as its documentation calls it, with the network handed to it.

Every function returns a Candidate whose call is one whole run from the sample `x` (a NumPy array)
to the final sample. What a rival does once for many runs (reading its config, building its
table) is done before the clock starts, as it is for kdiff_jax. A rival that is not installed
raises NotMeasured.

None of them is needed by the library. To have them all, with Python 3.12:

    pip install -e ".[bench]" dewml torchsde torchdiffeq
    pip install --no-deps k-diffusion
"""

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from timing import Candidate, NotMeasured

# One config for all: each library reads diffusers' own files, so that the grids are the same.
_BETAS = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "epsilon",
}
_KARRAS = _BETAS | {"timestep_spacing": "linspace", "use_karras_sigmas": True}
CONFIGS: dict[str, dict[str, Any]] = {
    "dpm2": _KARRAS | {"_class_name": "KDPM2DiscreteScheduler"},
    "ancestral": _KARRAS | {"_class_name": "KDPM2AncestralDiscreteScheduler"},
    "lcm": _BETAS | {"_class_name": "LCMScheduler", "original_inference_steps": 50},
}
STEPS = {"dpm2": 25, "ancestral": 25, "lcm": 4}


def _need(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise NotMeasured(f"{name.split('.')[0]} cannot be imported here ({error})") from None


def _options(kind: str) -> dict[str, Any]:
    return {name: value for name, value in CONFIGS[kind].items() if name != "_class_name"}


def diffusers_scheduler(kind: str, **changes: Any) -> Any:
    _need("torch")
    scheduler = getattr(_need("diffusers"), CONFIGS[kind]["_class_name"])
    return scheduler(**_options(kind) | changes)


def diffusers_run(kind: str, x: np.ndarray, network: Callable[..., Any]) -> Candidate:
    """The loop of a diffusers pipeline, one generator a sample where it draws noise."""
    torch = _need("torch")
    scheduler = diffusers_scheduler(kind)
    start = torch.from_numpy(x)
    generators = [torch.Generator().manual_seed(i) for i in range(len(x))]
    extra = {} if kind == "dpm2" else {"generator": generators}

    @torch.no_grad()
    def run() -> Any:
        latents = start
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(latents, t)
            out = network(None, scaled, t)
            latents = scheduler.step(out, t, latents, **extra, return_dict=False)[0]
        return latents

    # Setting the timesteps also rewinds the scheduler, which keeps its place inside itself.
    return Candidate(run, lambda: scheduler.set_timesteps(STEPS[kind]))


def _k_diffusion() -> Any:
    """k-diffusion's modules of samplers and wrappers, out of the installed package.

    The package's own __init__ imports its training code and some fifteen packages with it, so
    the two modules are imported under a bare parent; where torchvision is absent an empty module
    stands in for it: only the image functions, which nothing here calls, would use it.
    """
    _need("torch")
    spec = importlib.util.find_spec("k_diffusion") if "k_diffusion" not in sys.modules else None
    if spec is not None:
        parent = types.ModuleType("k_diffusion")
        parent.__path__ = list(spec.submodule_search_locations or [])
        sys.modules["k_diffusion"] = parent
    elif "k_diffusion" not in sys.modules:
        raise NotMeasured("k-diffusion is not installed here")
    if "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
            sys.modules[name] = types.ModuleType(name)
        transforms: Any = sys.modules["torchvision.transforms"]
        transforms.functional = sys.modules["torchvision.transforms.functional"]
    return _need("k_diffusion.sampling"), _need("k_diffusion.external")


def k_diffusion_run(
    kind: str, x: np.ndarray, sigmas: np.ndarray, alphas_cumprod: np.ndarray, network: Any
) -> Candidate:
    """`sample_dpm_2` or its ancestral form, the network in `DiscreteEpsDDPMDenoiser`."""
    sampling, external = _k_diffusion()
    torch = _need("torch")
    start, levels = torch.from_numpy(x), torch.from_numpy(sigmas)
    table = torch.from_numpy(alphas_cumprod.astype(np.float32))
    model = external.DiscreteEpsDDPMDenoiser(
        lambda scaled, t: network(None, scaled, t), table, quantize=False
    )
    names = {"dpm2": "sample_dpm_2", "ancestral": "sample_dpm_2_ancestral"}
    sampler = getattr(sampling, names[kind])
    return Candidate(lambda: sampler(model, start, levels, disable=True))


def k_diffusion_bare_run(x: np.ndarray, sigmas: np.ndarray, network: Any) -> Candidate:
    """`sample_dpm_2` with a denoiser of one line, which looks up no timesteps: the least it costs.

    `model(x, sigma)` is k-diffusion's own contract; the timestep that the network receives is the
    sigma, so this is for the null network alone.
    """
    sampling, _ = _k_diffusion()
    torch = _need("torch")
    start, levels = torch.from_numpy(x), torch.from_numpy(sigmas)

    def model(x: Any, sigma: Any) -> Any:
        column = sigma.view(-1, 1, 1, 1)
        return x - column * network(None, x * (column**2 + 1) ** -0.5, sigma)

    return Candidate(lambda: sampling.sample_dpm_2(model, start, levels, disable=True))


def warm_torch_compile() -> None:
    """Pays what only the first program of a process pays: some nine seconds."""
    torch = _need("torch")
    torch.compile(lambda x: x + 1)(torch.zeros(8))


def torch_compiled(x: np.ndarray, rows: Any, network: Any) -> Candidate:
    """DPM2 as one `torch.compile` program over a table of numbers; each call of it is a run.

    The least arithmetic that DPM2 can be written in with an epsilon network: two lines a step.
    The table is an argument, as it is for kdiff_jax, so that another grid compiles nothing.
    """
    torch = _need("torch")
    sigma = np.append(np.asarray(rows.sigma), np.float32(0))
    columns = [np.asarray(rows.input_scale), np.asarray(rows.timestep)]
    # What the network's output is multiplied by: from a row's anchor to where the row lands.
    anchor = np.where(np.arange(len(sigma) - 1) % 2 == 0, sigma[:-1], np.roll(sigma[:-1], 1))
    columns.append(sigma[1:] - anchor)
    table = torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))
    start = torch.from_numpy(x)
    num_rows = len(table)

    def loop(x: Any, table: Any) -> Any:
        for i in range(0, num_rows, 2):
            scale, timestep, distance = table[i]
            middle = x + distance * network(None, scale * x, timestep)
            if i + 1 == num_rows:
                return middle
            scale, timestep, distance = table[i + 1]
            x = x + distance * network(None, scale * middle, timestep)
        return x

    torch._dynamo.reset()
    compiled = torch.compile(loop, fullgraph=True, dynamic=False)

    @torch.no_grad()
    def run() -> Any:
        return compiled(start, table)

    return Candidate(run)


def dewml_run(kind: str, x: Any, key: Any, params: Any, network: Any) -> Candidate:
    """dewml's `sample` under `jax.jit`, on the grid and with the solver that it reads of a config.

    One key for the batch: it takes no more. Each call of this function makes a program anew.
    """
    source_schedule = _need("dew.diffusion.schedules.source").SourceSchedule
    sample = _need("dew.sampling").sample
    source = source_schedule.from_config(CONFIGS[kind])
    process, times = source.sampling(STEPS[kind])
    # A model is whatever has `apply`; a flax module that calls the network adds nothing to it.
    model = types.SimpleNamespace(apply=network)

    @jax.jit
    def run(params: Any, x: Any, key: Any) -> Any:
        denoise = process.denoiser(model, params, {})
        options = {"solver": source.solver, "times": times, "final_denoise": False}
        return sample(denoise, x, key=key, **options)

    return Candidate(lambda: run(params, x, key))
