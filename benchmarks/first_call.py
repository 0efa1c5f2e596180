"""Seconds of the first DPM2 run of a library in a process of its own, imports not counted.

    python benchmarks/first_call.py kdiff_jax "64 KB"
    python benchmarks/first_call.py torch.compile "1 MB"

What only the first program of a process pays is a part of it, for both.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import commands


def measured(library: str, size: str, clock: str) -> float:
    """Runs this file in a new process, with the environment and on the cores of this one."""
    command = [sys.executable, __file__, library, size, clock]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(ran.stdout.splitlines()[-1])


def main(library: str, size: str, clock: str = "wall") -> None:
    import jax

    import kdiff_jax as kd
    import networks
    import rivals
    import timing
    from comparison import SHAPES
    from kdiff_jax.adapters import diffusers as kd_diffusers

    sampler = kd_diffusers.from_config(rivals.CONFIGS["dpm2"])
    schedule = sampler.schedule(num_inference_steps=rivals.STEPS["dpm2"])
    x = np.random.default_rng(0).standard_normal(SHAPES[size], np.float32)
    x *= float(schedule.init_noise_sigma)
    if library == "kdiff_jax":
        denoise = sampler.denoiser(networks.null)
        run = timing.Candidate(lambda: kd.sample(denoise, None, schedule, jax.numpy.asarray(x)))
    else:
        run = rivals.torch_compiled(x, schedule.rows, networks.null)
    timing.use_clock(clock)
    print(timing.timed(run))


if __name__ == "__main__":
    parser = commands.parser(__doc__)
    parser.add_argument("library", choices=("kdiff_jax", "torch.compile"), help="whose first run")
    parser.add_argument("size", choices=("64 KB", "1 MB"), help="of the sample")
    clocks = ("wall", "cpu")
    parser.add_argument("clock", nargs="?", choices=clocks, default="wall", help="of the process")
    main(**vars(parser.parse_args()))
