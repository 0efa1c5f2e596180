"""Quality of sampled digits against calls of the network, for every sampler.

    python benchmarks/quality.py --data FOLDER

Draws class-conditional samples with the weights of the examples, equally many of each class, and
has three judges compare them with the 10,000 test images of MNIST (see judges.py): two classifiers,
trained here on the training images and cached, and the pixels. They measure the Frechet distance,
the recall (how much of what is real the samples reach) and the agreement (how many are seen as the
class asked for). Beside each figure stands what as many training images get.

Every sampler gets the same budgets of calls; one of two calls a step runs in the most steps that
fit. Without guidance a call is one evaluation; guidance doubles the batch of a call, and costs
nothing with the distilled network.

Writes quality.json; for each guidance scale draws quality.png (quality_1.5.png) and prints tables
and what all judges agree on. Samples and figures are kept as soon as they are there and an
interrupted run goes on where it stopped; runs with other --samplers, --calls, --guidance or --seeds
add to the same file. Figures of more samples are others: give them an --out of their own.
"""

import argparse
import functools
import hashlib
import json
import os
import sys
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import commands

import digits
import judges
import kdiff_jax as kd
import mnist
from quality_report import LINES, errors_of, figure, figure_name, findings, guided_by, table
from timing import machine

ROOT = Path(__file__).resolve().parents[1]
CALLS, DISTILLED_CALLS = (4, 6, 8, 12, 16, 24, 50), (1, 2, 4, 8)
Result = dict[str, Any]
# All that any sampler uses: one executable serves every table.
COLUMNS = (
    "epsilon_weight",
    "noise_weight",
    "anchor_weight",
    "denoised_weight_1",
    "denoised_weight_2",
    "alpha",
    "input_scale",
)


def to_bytes(x: jax.Array) -> np.ndarray:
    """Samples as images are: clipped to [-1, 1] and rounded to 8 bits, the inverse of to_pixels."""
    return np.round((np.clip(np.asarray(x), -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)


def schedule_of(case: Result) -> kd.Schedule:
    """The most steps within the budget of calls; LCM and TCD have a grid of their own."""
    line, grid = LINES[case["sampler"]], case["grid"]
    steps = (case["budget"] + 1) // 2 if line.sampler in digits.TWO_CALLS else case["budget"]
    grid = None if grid == "none" else grid
    return digits.digits_schedule(line.sampler, steps, grid, line.eta)


@functools.partial(jax.jit, static_argnames="brownian")
def advance(
    denoise: Any, params: Any, state: kd.State, row: kd.Row, cond: Any, keys: Any, brownian: bool
) -> kd.State:
    """One row of any sampler: the numbers of the table are arguments, so this compiles once."""
    noise_fn = kd.brownian_noise() if brownian else kd.row_noise
    noise = noise_fn(keys, row, state.sample.shape)
    return kd.step(state, row, denoise(params, state.sample, row, cond), noise=noise)


def draw(case: Result, schedule: kd.Schedule, batch: int, bar: Any) -> np.ndarray:
    """Samples as bytes, of the classes 0..9 in turn.

    Sample i has its own key, made of the seed and i, so that the batch size does not matter and all
    samplers start from the same noise.
    """
    sampler, found = LINES[case["sampler"]].sampler, []
    params = digits.load_params(digits.weights_of(sampler))
    schedule = schedule.pad(schedule.num_rows, COLUMNS)
    for start in range(0, case["samples"], batch):
        index = jnp.arange(start, start + batch)  # the last batch is whole too: one executable
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(case["seed"]), index)
        denoise, cond = digits.denoiser_and_cond(sampler, index % 10, case["guidance"])
        state = kd.init(schedule, kd.initial_sample(schedule, keys, (batch, 28, 28, 1)))
        brownian = digits.noise_of(sampler) is not None
        for row in schedule:
            state = advance(denoise, params, state, row, cond, keys, brownian)
            jax.block_until_ready(state)
            bar.update(batch)
        found.append(to_bytes(state.sample))
    return np.concatenate(found)[: case["samples"]]


def drawn(case: Result, schedule: kd.Schedule, folder: Path, batch: int, bar: Any) -> np.ndarray:
    """The samples of a case, from its file where they were drawn before."""
    weights = digits.weights_of(LINES[case["sampler"]].sampler)
    name = hashlib.sha256(json.dumps([case, fingerprint(weights)]).encode()).hexdigest()[:16]
    path = folder / f"{case['sampler']}-{case['budget']}-{name}.npz"
    if not path.is_file():
        images = draw(case, schedule, batch, bar)
        temporary = path.with_suffix(".tmp.npz")
        np.savez_compressed(temporary, images=images)
        os.replace(temporary, path)
    with np.load(path) as file:
        return file["images"]


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


def write(path: Path, content: Result, results: list[Result]) -> None:
    """A line for each result: the tenths of every figure are many numbers."""
    lines = ",\n  ".join(json.dumps(result) for result in results)
    text = json.dumps(content | {"results": []}, indent=1)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text.replace('"results": []', f'"results": [\n  {lines}\n ]') + "\n")
    os.replace(temporary, path)


def training_images(data: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """As many training images as samples are drawn, of the classes 0..9 in turn."""
    images, labels = mnist.load(data, "train")
    order = np.random.default_rng(0).permutation(len(images))
    each = [order[labels[order] == label][: -(-count // 10)] for label in range(10)]
    index = np.stack(each, axis=1).ravel()[:count]
    return images[index], labels[index]


def arguments() -> argparse.Namespace:
    """The options, checked; `runs` are (case, schedule)."""
    parser = commands.parser(__doc__)
    add, number = parser.add_argument, commands.number
    cache = str(ROOT / "benchmarks" / "cache")
    add("--data", required=True, help="folder with the four MNIST files")
    add("--samplers", nargs="+", choices=LINES, default=list(LINES), help="a line each")
    distilled = " ".join(map(str, DISTILLED_CALLS))
    add(
        "--calls",
        nargs="+",
        type=commands.count,
        help=f"budgets of calls; default: {' '.join(map(str, CALLS))}, of LCM and TCD {distilled}",
    )
    add("--guidance", nargs="+", type=number, default=[1.0], help="scales; 1 is none")
    add("--seeds", nargs="+", type=commands.seed, default=[0], help="a run each")
    add("--samples", type=commands.count, default=1000, help="for each figure and seed")
    add("--batch", type=commands.count, default=250, help="samples in a run")
    grids = ("karras", "exponential", "beta", "none")
    add("--grid", choices=grids, default="karras", help="noise levels, of all but LCM and TCD")
    add("--cache", type=commands.folder, default=cache, help="for classifiers and samples")
    add("--out", type=commands.folder, default=cache, help="for JSON and figure")
    args = parser.parse_args()
    if args.samples < 1000 or args.batch > args.samples:
        parser.error(
            f"--samples {args.samples} --batch {args.batch}; expected at least 1000 samples, or the"
            " covariances of a tenth less mean nothing, and a batch between 1 and their number."
        )
    names = ("sampler", "guidance", "seed", "budget")
    args.runs = []
    with commands.refused(parser):
        for split in ("train", "test"):
            mnist.load(args.data, split)
        for name in dict.fromkeys(args.samplers):
            distils = LINES[name].sampler in digits.DISTILLED
            calls = args.calls or (DISTILLED_CALLS if distils else CALLS)
            for values in product([name], args.guidance, args.seeds, calls):
                case = dict(zip(names, values, strict=True))
                case |= {"samples": args.samples, "grid": args.grid}
                digits.denoiser_and_cond(LINES[name].sampler, jnp.zeros(1, int), case["guidance"])
                args.runs.append((case, schedule_of(case)))
    # The short runs of all samplers first: an interrupted run is a figure with fewer points.
    args.runs.sort(key=lambda run: run[0]["budget"])
    return args


def main() -> None:
    args = arguments()
    folder = args.cache / "samples"
    folder.mkdir(exist_ok=True)
    total = sum(schedule.num_rows for _, schedule in args.runs) * args.samples
    with tqdm(total=total, unit="call", unit_scale=True) as bar:
        for case, schedule in args.runs:
            bar.set_description(f"{case['sampler']}, {schedule.num_rows} calls")
            drawn(case, schedule, folder, args.batch, bar)

    found = judges.judges_of(args.data, args.cache, fingerprint)
    made_with = {
        "weights": fingerprint(digits.WEIGHTS),
        "lcm_weights": fingerprint(digits.LCM_WEIGHTS),
        "samples": args.samples,  # the distance falls with their number
        "judges": {name: judge.facts for name, judge in found.items()},
    }
    path = args.out / "quality.json"
    results = restore(path, made_with)
    labels = np.arange(args.samples) % 10
    images, classes = training_images(args.data, args.samples)
    real = {name: judge.measure(images, classes) for name, judge in found.items()}
    content = {"made_with": made_with, "real": real, "machine": machine()}
    for case, schedule in tqdm(args.runs, desc="judging", unit="case"):
        if any(same(result, case) for result in results):
            continue
        images = drawn(case, schedule, folder, args.batch, None)
        counts = {"calls": schedule.num_rows, "steps": schedule.num_steps}
        seen = {name: judge.measure(images, labels) for name, judge in found.items()}
        results.append(case | counts | {"judges": seen})
        write(path, content, results)

    common = {"grid": args.grid, "seed": args.seeds[0]}
    shown = [r for r in results if same(r, common)]
    for scale in args.guidance:
        picture, part = args.out / figure_name(scale), guided_by(shown, scale)
        figure(picture, part, real)
        print(f"Guidance {scale:g}, drawn in {picture}", table(part, real), sep="\n\n")
        print(f"\nBehind no other by all judges:\n\n{findings(part)}\n")
    print(f"Standard errors:\n\n{errors_of(shown)}\n\nwrote {path}")


if __name__ == "__main__":
    main()
