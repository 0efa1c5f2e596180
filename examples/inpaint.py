r"""Inpainting: half of a real digit is kept, and the network paints the rest.

    python examples/inpaint.py                             # the left half of a 4, as 4 and as 9
    python examples/inpaint.py --keep top --class 4 7
    python examples/inpaint.py --image my_digit.png        # 28 x 28, white on black

"projected" lets the known part run from the noise that it began with; "renoised" shows the network
what is known under the noise of the initial sample at the level of every evaluation, half-steps
included (`kd.inpainted` without and with noise). Either way the kept pixels come back unchanged.
"""

import argparse
from pathlib import Path

import img2img
import jax
import jax.numpy as jnp
import numpy as np

import digits
import kdiff_jax as kd

HALVES = ("left", "right", "top", "bottom")
WAYS = ("projected", "renoised")


def mask_of(keep: str) -> np.ndarray:
    """[28, 28, 1]: 0 in the half that is kept, 1 where to paint."""
    mask = np.ones((28, 28, 1), np.float32)
    half = slice(14) if keep in ("left", "top") else slice(14, None)
    index = (slice(None), half) if keep in ("left", "right") else (half,)
    mask[index] = 0
    return mask


def inpaint(
    sampler: str,
    way: str,
    image: jax.Array,
    mask: np.ndarray,
    labels: jax.Array,
    guidance: float,
    seed: int,
) -> jax.Array:
    """[B, 28, 28, 1]: one painting for every label, each from noise of its own."""
    steps = digits.DEFAULT_STEPS[sampler]
    schedule = digits.digits_schedule(sampler, steps)
    key = jax.random.key(seed)
    x = kd.initial_sample(schedule, key, (labels.shape[0], 28, 28, 1))
    denoise, cond = digits.denoiser_and_cond(sampler, labels, guidance)
    noise = x / schedule.init_noise_sigma if way == "renoised" else None
    denoise = kd.inpainted(denoise, image, mask, noise)
    params = digits.load_params(digits.weights_of(sampler))
    return kd.sample(denoise, params, schedule, x, key, cond)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--image", type=Path, default=img2img.IMAGE)
    parser.add_argument("--keep", choices=HALVES, default="left", help="the half that is known")
    parser.add_argument("--class", dest="classes", type=int, nargs="+", default=[4, 9])
    parser.add_argument("--variants", type=int, default=4, help="paintings of each class")
    parser.add_argument(
        "--sampler", nargs="+", choices=list(digits.SAMPLERS), default=["dpm2", "lcm"]
    )
    parser.add_argument("--guidance", type=float, default=2.0, help="1 is none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("inpaint.png"))
    args = parser.parse_args()
    if not set(args.classes) <= set(range(10)) or args.variants < 1:
        parser.error(f"--class {args.classes} --variants {args.variants}: 0 to 9, and at least 1")

    image, mask = img2img.load_image(args.image), mask_of(args.keep)
    # What is to be painted is shown gray.
    shown = np.stack([np.asarray(image), np.where(mask == 1, np.float32(0), image)])
    labels = jnp.repeat(jnp.array(args.classes, jnp.int32), args.variants)
    panels: dict[str, list[tuple[str, np.ndarray]]] = {}
    for sampler in args.sampler:
        title = digits.TITLES[sampler]
        panels[title] = [("image, known", shown[..., 0])]
        for way in WAYS:
            painted = inpaint(sampler, way, image, mask, labels, args.guidance, args.seed)
            kept = bool(np.all((np.asarray(painted) == np.asarray(image)) | (mask == 1)))
            print(f"{title}, {way}: the known half is {'unchanged' if kept else 'CHANGED'}")
            each = np.split(np.asarray(jnp.clip(painted[..., 0], -1, 1)), len(args.classes))
            panels[title] += [
                (f"as {digit}, {way}", images)
                for digit, images in zip(args.classes, each, strict=True)
            ]
    img2img.draw(panels, args.output)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
