"""What is compared with what: each case measures one or more figures of the table in figures.py.

A case takes an Effort and returns, for the name of each of its figures, a record: the `value`,
the median times in microseconds (`us`) that it is made of, and the rounds. It raises NotMeasured
with the reason where something it needs is missing. To add a case: write it, put it into CASES,
and give its figures their words and targets in figures.py.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import features
import first_call
import kdiff_jax as kd
import networks
import program
import rivals
import timing
from comparison import SHAPE, SHAPES, Ours, must_agree, ours, versus
from kdiff_jax.adapters import diffusers as kd_diffusers
from timing import Candidate, Effort, Result, first_calls, paired, record, timed


def against_diffusers(effort: Effort) -> dict[str, Result]:
    found = {}
    for size, shape in SHAPES.items():
        for kind in rivals.CONFIGS:
            mine = ours(kind, shape)
            other = rivals.diffusers_run(kind, np.array(mine.x), networks.null)
            run = versus(mine.candidate(), other, effort, agree=kind == "dpm2")
            found[f"diffusers {kind} {size}"] = run
    return found


def against_k_diffusion(effort: Effort) -> dict[str, Result]:
    found = {}
    noise = kd_diffusers.from_config(rivals.CONFIGS["dpm2"]).noise
    assert isinstance(noise, kd.NoiseSchedule)
    alphas_cumprod = np.array(noise.alphas_cumprod)
    for size, shape in SHAPES.items():
        for kind in ("dpm2", "ancestral"):
            mine = ours(kind, shape)
            x, sigmas = np.array(mine.x), np.array(mine.schedule.sigmas)
            other = rivals.k_diffusion_run(kind, x, sigmas, alphas_cumprod, networks.null)
            name = f"k-diffusion {kind} {size}"
            found[name] = versus(mine.candidate(), other, effort, agree=kind == "dpm2")
            if kind == "dpm2":
                other = rivals.k_diffusion_bare_run(x, sigmas, networks.null)
                found[name + " bare"] = versus(mine.candidate(), other, effort, agree=True)
    return found


def against_torch_compile(effort: Effort) -> dict[str, Result]:
    found = {}
    rivals.warm_torch_compile()
    for size, shape in SHAPES.items():
        mine = ours("dpm2", shape)
        other = rivals.torch_compiled(np.array(mine.x), mine.schedule.rows, networks.null)
        # Once: it takes seconds. Its caches on disk are off; see speed.py.
        first = np.array([timed(other)])
        found[f"torch.compile {size} run"] = versus(mine.candidate(), other, effort, agree=True)
        own = first_calls({"kdiff_jax": mine.candidate()}, effort.first_calls)
        later = {"kdiff_jax": np.median(own["kdiff_jax"], keepdims=True), "other": first}
        found[f"torch.compile {size} later call"] = record(later, "other", "kdiff_jax")
        fresh = {
            name: np.array([first_call.measured(library, size, timing.clock_name())])
            for name, library in (("kdiff_jax", "kdiff_jax"), ("other", "torch.compile"))
        }
        found[f"torch.compile {size} first call"] = record(fresh, "other", "kdiff_jax")
    return found


def against_copies(effort: Effort) -> dict[str, Result]:
    found = {}
    for size, shape in SHAPES.items():
        mine = ours("dpm2", shape)
        source = np.array(mine.x)
        target = np.empty_like(source)

        def copies(source: np.ndarray = source, target: np.ndarray = target) -> None:
            for _ in range(49):
                np.copyto(target, source)

        runs = {"kdiff_jax": mine.candidate(), "other": Candidate(copies)}
        found[f"copyto {size}"] = record(paired(runs, effort), "kdiff_jax", "other")
    return found


def against_dewml(effort: Effort) -> dict[str, Result]:
    found = {}
    for kind in rivals.CONFIGS:
        mine = ours(kind, SHAPE)
        other = rivals.dewml_run(kind, mine.x, mine.key, None, networks.null)
        runs = {"kdiff_jax": mine.candidate(), "other": other}
        if kind == "dpm2":
            must_agree(*runs.values())
        seconds = {"run": paired(runs, effort)}
        if kind == "dpm2":
            seconds["first call"] = first_calls(runs, effort.first_calls)
        for what, times in seconds.items():
            found[f"dewml {kind} {what}"] = record(times, "other", "kdiff_jax")
    return found


def against_dewml_unet(effort: Effort) -> dict[str, Result]:
    size = networks.SMALL
    params = networks.unet_params(jax.random.key(1), size.channels)
    mine = ours("dpm2", size.shape, networks.unet, params)
    other = rivals.dewml_run("dpm2", mine.x, mine.key, params, networks.unet)
    runs = {"kdiff_jax": mine.candidate(), "other": other}
    must_agree(*runs.values())
    return {
        "dewml U-Net run": record(paired(runs, effort), "other", "kdiff_jax"),
        "dewml U-Net first call": record(
            first_calls(runs, effort.first_calls), "other", "kdiff_jax"
        ),
    }


def against_bare_network(effort: Effort) -> dict[str, Result]:
    """The sampler against its evaluations alone."""
    return {
        "bare network": features.loop_against_bare(networks.MEDIUM, networks.MEDIUM.shape, effort)
    }


def first_sample(effort: Effort) -> dict[str, Result]:
    """From nothing compiled to a sample, against compiling the network and evaluating it once."""
    found = {}
    sizes: dict[str, Any] = {"null": None, "small U-Net": networks.SMALL}
    for name, size in (sizes | {"medium U-Net": networks.MEDIUM}).items():
        network: Any = networks.null if size is None else networks.unet
        key = jax.random.key(3)
        params = None if size is None else networks.unet_params(key, size.channels)
        mine = ours("dpm2", SHAPE if size is None else size.shape, network, params)
        t = np.full(mine.x.shape[:1], 999, np.float32)

        def once(network: Any = network, mine: Ours = mine, t: np.ndarray = t) -> Any:
            return jax.jit(network)(mine.params, mine.x, t)

        runs = {"kdiff_jax": mine.candidate(), "other": Candidate(once)}
        seconds = first_calls(runs, effort.first_calls)
        found[f"first sample {name}"] = record(seconds, "kdiff_jax", "other")
    return found


def table(effort: Effort) -> dict[str, Result]:
    """From the training noise levels to a table on the device; the first time is not counted."""
    found = {}
    for grid, karras in (("linspace", False), ("karras", True)):
        sampler = kd_diffusers.from_config(rivals.CONFIGS["dpm2"] | {"use_karras_sigmas": karras})
        scheduler = rivals.diffusers_scheduler("dpm2", use_karras_sigmas=karras)
        steps = rivals.STEPS["dpm2"]

        def build(sampler: Any = sampler, steps: int = steps) -> Any:
            return sampler.schedule(num_inference_steps=steps)

        def rival(scheduler: Any = scheduler, steps: int = steps) -> None:
            scheduler.set_timesteps(steps)

        found[f"table {grid}"] = versus(Candidate(build), Candidate(rival), effort)
    return found


def compiled_program(effort: Effort) -> dict[str, Result]:
    """What the compiled programs hold: counted, not timed."""
    shape = SHAPES["1 MB"]
    copies, scratch = 0, {}
    for kind in rivals.CONFIGS:
        mine = ours(kind, shape)
        compiled = jax.jit(kd.sample).lower(*mine.arguments).compile()
        copies += len(program.copies_in_loops(str(compiled.as_text()), shape))
        memory: Any = compiled.memory_analysis()
        scratch[kind] = float(memory.temp_size_in_bytes / mine.x.nbytes)
    return {
        "copies": {"value": float(copies)},
        "scratch": {"value": scratch["ancestral"]},
        "scratch dpm2": {"value": scratch["dpm2"]},
        "scratch lcm": {"value": scratch["lcm"]},
    }


CASES: dict[str, Callable[[Effort], dict[str, Result]]] = {
    "diffusers": against_diffusers,
    "k-diffusion": against_k_diffusion,
    "torch.compile": against_torch_compile,
    "copyto": against_copies,
    "dewml": against_dewml,
    "dewml-unet": against_dewml_unet,
    "bare-network": against_bare_network,
    "first-sample": first_sample,
    "padded": features.padded,
    "table": table,
    "program": compiled_program,
    "saving": features.saving,
    "serving": features.serving,
    "gpu": features.on_gpu,
}
