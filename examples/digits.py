"""Samples handwritten digits of all ten classes with the shipped networks, and draws them.

python examples/digits.py                                  # DPM2, ancestral DPM2 and LCM
python examples/digits.py --sampler dpm2 --steps 25 --class 3 --seed 7 --output three.png
python examples/digits.py --sampler euler dpmpp_2m --eta 1 --steps 20
python examples/digits.py --sampler lcm --steps 4 --guidance 2.0
"""

import argparse
import functools
import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import commands
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure  # draws files, needs no display and sets no backend
from tqdm import tqdm

import kdiff_jax as kd
import unet

WEIGHTS = Path(__file__).parent / "weights" / "digits.safetensors"
LCM_WEIGHTS = WEIGHTS.with_name("digits_lcm.safetensors")
LCM_GUIDANCE = (1.0, 3.0)  # the scales that distill_lcm.py trained it on
TITLES = {
    "euler": "Euler",
    "heun": "Heun",
    "dpm2": "DPM2",
    "dpm2_ancestral": "ancestral DPM2",
    "dpmpp_2s_ancestral": "DPM++ 2S ancestral",
    "dpmpp_sde": "DPM++ SDE",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_3m": "DPM++ 3M",
    "unipc": "UniPC",
    "lcm": "LCM",
    "tcd": "TCD",
}
SAMPLERS: dict[str, Callable[..., kd.Schedule]] = {name: getattr(kd, name) for name in TITLES}
DISTILLED = ("lcm", "tcd")  # samplers of the distilled network, on its own grid
WITH_ETA = tuple(name for name, f in SAMPLERS.items() if "eta" in inspect.signature(f).parameters)
TWO_CALLS = ("heun", "dpm2", "dpm2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde")  # in a step
DEFAULT_STEPS = {
    name: 4 if name in DISTILLED else 12 if name in TWO_CALLS else 23 for name in SAMPLERS
}
Grid = Literal["karras", "exponential", "beta"]


def training_noise() -> kd.NoiseSchedule:
    """The noise levels that the digits network was trained on (Ho et al. 2020)."""
    return kd.noise_schedule("linear", num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02)


def digits_schedule(
    sampler: str, steps: int, grid: Grid | None = "karras", eta: float | None = None
) -> kd.Schedule:
    """The run of a sampler on the digits network's noise levels; LCM and TCD have their own grid.

    eta is the share of fresh noise, of the samplers that have one; None: their own default.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler = {sampler!r}; choose one of {', '.join(SAMPLERS)}.")
    if eta is not None and sampler not in WITH_ETA:
        raise ValueError(
            f"eta = {eta:g}, and {sampler} has none; leave it out, or take {', '.join(WITH_ETA)}."
        )
    if sampler in DISTILLED:
        return SAMPLERS[sampler](kd.lcm_levels(training_noise(), steps))
    options = {} if eta is None else {"eta": eta}
    return SAMPLERS[sampler](kd.levels(training_noise(), steps, grid=grid), **options)


def noise_of(sampler: str) -> Any:
    """The noise_fn of a sampler: a Brownian path where it draws twice in a step, else None."""
    return kd.brownian_noise() if sampler == "dpmpp_sde" else None


def digits_denoiser(guidance: float = 1.0) -> Any:
    """The digits network as a denoiser; guidance above 1 doubles the batch that it sees."""
    denoise = kd.denoiser(unet.model_fn, "epsilon")
    if guidance == 1.0:
        return denoise
    return kd.guided(denoise, guidance, uncond=jnp.int32(unet.NO_CLASS))


def lcm_denoiser() -> Any:
    """The distilled network as a denoiser; its guidance is a part of cond, at no extra cost."""
    return kd.consistency(kd.denoiser(unet.model_fn, "epsilon"))


def lcm_cond(labels: jax.Array, guidance: float) -> dict[str, jax.Array]:
    """The condition of the distilled network: classes, and one guidance scale for all of them."""
    low, high = LCM_GUIDANCE
    if not low <= guidance <= high:
        raise ValueError(
            f"guidance = {guidance}; the distilled network was trained on scales from {low:g} to "
            f"{high:g}: stay inside, or distil it with another --guidance range."
        )
    return {"label": labels, "scale": jnp.full(labels.shape, guidance, jnp.float32)}


def denoiser_and_cond(sampler: str, labels: jax.Array, guidance: float) -> tuple[Any, Any]:
    """The network of a sampler as its denoiser, and the condition of that network."""
    if sampler in DISTILLED:
        denoise = kd.denoiser(unet.model_fn, "epsilon") if sampler == "tcd" else lcm_denoiser()
        return denoise, lcm_cond(labels, guidance)
    return digits_denoiser(guidance), labels


@functools.cache
def load_params(path: Path) -> Any:
    """The weights of a file, read once however many pictures are made with them."""
    return unet.load(path)[1]


def weights_of(sampler: str) -> Path:
    """The file of the network that a sampler runs."""
    return LCM_WEIGHTS if sampler in DISTILLED else WEIGHTS


def draw(panels: list[tuple[str, np.ndarray]], path: Path) -> None:
    """Panels of digits side by side; each is a title and images [rows, columns, 28, 28]."""
    rows, columns = panels[0][1].shape[:2]
    side = min(8 / (len(panels) * max(columns, 7)), 0.6)  # seven columns leave room for a title
    size = (len(panels) * max(columns, 7) * side, rows * side + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)
    for axis, (title, images) in zip(axes[0], panels, strict=True):
        picture = np.pad(images, [(0, 0), (0, 0), (1, 1), (1, 1)], constant_values=-1.0)
        picture = picture.transpose(0, 2, 1, 3).reshape(rows * 30, columns * 30)
        axis.imshow(picture, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    figure.savefig(path, dpi=200, bbox_inches="tight", pad_inches=0.05)


def arguments() -> argparse.Namespace:
    """The options, checked; `runs` are (sampler, schedule)."""
    parser = commands.parser(__doc__)
    add = parser.add_argument
    samplers, classes = ["dpm2", "dpm2_ancestral", "lcm"], list(range(10))
    add("--sampler", nargs="+", choices=SAMPLERS, default=samplers, help="a panel each")
    add(
        "--steps",
        type=commands.count,
        help="outer steps N; default: 4 of LCM and TCD, 12 where a step is two calls, 23 of others",
    )
    add("--eta", type=commands.number, help="share of fresh noise; default: that of the sampler")
    add(
        "--class",
        dest="classes",
        type=commands.digit,
        nargs="+",
        default=classes,
        help="which digits, a column each",
    )
    add("--rows", type=commands.count, default=8, help="digits of each class")
    add("--guidance", type=commands.number, default=1.5, help="1 is none, at half the cost")
    add("--seed", type=commands.seed, default=0, help="of all noise")
    grids = ["karras", "exponential", "beta", "none"]
    add("--grid", choices=grids, default="karras", help="noise levels, of all but LCM and TCD")
    add("--output", type=commands.picture, default="digits.png", help="the picture")
    args = parser.parse_args()
    grid, labels = None if args.grid == "none" else args.grid, jnp.zeros(1, jnp.int32)
    args.runs = []
    with commands.refused(parser):
        for sampler in args.sampler:
            steps = DEFAULT_STEPS[sampler] if args.steps is None else args.steps
            denoiser_and_cond(sampler, labels, args.guidance)
            args.runs.append((sampler, digits_schedule(sampler, steps, grid, args.eta)))
    return args


def main() -> None:
    args = arguments()
    panels = []
    for sampler, schedule in args.runs:
        params = load_params(weights_of(sampler))
        twice, doubled = "", ""
        if args.guidance != 1.0:
            doubled = f", guidance {args.guidance:g}"
            doubled += " distilled" if sampler in DISTILLED else ": each of twice the batch"
            twice = "" if sampler in DISTILLED else "2 x "
        start = time.perf_counter()
        columns = []
        for digit in tqdm(args.classes, desc=TITLES[sampler], unit="class"):
            # A key of its own for every class: drawn alone, it looks the same.
            key = jax.random.fold_in(jax.random.key(args.seed), digit)
            x = kd.initial_sample(schedule, key, (args.rows, 28, 28, 1))
            labels = jnp.full(args.rows, digit, jnp.int32)
            denoise, cond = denoiser_and_cond(sampler, labels, args.guidance)
            noise_fn = noise_of(sampler)
            images = kd.sample(denoise, params, schedule, x, key, cond=cond, noise_fn=noise_fn)
            columns.append(np.asarray(jnp.clip(images[..., 0], -1, 1)))
        seconds = time.perf_counter() - start
        print(
            f"{TITLES[sampler]}: {schedule.num_steps} steps, {schedule.num_rows} network "
            f"evaluations{doubled}; {args.rows * len(args.classes)} digits in {seconds:.1f} s "
            "with compilation"
        )
        title = f"{TITLES[sampler]}\n{twice}{schedule.num_rows} evaluations"
        panels.append((title, np.stack(columns, axis=1)))
    draw(panels, args.output)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
