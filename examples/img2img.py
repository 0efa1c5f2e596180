r"""Image to image: a real digit, partly drowned in noise, is sampled from there as another class.

    python examples/img2img.py                             # a 4 of the MNIST test set becomes a 9
    python examples/img2img.py --class 8 --strength 0.2 0.6
    python examples/img2img.py --image my_digit.png        # 28 x 28, white on black

The strength is the share of the noise levels of training that are gone through. DPM2 takes the
steps of a whole run that lie below it (`levels.start_at_strength`), so fewer of them the weaker it
is; LCM takes exactly `--steps` steps below it (`kd.lcm_levels(..., strength=)`).
"""

from pathlib import Path

import commands
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imread
from tqdm import tqdm

import digits
import kdiff_jax as kd

IMAGE = Path(__file__).parent / "four.png"  # number 4 of the MNIST test images
DPM2_STEPS = 20


def load_image(path: Path) -> jax.Array:
    """A grayscale or coloured picture as a digit, float32 [28, 28, 1] in [-1, 1]."""
    try:
        pixels: np.ndarray = np.asarray(imread(path), np.float32)
    except (OSError, SyntaxError, ValueError) as error:  # Pillow has several for a broken file
        raise ValueError(f"{path} cannot be read as a picture: {error}") from None
    if pixels.ndim == 3:
        pixels = pixels[..., :3].mean(-1)
    if pixels.shape != (28, 28):
        raise ValueError(f"{path} is {pixels.shape}; expected a picture of 28 x 28 pixels.")
    if pixels.max() > 1:  # matplotlib gives [0, 1] for PNG alone, whole numbers otherwise
        pixels = pixels / 255
    return jnp.asarray(2 * pixels[..., None] - 1)


def edit_schedule(sampler: str, strength: float, lcm_steps: int) -> kd.Schedule:
    """The run of a sampler below a strength."""
    if sampler == "lcm":
        return kd.lcm(kd.lcm_levels(digits.training_noise(), lcm_steps, strength=strength))
    # On the timesteps of training, where half the steps are half of the timesteps; Karras' levels
    # give a strength another meaning.
    levels = kd.levels(digits.training_noise(), DPM2_STEPS)
    return kd.dpm2(levels.start_at_strength(strength))


def edit(
    sampler: str, schedule: kd.Schedule, image: jax.Array, label: int, guidance: float, seed: int
) -> tuple[jax.Array, jax.Array]:
    """(noised, edited) [1, 28, 28, 1]: the image at the schedule's first level, and the result.

    The first in units of its own deviation, so that it can be shown.
    """
    params = digits.load_params(digits.weights_of(sampler))
    denoise, cond = digits.denoiser_and_cond(sampler, jnp.full(1, label, jnp.int32), guidance)
    key = jax.random.key(seed)
    # From another key than the noise of the steps.
    eps = jax.random.normal(jax.random.fold_in(key, 1), (1, 28, 28, 1))
    noised = kd.add_noise(schedule[0], image[None], eps)
    edited = kd.sample(denoise, params, schedule, noised, key, cond=cond)
    return noised / schedule.init_noise_sigma, edited


def main() -> None:
    parser = commands.parser(__doc__)
    add, number = parser.add_argument, commands.number
    strengths = [0.3, 0.5, 0.8]
    add("--image", type=commands.file, default=IMAGE, help="a picture of 28 x 28 pixels")
    add("--class", dest="label", type=commands.digit, default=9, help="what it is to become")
    add("--strength", type=commands.fraction, nargs="+", default=strengths, help="share of levels")
    add("--steps", type=commands.count, default=4, help="of LCM, below the strength")
    add("--guidance", type=number, default=2.0, help="1 is none; of LCM 1 to 3")
    add("--variants", type=commands.count, default=3, help="results for each strength")
    add("--seed", type=commands.seed, default=0, help="of the first variant; the others follow")
    add("--output", type=commands.picture, default="img2img.png", help="the figure")
    args = parser.parse_args()
    with commands.refused(parser):
        image = load_image(args.image)
        digits.lcm_cond(jnp.zeros(1, jnp.int32), args.guidance)
        runs = {
            sampler: [edit_schedule(sampler, strength, args.steps) for strength in args.strength]
            for sampler in ("dpm2", "lcm")
        }

    panels: dict[str, list[tuple[str, np.ndarray]]] = {}
    total = args.variants * sum(map(len, runs.values()))
    with tqdm(total=total, unit="edit") as bar:
        for sampler, schedules in runs.items():
            title = digits.TITLES[sampler]
            bar.set_description(title)
            panels[title] = [("image", np.asarray(image[None, ..., 0]))]
            for strength, schedule in zip(args.strength, schedules, strict=True):
                results = []
                for i in range(args.variants):
                    rest = (image, args.label, args.guidance, args.seed + i)
                    results.append(edit(sampler, schedule, *rest))
                    bar.update()
                shown = jnp.concatenate([results[0][0], *(edited for _, edited in results)])
                twice = sampler != "lcm" and args.guidance != 1
                evaluations = schedule.num_rows * (2 if twice else 1)
                name = f"strength {strength:g}: {evaluations} evaluations"
                panels[title].append((name, np.asarray(jnp.clip(shown[..., 0], -1, 1))))
                bar.write(f"{title}, {name}, from t = {float(schedule[0].timestep):.0f}")
    draw(panels, args.output)
    print(f"wrote {args.output}")


def draw(panels: dict[str, list[tuple[str, np.ndarray]]], path: Path) -> None:
    """A line for each sampler: the image, then for each strength the noised start and results."""
    widths = [len(images) for _, images in next(iter(panels.values()))]
    side = min(8 / sum(widths), 0.8)
    figure = Figure((sum(widths) * side + 0.3, len(panels) * (side + 0.35)), layout="constrained")
    axes = figure.subplots(len(panels), len(widths), width_ratios=widths, squeeze=False)
    for line, (sampler, columns) in zip(axes, panels.items(), strict=True):
        for axis, (title, images) in zip(line, columns, strict=True):
            picture = np.pad(images, [(0, 0), (1, 1), (1, 1)], constant_values=-1.0)
            axis.imshow(np.concatenate(picture, axis=1), cmap="gray", vmin=-1, vmax=1)
            axis.set_title(title, fontsize=9)
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(sampler, fontsize=9)
    figure.savefig(path, dpi=200, bbox_inches="tight", pad_inches=0.05)


if __name__ == "__main__":
    main()
