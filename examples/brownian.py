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

import argparse
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np

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
    for steps in counts:
        # Padded to the longest, so that all of them share one executable for each noise.
        schedule = digits.digits_schedule("dpm2_ancestral", steps).pad(2 * max(counts) - 1)
        x = kd.initial_sample(schedule, key, (batch, 28, 28, 1))
        for name, noise_fn in noise_fns.items():
            run = kd.sample(denoise, params, schedule, x, key, cond=labels, noise_fn=noise_fn)
            images[name].append(np.asarray(run)[..., 0])
    return {name: np.stack(each) for name, each in images.items()}


def distances(images: np.ndarray) -> np.ndarray:
    """Root mean square of the difference between the digits of each N and of the next."""
    return np.array([np.sqrt(np.mean((a - b) ** 2)) for a, b in pairwise(images)])


def draw(images: dict[str, np.ndarray], counts: list[int], shown: int, path: Path) -> None:
    size = 0.42 * shown, 0.42 * len(counts) + 0.5
    figure = plt.figure(figsize=(2 * size[0] + 4, size[1]), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=[size[0], size[0], 3])
    for axis, (name, title) in zip(axes, TITLES.items(), strict=False):
        picture = np.pad(images[name][:, :shown], [(0, 0), (0, 0), (1, 1), (1, 1)])
        rows = picture.transpose(0, 2, 1, 3).reshape(30 * len(counts), 30 * shown)
        axis.imshow(rows, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
        axis.set_title(title, fontsize=10)
        axis.set_xticks([])
        axis.set_yticks(30 * np.arange(len(counts)) + 15, [f"N = {n}" for n in counts], fontsize=8)
        axis.tick_params(length=0)
    for name, title in TITLES.items():
        axes[2].loglog(counts[:-1], distances(images[name]), "o-", label=title)
    axes[2].set_xticks(counts[:-1], [str(n) for n in counts[:-1]])
    axes[2].set_yticks([0.1, 0.2, 0.4, 0.8], ["0.1", "0.2", "0.4", "0.8"])
    axes[2].minorticks_off()
    axes[2].tick_params(labelsize=8)
    axes[2].set_xlabel("N", fontsize=8)
    axes[2].set_title("RMS distance to the next N", fontsize=10)
    axes[2].legend(fontsize=8)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20, 40, 80, 160])
    parser.add_argument("--batch", type=int, default=20, help="digits that the distances average")
    parser.add_argument("--shown", type=int, default=10, help="digits in the figure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("brownian.png"))
    args = parser.parse_args()
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
