r"""Variations of a digit: from its seed, a little way to another noise; from its image, renoised.

    python examples/variations.py                          # of a 3
    python examples/variations.py --class 8 --seed 5

From a seed: the initial noise is turned a little towards another one (`kd.slerp`), and the whole
run is made again. From an image, here the first one: it is brought to a noise level below the top
with fresh noise and sampled from there in exactly `--steps` steps (`kd.levels(..., strength=)`). A
small fraction, or strength, changes little.
"""

import argparse
from pathlib import Path

import img2img
import jax
import jax.numpy as jnp
import numpy as np

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
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--class", dest="label", type=int, default=3)
    parser.add_argument("--fraction", type=float, nargs="+", default=[0.15, 0.3, 0.6])
    parser.add_argument("--strength", type=float, nargs="+", default=[0.2, 0.4, 0.6])
    parser.add_argument("--variants", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--guidance", type=float, default=1.5, help="1 is none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("variations.png"))
    args = parser.parse_args()
    if args.label not in range(10) or args.variants < 1:
        parser.error(f"--class {args.label} --variants {args.variants}: 0 to 9, and at least 1")
    if len(args.fraction) != len(args.strength):
        parser.error("give as many fractions as strengths: they stand above each other")

    key = jax.random.key(args.seed)
    schedule = digits.digits_schedule("dpm2", args.steps)
    image = from_seed(schedule, key, 0.0, 1, args.label, args.guidance)[0]
    panels: dict[str, list[tuple[str, np.ndarray]]] = {}
    for name, values in (("seed", args.fraction), ("image", args.strength)):
        panels[f"from {name}"] = [("first", np.asarray(jnp.clip(image[None, ..., 0], -1, 1)))]
        for value in values:
            rest = (args.variants, args.label, args.guidance)
            if name == "seed":
                made = from_seed(schedule, key, value, *rest)
            else:
                made = from_image(image, key, value, args.steps, *rest)
            away = float(jnp.sqrt(jnp.mean((made - image[None]) ** 2)))
            title = f"{'fraction' if name == 'seed' else 'strength'} {value:g}"
            print(f"from the {name}, {title}: {away:.2f} away, root mean square of the pixels")
            panels[f"from {name}"].append((title, np.asarray(jnp.clip(made[..., 0], -1, 1))))
    img2img.draw(panels, args.output)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
