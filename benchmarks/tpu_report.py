"""What tpu_compile.py found, as lines and as the tables of docs/tpu.md."""

from typing import Any

Result = dict[str, Any]

# Missed today, and being mended: not a fault of a run, but told. So is a bound that is kept again.
KNOWN = {
    "progress": "its end report copies the sample into a padded layout",
    "guided, one call": "the halves of the batch are concatenated across chips",
    "guided, interval, stack": "whether any sample is inside is asked of all chips, in every row",
    "thresholded": "it sorts whole samples",
}


def line(name: str, result: Result) -> str:
    """A case as a line of the run."""
    known = f" (known: {KNOWN[name]})" if name in KNOWN else ""
    faults = "; ".join(result["faults"])
    figures = "scratch {scratch:6.2f}  collectives {collectives:2d} {seconds:6.1f} s"
    shown = figures.format(**result) if "scratch" in result else ""
    verdict = f"{'MISSED' if faults else 'kept'}{known} {faults}".rstrip()
    return f"  {name:26s} {shown:42s} {verdict}"


def failed(found: Result) -> bool:
    """Whether something is not as it has to be."""
    results = [item for cases in found["generations"].values() for item in cases.items()]
    wrong = any(result["faults"] and name not in KNOWN for name, result in results)
    return wrong or not all(found.get("planted", {}).values())


def scratch_table(found: Result) -> str:
    """Samples of scratch, a row for each case and a column for each kind of chip."""
    generations = found["generations"]
    first = next(iter(generations.values()))
    lines = [
        "| | bound | " + " | ".join(generations) + " |",
        "|---|---|" + "---|" * len(generations),
    ]
    for name in first:
        cells = [_cell(cases.get(name)) for cases in generations.values()]
        bound = next((c[name]["bound"] for c in generations.values() if "bound" in c[name]), None)
        shown = "" if bound is None else f"{bound:.2f}"
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
    lines = ["| | best by hand | kdiff_jax / best | all by hand / best |", "|---|---|---|---|"]
    for name, result in results.items():
        best = result["by_hand"][result["best"]]
        others = [f"{way} {count / best:.3f}" for way, count in result["by_hand"].items()]
        row = name, result["best"], f"{result['ratio']:.3f}", ", ".join(others)
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)
