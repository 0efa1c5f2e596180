r"""Policy gradients through a sampler: the digits network is trained until its strokes are thicker.

    python examples/reward.py                              # three seeds, and the figure
    python examples/reward.py --thinner --seeds 0          # the other way, once

The reward is the ink of the finished digit, and it is never differentiated. Each row of Euler with
eta = 1 draws the next sample from a Gaussian, so a trajectory has a probability, and digits with
more ink than others of their class are made more probable (Black et al. 2023, arXiv:2305.13301;
advantages within a class as in Liu et al. 2025, arXiv:2505.05470). The ratio of new to old
densities, by `kd.log_ratio`, is clipped as in PPO (Schulman et al. 2017, arXiv:1707.06347), so that
no batch moves the network far.

Each seed trains a network of its own. It is measured on noise that none was trained on, the same
before and after. Whether those are still digits is asked of the network as it was before: as a
zero-shot classifier it says which class it takes each for.
"""

import math
from pathlib import Path
from typing import Any

import commands
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from optimise_noise import SIDE, judge
from tqdm import tqdm

import digits
import kdiff_jax as kd
import unet

denoise = digits.digits_denoiser()


def ink(images: jax.Array) -> jax.Array:
    """The share of each picture, [B], that is white."""
    return ((jnp.clip(images, -1, 1) + 1) / 2).mean(axis=(1, 2, 3))


def advantages(reward: jax.Array, classes: int) -> jax.Array:
    """How much better than others of its class each digit is, [B] of `classes` blocks."""
    groups = reward.reshape(classes, -1)
    centred = groups - groups.mean(axis=1, keepdims=True)
    return (centred / (jnp.std(centred) + 1e-6)).reshape(-1)


@jax.jit
def rollout(
    params: Any, schedule: kd.Schedule, key: jax.Array, labels: jax.Array
) -> tuple[jax.Array, Any]:
    """Finished digits, and of every row the State, the prediction and the sample that it drew."""
    x = kd.initial_sample(schedule, key, (len(labels), *SIDE))

    def body(state: kd.State, row: kd.Row) -> tuple[kd.State, Any]:
        prediction = denoise(params, state.sample, row, labels)
        after = kd.step(state, row, prediction, key=key)
        return after, (state, prediction, after.sample)

    last, steps = jax.lax.scan(body, kd.init(schedule, x), schedule.rows)
    return last.sample, steps


def surrogate(log_ratio: jax.Array, advantage: jax.Array, clip: float) -> jax.Array:
    """The loss of PPO: minus what the new densities gain, of which no more than `clip` counts."""
    ratio = jnp.exp(log_ratio)
    bounded = jnp.clip(ratio, 1 - clip, 1 + clip)
    return -jnp.minimum(ratio * advantage, bounded * advantage).mean()


# At module level, with every number an argument: compiled once for all seeds and learning rates.
optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())


@jax.jit
def update(
    carry: Any, schedule: kd.Schedule, steps: Any, labels: jax.Array, rows: jax.Array, numbers: Any
) -> Any:
    """(params, state of Adam) after one step on the transitions of some rows of a rollout."""
    params, state = carry
    advantage, learning_rate, clip = numbers
    before, old, after = jax.tree.map(lambda leaf: leaf[rows].reshape(-1, *SIDE), steps)
    # Of Euler each row is one transition from its sample alone: those of several are one batch.
    row = schedule.rows_at(jnp.repeat(rows, len(labels)))
    cond = jnp.tile(labels, len(rows))

    def loss(params: Any) -> jax.Array:
        new = denoise(params, before.sample, row, cond)
        log_ratio = kd.log_ratio(row, (before, new), (before, old), after)
        return surrogate(log_ratio, jnp.tile(advantage, len(rows)), clip)

    updates, state = optimiser.update(jax.grad(loss)(params), state)
    updates = jax.tree.map(lambda one: -learning_rate * one, updates)
    return optax.apply_updates(params, updates), state


def train(
    run: tuple[Any, kd.Schedule, jax.Array],
    sign: float,
    iterations: int,
    learning_rate: float,
    clip: float,
    seed: int,
) -> tuple[Any, list[float]]:
    """(params, mean ink of each batch): a policy gradient on the ink of digits of all classes."""
    params, schedule, labels = run
    carry, curve = (params, optimiser.init(params)), []
    key, rng = jax.random.key(seed), np.random.default_rng(seed)
    drawn = schedule.num_rows - 1  # the last row draws nothing, so it has no density
    with tqdm(range(iterations), desc=f"seed {seed}", unit="batch") as bar:
        for i in bar:
            images, steps = rollout(carry[0], schedule, jax.random.fold_in(key, i), labels)
            reward = ink(images)
            numbers = advantages(sign * reward, 10), learning_rate, clip
            # Up to three rows at a time: after the first, the ratios are no longer 1.
            for rows in np.array_split(rng.permutation(drawn), math.ceil(drawn / 3)):
                carry = update(carry, schedule, steps, labels, jnp.asarray(rows), numbers)
            curve.append(float(reward.mean()))
            bar.set_postfix(ink=f"{curve[-1]:.3f}")
    return carry[0], curve


def curves(
    axis: Any, all_curves: list[list[float]], levels: tuple[float, float], title: str
) -> None:
    """The mean ink of each batch, a line a seed, and that of the test noise before and after."""
    for number, curve in enumerate(all_curves):
        label = None if number else "batches, a line a seed"
        axis.plot(range(1, len(curve) + 1), curve, color="C0", lw=1, label=label)
    axis.axhline(levels[0], color="black", lw=1, ls=":", label="test noise, before")
    axis.axhline(levels[1], color="C1", lw=1, ls="--", label="test noise, after: mean")
    axis.set_xlabel("batches of the policy gradient", fontsize=9)
    axis.set_ylabel("mean ink of the digits", fontsize=9)
    axis.set_title(title, fontsize=9)
    axis.tick_params(labelsize=9)
    axis.legend(fontsize=9, loc="upper left", bbox_to_anchor=(-0.1, -0.22), ncols=2, frameon=False)


def draw(
    pictures: list[tuple[str, np.ndarray]],
    all_curves: list[list[float]],
    levels: tuple[float, float],
    title: str,
    path: Path,
) -> None:
    """Digits [rows, columns, 28, 28] before and after, of the same noise, above the curves."""
    figure = Figure((4.6, 5.8), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(3, 2.9))
    above, below = parts
    for axis, (name, images) in zip(above.subplots(2, 1), pictures, strict=True):
        rows, columns = images.shape[:2]
        joined = images.transpose(0, 2, 1, 3).reshape(rows * 28, columns * 28)
        axis.imshow(joined, cmap="gray", vmin=-1, vmax=1)
        axis.set_title(name, fontsize=9)
        axis.axis("off")
    curves(below.subplots(), all_curves, levels, title)
    figure.savefig(path, dpi=175)


def arguments() -> Any:
    parser = commands.parser(__doc__)
    add, count = parser.add_argument, commands.count
    add("--thinner", action="store_true", help="reward less ink")
    add("--steps", type=count, default=10, help="outer steps of Euler, eta = 1")
    add("--per-class", type=count, default=4, help="digits of each class in a batch, 2 or more")
    add("--iterations", type=count, default=12, help="batches")
    add("--learning-rate", type=commands.positive, default=1e-4, help="of Adam")
    add("--clip", type=commands.fraction, default=0.1, help="of the ratio of densities")
    add("--seeds", type=commands.seed, nargs="+", default=[0, 1, 2], help="a training each")
    add("--test-per-class", type=count, default=8, help="digits of each class to measure with")
    add("--output", type=commands.picture, default="reward.png", help="the figure")
    args = parser.parse_args()
    with commands.refused(parser):
        if args.per_class < 2 or args.steps < 2:
            raise ValueError("--per-class and --steps must be 2 or more: digits are compared.")
        levels = kd.levels(digits.training_noise(), args.steps, grid="karras")
        args.schedule = kd.euler(levels, eta=1.0)
    return args


def main() -> None:
    args = arguments()
    sign, schedule = (-1.0 if args.thinner else 1.0), args.schedule
    _, params = unet.load(digits.WEIGHTS)
    labels = jnp.repeat(jnp.arange(10), args.per_class)
    asked, test_key = jnp.repeat(jnp.arange(10), args.test_per_class), jax.random.key(2**32 - 1)

    def measured(name: str, trained: Any) -> tuple[float, np.ndarray]:
        """The mean ink of the digits of the test noise, and those."""
        images = rollout(trained, schedule, test_key, asked)[0]
        kept = np.mean(np.asarray(judge(params, images, test_key)) == np.asarray(asked))
        mean = float(ink(images).mean())
        print(f"{name}: ink {mean:.4f}, {100 * kept:.0f} % seen as what was asked for")
        return mean, np.asarray(images[..., 0])

    before, images = measured("before", params)
    pictures, all_curves, after = [("before", images)], [], []
    for seed in args.seeds:
        options = args.iterations, args.learning_rate, args.clip, seed
        trained, curve = train((params, schedule, labels), sign, *options)
        mean, images = measured(f"after, seed {seed}", trained)
        after.append(mean)
        all_curves.append(curve)
        if len(pictures) == 1:
            pictures.append(
                (f"after {args.iterations} batches, the same noise (seed {seed})", images)
            )
    gains = np.array(after) - before
    text = f"gain of ink {gains.mean():+.4f}"
    if len(gains) > 1:
        text += f" ± {gains.std(ddof=1) / math.sqrt(len(gains)):.4f} (standard error of "
        text += f"{len(gains)} seeds)"
    print(text)
    shown = min(3, args.test_per_class)
    panels = [
        (name, np.clip(of.reshape(10, -1, 28, 28)[:, :shown].swapaxes(0, 1), -1, 1))
        for name, of in pictures
    ]
    draw(panels, all_curves, (before, float(np.mean(after))), text, args.output)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
