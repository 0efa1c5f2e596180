"""What `kd.sample` makes of a run that a Flax pipeline makes with a scheduler of the adapter."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clients.tiny_checkpoint import PNDM
from samplers import keys_of_signs, relative_error

import kdiff_jax as kd
from kdiff_jax.adapters import diffusers as kd_diffusers

SCALE = 7.5  # of guidance
KARRAS = {"use_karras_sigmas": True}
LINSPACE, TRAILING = {"timestep_spacing": "linspace"}, {"timestep_spacing": "trailing"}
V = {"prediction_type": "v_prediction"}
# A scheduler, the keys that differ from those of the checkpoint, calls of the network.
Case = tuple[str, dict[str, Any], int]
DPM2: Case = ("FlaxKDPM2DiscreteScheduler", {}, 9)
CASES: list[Case] = [
    DPM2,
    ("FlaxKDPM2DiscreteScheduler", KARRAS, 10),
    ("FlaxKDPM2DiscreteScheduler", {**V, **LINSPACE}, 12),
    ("FlaxKDPM2AncestralDiscreteScheduler", {}, 10),
    ("FlaxKDPM2AncestralDiscreteScheduler", {**V, **TRAILING}, 9),
    ("FlaxLCMScheduler", {}, 4),
    ("FlaxTCDScheduler", V, 4),
    ("FlaxEulerDiscreteScheduler", LINSPACE, 6),
    ("FlaxEulerAncestralDiscreteScheduler", V, 6),
    ("FlaxHeunDiscreteScheduler", {}, 9),
    ("FlaxDDIMScheduler", {"clip_sample": False}, 6),
    ("FlaxDPMSolverMultistepScheduler", {}, 6),
    ("FlaxDPMSolverMultistepScheduler", {**KARRAS, "algorithm_type": "sde-dpmsolver++"}, 6),
    ("FlaxDPMSolverSinglestepScheduler", V, 6),
    ("FlaxUniPCMultistepScheduler", {}, 6),
]
FEW = [CASES[i] for i in (0, 1, 3, 5, 11)]
# Of a rectified flow; a UniPC config as the checkpoint of Wan 2.1 has it.
WAN = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
FLOW_CASES: list[Case] = [
    ("FlaxUniPCMultistepScheduler", WAN, 6),
    ("FlaxDPMSolverMultistepScheduler", WAN, 6),
    ("FlaxFlowMatchEulerDiscreteScheduler", {"shift": 3.0}, 6),
    ("FlaxFlowMatchHeunDiscreteScheduler", {"shift": 3.0}, 7),
    ("FlaxFlowMatchHeunDiscreteScheduler", {"shift": 3.0}, 8),
    ("FlaxFlowMatchLCMScheduler", {"shift": 3.0}, 4),
]


def skip_without(client: str, argument: str) -> None:
    """Skips a test file, before anything of it costs time."""
    if find_spec(client) is None:
        reason = f"{client} not installed; tests/clients/install_flax.sh {argument} installs it"
        pytest.skip(reason, allow_module_level=True)


def name_of(case: Case) -> str:
    return "-".join([case[0].removeprefix("Flax"), *map(str, case[1].values()), str(case[2])])


def config_of(case: Case) -> dict[str, Any]:
    """The config of the checkpoint with the keys of a case; a rectified flow has none of its."""
    flow = "FlowMatch" in case[0] or "use_flow_sigmas" in case[1]
    return {**({} if flow else PNDM), **case[1], "_class_name": case[0]}


def reference(
    case: Case,
    network: Callable[..., jax.Array],
    params: Any,
    z: jax.Array,
    cond: Any,
    uncond: Any,
    scale: float = SCALE,
    image: jax.Array | None = None,
    first_call: int = 0,
) -> np.ndarray:
    """The run of a case from unit noise z on; with an image DPM2, from its call first_call on.

    The timesteps of a pipeline are whole numbers, so the network is told whole ones here too.
    """

    def model_fn(params: Any, x: jax.Array, timestep: jax.Array, cond: Any) -> jax.Array:
        return network(params, x, jnp.round(timestep).astype(jnp.int32), cond)

    sampler = kd_diffusers.from_config(config_of(case))
    two_rows = "KDPM2" in case[0] or "Heun" in case[0]
    schedule = sampler.schedule((case[2] + 1) // 2 if two_rows else case[2])
    if image is None:
        x = z * schedule.init_noise_sigma
    else:
        schedule = kd.dpm2(sampler.levels(schedule.num_steps).start_at(first_call // 2))
        x = image + z * schedule.rows.sigma[0]
    denoise = kd.guided(sampler.denoiser(model_fn), scale, uncond)
    return np.asarray(kd.sample(denoise, params, schedule, x, keys_of_signs(z), cond))


def check(client: str, case: Case, got: Any, expected: np.ndarray) -> None:
    """At most 1e-5 of the largest number of the sample; `pytest -s` shows how far it is."""
    difference = relative_error(got, expected)
    largest = np.max(np.abs(expected))
    print(f"{client} {name_of(case)}: {difference:.1e}, largest number {largest:.1f}")
    assert difference <= 1e-5
