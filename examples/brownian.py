r"""More steps of the same picture: ancestral sampling on one Brownian path.

    python examples/brownian.py
    python examples/brownian.py --steps 5 10 20 --seed 3

An ancestral run draws fresh noise at every step, so another number of steps is another picture:
what was tried out in 10 steps is lost in 40. With `noise_fn=kd.brownian_noise()` the noise of a
step is the increment of one path between the levels that it leaves and reaches. Every grid sees
the same path, so that more steps refine the picture, as they do without noise.

The figure shows digits of the shipped network, one row for each number of steps, with independent
noise and on one path; and how far the samples of N steps are from those of the next N.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import commands
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

import digits
import kdiff_jax as kd
import unet

TITLES = {"independent": "independent noise", "brownian": "one Brownian path"}


def sample_each(params: Any, counts: list[int], batch: int, seed: int) -> dict[str, np.ndarray]:
    """Digits [len(counts), batch, 28, 28] of every N, with either noise, from the same start."""
    key, labels = jax.random.key(seed), jnp.arange(batch) % 10
    denoise = digits.digits_denoiser(1.5)
    noise_fns: dict[str, Any] = {"independent": kd.row_noise, "brownian": kd.brownian_noise()}
    images: dict[str, list[np.ndarray]] = {name: [] for name in noise_fns}
    with tqdm(total=len(noise_fns) * sum(2 * n - 1 for n in counts), unit="evaluation") as bar:
        for steps in counts:
            # Padded to the longest, so that all of them share one executable for each noise.
            schedule = digits.digits_schedule("dpm2_ancestral", steps).pad(2 * max(counts) - 1)
            x = kd.initial_sample(schedule, key, (batch, 28, 28, 1))
            for name, noise_fn in noise_fns.items():
                bar.set_description(f"{TITLES[name]}, N = {steps}")
                run = kd.sample(denoise, params, schedule, x, key, cond=labels, noise_fn=noise_fn)
                images[name].append(np.asarray(run)[..., 0])
                bar.update(2 * steps - 1)
    return {name: np.stack(each) for name, each in images.items()}


def distances(images: np.ndarray) -> np.ndarray:
    """Root mean square of the difference between the digits of each N and of the next."""
    return np.array([np.sqrt(np.mean((a - b) ** 2)) for a, b in pairwise(images)])


def draw(images: dict[str, np.ndarray], counts: list[int], shown: int, path: Path) -> None:
    """The digits of either noise side by side; below them how far each N is from the next."""
    height = 4 * len(counts) / shown
    figure = Figure(figsize=(8, height + 2.4), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[height + 0.2, 2.2])
    above, below = parts
    for axis, (name, title) in zip(above.subplots(1, 2), TITLES.items(), strict=True):
        picture = np.pad(images[name][:, :shown], [(0, 0), (0, 0), (1, 1), (1, 1)])
        rows = picture.transpose(0, 2, 1, 3).reshape(30 * len(counts), 30 * shown)
        axis.imshow(rows, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
        axis.set_title(title, fontsize=10)
        axis.set_xticks([])
        axis.set_yticks(30 * np.arange(len(counts)) + 15, [f"N = {n}" for n in counts], fontsize=9)
        axis.tick_params(length=0)
    axis = below.subplots()
    for name, title in TITLES.items():
        axis.loglog(counts[:-1], distances(images[name]), "o-", label=title)
    axis.set_xticks(counts[:-1], [f"{n} to {m}" for n, m in pairwise(counts)])
    axis.set_yticks([0.1, 0.2, 0.4, 0.8], ["0.1", "0.2", "0.4", "0.8"])
    axis.minorticks_off()
    axis.tick_params(labelsize=9)
    axis.set_xlabel("from N steps to the next N", fontsize=9)
    axis.set_title("how far the digits move, root mean square of the pixels", fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = commands.parser(__doc__)
    add, count = parser.add_argument, commands.count
    add("--steps", type=count, nargs="+", default=[10, 20, 40, 80, 160], help="two N or more")
    add("--batch", type=count, default=20, help="digits that the distances average")
    add("--shown", type=count, default=10, help="digits in the figure")
    add("--seed", type=commands.seed, default=0, help="of all noise")
    add("--output", type=commands.picture, default="brownian.png", help="the figure")
    args = parser.parse_args()
    with commands.refused(parser):
        digits.digits_schedule("dpm2_ancestral", max(args.steps))
    if len(args.steps) < 2 or any(n >= m for n, m in pairwise(args.steps)):
        parser.error(f"--steps {args.steps}: two N or more, each larger than the one before")
    images = sample_each(unet.load(digits.WEIGHTS)[1], args.steps, args.batch, args.seed)
    for name, title in TITLES.items():
        line = ", ".join(
            f"{n} to {m}: {d:.3f}"
            for (n, m), d in zip(pairwise(args.steps), distances(images[name]), strict=True)
        )
        print(f"{title:18} {line}")
    draw(images, args.steps, min(args.shown, args.batch), args.output)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
