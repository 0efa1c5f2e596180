"""What tpu_compile.py found, as lines and as the tables of docs/tpu.md."""

import re
from typing import Any

Result = dict[str, Any]

# Missed today, and being mended: not a fault of a run, but told. So is a bound that is kept again.
KNOWN: dict[str, str] = {}

# Cycles in those of the best scan by hand. A row costs a fixed number of small kernels, which show
# the more, the less the network computes.
MOST_CYCLES = {
    "digits U-Net, 16 samples": 1.21,
    "digits U-Net, 256 samples": 1.06,
    "bf16 DiT, 16 samples": 1.03,
}


def known_miss(generation: str, name: str) -> str | None:
    """Why a case is known to miss its bounds, everywhere or for one kind of chip."""
    return KNOWN.get(name) or KNOWN.get(f"{name} on {generation}")


def line(generation: str, name: str, result: Result) -> str:
    """A case as a line of the run."""
    why = known_miss(generation, name)
    known = f" (known: {why})" if why else ""
    faults = "; ".join(result["faults"])
    figures = "scratch {scratch:6.2f}  collectives {collectives:2d} {seconds:6.1f} s"
    shown = figures.format(**result) if "scratch" in result else ""
    verdict = f"{'MISSED' if faults else 'kept'}{known} {faults}".rstrip()
    return f"  {name:26s} {shown:42s} {verdict}"


def failed(found: Result) -> bool:
    """Whether something is not as it has to be."""
    wrong = any(
        result["faults"] and not known_miss(generation, name)
        for generation, cases in found["generations"].items()
        for name, result in cases.items()
    )
    ratios = [item for cases in found["cycles"].values() for item in cases.items()]
    slow = any(result["ratio"] > MOST_CYCLES[name.split(", ", 1)[1]] for name, result in ratios)
    return wrong or slow or not all(found.get("planted", {}).values())


def with_tables(page: str, found: Result) -> str:
    """The text of docs/tpu.md with the tables of what was found between their marks."""
    tables = {"scratch": scratch_table(found), "cycles": cycles_table(found)}
    for name, table in tables.items():
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        marked = f"{start}\n\n{table}\n\n{end}"
        page, count = re.subn(f"{start}.*?{end}", lambda _, m=marked: m, page, flags=re.DOTALL)  # type: ignore[misc]
        if count != 1:
            raise ValueError(f"docs/tpu.md holds {count} places for the table {name}, expected 1.")
    return page


def scratch_table(found: Result) -> str:
    """Samples of scratch, a row for each case and a column for each kind of chip."""
    # Those of all cases first; a pod has the samplers alone.
    generations = dict(sorted(found["generations"].items(), key=lambda item: -len(item[1])))
    first = next(iter(generations.values()))
    lines = [
        "| | bound | " + " | ".join(generations) + " |",
        "|---|---|" + "---|" * len(generations),
    ]
    for name in first:
        cells = [_cell(cases.get(name)) for cases in generations.values()]
        bounds = [result.get("bound") for result in (c.get(name, {}) for c in generations.values())]
        shown = next((f"{bound:.2f}" for bound in bounds if bound is not None), "")
        lines.append(f"| {name} | {shown} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(result: Result | None) -> str:
    if result is None:
        return ""
    if "scratch" not in result:
        return "**too large**"
    shown = f"{result['scratch']:.2f}"
    return f"**{shown}**" if result["faults"] else shown


def cycles_table(found: Result) -> str:
    """Cycles of kdiff_jax, in those of the best scan by hand and of each other one."""
    (results,) = found["cycles"].values()
    lines = [
        "| | best by hand | kdiff_jax / best | at most | all by hand / best |",
        "|---|---|---|---|---|",
    ]
    for name, result in results.items():
        best = result["by_hand"][result["best"]]
        others = [f"{way} {count / best:.3f}" for way, count in result["by_hand"].items()]
        most = f"{MOST_CYCLES[name.split(', ', 1)[1]]:.2f}"
        row = name, result["best"], f"{result['ratio']:.3f}", most, ", ".join(others)
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)
