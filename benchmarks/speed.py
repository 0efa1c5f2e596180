"""Speed of the samplers, side by side with other libraries.

    python benchmarks/speed.py

Prints a table, writes results/speed.json, results/speed.png and RESULTS.md. Each whole repetition
is a process of its own, once held to one core and single threaded and once with the threads that
each library takes by default; what is compared is timed in one process, in turns (timing.py). What
is compared with what is in cases.py, the words and targets of the figures in figures.py, how the
other libraries are called and installed in rivals.py. A rival that is missing leaves its rows
"not measured".

On one core the clock is the CPU time of the process, which does not see other processes but for
the caches that they empty; with default threads it is the wall clock (--clock asks for one). A
repetition during which other processes took more than a tenth of the cores is marked as disturbed:
by the wall clock its ratios are worth little.

With --only CASE ... the other cases keep the figures that the file has, so that a figure that is
not there any more, or was disturbed, can be taken again alone.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent / "examples"))

import commands

PACKAGES = ("jax", "jaxlib", "numpy", "torch", "diffusers", "k-diffusion", "dewml")
ONE_CORE = {
    "OMP_NUM_THREADS": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}
# A first call of torch.compile that finds the program on disk is none.
ALWAYS = {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1", "JAX_ENABLE_COMPILATION_CACHE": "false"}
Result = dict[str, Any]


def cpu_seconds() -> tuple[float, float]:
    """What the cores that this process may use have spent in all, and what of it is ours."""
    own = sum(os.times()[:4])
    stat = Path("/proc/stat")
    if not stat.is_file():
        return own, own
    cores = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    busy = 0
    for line in stat.read_text().splitlines():
        name, *ticks = line.split()
        if name in cores:
            user, nice, system, _idle, _waiting, interrupts, soft, stolen = map(int, ticks[:8])
            busy += user + nice + system + interrupts + soft + stolen
    return busy / os.sysconf("SC_CLK_TCK"), own


def work(args: argparse.Namespace) -> None:
    """One whole repetition of the cases, written as JSON."""
    if args.worker == "one" and hasattr(os, "sched_setaffinity"):
        # The last core: interrupts favour the first.
        core = max(os.sched_getaffinity(0)) if args.core is None else args.core
        os.sched_setaffinity(0, {core})
    import cases  # loads JAX, whose threads take the cores that are allowed by now
    import timing

    if args.worker == "one":
        try:
            import torch

            torch.set_num_threads(1)
        except ImportError:
            pass
    timing.use_clock(args.clock or ("cpu" if args.worker == "one" else "wall"))
    effort = timing.QUICK if args.quick else timing.FULL
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    found: Result = {}
    from tqdm import tqdm

    for name in tqdm(args.only, desc=f"cases, {args.worker}", unit="case", leave=False):
        began, (busy, own) = time.perf_counter(), cpu_seconds()
        result: Result = {}
        try:
            result["figures"] = cases.CASES[name](effort)
        except timing.NotMeasured as reason:
            result["not_measured"] = str(reason)
        except Exception as error:  # a rival that breaks must not take the other rows with it
            result["not_measured"] = f"{type(error).__name__}: {error}".split("\n")[0]
        wall, (busy_after, own_after) = time.perf_counter() - began, cpu_seconds()
        others = (busy_after - busy - (own_after - own)) / (wall * cores)
        found[name] = result | {"seconds": round(wall, 1), "others": round(max(others, 0.0), 3)}
    content = {
        "machine": timing.machine(PACKAGES),
        "sources": timing.sources(),
        "results": found,
    }
    args.json.write_text(json.dumps(content))


def repetition(args: argparse.Namespace, mode: str) -> Result:
    """One whole repetition in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "repetition.json"
        command = [sys.executable, __file__, "--worker", mode, "--json", str(path)]
        command += ["--only", *args.only]
        command += ["--quick"] if args.quick else []
        command += [] if args.core is None else ["--core", str(args.core)]
        command += [] if args.clock is None else ["--clock", args.clock]
        environment = os.environ | ALWAYS | (ONE_CORE if mode == "one" else {})
        subprocess.run(command, env=environment, check=True)
        return json.loads(path.read_text())


def restore(path: Path, only: list[str], modes: list[str]) -> Result:
    """The figures of the file but for the cases that are measured now, in the modes that are."""
    if not path.is_file():
        return {"machine": None, "modes": {}}
    content = json.loads(path.read_text())
    for mode in modes:
        for name in only:
            content["modes"].get(mode, {}).pop(name, None)
    return content


def add(content: Result, mode: str, found: Result) -> None:
    """Puts a repetition into the content of the file."""
    kept = any(content["modes"].values())
    if kept and content["machine"] != found["machine"]:
        raise ValueError(
            f"the file holds figures of {content['machine']}, and this is {found['machine']}; they"
            " do not belong into one table: delete the file or give another --out folder."
        )
    content["machine"] = found["machine"]
    cases = content["modes"].setdefault(mode, {})
    for name, result in found["results"].items():
        empty: Result = {"repetitions": [], "others": [], "seconds": []}
        case = cases.setdefault(name, empty)
        case["sources"] = found["sources"]
        if "figures" in result:
            case["repetitions"].append(result["figures"])
            case["others"].append(result["others"])
            case["seconds"].append(result["seconds"])
        elif not case["repetitions"]:
            case["not_measured"] = result["not_measured"]


def arguments(names: list[str]) -> argparse.Namespace:
    parser = commands.parser(__doc__)
    flag = parser.add_argument
    cases = f"these alone, of {', '.join(names)}; default: all"
    flag("--only", nargs="+", choices=names, metavar="CASE", help=cases)
    flag("--quick", action="store_true", help="two short repetitions, to try a change")
    count = commands.count
    flag("--repetitions", type=count, help="whole repetitions; default: 5, or 2 with --quick")
    threads = "one core, the default threads of each library, or one after the other"
    flag("--threads", choices=("one", "default", "both"), default="both", help=threads)
    flag("--clock", choices=("cpu", "wall"), help="default: cpu on one core, else wall")
    flag("--core", type=commands.index, help="the one core; default: the last that may be used")
    out = "folder for RESULTS.md and results/"
    flag("--out", type=commands.folder, default=str(FOLDER), help=out)
    flag("--worker", choices=("one", "default"), help=argparse.SUPPRESS)
    flag("--json", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.only = args.only or names
    args.repetitions = args.repetitions or (2 if args.quick else 5)
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {args.core}
    if args.core is not None and args.core not in allowed:
        parser.error(f"--core {args.core}: expected one of {sorted(allowed)}")
    return args


def main() -> None:
    import figures

    args = arguments(list(dict.fromkeys(spec.case for spec in figures.FIGURES.values())))
    if args.worker:
        work(args)
        return
    folder = args.out / "results"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "speed.json"
    modes = list(figures.MODES) if args.threads == "both" else [args.threads]
    content = restore(path, args.only, modes)
    for count in range(args.repetitions):
        for mode in modes:
            began = time.perf_counter()
            add(content, mode, repetition(args, mode))
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(content, indent=1) + "\n")
            os.replace(temporary, path)
            (args.out / "RESULTS.md").write_text(figures.markdown(content))
            took = time.perf_counter() - began
            print(f"{count + 1} of {args.repetitions}, {figures.MODES[mode]}: {took:.0f} s")
    if figures.draw(folder / "speed.png", content):
        print(f"wrote {folder / 'speed.png'}")
    print(f"wrote {path} and {args.out / 'RESULTS.md'}")
    for mode in modes:
        print(f"\n{figures.MODES[mode]}\n")
        print(figures.text(figures.rows(content["modes"][mode], mode)))


if __name__ == "__main__":
    main()
