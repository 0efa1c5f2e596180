"""What the TPU compiler makes of the samplers, without a TPU.

    pip install libtpu -e ".[examples]"     # in an environment of its own, Python 3.12
    python benchmarks/tpu_compile.py

libtpu holds the compiler, which compiles for a named kind of chip on any host. For every case of
tpu_cases.py the program has to compile, and then it is read (tpu_program.py): no chip waits for
another in a loop when the batch alone is shared out, no copy of a whole sample in a loop, random
bits under a condition, nothing sent to the host but for a progress bar, and no more scratch than
the bound. Then networks with each sampler are held against scans written by hand (tpu_scans.py), by
the compiler's own estimate of cycles. Nothing runs. Prints a table, writes
results/tpu_compile.json, exits with 1 where something is not as it has to be.

--planted breaks the loop on purpose, which has to be found: "noise" draws noise in every row,
"carry" carries the sample before each row in place of the one before each step.
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before JAX is imported: no TPU is looked for, and its host is asked nothing.
os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost")
# A lock lets one process use the chips; there are none.
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")

import jax
import numpy as np
from tqdm import tqdm

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results" / "tpu_compile.json"
sys.path.insert(0, str(FOLDER.parent / "examples"))

import commands

import tpu_cases
import tpu_report
from kdiff_jax._noise import keyed
from kdiff_jax._run import loop
from tpu_program import Program

GENERATIONS = ("v5e:2x2", "v4:2x2x1", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1")
PODS = ("v5e:16x16",)  # the samplers alone
PACKAGES = ("jax", "jaxlib", "libtpu", "numpy")
PLANTS = {"noise": "ancestral", "carry": "dpm2"}  # and the case that has to show it
Result = dict[str, Any]


@contextlib.contextmanager
def planted(what: str | None) -> Iterator[None]:
    """The loop with a fault in it."""
    module: Any = loop
    right = module.add_row_noise, module.advance

    def noise_in_every_row(x: Any, row: Any, keys: Any) -> Any:
        z = keyed.draw(keys, keyed.STEP_DOMAIN, row.index, x.shape)
        return x + row.noise_weight * z

    def carry(state: Any, *rest: Any) -> Any:
        after = right[1](state, *rest)
        # The step that follows wants the anchor, which is what no row may lose.
        return after if state.anchor is None else dataclasses.replace(after, anchor=state.sample)

    if what == "noise":
        module.add_row_noise = noise_in_every_row
    elif what == "carry":
        module.advance = carry
    jax.clear_caches()
    try:
        yield
    finally:
        module.add_row_noise, module.advance = right
        jax.clear_caches()


def compiled(case: tpu_cases.Case) -> Any:
    return jax.jit(case.run).lower(*case.arguments).compile()


def examine(case: tpu_cases.Case) -> Result:
    """What one case compiles to, and what is wrong with it."""
    began = time.perf_counter()
    try:
        executable = compiled(case)
    except Exception as error:  # the compiler's own errors have no common type
        # The first sentence names what did not fit; what follows is for who can change the program.
        fault = f"does not compile: {str(error).splitlines()[0][:160]}"
        return {"bound": case.scratch, "faults": [fault]}
    size = int(np.prod(case.sample))
    program = Program(executable.as_text())
    found: Result = {
        "seconds": round(time.perf_counter() - began, 1),
        "scratch": executable.memory_analysis().temp_size_in_bytes / (4 * size),
        "bound": case.scratch,
        "collectives": len(program.collectives(in_loops=False)),
        "collectives_in_loops": len(program.collectives()),
        "copies_in_loops": len(program.copies(size)),
        "random_bits": len(program.random_bits(size)),
        "random_bits_in_every_row": len(program.free_random_bits(size)),
        "host_transfers": len(program.host_transfers()),
    }
    return found | {"faults": list(_faults(case, found))}


def _faults(case: tpu_cases.Case, found: Result) -> Iterator[str]:
    if found["collectives_in_loops"]:
        yield f"{found['collectives_in_loops']} collectives in a loop"
    if case.copies is not None and found["copies_in_loops"] > case.copies:
        yield f"{found['copies_in_loops']} copies of a sample in a loop"
    if bool(found["random_bits"]) != (case.draws or case.always):
        yield f"{found['random_bits']} arrays of random bits"
    if bool(found["random_bits_in_every_row"]) != case.always:
        yield "random bits in every row"
    if bool(found["host_transfers"]) != case.host:
        yield f"{found['host_transfers']} transfers to or from the host"
    if case.scratch is not None and found["scratch"] > case.scratch:
        yield f"{found['scratch']:.2f} samples of scratch, allowed {case.scratch:.2f}"


def cycles(case: tpu_cases.Case, rows: int, draws: int) -> float:
    return Program(compiled(case).as_text()).cycles(rows, draws)


def compare(devices: Any, only: list[str] | None) -> dict[str, Result]:
    """Cycles of each sampler with a network, in those of the best scan by hand."""
    found = {}
    place = tpu_cases.Place(devices[:1])
    for name, rows, draws, ours, rivals in tpu_cases.against_scans(place):
        if only and name not in only:
            continue
        own = cycles(ours, rows, draws)
        # Their own closing step is no row of the scan in pairs, whose noise is unconditional.
        others = {way: cycles(case, rows, draws) for way, case in rivals.items()}
        best = min(others, key=lambda way: others[way])
        ratio = own / others[best]
        found[name] = {"cycles": own, "by_hand": others, "best": best, "ratio": ratio}
        print(f"  {name:28s} {ratio:.3f} of {best}, {own:,.0f} cycles", flush=True)
    return found


def compile_for(generation: str, only: list[str] | None) -> dict[str, Result]:
    devices = devices_of(generation)
    place = tpu_cases.Place(devices)
    print(f"{generation}: {len(devices)} {devices[0].device_kind}", flush=True)
    cases = tpu_cases.samplers(place)
    if generation not in PODS:
        cases |= tpu_cases.modes(place) | tpu_cases.with_networks(place)
    found = {}
    with tqdm([name for name in cases if not only or name in only], unit="program") as bar:
        for name in bar:
            bar.set_description(name)
            found[name] = examine(cases[name])
            bar.write(tpu_report.line(generation, name, found[name]))
    return found


def devices_of(generation: str) -> Any:
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name=generation).devices


def catches(generation: str) -> dict[str, bool]:
    """Whether each planted fault is found."""
    found = {}
    for plant, name in PLANTS.items():
        with planted(plant):
            case = tpu_cases.samplers(tpu_cases.Place(devices_of(generation)))[name]
            found[plant] = bool(examine(case)["faults"])
        print(f"planted {plant}: {'found' if found[plant] else 'NOT FOUND'}", flush=True)
    return found


def versions() -> dict[str, str]:
    found = {package: importlib.metadata.version(package) for package in PACKAGES}
    return found | {"python": platform.python_version(), "kdiff_jax": tpu_cases.kd.__version__}


def run(args: argparse.Namespace) -> Result:
    found: Result = {"versions": versions(), "generations": {}, "cycles": {}}
    print(", ".join(f"{name} {version}" for name, version in found["versions"].items()))
    with planted(args.planted):
        for generation in args.generations:
            if args.what != "cycles":
                found["generations"][generation] = compile_for(generation, args.cases)
            if args.what != "programs" and generation == GENERATIONS[0]:
                found["cycles"][generation] = compare(devices_of(generation), args.cases)
    if not args.planted and not args.cases and args.what != "cycles":
        found["planted"] = catches(args.generations[0])
    return found


def write(found: Result, out: Path) -> None:
    """What was not compiled now keeps the figures that the file has, if the versions are those."""
    old = json.loads(out.read_text()) if out.is_file() else {}
    if old.get("versions") == found["versions"]:
        for part in ("generations", "cycles"):
            for generation, cases in found[part].items():
                cases = old[part].get(generation, {}) | cases
                found[part][generation] = cases
            found[part] = old[part] | found[part]
        found = old | found
    out.write_text(json.dumps(found, indent=1) + "\n")
    if out == RESULTS and found["cycles"]:
        page = FOLDER.parent / "docs" / "tpu.md"
        page.write_text(tpu_report.with_tables(page.read_text(), found))


def main() -> None:
    parser = commands.parser(__doc__)
    add, every = parser.add_argument, [*GENERATIONS, *PODS]
    add("--generations", nargs="+", default=every, metavar="KIND", help="chips and their layout")
    add("--cases", nargs="+", metavar="NAME", help="these alone; default: all")
    add("--what", choices=("programs", "cycles"), help="one of the two parts; default: both")
    add("--planted", choices=PLANTS, help="a fault to be found: exits with 1")
    add("--out", type=commands.output, default=RESULTS, help="the JSON file")
    add("--no-write", action="store_true", help="print the tables only")
    args = parser.parse_args()
    if importlib.util.find_spec("libtpu") is None:
        raise SystemExit("libtpu is not installed; pip install libtpu, on Linux, Python 3.12.")
    found = run(args)
    if not (args.no_write or args.planted):
        write(found, args.out)
        print(f"wrote {args.out}")
    raise SystemExit(int(tpu_report.failed(found)))


if __name__ == "__main__":
    main()
