"""Configs of Euler, ancestral Euler and DDIM: diffusers' own levels and steps, recorded."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from samplers import relative_error

import kdiff_jax as kd
from kdiff_jax.adapters import diffusers as kd_diffusers
from kdiff_jax.adapters.diffusers.keys import ClassName, SamplerName
from kdiff_jax.adapters.diffusers.levels import GRID_FLAGS

RECORDED = dict(np.load(Path(__file__).parents[1] / "golden" / "euler.npz"))
CASES = json.loads(str(RECORDED.pop("about")))["cases"]
NAMES: dict[ClassName, SamplerName] = {
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "DDIMScheduler": "ddim",
}


def network(params: Any, x: jax.Array, timestep: jax.Array) -> jax.Array:
    return params


def sampler_of(case: dict[str, Any]) -> kd_diffusers.DiffusersSampler:
    return kd_diffusers.from_config({"_class_name": case["class"], **case["config"]})


def test_levels_and_timesteps_are_those_of_set_timesteps() -> None:
    for number, case in enumerate(CASES):
        sampler = sampler_of(case)
        assert sampler.name == NAMES[case["class"]]
        levels = sampler.levels(case["steps"])
        timesteps = RECORDED[f"{number}/timesteps"]
        if case["class"] == "DDIMScheduler":
            np.testing.assert_array_equal(
                levels.timesteps, timesteps[: levels.num_steps], str(case)
            )
            assert isinstance(sampler.noise, kd.NoiseSchedule)
            last = 0.0 if sampler.config["set_alpha_to_one"] else sampler.noise.sigmas[0]
            np.testing.assert_allclose(levels.sigmas[-1], last, rtol=1e-12)
            np.testing.assert_allclose(levels.init_noise_sigma**2, levels.sigmas[0] ** 2 + 1)
            continue
        # Some grids have a timestep from the logarithm of a level: 1e-5 of T in their float32.
        np.testing.assert_allclose(
            levels.timesteps, timesteps, rtol=0, atol=1e-2, err_msg=str(case)
        )
        ours = levels.sigmas[:-1]
        apart = np.abs(RECORDED[f"{number}/sigmas"][:-1] / ours - 1)
        # diffusers takes 1 - abar from an abar in float32, which errs by 1e-7 in 1 - abar; a grid
        # carries what its lowest level errs by to all of them.
        from_ends = any(case["config"].get(flag) for flag in GRID_FLAGS)
        assert np.all(apart < 1e-5 + 2e-7 / (ours.min() if from_ends else ours) ** 2), case
        scale = RECORDED[f"{number}/init_noise_sigma"]
        np.testing.assert_allclose(levels.init_noise_sigma, scale, rtol=1e-5)


def table_of(case: dict[str, Any], levels: kd.Levels) -> kd.Schedule:
    return (
        kd.euler(levels, eta=case["eta"])
        if case["eta"]
        else sampler_of(case).schedule(case["steps"])
    )


def test_steps_are_those_of_diffusers() -> None:
    ran: dict[str, int] = {}
    for number, case in enumerate(CASES):
        if not case["run"]:
            continue
        sampler, vp = sampler_of(case), case["class"] == "DDIMScheduler"
        initial, noise, outputs, samples = (
            RECORDED[f"{number}/{key}"] for key in ("initial", "noise", "outputs", "samples")
        )
        levels = sampler.levels(case["steps"])
        schedule, denoise = table_of(case, levels), sampler.denoiser(network)
        state = kd.init(schedule, np.float32(schedule.init_noise_sigma) * initial)
        for index, row in enumerate(schedule):
            prediction = denoise(outputs[index], state.sample, row)
            state = kd.step(state, row, prediction, noise=noise[index])
            # DDIM keeps the sample of unit variance: alpha times ours.
            alpha = 1 / np.sqrt(1 + levels.sigmas[index + 1] ** 2) if vp else 1
            error = relative_error(alpha * np.asarray(state.sample), samples[index])
            # v at sigma = 4096 cancels in their float32.
            assert error < (3e-4 if levels.sigmas[0] > 4000 else 3e-6), (error, index, case)
        ran[case["class"]] = ran.get(case["class"], 0) + 1
    assert min(ran.values()) >= 6, ran


def test_ddim_that_ends_at_timestep_0_has_no_step_from_there_to_there() -> None:
    config = {"_class_name": "DDIMScheduler", "set_alpha_to_one": False}
    levels = kd_diffusers.from_config(config, clip_sample=False).levels(4)
    assert levels.timesteps.tolist() == [750, 500, 250]
    noise = kd.noise_schedule("linear", beta_start=1e-4, beta_end=0.02)
    np.testing.assert_allclose(levels.sigmas, noise.sigmas[[750, 500, 250, 0]], rtol=1e-12)
    sampler = kd_diffusers.from_config(config)
    with pytest.raises(ValueError, match=r"set_alpha_to_one = false.*only clips; pass"):
        sampler.levels(4)
    assert kd_diffusers.from_config(config, steps_offset=1).levels(4).num_steps == 4
    with pytest.raises(ValueError, match="num_inference_steps = 1500 is more than the 1000 whole"):
        kd_diffusers.from_config(config, timestep_spacing="linspace").levels(1500)


def test_ddim_with_zero_terminal_snr_begins_where_alpha_is_0() -> None:
    keys = {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "clip_sample": False}
    config = {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, **keys}
    sampler = kd_diffusers.from_config(config)
    schedule, sigma = sampler.schedule(5), np.float32(sampler.levels(5).sigmas[1])
    x, v = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
    state = kd.init(schedule, schedule.init_noise_sigma * x)
    prediction = sampler.denoiser(network)(v, state.sample, schedule[0])
    # x0 is -v and epsilon the sample, of unit variance there; after the step it is over alpha.
    state = kd.step(state, schedule[0], prediction)
    assert relative_error(state.sample, sigma * x - v) < 3e-5


def test_a_sampler_is_named_by_its_class_too() -> None:
    config = {"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear"}
    for class_name, name in NAMES.items():
        assert kd_diffusers.from_config(config, class_name) == kd_diffusers.from_config(
            config, name
        )
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    assert kd_diffusers.from_config(flow).name == "euler"
    assert kd_diffusers.from_config(flow, stochastic_sampling=True).name == "lcm"
    assert kd_diffusers.from_config({**flow, "stochastic_sampling": True}, "dpm2").name == "dpm2"
    with pytest.raises(ValueError, match="stochastic_sampling given"):
        kd_diffusers.from_config(flow, "dpm2", stochastic_sampling=True)
    with pytest.raises(ValueError, match="stochastic_sampling = 'no' is no truth value"):
        kd_diffusers.from_config({**flow, "stochastic_sampling": "no"})
