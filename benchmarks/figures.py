"""The figures of the speed benchmark: words, targets, tables and the picture."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Result = dict[str, Any]
DISTURBED = 0.1  # the share of the cores that others took, beyond which a repetition is marked
MODES = {"one": "One core", "default": "Default threads"}


class Figure(NamedTuple):
    """One row of the table. `bound` None: shown beside the others, without a target."""

    case: str
    words: str
    bound: float | None
    at_least: bool = True

    def met(self, value: float) -> bool:
        if self.bound is None:
            return True
        return value >= self.bound if self.at_least else value <= self.bound

    def show(self, value: float) -> str:
        digits = 0 if abs(value) >= 100 or value == 0 else 1 if abs(value) >= 10 else 2
        return f"{value:.{digits}f}" + ("x" if self.at_least else "")

    def target(self) -> str:
        if self.bound is None:
            return "none"
        return f"{'>=' if self.at_least else '<='} {self.bound:g}" + ("x" if self.at_least else "")


def _versus(case: str, kind: str, size: str, words: str, bound: float | None) -> dict[str, Figure]:
    shape = " ".join(size.split()[:2])
    return {f"{case} {kind} {size}": Figure(case, f"{words}, {shape}", bound)}


def _versus_torch_compile(size: str) -> dict[str, Figure]:
    lines = {
        "run": ("DPM2 against torch.compile of the whole loop, run", 1.3),
        "first call": ("the same, first call of a process", 50),
        "later call": ("the same, a first call in a process that has compiled before", None),
    }
    case = "torch.compile"
    return {
        f"{case} {size} {what}": Figure(case, f"{words}, {size}", bound)
        for what, (words, bound) in lines.items()
    }


FIGURES: dict[str, Figure] = (
    _versus("diffusers", "dpm2", "64 KB", "DPM2 against diffusers", 20)
    | _versus("diffusers", "dpm2", "1 MB", "DPM2 against diffusers", 11)
    | _versus("k-diffusion", "dpm2", "64 KB", "DPM2 against k-diffusion", 40)
    | _versus("k-diffusion", "dpm2", "1 MB", "DPM2 against k-diffusion", 25)
    | _versus("k-diffusion", "dpm2", "64 KB bare", "the same with the barest denoiser", None)
    | _versus("k-diffusion", "dpm2", "1 MB bare", "the same with the barest denoiser", None)
    | _versus_torch_compile("64 KB")
    | _versus_torch_compile("1 MB")
    | {
        "copyto 64 KB": Figure("copyto", "DPM2 against 49 np.copyto, 64 KB", 1.5, False),
        "copyto 1 MB": Figure("copyto", "DPM2 against 49 np.copyto, 1 MB", 1.5, False),
    }
    | _versus("diffusers", "ancestral", "64 KB", "ancestral DPM2 against diffusers", 2.2)
    | _versus("diffusers", "ancestral", "1 MB", "ancestral DPM2 against diffusers", 1.5)
    | _versus("k-diffusion", "ancestral", "64 KB", "ancestral DPM2 against k-diffusion", None)
    | _versus("k-diffusion", "ancestral", "1 MB", "ancestral DPM2 against k-diffusion", None)
    | _versus("diffusers", "lcm", "64 KB", "LCM, 4 steps, against diffusers", 2.2)
    | _versus("diffusers", "lcm", "1 MB", "LCM, 4 steps, against diffusers", 1.3)
    | {
        "dewml dpm2 run": Figure("dewml", "DPM2 against dewml, run", 1.1),
        "dewml dpm2 first call": Figure("dewml", "DPM2 against dewml, first call", 4),
        "dewml ancestral run": Figure("dewml", "ancestral DPM2 against dewml, run", 1.3),
        "dewml lcm run": Figure("dewml", "LCM, 4 steps, against dewml, run", 1.3),
        "dewml U-Net run": Figure("dewml-unet", "DPM2 of a small U-Net against dewml, run", 1.0),
        "dewml U-Net first call": Figure("dewml-unet", "the same, first call", 1.5),
        "bare network": Figure(
            "bare-network", "49 evaluations of a medium U-Net against 49 bare ones", 1.02, False
        ),
        "first sample null": Figure(
            "first-sample",
            "first sample against jit(network) and one evaluation, null network",
            1.5,
            False,
        ),
        "first sample small U-Net": Figure("first-sample", "the same, small U-Net", 1.5, False),
        "first sample medium U-Net": Figure("first-sample", "the same, medium U-Net", None, False),
        "recompiles": Figure("padded", "recompiles over N = 1..100, padded schedule", 0, False),
        "padded": Figure("padded", "padded schedule against the exact scan", 1.10, False),
        "table linspace": Figure("table", "table on device against set_timesteps(25)", 15),
        "table karras": Figure("table", "the same, Karras grid", None),
        "copies": Figure("program", "full-size copies in the loops of all samplers", 0, False),
        "scratch": Figure("program", "scratch of the ancestral program, in samples", 1.1, False),
        "scratch dpm2": Figure("program", "the same of DPM2", None, False),
        "scratch lcm": Figure("program", "the same of LCM", None, False),
        "saving 64 KB": Figure("saving", "saving every step against not, 64 KB", 2.0, False),
        "saving 1 MB": Figure("saving", "saving every step against not, 1 MB", 1.6, False),
        "serving evaluations": Figure(
            "serving", "serving: evaluations a second against the bare network", 0.9
        ),
        "serving requests": Figure(
            "serving", "serving: requests a second against static batches", 1.6
        ),
        "gpu loop": Figure("gpu", "on a GPU: loop against the bare network", 1.02, False),
        "gpu serving": Figure("gpu", "on a GPU: serving against one at a time", 4),
    }
)

# What is drawn: the rival, and what both ran.
RIVALS = {
    "diffusers": "tab:orange",
    "k-diffusion": "tab:red",
    "torch.compile": "tab:purple",
    "dewml": "tab:green",
}
PICTURED: dict[str, tuple[str, str]] = {
    f"{rival} {kind} {size}": (rival, f"{words}, {size}")
    for kind, words in {"dpm2": "DPM2", "ancestral": "ancestral DPM2", "lcm": "LCM"}.items()
    for size in ("64 KB", "1 MB")
    for rival in ("diffusers", "k-diffusion")
    if (kind, rival) != ("lcm", "k-diffusion")
} | {
    "torch.compile 64 KB run": ("torch.compile", "DPM2, 64 KB"),
    "torch.compile 1 MB run": ("torch.compile", "DPM2, 1 MB"),
    "torch.compile 64 KB first call": ("torch.compile", "DPM2, 64 KB, first call"),
    "torch.compile 1 MB first call": ("torch.compile", "DPM2, 1 MB, first call"),
    "dewml dpm2 run": ("dewml", "DPM2, 64 KB"),
    "dewml dpm2 first call": ("dewml", "DPM2, 64 KB, first call"),
    "dewml ancestral run": ("dewml", "ancestral DPM2, 64 KB"),
    "dewml lcm run": ("dewml", "LCM, 64 KB"),
    "dewml U-Net run": ("dewml", "DPM2 of a small U-Net"),
    "dewml U-Net first call": ("dewml", "DPM2 of a small U-Net, first call"),
    "table linspace": ("diffusers", "the table alone"),
}
_SIDES = ("kdiff_jax", "other")

# Shown under a table in which the figure was missed.
_LOOP = "the loop itself costs about 1 us a row, and the anchor is read and written in every one."
REASONS: dict[str, str] = {
    "diffusers dpm2 64 KB": _LOOP,
    "torch.compile 64 KB run": _LOOP,
    "torch.compile 1 MB run": _LOOP,
    "copyto 64 KB": _LOOP,
    "copyto 1 MB": _LOOP,
    "diffusers lcm 64 KB": "random numbers are three quarters of the time. They are those of"
    " jax.random bit for bit, 20 rounds of threefry and an inverse error function; torch takes"
    " fewer operations a number.",
    "dewml ancestral run": "random numbers are nine tenths of the time of both.",
    "first sample null": "a bare lax.scan over the null network, without any sampler, takes 2.1"
    " times as long to compile as the network. Where the network is one, the figure is below.",
    "table linspace": "NumPy on the host takes half of the time; the rest puts thirteen arrays of"
    " 49 numbers on the device, one by one. One transfer of all would need a program for every"
    " number of steps.",
    "scratch": "the anchor and the random bits, one sample each. Fused with what follows, the bits"
    " need no memory and the run takes 1.4 times as long.",
    "saving 64 KB": "XLA has no array without values, so what is saved is written twice, once as"
    " zeros; lax.scan's own outputs cost the same.",
    "saving 1 MB": "the same: 25 MB are written twice, and do not stay in the caches.",
}

# Nothing to time twice, or another machine: in the first table only.
FIRST_TABLE_ONLY = ("program", "padded", "saving", "serving", "gpu")


def summarise(figure: str, found: Result | None) -> Result:
    """Median, spread and verdict of a figure over the repetitions of its case."""
    if found is None:
        return {"verdict": "not measured: left out"}
    if found.get("not_measured"):
        return {"verdict": f"not measured: {found['not_measured']}"}
    all_records = [repetition.get(figure) for repetition in found["repetitions"]]
    records = [one for one in all_records if one is not None]
    if not records:
        return {"verdict": "not measured: this version of kdiff_jax does not have it"}
    values = [one["value"] for one in records]
    value = float(np.median(values))
    spec = FIGURES[figure]
    verdict = "" if spec.bound is None else "met" if spec.met(value) else "missed"
    names = list(records[0].get("us", ()))
    return {
        "value": value,
        "low": min(values),
        "high": max(values),
        "us": {name: float(np.median([one["us"][name] for one in records])) for name in names},
        "repetitions": len(values),
        "disturbed": sum(share > DISTURBED for share in found["others"]),
        "verdict": verdict,
    }


def _time(us: float) -> str:
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if us >= size:
            return f"{us / size:.3g} {unit}"
    return f"{us:.3g} us"


def rows(cases: Result, mode: str) -> list[tuple[str, ...]]:
    """The table of one mode: what is no target and was not measured is left out."""
    head = ("figure", "target", "reached", "spread", "kdiff_jax", "other", "verdict")
    lines: list[tuple[str, ...]] = [head]
    for name, spec in FIGURES.items():
        if mode != "one" and spec.case in FIRST_TABLE_ONLY:
            continue
        point = summarise(name, cases.get(spec.case))
        if "value" not in point:
            if spec.bound is not None:
                lines.append((spec.words, spec.target(), "", "", "", "", point["verdict"]))
            continue
        spread = (
            "" if not point["us"] else f"{spec.show(point['low'])} to {spec.show(point['high'])}"
        )
        times = {"kdiff_jax" if n != "other" else n: _time(us) for n, us in point["us"].items()}
        verdict = point["verdict"]
        if point["disturbed"]:
            verdict += f" ({point['disturbed']} of {point['repetitions']} disturbed)"
        own, other = times.get("kdiff_jax", ""), times.get("other", "")
        reached = spec.show(point["value"])
        lines.append((spec.words, spec.target(), reached, spread, own, other, verdict.strip()))
    return lines


def text(lines: list[tuple[str, ...]]) -> str:
    """The table for a terminal."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def markdown(content: Result) -> str:
    """RESULTS.md: generated from speed.json, so that it cannot drift from it."""
    versions = ", ".join(
        f"{name} {found}" for name, found in content["machine"]["versions"].items()
    )
    parts = [
        f"# Speed of kdiff_jax {content['machine']['versions'].get('kdiff_jax', '')}".strip(),
        "Written by `python benchmarks/speed.py`, which says what is measured and how; the figures"
        " are those of `results/speed.json`. Null network `0.1 * x`, float32, 25 steps (49"
        " evaluations; LCM 4), samples of (1, 4, 64, 64) = 64 KB or (4, 4, 128, 128) = 1 MB, where"
        " a line names no others. `x` is how many times as long the other one takes; a figure"
        " without it is our time as a part of the other's. Reached is the median of whole"
        " repetitions in processes of their own, each a median of paired, interleaved runs; the"
        " spread is their smallest and largest. The times are medians, on one core of CPU time,"
        " which other processes do not change, else of the wall clock; those with default threads"
        " are of short repetitions (`--quick`).",
        f"{content['machine']['processor']}, {content['machine']['cores']} cores; Python"
        f" {content['machine']['python']}, {versions}.",
        "![Times of a run, beside those of the other libraries](results/speed.png)",
    ]
    for mode, title in MODES.items():
        cases = content["modes"].get(mode)
        if not cases:
            continue
        head, *lines = rows(cases, mode)
        table = ["| " + " | ".join(line) + " |" for line in (head, ("---",) * len(head), *lines)]
        parts += [f"## {title}", "\n".join(table)]
        missed = [
            f"* {spec.words}: {REASONS[name]}"
            for name, spec in FIGURES.items()
            if name in REASONS and summarise(name, cases.get(spec.case))["verdict"] == "missed"
        ]
        if missed:
            parts += ["Why those that were missed were missed:", "\n".join(missed)]
        if len({case["sources"] for case in cases.values()}) > 1:
            parts.append("The cases were not all run with the same sources of kdiff_jax.")
    return "\n\n".join(parts) + "\n"


def draw(path: Path, content: Result) -> bool:
    """The times of both sides of every comparison on one core; false where none was measured."""
    from matplotlib.figure import Figure as Canvas

    cases = content["modes"].get("one", {})
    found = {name: summarise(name, cases.get(FIGURES[name].case)) for name in PICTURED}
    shown = [name for name in PICTURED if found[name].get("us")]
    if not shown:
        return False
    fig = Canvas(figsize=(8, 1.3 + 0.24 * len(shown)), layout="constrained")
    axes = fig.subplots()
    own, other = ([1e-6 * found[name]["us"][side] for name in shown] for side in _SIDES)
    places = list(range(len(shown)))
    axes.hlines(places, own, other, color="lightgray", lw=3, zorder=0)
    axes.plot(own, places, "o", color="tab:blue", label="kdiff_jax")
    for rival, colour in RIVALS.items():
        at = [place for place, name in enumerate(shown) if PICTURED[name][0] == rival]
        if at:
            axes.plot([other[i] for i in at], at, "s", color=colour, label=rival)
    for place, name in enumerate(shown):
        spec, end = FIGURES[name], max(own[place], other[place])
        words = spec.show(found[name]["value"])
        look: Result = {"xytext": (8, 0), "textcoords": "offset points", "fontsize": 9}
        axes.annotate(words, (end, place), va="center", **look)
    axes.set_xscale("log")
    axes.set_xlim(right=4 * max(own + other))
    ticks = {1e-4: "0.1 ms", 1e-3: "1 ms", 1e-2: "10 ms", 0.1: "0.1 s", 1.0: "1 s", 10.0: "10 s"}
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()
    axes.set_yticks(places, [f"{PICTURED[name][1]}: {PICTURED[name][0]}" for name in shown])
    axes.tick_params(labelsize=9)
    axes.invert_yaxis()
    version = content["machine"]["versions"].get("kdiff_jax", "")
    fig.suptitle(
        f"Time on one core with kdiff_jax {version} and with others (null network, 25 steps; LCM 4)"
        "\n25x: the other takes 25 times as long",
        fontsize=10,
    )
    axes.grid(alpha=0.3, axis="x")
    fig.legend(loc="outside lower center", ncols=len(RIVALS) + 1, fontsize=9)
    fig.savefig(path, dpi=150)
    return True
