"""Runs of maxdiffusion's loops that were recorded, and the network of all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

RECORDED = Path(__file__).parent / "golden" / "maxdiffusion.npz"
WEIGHT = np.float32(0.8)


def network(weight: Any, x: jax.Array, timestep: jax.Array, cond: Any) -> jax.Array:
    """A tanh with a gain of the timestep [B] and a shift of the condition, a list of [B, ...]."""
    gain = weight * (1 + 0.5 * jnp.cos(timestep.astype(jnp.float32) / 300))
    shift = sum(jnp.mean(leaf.reshape(len(leaf), -1), axis=1) for leaf in cond) / 5
    wide = len(x), *(1,) * (x.ndim - 1)
    return gain.reshape(wide) * jnp.tanh(x + jnp.reshape(shift, wide))


def load() -> tuple[dict[str, str], list[dict[str, Any]]]:
    """The versions that made the recordings, and the runs."""
    with np.load(RECORDED) as stored:
        about = json.loads(str(stored["about"]))
        for i, run in enumerate(about["runs"]):
            for name in ("initial", "timesteps", "latents"):
                run[name] = stored[f"{i}/{name}"]
            for name in ("cond", "uncond"):
                run[name] = [stored[f"{i}/{name}/{k}"] for k in range(run["leaves"])]
    return about["made_by"], about["runs"]
