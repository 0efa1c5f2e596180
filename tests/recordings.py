"""What `tests/golden/generate.py` recorded of diffusers, and the fixed network that it sampled."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]

RECORDINGS = Path(__file__).parent / "golden" / "recordings.npz"
KDPM2 = "KDPM2DiscreteScheduler"
ANCESTRAL = "KDPM2AncestralDiscreteScheduler"
LCM = "LCMScheduler"


# --- the network of the recordings -----------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Network:
    """A fixed smooth network that mixes the elements of a sample: see `network`.

    Every number is a float32 value, so that all precisions evaluate the same function.
    """

    weight: Array  # [n, n], n the number of elements of one sample
    bias: Array  # [n]
    linear: float
    linear_slope: float
    gain: float
    gain_slope: float
    frequency: float
    phase: float
    num_train_timesteps: int


def network(net: Network, x: Array, timestep: float) -> Array:
    """`(linear + linear_slope e^2) x + (gain + gain_slope e) tanh(x W + bias cos(w t + phase))`.

    `e = 1 - (t + 1) / T` is 0 at the noisiest training timestep, so that an epsilon network with
    `linear = 1` and `gain = 0` outputs almost its input there, as a trained one does.
    """
    flat = x.reshape(x.shape[0], -1)
    early = 1 - (timestep + 1) / net.num_train_timesteps
    wave = math.cos(net.frequency * timestep + net.phase)
    hidden = np.tanh(flat @ net.weight.astype(np.float64) + wave * net.bias.astype(np.float64))
    linear = net.linear + net.linear_slope * early**2
    gain = net.gain + net.gain_slope * early
    return (linear * flat + gain * hidden).reshape(x.shape)


# --- the recordings --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """One run of a diffusers scheduler.

    A table has R rows, one for each evaluation of the network from the noisiest level on: 2N - 1
    for the two DPM2 schedulers, N for LCM. `call["begin_index"]` counts outer steps, so a run has
    `E = R - first_row` evaluations.
    """

    name: str  # "dpm2/000", "dpm2_ancestral/000", "lcm/000"
    config: dict[str, Any]  # what diffusers writes to scheduler_config.json
    # num_inference_steps, timesteps, original_inference_steps, strength: None where not passed;
    # begin_index: in outer steps, 0 unless the run starts in the middle.
    call: dict[str, Any]
    network: Network
    initial: Array  # [B, ...] float32, already at the noise level of the first row
    # [B, ...] float32: for image-to-image, what diffusers' add_noise was given (its result is
    # `initial`). Otherwise None.
    clean: Array | None
    clean_noise: Array | None
    noise_rows: tuple[int, ...]  # the rows (of the whole table) that draw noise, in order
    noise: Array  # [len(noise_rows), B, ...] float32
    timesteps: Array  # [R] float64, exactly as diffusers has them, whole table
    sigmas: Array  # [N + 1] float32, the closing 0 included; empty for LCM
    init_noise_sigma: float
    samples: Array  # [E, B, ...] float32: diffusers' sample after every evaluation

    @property
    def first_row(self) -> int:
        """The first row that the run evaluates."""
        begin: int = self.call["begin_index"]
        return begin if self.config["_class_name"] == LCM else 2 * begin


def load_cases(path: Path = RECORDINGS) -> list[Case]:
    """Every recorded case, in a fixed order."""
    with np.load(path) as stored:
        header = json.loads(stored["header"].tobytes())
        floats, doubles = stored["float32"], stored["float64"]
        weights = {n: (stored[f"weight_{n}"], stored[f"bias_{n}"]) for n in header["network_sizes"]}

    taken = {"float32": 0, "float64": 0}

    def take(pool: str, shape: Sequence[int]) -> Array:
        start, stop = taken[pool], taken[pool] + math.prod(shape)
        taken[pool] = stop
        values: Array = {"float32": floats, "float64": doubles}[pool][start:stop]
        return values.reshape(shape)

    cases = []
    for record in header["cases"]:
        shape = record["shape"]
        weight, bias = weights[math.prod(shape[1:])]
        cases.append(
            Case(
                name=record["name"],
                config=record["config"],
                call=record["call"],
                network=Network(weight, bias, **record["network"]),
                initial=take("float32", shape),
                clean=take("float32", shape) if record["from_clean"] else None,
                clean_noise=take("float32", shape) if record["from_clean"] else None,
                noise_rows=tuple(record["noise_rows"]),
                noise=take("float32", [len(record["noise_rows"]), *shape]),
                timesteps=take("float64", [record["num_rows"]]),
                sigmas=take("float32", [record["num_sigmas"]]),
                init_noise_sigma=record["init_noise_sigma"],
                samples=take("float32", [record["num_evaluations"], *shape]),
            )
        )
    return cases


def load_versions(path: Path = RECORDINGS) -> dict[str, str]:
    """The versions of the packages that made the recordings."""
    with np.load(path) as stored:
        versions: dict[str, str] = json.loads(stored["header"].tobytes())["versions"]
        return versions


def relative_error(samples: ArrayLike, truth: Array) -> float:
    """The worst over all evaluations of max |sample - truth| / max |truth|. NaN if any is NaN."""
    difference = np.abs(np.asarray(samples, np.float64) - truth).reshape(len(truth), -1).max(axis=1)
    return float((difference / np.abs(truth).reshape(len(truth), -1).max(axis=1)).max())
