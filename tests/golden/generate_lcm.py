"""Records the shipped distilled network sampled by diffusers' own `LCMScheduler`.

Needs torch and diffusers, and what the examples need. In an environment of its own:

    pip install torch==2.13.0 diffusers==0.42.1 -e ".[examples]"
    python tests/golden/generate_lcm.py        # writes lcm_digits.npz beside this file

The network is the only thing that is shared: its outputs are computed by JAX and handed to
`LCMScheduler.step`, its noise is drawn beforehand by NumPy and handed in place of `randn_tensor`.
What is recorded is all of it: initial sample, noise, the network's outputs, and the sample after
every step; and which weights and versions made it. Run it again when the weights change.
"""

import json
import platform
import sys
import zlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
import diffusers.schedulers.scheduling_lcm as scheduling_lcm
import jax
import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "examples"))

import digits
import unet

LABELS = (2, 4, 7)
GUIDANCE = 2.0
STEPS = (1, 2, 4)


def record(steps: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One run of diffusers' scheduler, in as many steps, with the distilled network."""
    _, params = unet.load(digits.LCM_WEIGHTS)
    cond = digits.lcm_cond(jax.numpy.array(LABELS, "int32"), GUIDANCE)
    scheduler = diffusers.LCMScheduler(
        num_train_timesteps=1000,
        beta_schedule="linear",
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type="epsilon",
        original_inference_steps=50,
        clip_sample=False,
        timestep_scaling=10.0,
    )
    scheduler.set_timesteps(steps)
    shape = (len(LABELS), 28, 28, 1)
    initial = rng.standard_normal(shape, np.float32)
    noise = rng.standard_normal((steps - 1, *shape), np.float32)
    handed = iter(noise)
    scheduling_lcm.randn_tensor = lambda *_, **__: torch.from_numpy(next(handed))
    sample, outputs, samples = torch.from_numpy(initial), [], []
    for timestep in scheduler.timesteps:
        timesteps = np.full(len(LABELS), int(timestep), np.float32)
        out = np.array(jax.jit(unet.model_fn)(params, sample.numpy(), timesteps, cond))
        sample = scheduler.step(torch.from_numpy(out), timestep, sample).prev_sample
        outputs.append(out)
        samples.append(sample.numpy().copy())
    assert next(handed, None) is None
    return {
        "timesteps": scheduler.timesteps.numpy(),
        "initial": initial,
        "noise": noise,
        "outputs": np.stack(outputs),
        "samples": np.stack(samples),
    }


def main() -> None:
    arrays: dict[str, Any] = {
        f"{steps}/{name}": array
        for steps in STEPS
        for name, array in record(steps, np.random.default_rng(steps)).items()
    }
    packages = ("diffusers", "torch", "numpy", "jax", "flax")
    made_with = {
        "weights": f"{zlib.crc32(digits.LCM_WEIGHTS.read_bytes()):08x}",
        "labels": LABELS,
        "guidance": GUIDANCE,
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
    }
    arrays["made_with"] = np.array(json.dumps(made_with))
    np.savez_compressed(HERE / "lcm_digits.npz", **arrays)
    print(f"{len(STEPS)} runs, {(HERE / 'lcm_digits.npz').stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
