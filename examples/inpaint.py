r"""Inpainting: half of a real digit is kept, and the network paints the rest.

    python examples/inpaint.py                             # the left half of a 4, as 4 and as 9
    python examples/inpaint.py --keep top --class 4 7
    python examples/inpaint.py --image my_digit.png        # 28 x 28, white on black

"projected" lets the known part run from the noise that it began with; "renoised" shows the network
what is known under the noise of the initial sample at the level of every evaluation, half-steps
included (`kd.inpainted` without and with noise). Either way the kept pixels come back unchanged.
"""

import commands
import img2img
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

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
    noise_fn = digits.noise_of(sampler)
    return kd.sample(denoise, params, schedule, x, key, cond, noise_fn=noise_fn)


def main() -> None:
    parser = commands.parser(__doc__)
    add, samplers = parser.add_argument, ["dpm2", "lcm"]
    add("--image", type=commands.file, default=img2img.IMAGE, help="a picture of 28 x 28 pixels")
    add("--keep", choices=HALVES, default="left", help="the half that is known")
    add(
        "--class",
        dest="classes",
        type=commands.digit,
        nargs="+",
        default=[4, 9],
        help="what it may be",
    )
    add("--variants", type=commands.count, default=4, help="paintings of each class")
    add("--sampler", nargs="+", choices=digits.SAMPLERS, default=samplers, help="a line each")
    add("--guidance", type=commands.number, default=2.0, help="1 is none; of LCM 1 to 3")
    add("--seed", type=commands.seed, default=0, help="of all noise")
    add("--output", type=commands.picture, default="inpaint.png", help="the figure")
    args = parser.parse_args()
    labels = jnp.repeat(jnp.array(args.classes, jnp.int32), args.variants)
    with commands.refused(parser):
        image, mask = img2img.load_image(args.image), mask_of(args.keep)
        for sampler in args.sampler:
            digits.denoiser_and_cond(sampler, labels, args.guidance)

    # What is to be painted is shown gray.
    shown = np.stack([np.asarray(image), np.where(mask == 1, np.float32(0), image)])
    panels: dict[str, list[tuple[str, np.ndarray]]] = {}
    with tqdm(total=len(args.sampler) * len(WAYS), unit="run") as bar:
        for sampler in args.sampler:
            title = digits.TITLES[sampler]
            panels[title] = [("image, known", shown[..., 0])]
            for way in WAYS:
                bar.set_description(f"{title}, {way}")
                painted = inpaint(sampler, way, image, mask, labels, args.guidance, args.seed)
                kept = bool(np.all((np.asarray(painted) == np.asarray(image)) | (mask == 1)))
                bar.write(f"{title}, {way}: the known half is {'unchanged' if kept else 'CHANGED'}")
                each = np.split(np.asarray(jnp.clip(painted[..., 0], -1, 1)), len(args.classes))
                panels[title] += [
                    (f"as {digit}, {way}", images)
                    for digit, images in zip(args.classes, each, strict=True)
                ]
                bar.update()
    img2img.draw(panels, args.output)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
