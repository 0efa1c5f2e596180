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

import argparse
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

import classifier
import digits
import kdiff_jax as kd
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
    """Both measures against the scale, and against each other."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    fig, axes = plt.subplots(1, 3, figsize=(12, 4.2), layout="constrained")
    case = results[0]
    low, high = case["interval"]
    labels = {
        "plain": "plain",
        "rescaled": f"epsilon rescaled by {RESCALE:g}",
        "rescaled_sample": f"D rescaled by {RESCALE:g}",
        "interval": f"noise levels {low:g} to {high:g} only",
        "rising": "rising from step to step",
    }
    for kind, colour in COLOURS.items():
        points = curve(results, kind)
        scale = [point["scale"] for point in points]
        agreement = [100 * point["agreement"] for point in points]
        frechet = [point["frechet"] for point in points]
        look: dict[str, Any] = {"color": colour, "marker": "o", "ms": 4}
        axes[0].plot(scale, agreement, label=labels[kind], **look)
        axes[1].plot(scale, frechet, **look)
        axes[2].plot(frechet, agreement, **look)
    distance = f"Fréchet distance, {case['samples']} samples"
    titles = (
        ("guidance scale", "samples seen as the class asked for, %"),
        ("guidance scale", distance),
        (distance, "samples seen as the class asked for, %"),
    )
    axes[1].axhline(real["train_images"], ls=":", color="black", lw=0.8, label="training images")
    axes[2].axvline(real["train_images"], ls=":", color="black", lw=0.8)
    for axis, (across, up) in zip(axes, titles, strict=True):
        axis.set_xlabel(across)
        axis.set_ylabel(up)
        axis.grid(alpha=0.3)
    axes[1].set_yscale("log")
    axes[2].set_xscale("log")
    for one in (axes[1].yaxis, axes[2].xaxis):
        one.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        one.set_major_formatter(ScalarFormatter())
        one.set_minor_formatter(NullFormatter())
    shown = [axis.get_legend_handles_labels() for axis in axes[:2]]
    lines, names = (first + second for first, second in zip(*shown, strict=True))
    fig.legend(lines, names, loc="outside lower center", ncols=6, fontsize=8)
    fig.suptitle(
        f"DPM2, {case['steps']} steps, Karras grid, {case['samples']} digits a point, seed "
        f"{case['seed']}",
        fontsize=10,
    )
    fig.savefig(path, dpi=150)
    plt.close(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--data", required=True, help="folder with the four MNIST files")
    add("--kinds", nargs="+", choices=list(COLOURS), default=list(COLOURS))
    add("--scales", nargs="+", type=float, default=[1.0, 1.5, 2.0, 3.0, 5.0])
    add("--interval", nargs=2, type=float, default=[0.3, 20.0], help="noise levels, low and high")
    add("--steps", type=int, default=8)
    add("--samples", type=int, default=1000, help="for each figure")
    add("--batch", type=int, default=250)
    add("--seed", type=int, default=0)
    add("--cache", type=Path, default=ROOT / "benchmarks" / "cache", help="for the classifier")
    add("--out", type=Path, default=ROOT / "benchmarks" / "cache", help="for JSON and figure")
    args = parser.parse_args()
    if args.samples < 100 or not 1 <= args.batch <= args.samples:
        parser.error(f"--samples {args.samples} --batch {args.batch}: at least 100, batch within")

    cached = args.cache / "classifier.safetensors"
    judge, accuracy = classifier.load_or_train(args.data, cached)
    made_with = {
        "weights": fingerprint(digits.WEIGHTS),
        "classifier": fingerprint(cached),
        "accuracy": accuracy,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "guidance.json"
    results = restore(path, made_with)
    test, real = classifier.reference(judge, args.data, args.samples)
    schedule = digits.digits_schedule("dpm2", args.steps)
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


if __name__ == "__main__":
    main()
