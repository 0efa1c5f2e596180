r"""Inversion: a real digit goes up to the noise that it comes from, and back as it was or edited.

    python examples/invert.py                              # a 4 of the MNIST test set
    python examples/invert.py --image my_digit.png --class 2 --guidance 1
    python examples/invert.py --skip 8                     # up to a lower level only

The levels of a deterministic run can be turned over: a table of `levels.reversed()` goes up the
same levels. Back down with the same class the image returns, more exactly the more steps there
are; with another class it is edited, and what the noise holds (slant, size, stroke) stays.

The black of a digit is perfectly flat, and no noise that a network was trained on is: inverted as
it is, the digit ends in noise of half the deviation that noise has. The second line begins with
the noise of the lowest level added, far too little to be seen, and ends in unit Gaussian noise.
"""

from pathlib import Path
from typing import Any

import commands
import img2img
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

import digits
import kdiff_jax as kd
import unet

COUNTS = {"dpm2": (4, 8, 16, 32), "euler": (7, 15, 31, 63)}  # of steps, at equal evaluations


def both_ways(sampler: str, steps: int, skip: int = 0) -> tuple[kd.Schedule, kd.Schedule]:
    """The run from an image up to its noise, and the one back down."""
    levels = kd.levels(digits.training_noise(), steps, grid="karras").start_at(skip)
    fill = digits.SAMPLERS[sampler]
    return fill(levels.reversed()), fill(levels)


def invert(
    params: Any, up: kd.Schedule, image: jax.Array, label: int, key: jax.Array | None = None
) -> jax.Array:
    """[1, 28, 28, 1] the sample at the highest level that the image comes from.

    With a key the image is first brought to the lowest level by its noise.
    """
    x = image[None]
    if key is not None:
        x = kd.add_noise(up[0], x, jax.random.normal(key, x.shape))
    return kd.sample(digits.digits_denoiser(), params, up, x, cond=jnp.full(1, label))


def back(
    params: Any, down: kd.Schedule, x: jax.Array, labels: list[int], guidance: float = 1.0
) -> jax.Array:
    """[B, 28, 28, 1] the digits of B classes that one sample comes down to."""
    x = jnp.repeat(x, len(labels), axis=0)
    denoise = digits.digits_denoiser(guidance)
    return kd.sample(denoise, params, down, x, cond=jnp.array(labels))


def rms(values: Any) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def round_trip_errors(
    params: Any, image: jax.Array, label: int, key: jax.Array, bar: Any
) -> dict[str, list[tuple[int, float]]]:
    """For each sampler (evaluations there and back, error), of the image with its lowest noise."""
    errors: dict[str, list[tuple[int, float]]] = {}
    for name, counts in COUNTS.items():
        errors[name] = []
        for steps in counts:
            up, down = both_ways(name, steps)
            bar.set_description(f"error of {digits.TITLES[name]}, {steps} steps")
            noise = invert(params, up, image, label, key)
            error = rms(back(params, down, noise, [label]) - image[None])
            evaluations = up.num_rows + down.num_rows
            errors[name].append((evaluations, error))
            bar.update()
            title = f"{digits.TITLES[name]}, {steps} steps, {evaluations} evaluations"
            bar.write(f"{title}: {error:.5f}")
    return errors


def main() -> None:
    parser = commands.parser(__doc__)
    add = parser.add_argument
    add("--image", type=commands.file, default=img2img.IMAGE, help="a picture of 28 x 28 pixels")
    add("--class", dest="label", type=commands.digit, default=4, help="what it is")
    add("--steps", type=commands.count, default=20, help="outer steps N of DPM2, each way")
    add("--skip", type=commands.index, default=0, help="steps at the noisy end to leave out")
    add("--guidance", type=commands.number, default=1.5, help="of the edits; 1 is none")
    add("--seed", type=commands.seed, default=0, help="of the noise of the lowest level")
    add("--output", type=commands.picture, default="invert.png", help="the figure")
    args = parser.parse_args()
    if args.skip > args.steps - 2:
        parser.error(f"--steps {args.steps} --skip {args.skip}: two steps must remain")
    with commands.refused(parser):
        image = img2img.load_image(args.image)
        up, down = both_ways("dpm2", args.steps, args.skip)

    _, params = unet.load(digits.WEIGHTS)
    key, lines = jax.random.key(args.seed), []
    with tqdm(total=2 + sum(map(len, COUNTS.values())), unit="round trip") as bar:
        for title, its_key in (("as it is", None), ("with its lowest noise", key)):
            bar.set_description(title)
            noise = invert(params, up, image, args.label, its_key)
            returned = back(params, down, noise, [args.label])
            edits = back(params, down, noise, list(range(10)), args.guidance)
            shown = noise / down.init_noise_sigma
            deviation, error = float(jnp.std(shown)), rms(returned - image[None])
            bar.write(
                f"{title}: noise of deviation {deviation:.3f}, back to an error of {error:.5f} "
                "(pixels are -1 to 1)"
            )
            images = np.concatenate([image[None], shown, returned, edits])[..., 0]
            lines.append((f"{title}: the noise has deviation {deviation:.2f}", images))
            bar.update()
        errors = round_trip_errors(params, image, args.label, key, bar)
    draw(lines, errors, args.output)
    print(f"wrote {args.output}")


def draw(
    lines: list[tuple[str, np.ndarray]],
    errors: dict[str, list[tuple[int, float]]],
    path: Path,
) -> None:
    """Lines of image, noise, image again and edits; below, the error against evaluations."""
    figure = Figure(figsize=(8, 4.9), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(2.4, 2.5))
    above, below = parts
    names = ["image", "noise", "back", *(f"as {digit}" for digit in range(10))]
    for axis, (title, images) in zip(above.subplots(len(lines), 1), lines, strict=True):
        picture = np.pad(images, [(0, 0), (1, 1), (1, 1)], constant_values=-1.0)
        axis.imshow(np.concatenate(picture, axis=1), cmap="gray", vmin=-1, vmax=1)
        axis.set_title(title, fontsize=9, loc="left")
        axis.set_xticks([30 * i + 15 for i in range(len(names))], names, fontsize=9)
        axis.set_yticks([])
        axis.tick_params(length=0)
    axis = below.subplots()
    for name, points in errors.items():
        axis.loglog(*zip(*points, strict=True), "o-", label=digits.TITLES[name])
    counts = sorted({evaluations for points in errors.values() for evaluations, _ in points})
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.set_yticks([0.003, 0.01, 0.03, 0.1, 0.3], ["0.003", "0.01", "0.03", "0.1", "0.3"])
    axis.minorticks_off()
    axis.tick_params(labelsize=9)
    axis.set_xlabel("evaluations, there and back", fontsize=9)
    axis.set_title(
        "image against back: root mean square error of a pixel, of 2 from black to white",
        fontsize=9,
        loc="left",
    )
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)
    figure.savefig(path, dpi=180)


if __name__ == "__main__":
    main()
