"""The figures of quality.json as a table, as a figure, and as what all judges agree on.

Tables, findings and figures are each of one guidance scale: pass them `guided_by(results, scale)`.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from judges import beats, error

Result = dict[str, Any]


class Line(NamedTuple):
    """A sampler of digits.SAMPLERS with an eta, and its line in the figure."""

    sampler: str
    eta: float | None
    title: str
    colour: str
    fresh_noise: bool = False


LINES = {
    "euler": Line("euler", None, "Euler", "tab:gray"),
    "heun": Line("heun", None, "Heun", "tab:purple"),
    "dpm2": Line("dpm2", None, "DPM2", "tab:blue"),
    "dpmpp_2m": Line("dpmpp_2m", None, "DPM++ 2M", "tab:orange"),
    "unipc": Line("unipc", None, "UniPC", "tab:red"),
    "euler_eta": Line("euler", 1.0, "Euler, eta 1", "tab:gray", True),
    "dpm2_ancestral": Line("dpm2_ancestral", None, "DPM2 ancestral", "tab:blue", True),
    "dpmpp_2s_ancestral": Line(
        "dpmpp_2s_ancestral", None, "DPM++ 2S ancestral", "tab:purple", True
    ),
    "dpmpp_sde": Line("dpmpp_sde", None, "DPM++ SDE", "tab:brown", True),
    "dpmpp_2m_sde": Line("dpmpp_2m", 1.0, "DPM++ 2M SDE", "tab:orange", True),
    "dpmpp_3m_sde": Line("dpmpp_3m", 1.0, "DPM++ 3M SDE", "tab:red", True),
    "lcm": Line("lcm", None, "LCM, distilled", "tab:green"),
    "tcd": Line("tcd", None, "TCD, distilled", "tab:olive"),
}
JUDGES = {"first": "first classifier", "second": "second classifier", "pixels": "pixels"}


def guided_by(results: list[Result], scale: float) -> list[Result]:
    return [r for r in results if r["guidance"] == scale]


def figure_name(scale: float) -> str:
    return "quality.png" if scale == 1 else f"quality_{scale:g}.png"


def points(results: list[Result], name: str) -> list[Result]:
    """The results of a line by calls."""
    return sorted((r for r in results if r["sampler"] == name), key=lambda r: r["calls"])


def multiple(result: Result, real: Result, judge: str) -> float:
    """The Frechet distance, in those of as many training images."""
    return float(result["judges"][judge]["frechet"]["value"] / real[judge]["frechet"]["value"])


def distances(result: Result, real: Result) -> list[str]:
    """The multiples of the three judges, in two digits or more."""
    seen = (multiple(result, real, judge) for judge in JUDGES)
    return [f"{value:.1f}" if value < 10 else f"{value:.0f}" for value in seen]


def table(results: list[Result], real: Result) -> str:
    """A Markdown table a measure: a row a sampler, a column a budget, a cell the three judges."""

    def share(name: str) -> Any:
        def cell(result: Result) -> list[str]:
            seen = [result["judges"][judge] for judge in JUDGES]
            return [f"{100 * one[name]['value']:.0f}" for one in seen if name in one]

        return cell

    measures = {
        "distance": lambda result: distances(result, real),
        "recall, %": share("recall"),
        "agreement, %": share("agreement"),
    }
    tables = []
    for title, cell in measures.items():
        budgets = sorted({r["budget"] for r in results if not distilled(r)})
        tables.append(_one(title, [r for r in results if not distilled(r)], budgets, cell))
    budgets = sorted({r["budget"] for r in results if distilled(r)})
    for title, cell in measures.items():
        tables.append(_one(title, [r for r in results if distilled(r)], budgets, cell))
    return "\n\n".join(filter(None, tables))


def distilled(result: Result) -> bool:
    return LINES[result["sampler"]].title.endswith("distilled")


def _one(title: str, results: list[Result], budgets: list[int], cell: Any) -> str:
    rows = [[title, *map(str, budgets)], ["---"] * (1 + len(budgets))]
    for name, line in LINES.items():
        found = {r["budget"]: " / ".join(cell(r)) for r in results if r["sampler"] == name}
        if found:
            rows.append([line.title, *(found.get(budget, "") for budget in budgets)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) if results else ""


def all_agree(first: Result, second: Result) -> bool:
    """Whether every judge sees a lower distance, by more than two standard errors."""
    return all(beats(first["judges"][judge], second["judges"][judge]) for judge in JUDGES)


def findings(results: list[Result]) -> str:
    """Who, within each budget, is not behind another by all judges."""
    lines = []
    for budget in sorted({r["budget"] for r in results if not distilled(r)}):
        rivals = [r for r in results if r["budget"] == budget and not distilled(r)]
        best = [r for r in rivals if not any(all_agree(other, r) for other in rivals)]
        titles = "; ".join(LINES[r["sampler"]].title for r in best)
        names = "all" if len(best) == len(rivals) else titles
        lines.append(f"* {budget} calls: {names}.")
    return "\n".join(lines)


def errors_of(results: list[Result]) -> str:
    """The standard errors of each figure of each judge."""
    lines = []
    for judge in JUDGES:
        for name in ("frechet", "recall", "agreement"):
            seen = [r["judges"][judge][name] for r in results if name in r["judges"][judge]]
            if not seen:
                continue
            errors = np.array([error(one) for one in seen])
            if name == "frechet":
                errors /= [one["value"] for one in seen]
            title, of = ("distance", "relative") if name == "frechet" else (name, "of all images")
            median, most = 100 * np.median(errors), 100 * errors.max()
            lines.append(
                f"* {JUDGES[judge]}, {title}: {median:.1f} % in the median, {most:.1f} % at most"
                f" ({of})."
            )
    return "\n".join(lines)


def figure(path: Path, results: list[Result], real: Result) -> None:
    """The distance by each judge against calls; samplers without fresh noise, and with."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, ScalarFormatter

    fig = Figure(figsize=(9.6, 8.4), layout="constrained")
    scale = results[0]["guidance"]
    guidance = "Without guidance" if scale == 1 else f"With guidance {scale:g}"
    parts: Any = fig.subfigures(2, 1)
    for part, noisy in zip(parts, (False, True), strict=True):
        row = part.subplots(1, len(JUDGES), sharex=True, sharey=True)
        for axis, judge in zip(row, JUDGES, strict=True):
            for name, line in LINES.items():
                if line.fresh_noise != noisy or not (runs := points(results, name)):
                    continue
                x = [run["calls"] for run in runs]
                y = [multiple(run, real, judge) for run in runs]
                base = real[judge]["frechet"]["value"]
                spread = [error(run["judges"][judge]["frechet"]) / base for run in runs]
                star = distilled(runs[0])
                look: dict[str, Any] = {"marker": "*" if star else "o", "ms": 9 if star else 4}
                # DPM++ 2M is below UniPC and wider: they are nearly one line.
                look |= {"lw": 5, "alpha": 0.5} if name == "dpmpp_2m" else {"lw": 1.6}
                axis.errorbar(x, y, spread, color=line.colour, label=line.title, **look)
            axis.axhline(1, color="black", lw=1, ls=":", label="as good as real digits")
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.grid(alpha=0.3)
            axis.set_title(JUDGES[judge], fontsize=10)
            axis.set_xlabel("calls of the network", fontsize=10)
        row[0].set_ylabel("distance to real digits, lower is better", fontsize=10)
        axis = row[0]
        axis.set_ylim(0.7, 300)  # of both rows
        axis.set_xlim(0.9, 60)
        axis.xaxis.set_major_locator(FixedLocator([1, 2, 4, 6, 8, 12, 24, 50]))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50, 100, 200]))
        for one in (axis.xaxis, axis.yaxis):
            one.set_major_formatter(ScalarFormatter())
            one.set_minor_formatter(NullFormatter())
        kind = "with fresh noise" if noisy else "without fresh noise, and of a distilled network"
        part.suptitle(f"{guidance}: samplers {kind}")
        handles = row[0].get_legend_handles_labels()
        part.legend(*handles, loc="outside lower center", ncols=4, fontsize=9)
    fig.savefig(path, dpi=120)
