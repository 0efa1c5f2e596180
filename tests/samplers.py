"""The one table of samplers that the property tests run over, and small networks for them."""

import dataclasses
import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kdiff_jax as kd

NOISE = kd.noise_schedule("scaled_linear")

# name -> the schedule of N outer steps. Every property below holds for every line.
SAMPLERS: dict[str, Callable[[int], kd.Schedule]] = {
    "euler": lambda n: kd.euler_schedule(NOISE, n),
    "euler_ancestral": lambda n: kd.euler_schedule(NOISE, n, eta=1.0),
    "dpm2": lambda n: kd.dpm2_schedule(NOISE, n),
    "dpm2_karras": lambda n: kd.dpm2_schedule(NOISE, n, grid="karras"),
    "dpm2_sigmas_alone": lambda n: kd.dpm2_schedule(None, sigmas=kd.karras_sigmas(n, 0.03, 14.6)),
    "dpm2_churn": lambda n: kd.dpm2_schedule(NOISE, n, s_churn=0.3 * n, s_tmax=10.0, s_noise=0.9),
    "ancestral": lambda n: kd.dpm2_ancestral_schedule(NOISE, n),
    "ancestral_half_eta": lambda n: kd.dpm2_ancestral_schedule(NOISE, n, eta=0.5, s_noise=0.9),
    "lcm": lambda n: kd.lcm_schedule(NOISE, n),
    "inversion": lambda n: kd.inversion_schedule(kd.dpm2_schedule(NOISE, n + 1)),
}
DETERMINISTIC = ("euler", "dpm2", "dpm2_karras", "dpm2_sigmas_alone", "inversion")
STOCHASTIC = [name for name in SAMPLERS if name not in DETERMINISTIC]


def elementwise_model(params: Any, x: jax.Array, timestep: jax.Array) -> jax.Array:
    """Each number of the answer from that number alone, in exactly rounded operations only."""
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, x.dtype), params)
    time = (timestep.astype(float) / 1000).astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
    return params["gain"] * x / (1 + x * x) + params["shift"] * time


def mixing_model(params: Any, x: jax.Array, timestep: jax.Array, cond: Any = None) -> jax.Array:
    """Every number of a sample from all of its numbers, its timestep and its condition."""
    weight = jnp.asarray(params["weight"], x.dtype)
    hidden = jnp.tanh(x.reshape(x.shape[0], -1) @ weight)
    hidden = hidden * (1 + timestep.astype(float) / 1000).astype(x.dtype)[:, None]
    if cond is not None:
        hidden = hidden + jnp.asarray(cond, x.dtype)[:, None]
    return hidden.reshape(x.shape)


ELEMENTWISE = {"gain": np.float32(0.7), "shift": np.float32(0.3)}
MIXING = {"weight": np.random.default_rng(0).normal(0, 0.3, (8, 8)).astype(np.float32)}


def keep_noise_of(schedule: kd.Schedule, k: int) -> kd.Schedule:
    """The same rows, but row k returns its noise and every other row returns the denoised.

    With `identity_denoise` a run of it ends at exactly the z that was drawn for row k.
    """
    rows = schedule.rows
    here = (jnp.arange(schedule.num_rows) == k).astype(rows.noise_weight.dtype)
    zero = jnp.zeros_like(here)
    weights = {"anchor_weight": zero, "epsilon_weight": zero}
    rows = dataclasses.replace(rows, denoised_weight=1 - here, noise_weight=here, **weights)
    return dataclasses.replace(schedule, rows=rows)


def identity_denoise(params: Any, x: jax.Array, row: kd.Row, cond: Any = None) -> kd.Prediction:
    return kd.Prediction(x, jnp.zeros_like(x))


def run_by_hand(
    denoise: Any, params: Any, schedule: kd.Schedule, x: jax.Array, key: Any = None
) -> list[kd.State]:
    """A plain Python loop; the state before the first row and after every row."""
    states = [kd.init(schedule, x)]
    for row in schedule:
        prediction = denoise(params, states[-1].sample, row)
        states.append(kd.step(states[-1], row, prediction, key=key))
    return states


def run_in_numpy(
    denoise: Any, params: Any, schedule: kd.Schedule, x: Any, noise: list[Any]
) -> np.ndarray:
    """The line of the design in float64, row by row; only the prediction is the package's."""
    sample = anchor = np.asarray(x, np.float64)
    for row, z in zip(schedule, noise, strict=True):
        prediction = denoise(params, jnp.asarray(sample, schedule.sigmas.dtype), row)
        weight = {
            name: float(getattr(row, f"{name}_weight"))
            for name in ("anchor", "denoised", "epsilon", "noise")
        }
        sample = (
            weight["anchor"] * anchor
            + weight["denoised"] * np.asarray(prediction.denoised, np.float64)
            + weight["epsilon"] * np.asarray(prediction.epsilon, np.float64)
            + weight["noise"] * np.asarray(z, np.float64)
        )
        anchor = sample if bool(row.advances) else anchor
    return sample


def relative_error(got: Any, expected: Any) -> float:
    """The largest difference, relative to the largest value."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    return float(np.max(np.abs(got - expected)) / np.max(np.abs(expected)))


def x64() -> AbstractContextManager[Any]:
    """float64 inside the context; JAX 0.6 has it under another name."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    return importlib.import_module("jax.experimental").enable_x64(True)
