"""Every kind of run on every kind of mesh: what is run, where, and with which keys.

A default run of the tests takes a part of it, `benchmarks/meshes.py` all of it.
"""

import dataclasses
import functools
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import samplers as sp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import kdiff_jax as kd

BATCH, SIZE, STEPS = 8, 16, 2
SHARDED, COPIED = PartitionSpec("batch"), PartitionSpec()
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "reduce-scatter",
)


def network(params: Any, x: jax.Array, timestep: jax.Array, cond: Any = None) -> jax.Array:
    out = params * x / (1 + x * x)
    return out if cond is None else out + cond.reshape(-1, *(1,) * (x.ndim - 1))


plain = kd.denoiser(network)
none = jnp.float32(0)
WRAPPERS: dict[str, Any] = {
    "consistency": kd.consistency(plain),
    "clipped": kd.clipped(plain),
    "thresholded": kd.thresholded(plain),
    "guided": kd.guided(plain, 2.0, none),
    "guided, interval": kd.guided(plain, 2.0, none, interval=(0.1, 5.0)),
    "projected": kd.projected(plain, 2.0, none, eta=0.5, norm_threshold=1.0),
    "guided, two calls": kd.guided(plain, 2.0, none, batched=False),
    "guided, two calls, interval": kd.guided(plain, 2.0, none, batched=False, interval=(0.1, 5.0)),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One kind of run; `known` names the collectives that it is known to have."""

    schedule: Callable[[], kd.Schedule]
    denoise: Any = plain
    options: tuple[tuple[str, Any], ...] = ()
    gradient: bool = False
    known: tuple[str, ...] = ()
    conditional: bool = False
    params: Any = 0.3

    def run(self, schedule: kd.Schedule, x: jax.Array, keys: Any, cond: Any) -> tuple[Any, ...]:
        def sample(x: jax.Array) -> Any:
            params, options = jax.tree.map(jnp.float32, self.params), dict(self.options)
            return kd.sample(self.denoise, params, schedule, x, keys, cond, **options)

        if self.gradient:
            return (jax.grad(lambda x: jnp.sum(sample(x) ** 2))(x),)
        return sample(x) if "save_fn" in dict(self.options) else (sample(x),)

    @property
    def guided(self) -> bool:
        return self.conditional or hasattr(self.denoise, "uncond")

    def out_specs(self) -> tuple[PartitionSpec, ...]:
        saved = PartitionSpec(None, "batch")
        return (SHARDED, saved) if "save_fn" in dict(self.options) else (SHARDED,)


def save(state: kd.State, prediction: kd.Prediction, row: kd.Row) -> jax.Array:
    return prediction.denoised


def of(name: str) -> Callable[[], kd.Schedule]:
    return lambda: sp.SAMPLERS[name](STEPS)


def stacked(*names: str) -> Callable[[], kd.Schedule]:
    tables = [names[i % len(names)] for i in range(BATCH)]
    return lambda: kd.stack([sp.SAMPLERS[name](STEPS) for name in tables])


def all_cases() -> dict[str, Case]:
    """name -> a kind of run; the samplers first, one for each set of columns."""
    cases = {name: Case(of(name)) for name in sp.ONE_OF_EACH}
    # On a table with midpoints kd.consistency warns.
    sampler = dict.fromkeys(WRAPPERS, "ancestral") | {"consistency": "lcm"}
    cases |= {name: Case(of(sampler[name]), denoise) for name, denoise in WRAPPERS.items()}
    for name in sp.ONE_OF_EACH:
        cases[f"{name}, saved"] = Case(of(name), options=(("save_fn", save),))
        cases[f"{name}, gradient"] = Case(of(name), gradient=True)
        cases[f"{name}, padded"] = Case(lambda name=name: sp.SAMPLERS[name](STEPS).pad(9))  # type: ignore[misc]
        cases[f"{name}, stacked"] = Case(stacked(name))
    for remat in ("rows", "segments"):
        options = (("remat", remat),)
        cases[f"gradient by {remat}"] = Case(of("ancestral"), options=options, gradient=True)
    brownian = (("noise_fn", kd.brownian_noise(depth=3)),)
    cases["brownian"] = Case(of("ancestral"), options=brownian)
    cases["brownian, stacked"] = Case(stacked("ancestral"), options=brownian)
    clipped = (("noise_fn", kd.clipped_noise(1.0)),)
    cases["clipped noise"] = Case(of("ancestral"), options=clipped)
    auto = kd.autoguided(plain, 2.0)
    cases["autoguided"] = Case(of("ancestral"), auto, params=(0.3, 0.2))
    cases["cfg_plus_plus"] = Case(of("euler_ancestral"), kd.cfg_plus_plus(plain, 0.6, none))
    # All of them in one program, for the runs that are chosen.
    every = kd.cfg_plus_plus(kd.projected(auto, 2.0, none, norm_threshold=1.0), 0.6, none)
    cases["three guiders, clipped noise"] = Case(
        of("euler_ancestral"), every, clipped, params=(0.3, 0.2)
    )
    # Of a stack that is padded, in a program of the caller, the lengths are compared once.
    mixed = stacked("euler", "ancestral")
    cases["mixed stack"] = Case(mixed, known=("all-reduce",))
    two_calls = WRAPPERS["guided, two calls, interval"]
    cases["guided stack"] = Case(stacked("ancestral"), two_calls)
    # One number of the result goes to the host when it is there.
    cases["progress"] = Case(of("dpm2"), options=(("progress", True),), known=COLLECTIVES)
    return cases


CASES = all_cases()
MESHES = ("automatic", "explicit", "set_mesh", "shard_map", "shard_map, unchecked")
# How the keys come; the last has a copy of x on every device. Inside a shard_map there are no
# copies to share: a device has the keys of its samples, or one key.
KEYS = ("one key", "sharded keys", "copied keys", "copied x")


def pairs() -> list[tuple[str, str]]:
    """Every mesh with every way of giving keys that there is on it."""
    kinds = {"shard_map": KEYS[:2], "shard_map, unchecked": KEYS[:2]}
    return [(mesh, keys) for mesh in MESHES for keys in kinds.get(mesh, KEYS)]


def missing(mesh: str, case: Case) -> str | None:
    """Why this JAX cannot run a case on a mesh; None where it can."""
    if mesh in ("explicit", "set_mesh") and jax.__version_info__ < (0, 9):
        return "axes of the explicit type are for JAX 0.9 and later; 0.6 crashes compiling a run"
    if "progress" in dict(case.options) and importlib.util.find_spec("tqdm") is None:
        return "tqdm is not installed"
    draws = case.schedule().rows.noise_weight is not None
    if mesh == "shard_map" and draws and not hasattr(jax, "shard_map"):
        return (
            "check_rep of this JAX refuses a condition around the noise; it wants check_rep=False"
        )
    return None


def data(shape: tuple[int, ...] = (BATCH, SIZE)) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A sample, [B] keys and a condition."""
    x = 10 * np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return jnp.asarray(x), jax.random.split(jax.random.key(1), BATCH), jnp.arange(float(BATCH))


@functools.cache
def jitted(case: Case) -> Any:
    return jax.jit(case.run)


def reference(case: Case, keys: str, mesh: str) -> tuple[np.ndarray, ...]:
    """The same run without a mesh."""
    x, each, cond = data()
    schedule, key = case.schedule(), jax.random.key(2) if keys == "one key" else each
    run = jitted(case)
    guide = cond if case.guided else None
    if keys != "one key" or not mesh.startswith("shard_map"):
        return tuple(map(np.asarray, run(schedule, x, key, guide)))
    # In a shard_map a device knows its own samples only, and the one key begins with the first.
    parts = []
    for b in range(BATCH):
        one = slice(b, b + 1)
        guide = cond[one] if case.guided else None
        parts.append(run(_rows_of(schedule, one), x[one], key, guide))
    axes = [1 if spec == PartitionSpec(None, "batch") else 0 for spec in case.out_specs()]
    together = zip(axes, zip(*parts, strict=True), strict=True)
    return tuple(np.concatenate(list(map(np.asarray, p)), axis) for axis, p in together)


def _rows_of(schedule: kd.Schedule, samples: slice) -> kd.Schedule:
    """The tables of these samples; a single table is everyone's."""
    stack = schedule.rows.index.ndim > 1
    return jax.tree.map(lambda leaf: leaf[samples], schedule) if stack else schedule


def program(case: Case, mesh: str, keys: str) -> tuple[str, tuple[np.ndarray, ...]]:
    """The compiled program of a run on eight devices, and its results."""
    x, each, cond = data()
    key = jax.random.key(2) if keys == "one key" else each
    schedule, guide = case.schedule(), cond if case.guided else None
    of_table, of_key = SHARDED if schedule.rows.index.ndim > 1 else COPIED, COPIED
    if keys in ("sharded keys", "copied x"):
        of_key = SHARDED
    of_x = COPIED if keys == "copied x" else SHARDED
    specs = (of_table, of_x, of_key, SHARDED)
    if mesh.startswith("shard_map"):
        devices = Mesh(np.array(jax.devices()[:BATCH]), ("batch",))
        checked = mesh == "shard_map"
        run = _shard_map(case.run, devices, specs, case.out_specs(), checked)
        return compiled(run, schedule, x, key, guide)
    kind = "Auto" if mesh == "automatic" else "Explicit"
    devices = jax.make_mesh((BATCH,), ("batch",), **axis_types(kind))
    placed = [
        jax.device_put(value, NamedSharding(devices, spec))
        for value, spec in zip((schedule, x, key, guide), specs, strict=True)
    ]
    if mesh != "set_mesh":
        return compiled(case.run, *placed)
    with jax.set_mesh(devices):
        return compiled(case.run, *placed)


def compiled(run: Callable[..., Any], *arguments: Any) -> tuple[str, tuple[np.ndarray, ...]]:
    executable = jax.jit(run).lower(*arguments).compile()
    return executable.as_text() or "", tuple(map(np.asarray, executable(*arguments)))


def axis_types(kind: str) -> dict[str, Any]:
    if "axis_types" not in inspect.signature(jax.make_mesh).parameters:
        return {}
    return {"axis_types": (getattr(jax.sharding.AxisType, kind),)}


def _shard_map(run: Any, mesh: Mesh, specs: Any, out_specs: Any, checked: bool) -> Any:
    options = {"mesh": mesh, "in_specs": specs, "out_specs": out_specs}
    if hasattr(jax, "shard_map"):
        return jax.shard_map(run, **options, check_vma=checked)
    shard_map = importlib.import_module("jax.experimental.shard_map").shard_map
    return shard_map(run, **options, check_rep=checked)


def collectives(hlo: str) -> set[str]:
    return {name for name in COLLECTIVES if f" {name}(" in hlo or f" {name}-start(" in hlo}


def unexpected(case: Case, mesh: str, keys: str, hlo: str) -> set[str]:
    """The collectives of a program that should have none: only the batch is sharded in it."""
    if keys in ("copied x", "copied keys"):
        return set()  # what is copied may be put together again
    return collectives(hlo) - set(case.known)
