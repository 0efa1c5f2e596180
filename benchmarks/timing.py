"""Clocks for the benchmarks: paired, interleaved runs, first calls, and the machine they ran on."""

import gc
import hashlib
import os
import platform
import resource
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import kdiff_jax as kd

Result = dict[str, Any]
MOST_ROUNDS = 3000
SHORT = 0.01  # seconds of a run that other programs' caches can be seen in


class NotMeasured(Exception):
    """A figure that cannot be had here; the message is the reason that the table shows."""


class Candidate(NamedTuple):
    """Something to be timed, and what must happen before each run and is not timed."""

    call: Callable[[], Any]
    prepare: Callable[[], Any] = lambda: None


class Effort(NamedTuple):
    """How long one comparison may take, and the least that is measured however long it takes."""

    seconds: float
    rounds: int
    first_calls: int


FULL = Effort(seconds=2.0, rounds=7, first_calls=3)
QUICK = Effort(seconds=0.3, rounds=3, first_calls=1)


def cpu_clock() -> float:
    """Seconds that this process and the compilers it waited for have had of the processor.

    On one core that is the time that something takes where nothing else runs, and a process that
    takes the core away in the middle of it does not count.
    """
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


CLOCKS = {"cpu": cpu_clock, "wall": time.perf_counter}
clock = time.perf_counter


def use_clock(name: str) -> None:
    """Everything that follows is timed by "cpu" or "wall"; "cpu" means something on one core."""
    global clock
    clock = CLOCKS[name]


def clock_name() -> str:
    return next(name for name, function in CLOCKS.items() if function is clock)


def timed(candidate: Candidate) -> float:
    candidate.prepare()
    began = clock()
    # torch's tensors and NumPy's arrays are ready when the call returns, and pass through.
    jax.block_until_ready(candidate.call())
    return clock() - began


def paired(candidates: dict[str, Candidate], effort: Effort) -> dict[str, np.ndarray]:
    """Seconds of every run, [rounds] each: A, B, A, B, ...

    A change of the machine's speed meets all candidates of a round alike, so their ratio within
    a round is steadier than any of the times. A short run is done twice in its turn, and the
    second is timed: the first finds its code and its data driven out of the caches by the other
    one, which doubles the time of 100 us, and which no user of one library alone would see.
    """
    last = {}
    for name, candidate in candidates.items():
        for _ in range(2):
            last[name] = timed(candidate)
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    collecting = gc.isenabled()
    gc.disable()
    try:
        end, count = clock() + effort.seconds, 0
        while count < effort.rounds or (clock() < end and count < MOST_ROUNDS):
            for name, candidate in candidates.items():
                if last[name] < SHORT:
                    timed(candidate)
                last[name] = timed(candidate)
                seconds[name].append(last[name])
            count += 1
    finally:
        if collecting:
            gc.enable()
    return {name: np.array(values) for name, values in seconds.items()}


def first_calls(candidates: dict[str, Candidate], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of first calls, tracing and compiling included: A, B, then B, A, then A, B, ...

    JAX's caches are emptied before each. What only the first program of a process pays is paid
    before the clock starts.
    """
    jax.jit(lambda x: x + 1)(np.float32(1)).block_until_ready()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for count in range(rounds):
        for name in names if count % 2 == 0 else reversed(names):
            jax.clear_caches()
            gc.collect()
            seconds[name].append(timed(candidates[name]))
    return {name: np.array(values) for name, values in seconds.items()}


def record(seconds: dict[str, np.ndarray], above: str, below: str) -> Result:
    """The median ratio of two candidates within a round, and the median time of each in us."""
    return {
        "value": float(np.median(seconds[above] / seconds[below])),
        "us": {name: round(1e6 * float(np.median(seconds[name])), 2) for name in (above, below)},
        "rounds": len(seconds[above]),
    }


def sources() -> str:
    """A fingerprint of the library's sources: its version does not change with every commit."""
    folder = Path(kd.__file__).resolve().parent
    files = sorted(folder.rglob("*.py"))
    content = b"".join(file.read_bytes() for file in files)
    return hashlib.sha256(content).hexdigest()[:12]


def machine(packages: Sequence[str] = ("jax", "jaxlib", "flax", "numpy")) -> Result:
    """What the figures were measured on; packages that are not installed are left out."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    versions = {}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "versions": versions | {"kdiff_jax": kd.__version__},
    }
