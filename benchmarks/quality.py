"""Quality of sampled digits against network evaluations.

    python benchmarks/quality.py --data FOLDER

Draws class-conditional samples with the weights of the examples, 5,000 for each figure and seed and
equally many of each class, and compares them with the 10,000 test images of MNIST:

* the Frechet distance between the features of a small classifier (trained here, on the training
  images, and cached); stated beside it is what that distance is between two halves of the test
  images, and between 5,000 training images and the test images;
* the agreement: the share of samples that the classifier sees as the class of their condition.

Writes quality.json, draws quality.png and prints a table, both of the scales of --guidance. Every
figure is written as soon as it is known and an interrupted run goes on where it stopped; runs with
other --samplers, --steps, --guidance or --seeds add to the same file.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import commands

import classifier
import digits
import kdiff_jax as kd
import mnist
import unet
from timing import machine

ROOT = Path(__file__).resolve().parents[1]
MIN_ACCURACY = 0.99
# What DPM2 and LCM should reach; see `summary`.
BUDGET, MAX_RATIO, MIN_AGREEMENT = 49, 10, 0.98
MAX_LCM_RATIO, MIN_LCM_AGREEMENT = 1.5, 0.97
Result = dict[str, Any]


class Sampler(NamedTuple):
    """The steps that a sampler of digits.SAMPLERS runs in by default, its line in the figure."""

    title: str
    colour: str
    steps: tuple[int, ...]


SAMPLERS = {
    "dpm2": Sampler("DPM2", "tab:blue", (3, 6, 12, 25)),
    "dpm2_ancestral": Sampler("DPM2 ancestral", "tab:orange", (6, 12)),
    "euler": Sampler("Euler", "tab:gray", (5, 11)),
    "lcm": Sampler("LCM", "tab:green", (1, 2, 4, 8)),
}


def to_bytes(x: jax.Array) -> np.ndarray:
    """Samples as images are: clipped to [-1, 1] and rounded to 8 bits, the inverse of to_pixels."""
    return np.round((np.clip(np.asarray(x), -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)


def is_lcm(case: Result) -> bool:
    return case["sampler"] == "lcm"  # another network, another grid, guidance without doubling


def schedule_of(case: Result, options: dict[str, Any]) -> kd.Schedule:
    """The run of a case; LCM has a grid of its own, and takes none of the options."""
    noise, steps = digits.training_noise(), case["steps"]
    levels = kd.lcm_levels(noise, steps) if is_lcm(case) else kd.levels(noise, steps, **options)
    return digits.SAMPLERS[case["sampler"]](levels)


def evaluations(case: Result, schedule: kd.Schedule) -> int:
    """Network evaluations for a sample; a doubled batch counts double, distilled guidance once."""
    return schedule.num_rows * (1 if case["guidance"] == 1.0 or is_lcm(case) else 2)


def draw(
    case: Result, schedule: kd.Schedule, params: Any, batch: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of samples as bytes, and the class of each, 0..9 in turn.

    Sample i has its own key, made of the seed and i, so that the batch size does not matter.
    """
    for start in range(0, case["samples"], batch):
        index = jnp.arange(start, start + batch)  # the last batch is whole too: one executable
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(case["seed"]), index)
        x = kd.initial_sample(schedule, keys, (batch, 28, 28, 1))
        denoise, cond = digits.denoiser_and_cond(case["sampler"], index % 10, case["guidance"])
        x = kd.sample(denoise, params, schedule, x, keys, cond)
        count = min(batch, case["samples"] - start)
        yield to_bytes(x)[:count], np.asarray(index % 10)[:count]


def fingerprint(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def restore(path: Path, made_with: Result) -> list[Result]:
    """The results of the file, which must have been measured with the same weights."""
    if not path.is_file():
        return []
    content = json.loads(path.read_text())
    if content.get("made_with") != made_with:
        raise ValueError(
            f"{path} was measured with {content.get('made_with')}, but this run has {made_with};"
            " its figures cannot be compared: delete it or give another --out folder."
        )
    return content["results"]


def same(result: Result, case: Result) -> bool:
    return all(result.get(name) == value for name, value in case.items())


def curves(results: list[Result]) -> dict[tuple[str, float], list[Result]]:
    """Mean and spread over seeds: for each sampler and guidance the points by step count."""
    seeds: dict[tuple[str, float, int], list[Result]] = {}
    for result in results:
        key = result["sampler"], result["guidance"], result["steps"]
        seeds.setdefault(key, []).append(result)
    lines: dict[tuple[str, float], list[Result]] = {}
    for (sampler, guidance, steps), group in sorted(seeds.items()):
        point: Result = {"steps": steps, "evaluations": group[0]["evaluations"], "n": len(group)}
        for name in ("frechet", "agreement"):
            values = [result[name] for result in group]
            point[name] = float(np.mean(values))
            point[name + "_std"] = float(np.std(values, ddof=1)) if len(group) > 1 else 0.0
        lines.setdefault((sampler, guidance), []).append(point)
    return lines


def table(results: list[Result], halves: float) -> str:
    """The figures as a Markdown table; with several seeds their mean and standard deviation."""

    def cell(point: Result, name: str, scale: float, digits: int) -> str:
        spread = f" ± {scale * point[name + '_std']:.{digits}f}" if point["n"] > 1 else ""
        return f"{scale * point[name]:.{digits}f}{spread}"

    head = ("sampler", "steps", "guidance", "evaluations", "Fréchet", "of halves", "agreement, %")
    rows = [head, ("---",) * len(head)]
    for (sampler, guidance), points in curves(results).items():
        for point in points:
            rows.append(
                (
                    SAMPLERS[sampler].title,
                    str(point["steps"]),
                    f"{guidance:g}",
                    str(point["evaluations"]),
                    cell(point, "frechet", 1.0, 2),
                    f"{point['frechet'] / halves:.1f} x",
                    cell(point, "agreement", 100.0, 2),
                )
            )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def summary(results: list[Result], halves: float) -> str:
    """What was wanted of DPM2 and of LCM, and what was reached."""
    points = [
        point | {"sampler": sampler, "guidance": guidance}
        for (sampler, guidance), line in curves(results).items()
        for point in line
    ]
    dpm2 = [point for point in points if point["sampler"] == "dpm2"]
    lines = []
    within = [point for point in dpm2 if point["evaluations"] <= BUDGET]
    if within:
        # Of those that agree well enough the one with the least distance.
        agreeing = [point for point in within if point["agreement"] >= MIN_AGREEMENT]
        best = min(agreeing or within, key=lambda point: point["frechet"])
        lines.append(
            f"DPM2 within {BUDGET} evaluations: Fréchet distance {best['frechet']:.2f} ="
            f" {best['frechet'] / halves:.1f} x the halves' (at most {MAX_RATIO} wanted),"
            f" agreement {best['agreement']:.2%} (at least {MIN_AGREEMENT:.0%} wanted),"
            f" with {best['steps']} steps, {best['evaluations']} evaluations, guidance"
            f" {best['guidance']:g}."
        )
    for lcm in points:
        rivals = [p for p in dpm2 if p["guidance"] == lcm["guidance"] and p["evaluations"] <= 98]
        if lcm["sampler"] != "lcm" or lcm["steps"] != 4 or not rivals:
            continue
        best = min(rivals, key=lambda point: point["frechet"])
        lines.append(
            f"LCM at 4 evaluations, guidance {lcm['guidance']:g}: {lcm['frechet']:.2f} ="
            f" {lcm['frechet'] / best['frechet']:.2f} x the best of DPM2 ({best['frechet']:.2f} at"
            f" {best['evaluations']}; at most {MAX_LCM_RATIO} wanted), agreement"
            f" {lcm['agreement']:.2%} (at least {MIN_LCM_AGREEMENT:.0%} wanted)."
        )
    return "\n".join(lines)


def figure(path: Path, results: list[Result], made_with: Result, real: Result) -> None:
    """Fréchet distance and agreement against network evaluations, a line for each sampler."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4.8), layout="constrained")
    styles = ("-", "--", ":", "-.")
    lines = curves(results)
    guidances = sorted({guidance for _, guidance in lines})
    for (name, guidance), points in lines.items():
        label = SAMPLERS[name].title + ("" if guidance == 1.0 else f", guidance {guidance:g}")
        style = styles[guidances.index(guidance) % len(styles)]
        x = [point["evaluations"] for point in points]
        for axes, key, scale in ((left, "frechet", 1.0), (right, "agreement", 100.0)):
            y = [scale * point[key] for point in points]
            spread = [scale * point[key + "_std"] for point in points]
            look = {"color": SAMPLERS[name].colour, "ls": style, "marker": "o", "ms": 4}
            axes.errorbar(x, y, spread, label=label, capsize=2, **look)
    gray = {"color": "black", "lw": 0.8}
    left.axhline(real["halves"], ls="-", label="test images (left: two halves)", **gray)
    left.axhline(real["train_images"], ls=":", label="training images", **gray)
    right.axhline(100 * made_with["accuracy"], **gray)
    left.set_ylabel("Fréchet distance to the test images")
    right.set_ylabel("samples seen as the class asked for, %")
    left.set_yscale("log")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("network evaluations for a sample")
        axes.grid(alpha=0.3)
    for axis in (left.xaxis, right.xaxis, left.yaxis):  # 1, 2, 5, 10, 20, ...
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(NullFormatter())
    fig.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    fig.savefig(path, dpi=150)
    plt.close(fig)


def arguments() -> argparse.Namespace:
    parser = commands.parser(__doc__)
    add, number = parser.add_argument, commands.number
    cache = str(ROOT / "benchmarks" / "cache")
    add("--data", required=True, help="folder with the four MNIST files")
    add("--weights", type=commands.file, default=digits.WEIGHTS, help="of train_digits.py")
    add("--lcm-weights", type=commands.file, default=digits.LCM_WEIGHTS, help="of distill_lcm.py")
    samplers = list(SAMPLERS)
    add("--samplers", nargs="+", choices=samplers, default=samplers, help="a line each")
    add("--steps", nargs="+", type=commands.count, help="N; default: those of each in SAMPLERS")
    add("--guidance", nargs="+", type=number, default=[1.5], help="scales; 1 is none")
    add("--seeds", nargs="+", type=commands.seed, default=[0, 1, 2], help="a run each")
    add("--samples", type=commands.count, default=5000, help="for each figure and seed")
    add("--batch", type=commands.count, default=250, help="samples in a run")
    grids = ("karras", "exponential", "beta", "none")
    add("--grid", choices=grids, default="karras", help="noise levels, of all but LCM")
    positive = commands.positive
    add("--rho", type=positive, default=7.0, help="of the Karras grid")
    add("--sigma-min", type=positive, help="end of the grid; default: the smallest of training")
    add("--sigma-max", type=positive, help="start of the grid; default: the largest of training")
    add("--cache", type=commands.folder, default=cache, help="for the classifier")
    add("--out", type=commands.folder, default=cache, help="for JSON and figure")
    args = parser.parse_args()
    if args.samples < 100 or args.batch > args.samples:
        parser.error(
            f"--samples {args.samples} --batch {args.batch}; expected at least 100 samples, or the"
            " covariance means nothing, and a batch between 1 and their number."
        )
    with commands.refused(parser):
        for split in ("train", "test"):
            mnist.load(args.data, split)
    return args


def main() -> None:
    args = arguments()
    cached = args.cache / "classifier.safetensors"
    judge, accuracy = classifier.load_or_train(args.data, cached)
    print(f"The classifier sees {accuracy:.2%} of the test images as what they are.")
    if accuracy < MIN_ACCURACY:
        raise ValueError(
            f"the classifier reaches {accuracy:.2%} on the test images, and below"
            f" {MIN_ACCURACY:.0%} it is no judge; delete {cached} and check the data folder."
        )
    made_with = {
        "weights": fingerprint(args.weights),
        "lcm_weights": fingerprint(args.lcm_weights),
        "classifier": fingerprint(cached),
        "accuracy": accuracy,
    }
    path = args.out / "quality.json"
    results = restore(path, made_with)
    test, real = classifier.reference(judge, args.data, args.samples)

    ends = {"sigma_min": args.sigma_min, "sigma_max": args.sigma_max}
    common: Result = {"samples": args.samples, "grid": args.grid, "rho": args.rho, **ends}
    options = ends | {"grid": None if args.grid == "none" else args.grid, "rho": args.rho}
    names = ("sampler", "guidance", "steps", "seed")
    cases = [
        dict(zip(names, (sampler, *rest), strict=True)) | common
        for sampler in dict.fromkeys(args.samplers)
        for rest in product(args.guidance, args.steps or SAMPLERS[sampler].steps, args.seeds)
    ]
    cases = [case for case in cases if not any(same(result, case) for result in results)]
    schedules = [schedule_of(case, options) for case in cases]
    teacher, student = (unet.load(path)[1] for path in (args.weights, args.lcm_weights))

    costs = [evaluations(case, schedule) for case, schedule in zip(cases, schedules, strict=True)]
    with tqdm(total=sum(costs) * args.samples, unit="eval", unit_scale=True) as bar:
        for case, schedule, cost in zip(cases, schedules, costs, strict=True):
            bar.set_description(f"{case['sampler']}, {case['steps']} steps")
            began, features, agree = time.perf_counter(), [], []
            params = student if is_lcm(case) else teacher
            for images, labels in draw(case, schedule, params, args.batch):
                seen, logits = classifier.apply(judge, images)
                features.append(seen)
                agree.append(logits.argmax(-1) == labels)
                bar.update(cost * len(images))
            found = classifier.statistics(np.concatenate(features))
            results.append(
                case
                | {
                    "evaluations": cost,
                    "frechet": classifier.frechet_distance(found, test),
                    "agreement": float(np.mean(np.concatenate(agree))),
                    "seconds": round(time.perf_counter() - began, 1),
                }
            )
            content = {"made_with": made_with, "real": real, "machine": machine()}
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(content | {"results": results}, indent=1) + "\n")
            os.replace(temporary, path)

    shown = [r for r in results if same(r, common) and r["guidance"] in args.guidance]
    figure(args.out / "quality.png", shown, made_with, real)
    print(table(shown, real["halves"]))
    print(
        f"Fréchet distance between two halves of the test images: {real['halves']:.2f} ±"
        f" {real['halves_std']:.2f} ({classifier.HALVES} splits);"
        f" between {args.samples} training images and the test images: {real['train_images']:.2f}."
    )
    print(summary(shown, real["halves"]))
    print(f"wrote {path} and {args.out / 'quality.png'}")


if __name__ == "__main__":
    main()
