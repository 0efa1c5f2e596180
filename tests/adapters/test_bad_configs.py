"""Configs of diffusers that are refused, and that the message shows what was received."""

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import Refusal, check, every

import kdiff_jax as kd
from kdiff_jax.adapters import diffusers as kd_diffusers
from kdiff_jax.adapters.diffusers.keys import (
    FLOW_CLASSES,
    FLOW_KEYS,
    FLOW_REQUIRED,
    METHODS,
)


def config(name: str = "KDPM2Discrete", sampler: Any = None, **keys: Any) -> Any:
    return kd_diffusers.from_config({"_class_name": f"{name}Scheduler", **keys}, sampler)


REFUSED: list[Refusal] = [
    (lambda: config("PNDM"), "_class_name = 'PNDMScheduler'.*sampler='dpm2'"),
    (lambda: config(sampler="ddpm"), "sampler = 'ddpm'.*'dpm2_ancestral'"),
    (lambda: kd_diffusers.from_config({}), "_class_name = None.*sampler="),
    (
        lambda: config(use_karras_sigmas=True, use_beta_sigmas=True),
        "use_karras_sigmas and use_beta_sigmas.*keep one",
    ),
    (
        lambda: config("LCM", rescale_betas_zero_snr=True),
        "prediction_type='epsilon'.*rescale_betas_zero_snr=true",
    ),
    (
        lambda: config(rescale_betas_zero_snr=True),
        "prediction_type='epsilon'.*rescale_betas_zero_snr=true",
    ),
    (lambda: config(rescale_betas_zero_snr="no"), "rescale_betas_zero_snr = 'no'.*truth value"),
    (lambda: config("LCM", thresholding=True, sample_max_value=0.5), "sample_max_value = 0.5"),
    (lambda: config("LCM").schedule(), "num_inference_steps = None and timesteps = None"),
    (lambda: config().schedule(5, strength=0.5), "strength given to a dpm2 sampler.*start_at"),
    (lambda: config().schedule(timesteps=[5]), "timesteps given to a dpm2 sampler"),
    (lambda: config().schedule(2.5), "num_inference_steps = 2.5"),
    (lambda: config("LCM").levels(4, original_inference_steps=[50]), r"original_.*steps = \[50\]"),
    (lambda: config("LCM", original_inference_steps=0), "original_inference_steps = 0"),
    (lambda: config("FlaxEDMEuler", "dpm2"), "EDM.*not supported"),
    (lambda: config("FlaxRectifiedFlowMultistep", "dpm2"), "rectified flow.*not supported"),
    (
        lambda: config(rescale_zero_terminal_snr=True, rescale_betas_zero_snr=False),
        "rescale_betas_zero_snr = False and rescale_zero_terminal_snr = True.*keep one",
    ),
    (
        lambda: config(rescale_zero_terminal_snr=True),
        "prediction_type='epsilon'.*rescale_betas_zero_snr=true",
    ),
    (lambda: config(rescale_zero_terminal_snr="false"), "rescale_zero_terminal_snr = 'false'"),
    (lambda: kd_diffusers.from_config(Path("no/such/folder")), "no scheduler config at no/such"),
]


@every(REFUSED)
def test_bad_configs_are_refused_by_name_with_what_was_received(call, message):
    check(call, message)


# --- every key ---------------------------------------------------------------------------------

WRONG: list[Any] = [
    "x",
    "1",
    float("nan"),
    float("inf"),
    1j,
    [],
    [[1.0]],
    {},
    {"a": 1},
    datetime.date(2020, 1, 1),
    np.datetime64("2020-01-01"),
    np.zeros((2, 2)),
    np.array(["a"]),
    len,
    object(),
    b"1",
]
# What is of a kind with some keys and a bomb in all of them.
BOMBS: list[Any] = [10**400, -(10**400), "x" * 100_000]


def keys_of(class_name: str) -> dict[str, Any]:
    if class_name in FLOW_CLASSES:
        return {**FLOW_KEYS, **{key: values[0] for key, values in FLOW_REQUIRED.items()}}
    method = next(method for method in METHODS.values() if method.class_name == class_name)
    required = {key: values[0] for key, values in method.required.items()}
    keys = {**method.keys, **method.ours, **required}
    maxdiffusion = {"rescale_zero_terminal_snr": False} if "rescale_betas_zero_snr" in keys else {}
    return {**keys, **maxdiffusion}


CLASSES = ["KDPM2DiscreteScheduler", "LCMScheduler", "FlowMatchEulerDiscreteScheduler"]
CLASSES += ["EulerDiscreteScheduler", "DDIMScheduler", "UniPCMultistepScheduler"]
CLASSES += ["DPMSolverMultistepScheduler"]
KEYS = [(name, key) for name in CLASSES for key in ("_class_name", *keys_of(name))]


@pytest.mark.parametrize(("class_name", "key"), KEYS)
def test_a_wrong_value_of_any_key_is_refused_at_once_and_by_name(class_name: str, key: str) -> None:
    wrong = [*WRONG, *BOMBS, 1, -1.5]
    default = keys_of(class_name).get(key, "")
    for value in wrong:
        number = isinstance(default, (int, float)) and not isinstance(default, bool)
        number |= key in ("snr_shift_scale", "shift_terminal")
        if isinstance(value, (int, float)) and abs(value) < 2 and number:
            continue  # right, or out of the bounds of that key alone
        if key in ("scale_factors", "disable_corrector") and isinstance(value, list) and not value:
            continue
        with pytest.raises(ValueError, match=key) as refusal:
            kd_diffusers.from_config(
                {**keys_of(class_name), "_class_name": class_name, key: value},
                "dpm2" if class_name in FLOW_CLASSES else None,
            )
        assert len(str(refusal.value)) < 1500


FILES: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"hello",
    "a list": b"[1]",
    "bytes": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
    "deep keys": b'{"a":' * 100_000,
    "a long number": b'{"num_train_timesteps": 1' + b"0" * 5000 + b"}",
    "many timesteps": b'{"num_train_timesteps": 1e9}',
    "more timesteps": b'{"num_train_timesteps": 1000000000}',
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_config_are_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / "scheduler_config.json"
    file.write_bytes(FILES[name])
    with pytest.raises(ValueError, match=r"config|num_train_timesteps"):
        kd_diffusers.from_config(file, "dpm2")


PATHS: list[Any] = ["", "\0", "\ud800", "x" * 5000, json.dumps({"a": 1}), "/dev/null", b"x", [1], 3]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(type(path).__name__))
def test_what_is_no_path_is_refused(path: Any) -> None:
    with pytest.raises(ValueError, match="config"):
        kd_diffusers.from_config(path, "dpm2")
    with pytest.raises(ValueError, match="config"):
        kd_diffusers.from_config(None, "dpm2")  # type: ignore[arg-type]


# --- maxdiffusion ------------------------------------------------------------------------------


def test_maxdiffusion_s_key_and_class_names_are_those_of_diffusers() -> None:
    v_type = {"prediction_type": "v_prediction"}
    ours = config("LCM", rescale_betas_zero_snr=True, **v_type)
    assert config("FlaxLCM", rescale_zero_terminal_snr=True, **v_type) == ours
    assert config("FlaxLCM", rescale_betas_zero_snr=True, **v_type) == ours
    both = {"rescale_zero_terminal_snr": True, "rescale_betas_zero_snr": True}
    assert config("LCM", **both, **v_type) == ours
    assert isinstance(ours.noise, kd.NoiseSchedule)
    assert ours.noise.sigmas[-1] == np.inf
    # An override in one spelling replaces the key in the other.
    off = {"_class_name": "LCMScheduler", "rescale_betas_zero_snr": False, **v_type}
    assert kd_diffusers.from_config(off, rescale_zero_terminal_snr=True) == ours
    flow = kd_diffusers.from_config({"_class_name": "FlaxFlowMatchLCMScheduler"})
    assert (flow.name, flow.flow) == ("lcm", True)
