"""Every kind of run on every kind of mesh, over eight CPU devices: what runs, and how alike.

    python benchmarks/meshes.py             minutes; prints a table
    python benchmarks/meshes.py --only guided --only save

A cell is the largest difference from the run without a mesh, relative to the largest number; 0 is
the same bits. "communicates" is a program with a collective where only the batch is sharded.
"""

import os
import sys
from pathlib import Path

flags = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8".strip()
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from tqdm import tqdm

for folder in ("tests", "examples"):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / folder))

import commands
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
    parser = commands.parser(__doc__)
    only = "cases whose name holds this; may be repeated; default: all"
    parser.add_argument("--only", action="append", help=only)
    options = parser.parse_args(arguments)
    parts = options.only or [""]
    chosen = [name for name in matrix.CASES if any(part in name for part in parts)]
    if not chosen:
        parser.error(
            f"--only {' '.join(parts)}: no case has such a name; {', '.join(matrix.CASES)}"
        )
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    print(f"JAX {jax.__version__}\n")
    pairs = matrix.pairs()
    print("| run | " + " | ".join(f"{mesh}: {keys}" for mesh, keys in pairs) + " |")
    print("|---" * (len(pairs) + 1) + "|")
    with tqdm(total=len(chosen) * len(pairs), unit="cell") as bar:
        for name in chosen:
            bar.set_description(name)
            references: dict[str, Results] = {}
            cells = []
            for mesh, keys in pairs:
                cells.append(cell(matrix.CASES[name], mesh, keys, references))
                bar.update()
            bar.write(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
