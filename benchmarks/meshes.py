"""Every kind of run on every kind of mesh, over eight CPU devices: what runs, and how alike.

    python benchmarks/meshes.py             minutes; prints a table
    python benchmarks/meshes.py --only guided --only save

A cell is the largest difference from the run without a mesh, relative to the largest number; 0 is
the same bits. "communicates" is a program with a collective where only the batch is sharded.
"""

import argparse
import os
import sys
from pathlib import Path

flags = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8".strip()
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import mesh_cases as matrix

Results = tuple[np.ndarray, ...]


def cell(case: matrix.Case, mesh: str, keys: str, references: dict[str, Results]) -> str:
    if matrix.missing(mesh, case):
        return "-"
    which = f"{keys == 'one key'} {keys == 'one key' and mesh.startswith('shard_map')}"
    try:
        if which not in references:
            references[which] = matrix.reference(case, keys, mesh)
        hlo, results = matrix.program(case, mesh, keys)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"
    found = matrix.unexpected(case, mesh, keys, hlo)
    pairs = zip(results, references[which], strict=True)
    difference = max(np.max(np.abs(a - b)) / np.max(np.abs(b)) for a, b in pairs)
    text = f"{difference:.0e}" if difference else "0"
    return f"{text} communicates: {', '.join(sorted(found))}" if found else text


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", action="append", help="cases whose name holds this")
    options = parser.parse_args(arguments)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    print(f"JAX {jax.__version__}\n")
    pairs = matrix.pairs()
    print("| run | " + " | ".join(f"{mesh}: {keys}" for mesh, keys in pairs) + " |")
    print("|---" * (len(pairs) + 1) + "|")
    for name, case in matrix.CASES.items():
        if options.only and not any(part in name for part in options.only):
            continue
        references: dict[str, Results] = {}
        cells = [cell(case, mesh, keys, references) for mesh, keys in pairs]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
