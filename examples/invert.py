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

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("agg")
import img2img
import matplotlib.pyplot as plt
import numpy as np

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
    params: Any, image: jax.Array, label: int, key: jax.Array
) -> dict[str, list[tuple[int, float]]]:
    """For each sampler (evaluations there and back, error), of the image with its lowest noise."""
    errors: dict[str, list[tuple[int, float]]] = {}
    for name, counts in COUNTS.items():
        errors[name] = []
        for steps in counts:
            up, down = both_ways(name, steps)
            noise = invert(params, up, image, label, key)
            error = rms(back(params, down, noise, [label]) - image[None])
            evaluations = up.num_rows + down.num_rows
            errors[name].append((evaluations, error))
            print(f"{digits.TITLES[name]}, {steps} steps, {evaluations} evaluations: {error:.5f}")
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--image", type=Path, default=img2img.IMAGE, help="28 x 28 pixels")
    parser.add_argument("--class", dest="label", type=int, default=4, help="what it is")
    parser.add_argument("--steps", type=int, default=20, help="outer steps N of DPM2, each way")
    parser.add_argument("--skip", type=int, default=0, help="steps at the noisy end to leave out")
    parser.add_argument("--guidance", type=float, default=1.5, help="of the edits; 1 is none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("invert.png"))
    args = parser.parse_args()
    if args.label not in range(10) or not 0 <= args.skip <= args.steps - 2:
        parser.error(f"--class {args.label} --skip {args.skip}: 0 to 9; two steps must remain")

    _, params = unet.load(digits.WEIGHTS)
    image, key = img2img.load_image(args.image), jax.random.key(args.seed)
    up, down = both_ways("dpm2", args.steps, args.skip)
    lines = []
    for title, its_key in (("as it is", None), ("with its lowest noise", key)):
        noise = invert(params, up, image, args.label, its_key)
        returned = back(params, down, noise, [args.label])
        edits = back(params, down, noise, list(range(10)), args.guidance)
        shown = noise / down.init_noise_sigma
        print(
            f"{title}: noise of deviation {float(jnp.std(shown)):.3f}, back to an error of "
            f"{rms(returned - image[None]):.5f} (pixels are -1 to 1)"
        )
        lines.append((title, np.concatenate([image[None], shown, returned, edits])[..., 0]))
    draw(lines, round_trip_errors(params, image, args.label, key), args.output)
    print(f"wrote {args.output}")


def draw(
    lines: list[tuple[str, np.ndarray]],
    errors: dict[str, list[tuple[int, float]]],
    path: Path,
) -> None:
    """Lines of image, noise, image again and edits; beside them the error against evaluations."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 2.6), width_ratios=(3, 1), layout="constrained"
    )
    pictures = [
        np.concatenate(np.pad(images, [(0, 0), (1, 1), (1, 1)], constant_values=-1.0), axis=1)
        for _, images in lines
    ]
    left.imshow(np.concatenate(pictures), cmap="gray", vmin=-1, vmax=1)
    names = ["image", "noise", "back", *(f"as {digit}" for digit in range(10))]
    left.set_xticks([30 * i + 15 for i in range(len(names))], names, fontsize=8)
    left.set_yticks([30 * i + 15 for i in range(len(lines))], [title for title, _ in lines])
    left.tick_params(length=0, labeltop=True, labelbottom=False)
    for name, points in errors.items():
        right.loglog(*zip(*points, strict=True), "o-", label=digits.TITLES[name])
    counts = sorted({evaluations for points in errors.values() for evaluations, _ in points})
    right.set_xticks(counts, [str(count) for count in counts])
    right.minorticks_off()
    right.set_xlabel("evaluations, there and back")
    right.set_title("root mean square error of a pixel", fontsize=9)
    right.grid(alpha=0.3)
    right.legend()
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
