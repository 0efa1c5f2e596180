r"""Variations of a digit: from its seed, a little way to another noise; from its image, renoised.

    python examples/variations.py                          # of a 3
    python examples/variations.py --class 8 --seed 5

From a seed: the initial noise is turned a little towards another one (`kd.slerp`), and the whole
run is made again. From an image, here the first one: it is brought to a noise level below the top
with fresh noise and sampled from there in exactly `--steps` steps (`kd.levels(..., strength=)`). A
small fraction, or strength, changes little.
"""

import commands
import img2img
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import digits
import kdiff_jax as kd


def run(schedule: kd.Schedule, x: jax.Array, label: int, guidance: float) -> jax.Array:
    """The digits [B, 28, 28, 1] that DPM2 makes of x."""
    labels = jnp.full(x.shape[0], label, jnp.int32)
    denoise, cond = digits.denoiser_and_cond("dpm2", labels, guidance)
    params = digits.load_params(digits.weights_of("dpm2"))
    return kd.sample(denoise, params, schedule, x, cond=cond)


def from_seed(
    schedule: kd.Schedule,
    key: jax.Array,
    fraction: float,
    count: int,
    label: int,
    guidance: float,
) -> jax.Array:
    """[count, 28, 28, 1]: the whole run from noise a fraction of the way to other seeds'."""
    shape = (count, 28, 28, 1)
    first = jnp.repeat(kd.initial_sample(schedule, key, (1, *shape[1:])), count, axis=0)
    other = kd.initial_sample(schedule, jax.random.fold_in(key, 1), shape)
    return run(schedule, kd.slerp(first, other, fraction), label, guidance)


def from_image(
    image: jax.Array,
    key: jax.Array,
    strength: float,
    steps: int,
    count: int,
    label: int,
    guidance: float,
) -> jax.Array:
    """[count, 28, 28, 1]: an image [28, 28, 1] renoised, and sampled in `steps` steps."""
    # On the timesteps of training, so that a strength is a share of them.
    schedule = kd.dpm2(kd.levels(digits.training_noise(), steps, strength=strength))
    images = jnp.repeat(image[None], count, axis=0)
    eps = jax.random.normal(jax.random.fold_in(key, 2), images.shape)
    return run(schedule, kd.add_noise(schedule[0], images, eps), label, guidance)


def main() -> None:
    parser = commands.parser(__doc__)
    add, fraction = parser.add_argument, commands.fraction
    add("--class", dest="label", type=commands.digit, default=3, help="which digit")
    add("--fraction", type=fraction, nargs="+", default=[0.15, 0.3, 0.6], help="of the way")
    add("--strength", type=fraction, nargs="+", default=[0.2, 0.4, 0.6], help="share of levels")
    add("--variants", type=commands.count, default=4, help="digits of each")
    add("--steps", type=commands.count, default=8, help="outer steps N of DPM2")
    add("--guidance", type=commands.number, default=1.5, help="1 is none")
    add("--seed", type=commands.seed, default=0, help="of all noise")
    add("--output", type=commands.picture, default="variations.png", help="the figure")
    args = parser.parse_args()
    with commands.refused(parser):
        for strength in args.strength:
            kd.levels(digits.training_noise(), args.steps, strength=strength)
    if len(args.fraction) != len(args.strength):
        parser.error("give as many fractions as strengths: they stand above each other")

    key = jax.random.key(args.seed)
    schedule = digits.digits_schedule("dpm2", args.steps)
    image = from_seed(schedule, key, 0.0, 1, args.label, args.guidance)[0]
    panels: dict[str, list[tuple[str, np.ndarray]]] = {}
    rest = (args.variants, args.label, args.guidance)
    with tqdm(total=2 * len(args.fraction), unit="run") as bar:
        for name, values in (("seed", args.fraction), ("image", args.strength)):
            panels[f"from {name}"] = [("first", np.asarray(jnp.clip(image[None, ..., 0], -1, 1)))]
            for value in values:
                if name == "seed":
                    made = from_seed(schedule, key, value, *rest)
                else:
                    made = from_image(image, key, value, args.steps, *rest)
                away = float(jnp.sqrt(jnp.mean((made - image[None]) ** 2)))
                title = f"{'fraction' if name == 'seed' else 'strength'} {value:g}"
                bar.write(f"from the {name}, {title}: {away:.2f} away, RMS of the pixels")
                panels[f"from {name}"].append((title, np.asarray(jnp.clip(made[..., 0], -1, 1))))
                bar.update()
    img2img.draw(panels, args.output)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
