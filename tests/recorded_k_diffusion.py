"""The recordings of k-diffusion, and the small network they were made with.

`network` and `denoised` take the module that computes, so that torch and jax.numpy run one text.
Written by tests/golden/generate_k_diffusion.py, which says what is recorded.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PATH = Path(__file__).parent / "golden" / "k_diffusion.npz"
SHAPE = (2, 6)
_RNG = np.random.default_rng(7)
WEIGHT = _RNG.normal(0, 0.4, (6, 6)).astype(np.float32)
BIAS = _RNG.normal(0, 1, 6).astype(np.float32)
SCALED_LINEAR = {
    "_class_name": "KDPM2DiscreteScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}
LINEAR = SCALED_LINEAR | {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.01}


def network(np_: Any, net: dict[str, Any], weight: Any, bias: Any, x: Any, time: Any) -> Any:
    """Every number of a sample from all of its numbers and its timestep; time is [B]."""
    wave = np_.cos(net["frequency"] * time + net["phase"])
    return net["linear"] * x + net["gain"] * np_.tanh(x @ weight + wave[:, None] * bias[None])


def denoised(np_: Any, raw: Callable[[Any, Any], Any], x: Any, sigma: Any) -> Any:
    """A denoiser of continuous sigma, without training timesteps; sigma is [B]."""
    scale = 1 / np_.sqrt(1 + sigma**2)
    out = raw(x * scale[:, None], np_.log(sigma) / 4)
    return x * (scale**2)[:, None] + out * (sigma * scale)[:, None]


@dataclass(frozen=True)
class Case:
    """One recorded run.

    Attributes:
      name: the sampler and a number.
      sampler: "dpm_2", "dpm_2_ancestral" or "lcm".
      model: "plain" (`denoised` above), "epsilon" or "v_prediction" (k-diffusion's wrappers).
      controls: the keyword arguments of the sampler.
      net: the coefficients of `network`.
      config: the noise schedule of the wrapper, in diffusers' words; None for a plain model.
      quantize: whether the wrapper rounds its timesteps.
      x: the sample that was handed in.
      sigmas: the grid, [n], with its closing 0 where it has one.
      noise: [n - 1, ...] the noise of each step.
      final: the result of the float64 run; final32: that of the float32 run.
      shown: [n - 1, ...] the samples that the callback was shown.
    """

    name: str
    sampler: str
    model: str
    controls: dict[str, float]
    net: dict[str, float]
    config: dict[str, Any] | None
    quantize: bool
    x: np.ndarray
    sigmas: np.ndarray
    noise: np.ndarray
    final: np.ndarray
    final32: np.ndarray
    shown: np.ndarray


def load() -> tuple[list[Case], dict[str, Any]]:
    """The runs; and what else was recorded: `functions` and `versions`."""
    with np.load(PATH) as file:
        arrays = {name: file[name] for name in file.files}
    text = json.loads(str(arrays.pop("text")))
    cases, at = [], 0
    for i, case in enumerate(text.pop("cases")):
        size = case["num_sigmas"]
        steps = slice(at - i, at - i + size - 1)  # each grid has one level more than it has steps
        cases.append(
            Case(
                name=f"{case['sampler']} {i}",
                sampler=case["sampler"],
                model=case["model"],
                controls=case["controls"],
                net=case["network"],
                config=case.get("config"),
                quantize=case.get("quantize", False),
                sigmas=arrays["sigmas"][at : at + size],
                noise=arrays["noise"][steps],
                shown=arrays["shown"][steps],
                **{name: arrays[name][i] for name in ("x", "final", "final32")},
            )
        )
        at += size
    return cases, text
