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
from kdiff_jax._table.schedule import NEUTRAL

NOISE = kd.noise_schedule("scaled_linear")

# name -> the schedule of N outer steps. Every property below holds for every line.
SAMPLERS: dict[str, Callable[[int], kd.Schedule]] = {
    "euler": lambda n: kd.euler(kd.levels(NOISE, n)),
    "euler_ancestral": lambda n: kd.euler(kd.levels(NOISE, n), eta=1.0),
    "dpm2": lambda n: kd.dpm2(kd.levels(NOISE, n)),
    "dpm2_karras": lambda n: kd.dpm2(kd.levels(NOISE, n, grid="karras")),
    "dpm2_sigmas_alone": lambda n: kd.dpm2(kd.levels(None, sigmas=kd.karras_sigmas(n, 0.03, 14.6))),
    "dpm2_churn": lambda n: kd.dpm2(
        kd.levels(NOISE, n).churned(s_churn=0.3 * n, s_tmax=10.0, s_noise=0.9)
    ),
    "dpm2_ends_above_0": lambda n: kd.dpm2(kd.levels(NOISE, n + 2).end_at(n)),
    "ancestral": lambda n: kd.dpm2_ancestral(kd.levels(NOISE, n)),
    "ancestral_half_eta": lambda n: kd.dpm2_ancestral(kd.levels(NOISE, n), eta=0.5, s_noise=0.9),
    "heun": lambda n: kd.heun(kd.levels(NOISE, n)),
    "2s_ancestral": lambda n: kd.dpmpp_2s_ancestral(kd.levels(NOISE, n)),
    "sde": lambda n: kd.dpmpp_sde(kd.levels(NOISE, n)),
    "lcm": lambda n: kd.lcm(kd.lcm_levels(NOISE, n)),
    "tcd": lambda n: kd.tcd(kd.lcm_levels(NOISE, n)),
    "inversion": lambda n: kd.dpm2(kd.levels(NOISE, n + 1).reversed()),
    "dpmpp_2m": lambda n: kd.dpmpp_2m(kd.levels(NOISE, n)),
    "dpmpp_2m_sde": lambda n: kd.dpmpp_2m(kd.levels(NOISE, n), eta=1.0, solver="heun"),
    "dpmpp_3m_sde": lambda n: kd.dpmpp_3m(kd.levels(NOISE, n, grid="karras"), eta=1.0),
    "unipc": lambda n: kd.unipc(kd.levels(NOISE, n, grid="karras")),
}


def draws(schedule: kd.Schedule) -> bool:
    """Whether a schedule needs a key: None as its noise column is "deterministic"."""
    return schedule.rows.noise_weight is not None


STOCHASTIC = [name for name, build in SAMPLERS.items() if draws(build(2))]
DETERMINISTIC = [name for name in SAMPLERS if name not in STOCHASTIC]


def columns_of(schedule: kd.Schedule) -> tuple[str, ...]:
    """The names of the columns that are not None; with the length, they decide the program."""
    return tuple(sorted(name for name, leaf in vars(schedule.rows).items() if leaf is not None))


COLUMNS = {name: columns_of(build(2)) for name, build in SAMPLERS.items()}
# One sampler for each set of columns, where to compile all of them would show nothing more.
ONE_OF_EACH = list({columns: name for name, columns in reversed(COLUMNS.items())}.values())


def widened(schedule: kd.Schedule) -> kd.Schedule:
    """The same numbers with every column of any sampler: one program for tables of one length."""
    wide = schedule.pad(schedule.num_rows, tuple(NEUTRAL))
    rows = dataclasses.replace(wide.rows, idle=None)
    return dataclasses.replace(schedule, rows=rows)


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
    assert rows.noise_weight is not None
    here = jnp.asarray(np.arange(schedule.num_rows) == k, rows.noise_weight.dtype)
    zero = jnp.zeros_like(here)
    weights = ("anchor_weight", "epsilon_weight", "denoised_weight_1", "denoised_weight_2")
    cleared = {name: zero for name in weights if getattr(rows, name) is not None}
    rows = dataclasses.replace(rows, denoised_weight=1 - here, noise_weight=here, **cleared)
    return dataclasses.replace(schedule, rows=rows)


def identity_denoise(params: Any, x: jax.Array, row: kd.Row, cond: Any = None) -> kd.Prediction:
    return kd.Prediction(x, jnp.zeros_like(x))


def run_by_hand(
    denoise: Any, params: Any, schedule: kd.Schedule, x: jax.Array | kd.State, key: Any = None
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
    denoised_1, denoised_2 = np.zeros_like(sample), np.zeros_like(sample)
    for row, z in zip(schedule, noise, strict=True):
        prediction = denoise(params, jnp.asarray(sample, schedule.sigmas.dtype), row)
        denoised = np.asarray(prediction.denoised, np.float64)
        terms = {
            "anchor_weight": anchor,
            "denoised_weight": denoised,
            "epsilon_weight": np.asarray(prediction.epsilon, np.float64),
            "noise_weight": np.asarray(z, np.float64),
            "denoised_weight_1": denoised_1,
            "denoised_weight_2": denoised_2,
        }
        weights = {name: getattr(row, name) for name in terms}
        present = [name for name in terms if weights[name] is not None]
        sample = np.sum([float(weights[name]) * terms[name] for name in present], axis=0)
        anchor = sample if row.advances is None or bool(row.advances) else anchor
        denoised_1, denoised_2 = denoised, denoised_1
    return sample


def keys_of_signs(z: Any) -> jax.Array:
    """The keys that the Flax adapter derives: the signs of the first 64 numbers of each sample."""
    packed = np.packbits(np.asarray(z).reshape(len(z), -1)[:, :64] < 0, axis=1)
    words = np.pad(packed, ((0, 0), (0, 8 - packed.shape[1]))).view(np.uint32)
    return jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32")


def relative_error(got: Any, expected: Any) -> float:
    """The largest difference, relative to the largest value."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    return float(np.max(np.abs(got - expected)) / np.max(np.abs(expected)))


def x64() -> AbstractContextManager[Any]:
    """float64 inside the context; JAX 0.6 has it under another name."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    return importlib.import_module("jax.experimental").enable_x64(True)
