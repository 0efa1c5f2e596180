"""Guidance of every kind: agreement with the class and Fréchet distance against its scale.

    python benchmarks/guidance.py --data FOLDER

Draws digits with DPM2 on a Karras grid, equally many of each class, and judges them as quality.py
does (see there for the classifier and what is measured). Five kinds of guidance with the same
network, each over the same scales; scale 1 is none, the same for all:

* plain: the scale at every evaluation;
* rescaled: the predicted noise goes 0.7 of the way back to the contrast of the conditional
  prediction, which is about 1 either way;
* rescaled_sample: the same with the estimate of the clean digit;
* interval: only at noise levels within --interval, where the class is decided; outside of it the
  unconditional call is left out;
* rising: a scale for each step, from 1 in the first to 2 * scale - 1 in the last.

Writes guidance.json and draws guidance.png. Every figure is written as soon as it is known and an
interrupted run goes on where it stopped.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

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
from quality import ROOT, Result, fingerprint, restore, same, to_bytes
from timing import machine

COLOURS = {
    "plain": "tab:blue",
    "rescaled": "tab:orange",
    "rescaled_sample": "tab:purple",
    "interval": "tab:green",
    "rising": "tab:red",
}
RESCALE = 0.7  # of Lin et al. 2023


def guided(kind: str, scale: float, steps: int, interval: tuple[float, float]) -> Any:
    """The digits network under one kind of guidance."""
    if scale == 1.0:
        return digits.digits_denoiser(1.0)
    denoise, none = digits.digits_denoiser(1.0), jnp.int32(unet.NO_CLASS)
    if kind == "rescaled":
        return kd.guided(denoise, scale, none, rescale=RESCALE)
    if kind == "rescaled_sample":
        return kd.guided(denoise, scale, none, rescale=RESCALE, rescale_of="sample")
    if kind == "interval":
        return kd.guided(denoise, scale, none, interval=interval, batched=False)
    if kind == "rising":
        return kd.guided(denoise, np.linspace(1.0, 2 * scale - 1, steps), none, per_step=True)
    return kd.guided(denoise, scale, none)


def evaluations(case: Result, schedule: kd.Schedule) -> int:
    """Network evaluations for a sample; a doubled batch counts double."""
    if case["scale"] == 1.0:
        return schedule.num_rows
    if case["kind"] != "interval":
        return 2 * schedule.num_rows
    low, high = case["interval"]
    levels = np.asarray(schedule.rows.sigma)
    return schedule.num_rows + int(np.sum((levels > low) & (levels <= high)))


def measure(
    case: Result, schedule: kd.Schedule, params: Any, judge: Any, test: Any, batch: int
) -> Result:
    """Fréchet distance and agreement of one case; sample i has a key of its own, as everywhere."""
    denoise = guided(case["kind"], case["scale"], case["steps"], case["interval"])
    features, agree = [], []
    for start in range(0, case["samples"], batch):
        index = jnp.arange(start, start + batch)  # the last batch is whole too: one executable
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(case["seed"]), index)
        x = kd.initial_sample(schedule, keys, (batch, 28, 28, 1))
        x = kd.sample(denoise, params, schedule, x, cond=index % 10)
        count = min(batch, case["samples"] - start)
        seen, logits = classifier.apply(judge, to_bytes(x)[:count])
        features.append(seen)
        agree.append(logits.argmax(-1) == np.asarray(index % 10)[:count])
    found = classifier.statistics(np.concatenate(features))
    return {
        "evaluations": evaluations(case, schedule),
        "frechet": classifier.frechet_distance(found, test),
        "agreement": float(np.mean(np.concatenate(agree))),
    }


def curve(results: list[Result], kind: str) -> list[Result]:
    """The points of one kind by scale; scale 1 belongs to all."""
    points = [r for r in results if r["kind"] == kind or r["scale"] == 1.0]
    return sorted(points, key=lambda point: point["scale"])


def figure(path: Path, results: list[Result], real: Result) -> None:
    """Both measures against the scale."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    fig = Figure(figsize=(8, 4.6), layout="constrained")
    left, right = fig.subplots(1, 2)
    case = results[0]
    low, high = case["interval"]
    labels = {
        "plain": "plain",
        "rescaled": f"epsilon rescaled by {RESCALE:g}",
        "rescaled_sample": f"clean image rescaled by {RESCALE:g}",
        "interval": f"noise levels {low:g} to {high:g} only",
        "rising": "rising from step to step",
    }
    # Plain guidance below the others, and wider: epsilon rescaled is nearly on top of it.
    for kind, colour in COLOURS.items():
        points = curve(results, kind)
        scale = [point["scale"] for point in points]
        wide = kind == "plain"
        look: dict[str, Any] = {"color": colour, "marker": "o", "ms": 7 if wide else 4}
        look |= {"lw": 4 if wide else 1.5, "alpha": 0.5 if wide else 1, "label": labels[kind]}
        left.plot(scale, [100 * point["agreement"] for point in points], **look)
        right.plot(scale, [point["frechet"] for point in points], **look)
    real_images = {"ls": ":", "color": "black", "lw": 1, "label": "training images"}
    right.axhline(real["train_images"], **real_images)
    left.set_title("samples seen as the class asked for, %", fontsize=10)
    right.set_title("Fréchet distance, lower is better", fontsize=10)
    right.set_yscale("log")
    right.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    right.yaxis.set_major_formatter(ScalarFormatter())
    right.yaxis.set_minor_formatter(NullFormatter())
    for axis in (left, right):
        axis.set_xlabel("guidance scale", fontsize=9)
        axis.tick_params(labelsize=9)
        axis.grid(alpha=0.3)
    handles = right.get_legend_handles_labels()
    fig.legend(*handles, loc="outside lower center", ncols=3, fontsize=9)
    fig.suptitle(
        f"DPM2, {case['steps']} steps, Karras grid, {case['samples']} digits a point, seed "
        f"{case['seed']}",
        fontsize=10,
    )
    fig.savefig(path, dpi=180)


def main() -> None:
    parser = commands.parser(__doc__)
    add, count, kinds = parser.add_argument, commands.count, list(COLOURS)
    scales, cache = [1.0, 1.5, 2.0, 3.0, 5.0], str(ROOT / "benchmarks" / "cache")
    add("--data", required=True, help="folder with the four MNIST files")
    add("--kinds", nargs="+", choices=kinds, default=kinds, help="of guidance, as above")
    add("--scales", nargs="+", type=commands.number, default=scales, help="1 is none")
    interval = {"nargs": 2, "type": commands.number, "default": [0.3, 20.0]}
    add("--interval", **interval, metavar=("LOW", "HIGH"), help="noise levels with guidance")
    add("--steps", type=count, default=8, help="outer steps N of DPM2")
    add("--samples", type=count, default=1000, help="for each figure, at least 100")
    add("--batch", type=count, default=250, help="samples in a run")
    add("--seed", type=commands.seed, default=0, help="of all noise")
    add("--cache", type=commands.folder, default=cache, help="for the classifier")
    add("--out", type=commands.folder, default=cache, help="for JSON and figure")
    args = parser.parse_args()
    if args.samples < 100 or args.batch > args.samples:
        parser.error(f"--samples {args.samples} --batch {args.batch}: at least 100, batch within")
    with commands.refused(parser):
        for split in ("train", "test"):
            mnist.load(args.data, split)
        schedule = digits.digits_schedule("dpm2", args.steps)
        for scale in args.scales:
            for kind in args.kinds:
                guided(kind, scale, args.steps, tuple(args.interval))

    cached = args.cache / "classifier.safetensors"
    judge, accuracy = classifier.load_or_train(args.data, cached)
    made_with = {
        "weights": fingerprint(digits.WEIGHTS),
        "classifier": fingerprint(cached),
        "accuracy": accuracy,
    }
    path = args.out / "guidance.json"
    results = restore(path, made_with)
    test, real = classifier.reference(judge, args.data, args.samples)
    common: Result = {
        "steps": args.steps,
        "samples": args.samples,
        "seed": args.seed,
        "interval": list(args.interval),
    }
    cases = [
        {"kind": "plain" if scale == 1.0 else kind, "scale": scale} | common
        for scale in args.scales
        for kind in (["plain"] if scale == 1.0 else args.kinds)
    ]
    missing = [case for case in cases if not any(same(result, case) for result in results)]
    params = digits.load_params(digits.WEIGHTS)
    costs = [evaluations(case, schedule) * args.samples for case in missing]
    with tqdm(total=sum(costs), unit="eval", unit_scale=True) as bar:
        for case, cost in zip(missing, costs, strict=True):
            bar.set_description(f"{case['kind']}, scale {case['scale']:g}")
            began = time.perf_counter()
            found = measure(case, schedule, params, judge, test, args.batch)
            seconds = round(time.perf_counter() - began, 1)
            results.append(case | found | {"seconds": seconds})
            content = {"made_with": made_with, "real": real, "machine": machine()}
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(content | {"results": results}, indent=1) + "\n")
            os.replace(temporary, path)
            bar.update(cost)

    shown = [result for result in results if same(result, common)]
    figure(args.out / "guidance.png", shown, real)
    print("| guidance | scale | evaluations | Fréchet | agreement, % |")
    print("| --- | --- | --- | --- | --- |")
    for kind in COLOURS:
        for point in curve(shown, kind):
            print(
                f"| {kind} | {point['scale']:g} | {point['evaluations']} | "
                f"{point['frechet']:.2f} | {100 * point['agreement']:.1f} |"
            )
    print(f"{args.samples} training images: {real['train_images']:.2f}")
    print(f"wrote {path} and {args.out / 'guidance.png'}")


if __name__ == "__main__":
    main()
