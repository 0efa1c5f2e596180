"""Torch pipelines of diffusers, unmodified, against `kd.sample` on the same weights.

`bash tests/clients/install_torch.sh FOLDER` makes an environment for it; elsewhere it skips.
"""

from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clients import torch_pipelines  # skips where torch, diffusers or torchax is absent
from samplers import relative_error

import kdiff_jax as kd
from kdiff_jax.adapters import diffusers as kd_diffusers

diffusers, torch = torch_pipelines.diffusers, torch_pipelines.torch
SD: dict[str, Any] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
V, KARRAS = {"prediction_type": "v_prediction"}, {"use_karras_sigmas": True}
LINSPACE, TRAILING = {"timestep_spacing": "linspace"}, {"timestep_spacing": "trailing"}
EXPONENTIAL, BETA = {"use_exponential_sigmas": True}, {"use_beta_sigmas": True}
ZERO_SNR = {**V, **TRAILING, "rescale_betas_zero_snr": True}
NO_CLIP: dict[str, Any] = {"clip_sample": False, "set_alpha_to_one": False}
SDE = {"algorithm_type": "sde-dpmsolver++"}
DYNAMIC = {"use_dynamic_shifting": True}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
KDPM2, KDPM2A = "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"
EULER, EULERA = "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"
HEUN, DDIM, UNIPC = "HeunDiscreteScheduler", "DDIMScheduler", "UniPCMultistepScheduler"
MULTI, SINGLE = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
LCM, TCD = "LCMScheduler", "TCDScheduler"
FM_EULER, FM_HEUN = "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"
FM_LCM = "FlowMatchLCMScheduler"
# model, scheduler, its config, steps, other arguments of the pipeline
CASES: list[tuple[str, str, dict[str, Any], int, dict[str, Any]]] = [
    ("sd", KDPM2, SD, 10, {}),
    ("sd", KDPM2, {**SD, **KARRAS}, 7, {}),
    ("sd", KDPM2, {**SD, **TRAILING}, 12, {}),
    ("sd", KDPM2, {**SD, **LINSPACE, **V}, 6, {}),
    ("sd", KDPM2, {**SD, **EXPONENTIAL}, 8, {}),
    ("sd", KDPM2, {**SD, **BETA}, 8, {}),
    ("sd", KDPM2A, SD, 10, {}),
    ("sd", KDPM2A, {**SD, **KARRAS, **V}, 6, {}),
    ("sd", EULER, SD, 10, {}),
    ("sd", EULER, {**SD, **KARRAS}, 25, {}),
    ("sd", EULER, {**SD, **LINSPACE, **V}, 5, {}),
    ("sd", EULER, {**SD, **EXPONENTIAL}, 9, {}),
    ("sd", EULER, {**SD, **ZERO_SNR}, 8, {}),
    ("sd", EULERA, SD, 10, {}),
    ("sd", EULERA, {**SD, **LINSPACE, **V}, 20, {}),
    ("sd", HEUN, SD, 8, {}),
    ("sd", HEUN, {**SD, **KARRAS}, 5, {}),
    ("sd", DDIM, {**SD, **NO_CLIP}, 10, {}),
    ("sd", DDIM, {**SD, **NO_CLIP}, 10, {"eta": 1.0}),
    ("sd", DDIM, {**SD, **ZERO_SNR, "clip_sample": False}, 5, {"eta": 0.5}),
    ("sd", DDIM, SD, 7, {}),
    ("sd", MULTI, {**SD, "solver_order": 1}, 8, {}),
    ("sd", MULTI, {**SD, **KARRAS}, 20, {}),
    ("sd", MULTI, {**SD, "solver_order": 3}, 10, {}),
    ("sd", MULTI, {**SD, "solver_type": "heun", "final_sigmas_type": "sigma_min"}, 9, {}),
    ("sd", MULTI, {**SD, **LINSPACE, **V, "use_lu_lambdas": True}, 16, {}),
    ("sd", MULTI, {**SD, **SDE, "solver_order": 1}, 8, {}),
    ("sd", MULTI, {**SD, **SDE, **KARRAS}, 12, {}),
    ("sd", SINGLE, {**SD, "solver_order": 1}, 6, {}),
    ("sd", SINGLE, {**SD, **KARRAS}, 9, {}),
    ("sd", UNIPC, SD, 10, {}),
    ("sd", UNIPC, {**SD, **KARRAS}, 6, {}),
    ("sd", LCM, {**SD, "original_inference_steps": 50}, 4, {}),
    ("sd", TCD, {**SD, **NO_CLIP}, 4, {"eta": 0.3}),
    ("sd", TCD, {**SD, **NO_CLIP, **V}, 8, {"eta": 1.0}),
    ("sdxl", EULER, SD, 10, {}),
    ("sdxl", EULERA, SD, 10, {}),
    ("sdxl", KDPM2, {**SD, **KARRAS}, 10, {}),
    ("sdxl", KDPM2A, SD, 8, {}),
    ("sdxl", HEUN, {**SD, **V}, 6, {}),
    ("sdxl", DDIM, {**SD, **NO_CLIP}, 8, {"eta": 1.0}),
    ("sdxl", MULTI, {**SD, **KARRAS}, 12, {}),
    ("sdxl", MULTI, {**SD, **SDE, **KARRAS}, 8, {}),
    ("sdxl", SINGLE, {**SD, "solver_type": "heun"}, 8, {}),
    ("sdxl", UNIPC, {**SD, **TRAILING}, 8, {}),
    ("sdxl", TCD, {**SD, **NO_CLIP}, 4, {"eta": 0.0}),
    ("lcm", LCM, SD, 1, {}),
    ("lcm", LCM, SD, 2, {}),
    ("lcm", LCM, SD, 4, {}),
    ("lcm", LCM, {**SD, **V}, 8, {}),
    ("lcm", LCM, SD, 6, {"original_inference_steps": 100}),
    ("flux", FM_EULER, {**DYNAMIC, "shift": 3.0}, 4, {}),
    ("flux", FM_EULER, {**DYNAMIC, "shift_terminal": 0.1}, 28, {}),
    ("flux", FM_EULER, {"shift": 3.0, **KARRAS}, 6, {}),
    ("flux", FM_EULER, {**DYNAMIC, "stochastic_sampling": True}, 6, {}),
    ("flux", FM_LCM, DYNAMIC, 4, {}),
    ("flux", MULTI, {**FLOW, **DYNAMIC}, 10, {}),
    ("flux", UNIPC, {**FLOW, **DYNAMIC}, 8, {}),
    ("flux cfg", FM_EULER, {**DYNAMIC, "shift": 3.0}, 8, {}),
    ("wan", UNIPC, {**FLOW, "flow_shift": 3.0}, 10, {}),
    ("wan", UNIPC, {**FLOW, "flow_shift": 5.0}, 25, {}),
    ("wan", FM_EULER, {"shift": 5.0}, 10, {}),
    ("wan", FM_HEUN, {"shift": 3.0}, 6, {}),
    ("wan", FM_LCM, {"shift": 5.0}, 4, {}),
    ("wan", MULTI, {**FLOW, "flow_shift": 5.0, "solver_order": 3}, 12, {}),
    ("wan", MULTI, {**FLOW, **SDE, "flow_shift": 3.0}, 8, {}),
    ("wan", SINGLE, {**FLOW, "flow_shift": 3.0}, 8, {}),
]
# The largest difference in shares of the largest latent.
BOUND = 1e-5
# Euler from sigma = 4096: its first step is 1.3e-5 from that in float64, ours 1.4e-7.
ZERO_SNR_EULER = 3e-5


def scheduler_of(name: str, config: dict[str, Any]) -> Any:
    """As a pipeline has it whose scheduler was exchanged: from the config of another."""
    kind = getattr(diffusers, name)
    return kind.from_config({"_class_name": "PNDMScheduler", **config})


def torch_run(case: Any, latents: np.ndarray) -> tuple[Any, np.ndarray, list[np.ndarray]]:
    """The scheduler, the latents that the pipeline returns, and the noise that was drawn."""
    model, name, config, steps, arguments = case
    scheduler = scheduler_of(name, config)
    module, drawn = import_module(type(scheduler).__module__), []
    with pytest.MonkeyPatch.context() as patch:
        if draw := getattr(module, "randn_tensor", None):

            def recorded(*args: Any, **kwargs: Any) -> Any:
                drawn.append(draw(*args, **kwargs))
                return drawn[-1]

            patch.setattr(module, "randn_tensor", recorded)
        ran = torch_pipelines.client(model).torch_run(
            scheduler,
            latents=latents,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(0),
            **arguments,
        )
    return scheduler, ran, [noise.numpy() for noise in drawn]


def table_of(case: Any, sampler: kd_diffusers.DiffusersSampler) -> tuple[kd.Schedule, float]:
    """The table, and what its last sample is divided by to be that of the pipeline."""
    model, name, config, steps, arguments = case
    call: dict[str, Any] = {"num_inference_steps": steps}
    if "flux" in model:
        if sampler.flow_class:
            call["sigmas"] = np.linspace(1, 1 / steps, steps)
        if config.get("use_dynamic_shifting"):
            call["mu"] = 0.5 + (16 - 256) * (1.15 - 0.5) / (4096 - 256)
    if "original_inference_steps" in arguments:
        call["original_inference_steps"] = arguments["original_inference_steps"]
    levels = sampler.levels(**call)
    if name in (DDIM, TCD):
        eta = arguments.get("eta", 0.0)
        schedule = kd.euler(levels, eta) if name == DDIM else kd.tcd(levels, eta)
    else:
        schedule = sampler.schedule(**call)
    unit_variance = name in (DDIM, MULTI, SINGLE, UNIPC) and not sampler.flow
    return schedule, float(np.hypot(1, levels.sigmas[-1])) if unit_variance else 1.0


def our_run(
    case: Any, config: Any, latents: np.ndarray, drawn: list[np.ndarray]
) -> tuple[kd.Schedule, np.ndarray]:
    """The table, and the latents of `kd.sample`."""
    model = torch_pipelines.client(case[0])
    sampler = kd_diffusers.from_config(config)
    schedule, scale = table_of(case, sampler)
    params, model_fn = model.jax_network
    denoise = sampler.denoiser(model_fn)
    if model.uncond is not None:
        denoise = kd.guided(denoise, torch_pipelines.SCALE, model.uncond)
    x = schedule.init_noise_sigma * latents
    noise_fn = kd.given_noise(jnp.asarray(np.stack(drawn))) if drawn else None
    # The key is not used: with given noise, and in a table whose weights of noise are 0.
    key = jax.random.key(0)
    ran = kd.sample(denoise, params, schedule, x, key, model.cond, noise_fn=noise_fn)
    return schedule, np.asarray(ran) / scale


def name_of(case: Any) -> str:
    model, name, config, steps, arguments = case
    keys = {k: v for k, v in config.items() if SD.get(k) != v} | arguments
    values = "-".join(f"{k}={v}" for k, v in keys.items())
    return f"{model}-{name.removesuffix('Scheduler')}-{steps}-{values}".replace(" ", "_")


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_pipeline_is_kd_sample_on_the_same_weights(case: Any, record_property: Any) -> None:
    latents = torch_pipelines.normal(*torch_pipelines.client(case[0]).shape, seed=5)
    scheduler, expected, drawn = torch_run(case, latents)
    schedule, ran = our_run(case, scheduler.config, latents, drawn)
    error = relative_error(ran, expected)
    record_property("error", error)
    print(f"{name_of(case)}: {error:.2g}")
    weights = schedule.rows.noise_weight
    assert bool(drawn) == (weights is not None and bool(np.any(weights)))
    assert np.all(np.isfinite(expected))
    from_4096 = case[1] == EULER and case[2].get("rescale_betas_zero_snr")
    assert error < (ZERO_SNR_EULER if from_4096 else BOUND)
