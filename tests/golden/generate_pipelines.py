"""Records which levels the pipelines of diffusers run, for `tests/adapters/test_pipelines.py`.

Needs torch, transformers and diffusers. In an environment of its own:

    pip install torch==2.13.0 diffusers==0.42.1 transformers numpy scipy
    python tests/golden/generate_pipelines.py       # writes pipelines.json beside this file

The pipelines' own `__call__` runs with stand-ins for its networks, on a real scheduler with the
config of a published checkpoint, until `set_timesteps` has returned; of the image-to-image
pipelines `get_timesteps` runs, and what is left of N steps at a strength is counted.
"""

import contextlib
import inspect
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import diffusers
import numpy as np
import torch

HERE = Path(__file__).resolve().parent
DYNAMIC: dict[str, Any] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "use_dynamic_shifting": True,
}
FLUX_DEV = DYNAMIC | {"shift": 3.0, "base_shift": 0.5, "max_shift": 1.15}
FLUX_DEV |= {"base_image_seq_len": 256, "max_image_seq_len": 4096}
SCHNELL = FLUX_DEV | {"shift": 1.0, "use_dynamic_shifting": False}
LTX = DYNAMIC | {"shift": 1.0, "base_shift": 0.95, "max_shift": 2.05, "shift_terminal": 0.1}
LTX |= {"base_image_seq_len": 1024, "max_image_seq_len": 4096}
QWEN = DYNAMIC | {"shift": 1.0, "base_shift": 0.5, "max_shift": 0.9, "shift_terminal": 0.02}
QWEN |= {"base_image_seq_len": 256, "max_image_seq_len": 8192}
SD3: dict[str, Any] = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
WAN: dict[str, Any] = {
    "_class_name": "UniPCMultistepScheduler",
    "prediction_type": "flow_prediction",
}
WAN |= {"use_flow_sigmas": True, "flow_shift": 3.0}
CASES: list[tuple[str, dict[str, Any], int, int]] = [
    (pipeline, config, steps, tokens)
    for pipeline, config, counts, sizes in [
        ("FluxPipeline", FLUX_DEV, (4, 28, 50), (1024, 4096)),
        ("FluxPipeline", SCHNELL, (1, 4), (4096,)),
        ("LTXPipeline", LTX, (8, 50), (2520, 5376)),
        ("QwenImagePipeline", QWEN, (20, 50), (4096, 6032)),
        ("StableDiffusion3Pipeline", SD3, (4, 28), (4096,)),
        ("WanPipeline", WAN, (5, 50), (4096,)),
        ("WanPipeline", WAN | {"flow_shift": 5.0}, (50,), (4096,)),
    ]
    for steps in counts
    for tokens in sizes
]
IMG2IMG = {
    "StableDiffusionImg2ImgPipeline": "DDIMScheduler",
    "FluxImg2ImgPipeline": "FlowMatchEulerDiscreteScheduler",
    "StableDiffusion3Img2ImgPipeline": "FlowMatchEulerDiscreteScheduler",
    "QwenImageImg2ImgPipeline": "FlowMatchEulerDiscreteScheduler",
}


class Prepared(Exception):
    """The levels are there; no network runs."""


def scheduler_of(config: dict[str, Any]) -> Any:
    keys = {key: value for key, value in config.items() if key != "_class_name"}
    return getattr(diffusers, config["_class_name"])(**keys)


def run(pipeline: str, config: dict[str, Any], steps: int, tokens: int) -> dict[str, Any]:
    """The levels of one call, and what the pipeline handed to `set_timesteps`."""
    scheduler, given = scheduler_of(config), {}
    prepare = scheduler.set_timesteps

    def set_timesteps(*positional: Any, device: Any = None, **keywords: Any) -> None:
        given.update(keywords)
        prepare(*positional, **keywords)
        raise Prepared

    # retrieve_timesteps asks for the names of its parameters.
    set_timesteps.__signature__ = inspect.signature(prepare)  # type: ignore[attr-defined]
    scheduler.set_timesteps = set_timesteps
    stand_in = MagicMock(scheduler=scheduler, do_classifier_free_guidance=False)
    stand_in.transformer.config.in_channels = 64
    stand_in.transformer.config.patch_size = (1, 2, 2)
    stand_in.transformer.dtype = torch.float32
    embeds = torch.zeros(1, 4, 8)
    count = {"FluxPipeline": 3, "LTXPipeline": 4, "QwenImagePipeline": 2, "WanPipeline": 2}
    stand_in.encode_prompt.return_value = (embeds,) * count.get(pipeline, 4)
    latents = torch.zeros(1, tokens, 64)
    stand_in.prepare_latents.return_value = (latents, None) if "Flux" in pipeline else latents
    arguments: dict[str, Any] = {"prompt_embeds": embeds, "num_inference_steps": steps}
    stand_in.vae_scale_factor, stand_in.default_sample_size = 8, 128
    if pipeline == "LTXPipeline":  # its tokens follow from the size of the video
        stand_in.vae_temporal_compression_ratio = stand_in.vae_spatial_compression_ratio = 1
        arguments |= {"num_frames": 1, "height": 1, "width": tokens}
    if pipeline == "WanPipeline":
        stand_in.vae_scale_factor_temporal, stand_in.vae_scale_factor_spatial = 4, 8
        stand_in.config.boundary_ratio = None
    with contextlib.suppress(Prepared):
        getattr(diffusers, pipeline).__call__.__wrapped__(stand_in, **arguments)
    return {
        "sigmas": [float(f"{s:.9g}") for s in scheduler.sigmas],
        "timesteps": [float(f"{t:.9g}") for t in scheduler.timesteps],
        "passed": sorted(name for name, value in given.items() if value is not None),
    }


def kept_steps(pipeline: str, class_name: str, steps: int, strength: float) -> int:
    """The steps that an image-to-image pipeline runs of N at a strength."""
    scheduler = getattr(diffusers, class_name)()
    scheduler.set_timesteps(steps)
    stand_in = MagicMock(scheduler=scheduler)
    method = getattr(diffusers, pipeline).get_timesteps
    return int(method(stand_in, steps, strength, "cpu")[1])


def main() -> None:
    """Writes pipelines.json."""
    levels = [
        {"pipeline": name, "config": config, "steps": steps, "tokens": tokens}
        | run(name, config, steps, tokens)
        for name, config, steps, tokens in CASES
    ]
    rng = np.random.default_rng(7)
    pairs = [(28, 0.6), (50, 0.58), (20, 0.3)]
    pairs += [(int(rng.integers(1, 60)), round(float(rng.uniform(0.2, 1)), 2)) for _ in range(60)]
    strengths = {
        name: [[*pair, kept_steps(name, kind, *pair)] for pair in pairs]
        for name, kind in IMG2IMG.items()
    }
    made_by = {package: version(package) for package in ("diffusers", "torch", "numpy")}
    recorded = {"made_by": made_by, "levels": levels, "strengths": strengths}
    (HERE / "pipelines.json").write_text(json.dumps(recorded) + "\n", encoding="utf-8")
    print(f"{len(levels)} runs, {len(pairs)} strengths of {len(IMG2IMG)} pipelines")


if __name__ == "__main__":
    main()
