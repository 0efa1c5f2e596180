"""Flow-matching configs: the levels and the steps of diffusers' own schedulers, recorded."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from samplers import relative_error

import kdiff_jax as kd
from kdiff_jax.adapters import diffusers as kd_diffusers
from kdiff_jax.adapters.diffusers.keys import SamplerName

RECORDED = dict(np.load(Path(__file__).parents[1] / "golden" / "flow.npz"))
CASES = json.loads(str(RECORDED.pop("about")))["cases"]
CLASSES = {
    "euler": "FlowMatchEulerDiscreteScheduler",
    "lcm": "FlowMatchLCMScheduler",
    "heun": "FlowMatchHeunDiscreteScheduler",
}
SAMPLERS: list[SamplerName] = ["euler", "dpm2", "dpm2_ancestral", "lcm"]
# The published files: FLUX.1 schnell's and dev's, Stable Diffusion 3's.
FLUX = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": "0.31.0.dev0",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": False,
}
FLUX_DEV = {**FLUX, "shift": 3.0, "use_dynamic_shifting": True}
SD3 = {"_class_name": CLASSES["euler"], "num_train_timesteps": 1000, "shift": 3.0}


def sampler_of(
    case: dict[str, Any], name: SamplerName | None = None
) -> kd_diffusers.DiffusersSampler:
    class_name = CLASSES[case["scheduler"]]
    return kd_diffusers.from_config({"_class_name": class_name, **case["config"]}, sampler=name)


def network(params: Any, x: jax.Array, timestep: jax.Array) -> jax.Array:
    return params


# --- the recordings --------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
def test_levels_and_timesteps_are_those_of_set_timesteps(name: SamplerName) -> None:
    for number, case in enumerate(CASES):
        sampler = sampler_of(case, name)
        levels, schedule = sampler.levels(**case["call"]), sampler.schedule(**case["call"])
        sigmas, timesteps = RECORDED[f"{number}/sigmas"], RECORDED[f"{number}/timesteps"]
        if case["scheduler"] == "heun":  # it lists both halves of each step
            sigmas = np.concatenate([sigmas[:-1:2], sigmas[-1:]])
            timesteps = timesteps[::2] if len(timesteps) % 2 else timesteps
        rows = jax.tree.map(np.asarray, schedule.rows)
        ours = rows.timestep[np.diff(rows.step, prepend=-1) > 0]
        np.testing.assert_allclose(schedule.sigmas, sigmas, rtol=1e-6, err_msg=str(case))
        np.testing.assert_allclose(ours, timesteps, rtol=1e-6, err_msg=str(case))
        np.testing.assert_allclose(levels.sigmas, sigmas, rtol=1e-6, err_msg=str(case))
        np.testing.assert_allclose(levels.timesteps, timesteps, rtol=1e-6, err_msg=str(case))


def test_steps_are_those_of_the_euler_and_the_lcm_scheduler() -> None:
    denoise, ran = kd.denoiser(network, "flow_prediction"), set()
    for number, case in enumerate(CASES):
        if case["steps"] is None:
            continue
        initial, noise, outputs, samples = (
            RECORDED[f"{number}/{key}"] for key in ("initial", "noise", "outputs", "samples")
        )
        sampler = sampler_of(case)  # by its class alone
        assert sampler.name == case["scheduler"]
        schedule = sampler.schedule(**case["call"])
        state = kd.init(schedule, initial)
        for row, out, z, expected in zip(schedule, outputs, noise, samples, strict=True):
            state = kd.step(state, row, denoise(out, state.sample, row), noise=z)
            assert relative_error(state.sample, expected) < 2e-6, case
        ran.add((case["scheduler"], case["steps"]))
    assert len(ran) >= 8


# --- published configs -----------------------------------------------------------------------


@pytest.mark.parametrize("config", [FLUX, SD3], ids=["flux", "sd3"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_published_configs_become_any_sampler(name: SamplerName, config: dict) -> None:
    sampler = kd_diffusers.from_config(config, sampler=name)
    flow = kd.flow_schedule(config["shift"])
    expected = getattr(kd, name)(kd.levels(flow, 4))
    assert sampler.schedule(4).flow
    for got, leaf in zip(
        jax.tree.leaves(sampler.schedule(4)), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(got, leaf, rtol=1e-6, atol=1e-7)
    assert sampler.denoiser(network) == kd.denoiser(network, "flow_prediction")
    assert sampler.noise == flow


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_dynamic_shift_follows_the_tokens_of_the_image(name: SamplerName) -> None:
    sampler = kd_diffusers.from_config(FLUX_DEV, sampler=name)
    assert sampler.noise == kd.flow_schedule()  # unshifted
    # 0.5 at 256 tokens and 1.15 at 4096: the line of the pipelines.
    for tokens, mu in ((256, 0.5), (4096, 1.15), (1024, 0.5 + 0.65 * 768 / 3840)):
        by_size, by_mu = sampler.schedule(5, image_seq_len=tokens), sampler.schedule(5, mu=mu)
        np.testing.assert_allclose(by_size.sigmas, by_mu.sigmas, rtol=1e-6)
        t = np.linspace(1, 1 / 5, 5)
        expected = np.exp(mu) / (np.exp(mu) + 1 / t - 1)
        given = sampler.schedule(sigmas=t, mu=mu)
        np.testing.assert_allclose(given.sigmas[:-1], expected, rtol=1e-6)


@pytest.mark.parametrize("shift", [0.05472, 0.1, 0.47])
def test_a_shift_below_1_begins_at_1(shift: float) -> None:
    # 1 + (shift - 1) is not the shift in floats.
    sampler = kd_diffusers.from_config({**SD3, "shift": shift}, sampler="dpm2")
    t = 1 - np.arange(4) / 4
    found = sampler.levels(sigmas=t).sigmas
    assert found[0] == 1
    np.testing.assert_allclose(found[:-1], shift / (shift + 1 / t - 1), rtol=1e-14)
    grid = kd_diffusers.from_config({**SD3, "shift": shift}, "dpm2", use_karras_sigmas=True)
    np.testing.assert_allclose(grid.levels(4).sigmas[0], 1, rtol=1e-14)


def test_a_traced_mu_has_the_gradient_of_the_shift() -> None:
    sampler = kd_diffusers.from_config(FLUX_DEV, sampler="dpm2")

    def second_level(mu: Any) -> jax.Array:
        return sampler.schedule(4, mu=mu).sigmas[1]

    got = jax.jit(jax.grad(second_level))(0.7)
    by_hand = (second_level(0.701) - second_level(0.699)) / 0.002
    np.testing.assert_allclose(got, by_hand, rtol=1e-3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_flow_configs_round_trip_through_json(name: SamplerName) -> None:
    for keys in ({}, {"shift_terminal": 0.1, "use_beta_sigmas": True}, FLUX_DEV):
        config = {**SD3, **keys}
        sampler = kd_diffusers.from_config(config, sampler=name)
        written = json.loads(json.dumps(sampler.to_config()))
        assert kd_diffusers.from_config(written) == sampler
        assert {key: written[key] for key in config if key in written} | {
            "_class_name": CLASSES["euler"]
        } == {key: config[key] for key in config if key in written}
    other = kd_diffusers.from_config({**SD3, "shift": 2.0}, sampler=name)
    assert other != kd_diffusers.from_config(SD3, sampler=name)


def test_three_classes_name_their_sampler() -> None:
    for name, class_name in CLASSES.items():
        assert kd_diffusers.from_config({"_class_name": class_name}).name == name
        classes: Any = class_name
        assert kd_diffusers.from_config(SD3, classes).name == name
        # `scheduler.config` of a scheduler that was constructed says no class.
        unnamed = {key: value for key, value in SD3.items() if key != "_class_name"}
        named = kd_diffusers.from_config({**SD3, "_class_name": class_name})
        assert kd_diffusers.from_config(unnamed, classes) == named
    unnamed["stochastic_sampling"] = True
    assert kd_diffusers.from_config(unnamed, "FlowMatchEulerDiscreteScheduler").name == "lcm"


REFUSED: list[tuple[dict, str]] = [
    ({"invert_sigmas": True}, "invert_sigmas = True"),
    ({"_class_name": CLASSES["lcm"], "scale_factors": [1.0, 2.0]}, "scale_factors"),
    ({"shift": -1.0}, "shift = -1.0"),
    ({"shift_terminal": 1.5}, "shift_terminal = 1.5"),
    ({"time_shift_type": "cubic"}, "time_shift_type = 'cubic'"),
    ({"num_train_timesteps": 0}, "num_train_timesteps = 0"),
    ({"use_dynamic_shifting": 1}, "use_dynamic_shifting = 1"),
    ({"base_image_seq_len": 2.5}, "base_image_seq_len = 2.5"),
    ({"use_karras_sigmas": True, "use_beta_sigmas": True}, "both true"),
    ({"_class_name": "FlowMatchOfTomorrowScheduler"}, "flow matching"),
]


@pytest.mark.parametrize(("keys", "message"), REFUSED, ids=str)
def test_flow_keys_that_cannot_be_honoured_are_refused_by_name(keys: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kd_diffusers.from_config({**SD3, **keys}, sampler="dpm2")


CALLS: list[tuple[dict, dict, str]] = [
    (SD3, {"num_inference_steps": 4, "mu": 1.0}, "mu given.*use_dynamic_shifting = false"),
    (SD3, {"num_inference_steps": 4, "image_seq_len": 9}, "image_seq_len given"),
    (SD3, {}, "num_inference_steps is missing"),
    (SD3, {"num_inference_steps": 3, "sigmas": [1.0, 0.5]}, "holds 2"),
    (SD3, {"sigmas": [1.0, 1.5]}, "no grid"),
    (SD3, {"num_inference_steps": 4, "strength": 0.5}, "strength given to a flow-matching"),
    (SD3, {"timesteps": [900, 100]}, "timesteps given to a flow-matching"),
    (FLUX_DEV, {"num_inference_steps": 4}, "no shift was given"),
    (FLUX_DEV, {"num_inference_steps": 4, "mu": 1.0, "image_seq_len": 9}, "exactly one"),
]


@pytest.mark.parametrize(("config", "call", "message"), CALLS, ids=str)
def test_calls_that_do_not_fit_the_config_are_refused(
    config: dict, call: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kd_diffusers.from_config(config, sampler="dpm2").schedule(**call)


def test_arguments_of_a_flow_are_refused_elsewhere() -> None:
    sampler = kd_diffusers.from_config({"_class_name": "KDPM2DiscreteScheduler"})
    with pytest.raises(ValueError, match="mu given to a sampler with a beta schedule"):
        sampler.schedule(4, mu=1.0)
