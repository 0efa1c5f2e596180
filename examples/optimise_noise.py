r"""Gradients through a whole sampler: the initial noise is optimised until a digit is a 3.

    python examples/optimise_noise.py                      # no class asked for, a 3 wanted
    python examples/optimise_noise.py --ask 1 --want 7     # the network is asked for ones

The network never sees what is wanted. That comes from a classifier that looks at the finished
digit: its loss is differentiated through every row of DPM2 back to the noise that the run began
with, and Adam moves the noise. `remat="rows"` bounds the memory: one evaluation of the network and
the samples of the rows.

No classifier ships with the digits, so a linear one is trained for a moment on samples that the
network draws of each class. What is linear is easily fooled, so the digits are shown to a judge
that nothing was optimised against: the network itself, as a zero-shot classifier (Li et al. 2023,
arXiv:2303.16203), which sees the class that predicts the noise in a noised digit best. By default
the classifier ends with a 3 in all of eight digits; the judge, who saw none before, in six.

The noise is kept Gaussian where it matters: in many dimensions all of it lies near a shell of
radius sqrt(d), and after every step of Adam it is put back there.
"""

from pathlib import Path
from typing import Any

import commands
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from tqdm import tqdm

import digits
import kdiff_jax as kd
import unet

SIDE = (28, 28, 1)
denoise = digits.digits_denoiser()


def logits(classifier: Any, images: jax.Array) -> jax.Array:
    return images.reshape(len(images), -1) @ classifier["weight"] + classifier["bias"][None]


def cross_entropy(classifier: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    outputs = logits(classifier, images)
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()


def train_classifier(params: Any, steps: int, per_class: int, seed: int) -> Any:
    """A linear classifier of `per_class` samples of each class, drawn from the network."""
    schedule = digits.digits_schedule("dpm2", steps)
    images = []
    for i in tqdm(range(per_class), desc="samples for the classifier", unit="batch"):
        key = jax.random.fold_in(jax.random.key(seed), i)
        x = kd.initial_sample(schedule, key, (10, *SIDE))
        images.append(kd.sample(denoise, params, schedule, x, cond=jnp.arange(10)))
    labels = jnp.tile(jnp.arange(10), per_class)
    # Moved by two pixels every way: what tells them apart then is their shape, not single pixels.
    moves = [(up, left) for up in (-2, 0, 2) for left in (-2, 0, 2)]
    whole = jnp.concatenate(images)
    moved = jnp.concatenate([jnp.roll(whole, move, (1, 2)) for move in moves])
    return fit(moved, jnp.tile(labels, len(moves)))


@jax.jit
def fit(images: jax.Array, labels: jax.Array) -> Any:
    """Softmax regression with weight decay, 200 steps of the whole batch."""
    optimiser = optax.adamw(3e-3, weight_decay=0.1)
    classifier = {"weight": jnp.zeros((784, 10)), "bias": jnp.zeros(10)}

    def body(carry: Any, _: None) -> tuple[Any, None]:
        classifier, state = carry
        slope = jax.grad(cross_entropy)(classifier, images, labels)
        updates, state = optimiser.update(slope, state, classifier)
        return (optax.apply_updates(classifier, updates), state), None

    return jax.lax.scan(body, (classifier, optimiser.init(classifier)), None, length=200)[0][0]


@jax.jit
def judge(params: Any, images: jax.Array, key: jax.Array) -> jax.Array:
    """The class, [B], that explains the noise in each noised digit best: the network's own eye."""
    noise, count = digits.training_noise(), len(images)

    def error(total: jax.Array, timestep: jax.Array) -> tuple[jax.Array, None]:
        eps = jax.random.normal(jax.random.fold_in(key, timestep), images.shape)
        timesteps = jnp.full(count, timestep)
        x = noise.add_noise(images, eps, timesteps)

        def of_class(label: jax.Array) -> jax.Array:
            out = unet.model_fn(params, x, timesteps.astype(jnp.float32), jnp.full(count, label))
            return jnp.mean((out - eps) ** 2, axis=(1, 2, 3))

        return total + jax.lax.map(of_class, jnp.arange(10)), None

    # The middle levels, where strokes are drowned and shapes are not yet.
    timesteps = jnp.array([200, 300, 400, 500, 600])
    return jax.lax.scan(error, jnp.zeros((10, count)), timesteps)[0].argmin(axis=0)


def onto_shell(z: jax.Array) -> jax.Array:
    """Each sample of the noise brought to the length that Gaussian noise has, sqrt(d)."""
    axes = tuple(range(1, z.ndim))
    return z * jnp.sqrt(z[0].size / jnp.sum(z * z, axis=axes, keepdims=True))


def sample_digits(params: Any, schedule: kd.Schedule, z: jax.Array, ask: jax.Array) -> jax.Array:
    """Digits from noise z on the shell, by a run whose gradient is cheap in memory."""
    x = schedule.init_noise_sigma * z
    return kd.sample(denoise, params, schedule, x, cond=ask, remat="rows")


def optimise(
    run: tuple[Any, ...], z: jax.Array, iterations: int, learning_rate: float
) -> tuple[jax.Array, list[float]]:
    """(noise, losses): z moved so that the classifier sees `want` in what becomes of it.

    `run` is (params, schedule, ask, classifier, want).
    """
    optimiser = optax.adam(learning_rate)

    @jax.jit
    def update(z: jax.Array, state: Any, run: Any) -> Any:
        params, schedule, ask, classifier, want = run

        def loss(z: jax.Array) -> jax.Array:
            return cross_entropy(classifier, sample_digits(params, schedule, z, ask), want)

        value, slope = jax.value_and_grad(loss)(z)
        updates, state = optimiser.update(slope, state)
        return onto_shell(z + updates), state, value

    z, losses = onto_shell(z), []
    state = optimiser.init(z)
    with tqdm(range(iterations), desc="noise", unit="step") as bar:
        for _ in bar:
            z, state, value = update(z, state, run)
            losses.append(float(value))
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
    return z, losses


def draw(lines: list[tuple[str, np.ndarray, np.ndarray]], want: int, path: Path) -> None:
    """Lines of digits, above each what the judge sees; framed where that is what is wanted."""
    count = len(lines[0][1])
    side = min(7.2 / count, 1.2)
    figure = Figure((count * side + 0.8, len(lines) * (side + 0.25) + 0.35), layout="constrained")
    figure.suptitle(
        f"Digits before and after their initial noise was optimised for a {want}. Above each:\n"
        f"what a judge that had no part in it takes it for; green where it sees a {want}.",
        fontsize=9,
    )
    axes = figure.subplots(len(lines), count, squeeze=False)
    for line, (title, images, seen) in zip(axes, lines, strict=True):
        for axis, image, digit in zip(line, images, seen, strict=True):
            colour = "tab:green" if digit == want else "black"
            axis.imshow(image[..., 0], cmap="gray", vmin=-1, vmax=1)
            axis.set_title(f"a {digit}", fontsize=9, pad=3, color=colour)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set(color=colour, linewidth=3 if digit == want else 1)
        line[0].set_ylabel(f"{title}:\n{np.sum(seen == want)} of {count}", fontsize=9)
    figure.savefig(path, dpi=180)


def main() -> None:
    parser = commands.parser(__doc__)
    add, count = parser.add_argument, commands.count
    add("--want", type=commands.digit, default=3, help="the digit that is to be seen")
    add("--ask", type=commands.digit, help="the class for the network; default: none")
    add("--count", type=count, default=8, help="digits")
    add("--steps", type=count, default=6, help="outer steps of DPM2")
    add("--iterations", type=count, default=40, help="steps of Adam")
    add("--learning-rate", type=commands.positive, default=0.1, help="of Adam")
    add("--per-class", type=count, default=100, help="samples for the classifier")
    add("--seed", type=commands.seed, default=0, help="of the noise that is optimised")
    add("--output", type=commands.picture, default="optimise_noise.png", help="the figure")
    args = parser.parse_args()
    asked = unet.NO_CLASS if args.ask is None else args.ask
    with commands.refused(parser):
        schedule = digits.digits_schedule("dpm2", args.steps)

    _, params = unet.load(digits.WEIGHTS)
    classifier = train_classifier(params, args.steps, args.per_class, args.seed + 1)
    key = jax.random.key(args.seed)
    z = kd.initial_sample(schedule, key, (args.count, *SIDE)) / schedule.init_noise_sigma
    ask, want = jnp.full(args.count, asked), jnp.full(args.count, args.want)
    run = params, schedule, ask, classifier, want
    found, losses = optimise(run, z, args.iterations, args.learning_rate)
    lines = []
    for title, noise in (("before", onto_shell(z)), ("after", found)):
        images = sample_digits(params, schedule, noise, ask)
        seen = np.asarray(judge(params, images, jax.random.fold_in(key, 1)))
        classes = np.asarray(logits(classifier, images).argmax(axis=1))
        print(f"{title}: the classifier sees {classes.tolist()}, the judge {seen.tolist()}")
        lines.append((title, np.asarray(images), seen))
    print(f"loss {losses[0]:.3f} before, {losses[-1]:.3f} after {args.iterations} steps")
    draw(lines, args.want, args.output)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
