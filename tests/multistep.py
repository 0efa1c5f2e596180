"""What `tests/golden/generate_multistep.py` recorded of diffusers, its network and its draws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import kdiff_jax as kd

RECORDINGS = Path(__file__).parent / "golden" / "multistep.npz"
SHAPE = (2, 5)


def drawn(number: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The initial sample of a case, and one array of noise a step."""
    rng = np.random.default_rng(number)
    return rng.standard_normal(SHAPE), rng.standard_normal((steps, *SHAPE))


def network(x: Any, sigma: Any, sin: Any = np.sin) -> Any:
    """A smooth network that mixes a sample; x of unit variance, or on the line of a flow."""
    weight = np.cos(np.arange(25.0).reshape(5, 5))
    return 0.8 * x / (1 + 0.1 / sigma) + 0.3 * sin(x @ weight)


def cases() -> list[dict[str, Any]]:
    """Of each: scheduler, steps, config, loss, number, sigmas [N + 1], samples [N, ...]."""
    with np.load(RECORDINGS) as arrays:
        about = json.loads(str(arrays["about"]))
        return [
            {**case, "number": i, **{k: arrays[f"{i}/{k}"] for k in ("sigmas", "samples")}}
            for i, case in enumerate(about["cases"])
        ]


def relative_to_recording(case: dict[str, Any], sampler: Any) -> float:
    """The largest error of a run by hand in float64 after any step, relative to the largest value.

    Call it inside `samplers.x64()`.
    """
    flow = "use_flow_sigmas" in case["config"]
    noise = kd.flow_schedule() if flow else kd.noise_schedule("scaled_linear")
    sigmas = case["sigmas"].astype(np.float64)
    if sigmas[-1] == 0:
        levels = kd.levels(noise, sigmas=sigmas)
    else:
        # A lower level after the last, which the run does not go to.
        levels = kd.levels(noise, sigmas=[*sigmas[:-1], sigmas[-1] / 2]).end_at(case["steps"] - 1)
    schedule = sampler(levels)
    initial, fresh = drawn(case["number"], case["steps"])
    # The recordings have unit variance where the tables have alpha = 1.
    units = np.ones_like(sigmas) if flow else np.sqrt(1 + sigmas**2)
    state, worst = kd.init(schedule, jnp.asarray(initial * units[0])), 0.0
    for row, z, unit, expected in zip(schedule, fresh, units[1:], case["samples"], strict=False):
        x = state.sample
        out = network(x if flow else x * row.input_scale, row.sigma, jnp.sin)
        denoised = x - row.sigma * out
        epsilon = out + denoised if flow else out
        z = jnp.asarray(z) if row.noise_weight is not None else None
        state = kd.step(state, row, kd.Prediction(denoised, epsilon), noise=z)
        error = np.abs(np.asarray(state.sample) / unit - expected)
        worst = max(worst, float(np.max(error) / np.max(np.abs(expected))))
    return worst
