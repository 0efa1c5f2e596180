"""What is compared with what: each case measures one or more figures of the table in figures.py.

A case takes an Effort and returns, for the name of each of its figures, a record: the `value`,
the median times in microseconds (`us`) that it is made of, and the rounds. It raises NotMeasured
with the reason where something it needs is missing. To add a case: write it, put it into CASES,
and give its figures their words and targets in figures.py.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import kdiff_jax as kd
import networks
import program
import rivals
from kdiff_jax.adapters import diffusers as kd_diffusers
from timing import Candidate, Effort, NotMeasured, Result, first_calls, paired, record, timed

SHAPES = {"64 KB": (1, 4, 64, 64), "1 MB": (4, 4, 128, 128)}
SHAPE = SHAPES["64 KB"]
CAN_UNROLL = "unroll" in inspect.signature(kd.sample).parameters
UNROLL = 2  # the two rows of a DPM2 step in one iteration
AGREE = 1e-4  # of the size of the samples: float32 over 49 evaluations, in another order


class Ours(NamedTuple):
    """A run of kdiff_jax, and what the rivals' runs are made of."""

    denoise: Any
    params: Any
    schedule: kd.Schedule
    x: jax.Array
    keys: jax.Array  # one a sample
    key: jax.Array

    def candidate(self, **options: Any) -> Candidate:
        keys = None if self.schedule.deterministic else self.keys
        arguments = self.denoise, self.params, self.schedule, self.x, keys
        return Candidate(lambda: kd.sample(*arguments, **options))


def ours(
    kind: str, shape: tuple[int, ...], network: Any = networks.null, params: Any = None
) -> Ours:
    sampler = kd_diffusers.from_config(rivals.CONFIGS[kind])
    schedule = sampler.schedule(num_inference_steps=rivals.STEPS[kind])
    key = jax.random.key(0)
    keys = jax.random.split(key, shape[0])
    x = kd.initial_sample(schedule, keys, shape)
    return Ours(sampler.denoiser(network), params, schedule, x, keys, key)


def must_agree(one: Candidate, other: Candidate) -> None:
    """A comparison of speed means something only where both compute the same sample."""
    for candidate in (one, other):
        candidate.prepare()
    a, b = (np.asarray(candidate.call()) for candidate in (one, other))
    error = float(np.max(np.abs(a - b)) / np.std(a))
    if not error < AGREE:
        raise ValueError(
            f"the two samples differ by {error:.1e} of their size; nothing to compare."
        )


def versus(a: Candidate, b: Candidate, effort: Effort, agree: bool = False) -> Result:
    """How many times as long b takes as a."""
    if agree:
        must_agree(a, b)
    return record(paired({"kdiff_jax": a, "other": b}, effort), "other", "kdiff_jax")


def against_diffusers(effort: Effort) -> dict[str, Result]:
    found = {}
    for size, shape in SHAPES.items():
        for kind in rivals.CONFIGS:
            mine = ours(kind, shape)
            other = rivals.diffusers_run(kind, np.array(mine.x), networks.null)
            found[f"diffusers {kind} {size}"] = versus(
                mine.candidate(), other, effort, agree=kind == "dpm2"
            )
    return found


def against_k_diffusion(effort: Effort) -> dict[str, Result]:
    found = {}
    alphas_cumprod = np.array(kd_diffusers.from_config(rivals.CONFIGS["dpm2"]).noise.alphas_cumprod)
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
    for size, shape in SHAPES.items():
        mine = ours("dpm2", shape)
        other = rivals.torch_compiled(np.array(mine.x), mine.schedule.rows, networks.null)
        # Once: it takes a minute. Its caches on disk are off; see speed.py.
        first = np.array([timed(other)])
        found[f"torch.compile {size} run"] = versus(mine.candidate(), other, effort, agree=True)
        own = first_calls({"kdiff_jax": mine.candidate()}, effort.first_calls)
        seconds = {"kdiff_jax": np.median(own["kdiff_jax"], keepdims=True), "other": first}
        found[f"torch.compile {size} first call"] = record(seconds, "other", "kdiff_jax")
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
        for unroll in (UNROLL,) if CAN_UNROLL else ():
            runs[f"unroll {unroll}"] = mine.candidate(unroll=unroll)
        seconds = paired(runs, effort)
        found[f"copyto {size}"] = record(seconds, "kdiff_jax", "other")
        if CAN_UNROLL:
            found[f"copyto {size} unroll"] = record(seconds, f"unroll {UNROLL}", "other")
    return found


def against_dewml(effort: Effort) -> dict[str, Result]:
    found = {}
    for kind in rivals.CONFIGS:
        mine = ours(kind, SHAPE)
        other = rivals.dewml_run(kind, mine.x, mine.key, None, networks.null)
        if kind != "dpm2":
            found[f"dewml {kind} run"] = versus(mine.candidate(), other, effort)
            continue
        runs = {"kdiff_jax": mine.candidate(), "other": other}
        must_agree(runs["kdiff_jax"], other)
        if CAN_UNROLL:
            runs[f"unroll {UNROLL}"] = mine.candidate(unroll=UNROLL)
        seconds = paired(runs, effort)
        found["dewml dpm2 run"] = record(seconds, "other", "kdiff_jax")
        if CAN_UNROLL:
            found["dewml dpm2 run unroll"] = record(seconds, "other", f"unroll {UNROLL}")
        seconds = first_calls(runs, effort.first_calls)
        found["dewml dpm2 first call"] = record(seconds, "other", "kdiff_jax")
        if CAN_UNROLL:
            found["dewml dpm2 first call unroll"] = record(seconds, "other", f"unroll {UNROLL}")
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
    """The sampler against its evaluations alone: a loop that feeds the network its own output."""
    size = networks.MEDIUM
    params = networks.unet_params(jax.random.key(2), size.channels)
    mine = ours("dpm2", size.shape, networks.unet, params)
    batch = size.shape[:1]

    @jax.jit
    def bare(params: Any, x: jax.Array, timesteps: jax.Array) -> jax.Array:
        def body(x: jax.Array, timestep: jax.Array) -> tuple[jax.Array, None]:
            return networks.unet(params, x, jax.numpy.broadcast_to(timestep, batch)), None

        return jax.lax.scan(body, x, timesteps)[0]

    timesteps = mine.schedule.rows.timestep
    loop = Candidate(lambda: bare(params, mine.x, timesteps))
    seconds = paired({"kdiff_jax": mine.candidate(), "other": loop}, effort)
    return {"bare network": record(seconds, "kdiff_jax", "other")}


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
    copies = 0
    for kind in rivals.CONFIGS:
        mine = ours(kind, shape)
        keys = None if mine.schedule.deterministic else mine.keys
        arguments = mine.denoise, mine.params, mine.schedule, mine.x, keys
        compiled = jax.jit(kd.sample).lower(*arguments).compile()
        copies += len(program.copies_in_loops(str(compiled.as_text()), shape))
        if kind == "ancestral":
            memory: Any = compiled.memory_analysis()
            scratch = memory.temp_size_in_bytes / mine.x.nbytes
    return {"copies": {"value": float(copies)}, "scratch": {"value": float(scratch)}}


def padded(effort: Effort) -> dict[str, Result]:
    """Recompiles over N = 1..100 on `schedule.pad(199)`, and its time against the exact scan."""
    if not hasattr(kd.Schedule, "pad"):
        raise NotMeasured("Schedule.pad is not there yet")
    raise NotMeasured("to be written: Schedule.pad is new")


def saving(effort: Effort) -> dict[str, Result]:
    """`kd.sample(..., save_fn=)` that keeps every step's sample, against none."""
    if "save_fn" not in inspect.signature(kd.sample).parameters:
        raise NotMeasured("kd.sample has no save_fn yet")
    raise NotMeasured("to be written: save_fn is new")


def serving(effort: Effort) -> dict[str, Result]:
    """examples/serve.py: mixed requests against the bare network, and against static batches."""
    raise NotMeasured("examples/serve.py is not there yet")


def on_gpu(effort: Effort) -> dict[str, Result]:
    """The loop against the bare network, and serving against one request at a time."""
    raise NotMeasured("no GPU here" if jax.default_backend() == "cpu" else "to be written")


CASES: dict[str, Callable[[Effort], dict[str, Result]]] = {
    "diffusers": against_diffusers,
    "k-diffusion": against_k_diffusion,
    "torch.compile": against_torch_compile,
    "copyto": against_copies,
    "dewml": against_dewml,
    "dewml-unet": against_dewml_unet,
    "bare-network": against_bare_network,
    "first-sample": first_sample,
    "padded": padded,
    "table": table,
    "program": compiled_program,
    "saving": saving,
    "serving": serving,
    "gpu": on_gpu,
}
