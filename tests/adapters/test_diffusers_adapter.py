"""Scheduler configs of diffusers: read, honoured or refused by name, and written back."""

import dataclasses
import importlib
import inspect
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kdiff_jax as kd
from kdiff_jax.adapters import diffusers as kd_diffusers
from kdiff_jax.adapters.diffusers.keys import (
    METHODS,
    REQUIRED,
    ClassName,
    FlowClassName,
    SamplerName,
)

# scheduler_config.json as published with checkpoints.
DATA = Path(__file__).parents[1] / "data"
PUBLISHED: dict[str, dict[str, Any]] = {
    file.stem: json.loads(file.read_text()) for file in DATA.glob("*.json")
}
FLOW = PUBLISHED.pop("flux")
CLASSES: dict[SamplerName, str] = {
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "dpm2": "KDPM2DiscreteScheduler",
    "dpm2_ancestral": "KDPM2AncestralDiscreteScheduler",
    "lcm": "LCMScheduler",
}
# Those of tests/adapters/test_solver_keys.py.
SOLVERS: dict[SamplerName, str] = {
    "heun": "HeunDiscreteScheduler",
    "dpmpp_2s": "DPMSolverSinglestepScheduler",
    "dpmpp_2s_ancestral": "EulerDiscreteScheduler",
    "dpmpp_sde": "EulerDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "dpmpp_3m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "tcd": "TCDScheduler",
}
BUILD: dict[SamplerName, Callable[[kd.Levels], kd.Schedule]] = {
    "euler": kd.euler,
    "euler_ancestral": lambda levels: kd.euler(levels, eta=1.0),
    "ddim": kd.euler,
    "dpm2": kd.dpm2,
    "dpm2_ancestral": kd.dpm2_ancestral,
    "lcm": kd.lcm,
}
FLOW_CLASSES = tuple(
    f"FlowMatch{name}Scheduler" for name in ("EulerDiscrete", "HeunDiscrete", "LCM")
)
COMMON: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "trained_betas": None,
    "prediction_type": "epsilon",
    "steps_offset": 0,
}
KDPM2 = {
    **COMMON,
    "beta_schedule": "linear",
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "timestep_spacing": "linspace",
}
EULER = {
    **KDPM2,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "rescale_betas_zero_snr": False,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "euler": EULER,
    "euler_ancestral": {key: value for key, value in EULER.items() if "_sigmas" not in key},
    "ddim": {
        **{key: value for key, value in EULER.items() if "_sigmas" not in key},
        "clip_sample": True,
        "set_alpha_to_one": True,
        "thresholding": False,
        "dynamic_thresholding_ratio": 0.995,
        "clip_sample_range": 1.0,
        "sample_max_value": 1.0,
        "timestep_spacing": "leading",
    },
    "dpm2": KDPM2,
    "dpm2_ancestral": KDPM2,
    "lcm": {
        **COMMON,
        "beta_schedule": "scaled_linear",
        "original_inference_steps": 50,
        "clip_sample": False,
        "clip_sample_range": 1.0,
        "set_alpha_to_one": True,
        "thresholding": False,
        "dynamic_thresholding_ratio": 0.995,
        "sample_max_value": 1.0,
        "timestep_spacing": "leading",
        "timestep_scaling": 10.0,
        "rescale_betas_zero_snr": False,
    },
}


def network(params: None, x: jax.Array, timestep: jax.Array) -> jax.Array:
    del params
    return 3 * jnp.sin(2 * x) + timestep[:, None] / 1000


def outcome(sampler: kd_diffusers.DiffusersSampler) -> np.ndarray:
    """Every number that a config decides: the table, and what the denoiser predicts at its ends."""
    schedule = sampler.schedule(num_inference_steps=4)
    x = jnp.linspace(-4, 4, 22).reshape(2, 11)
    denoise = sampler.denoiser(network)
    ends = [denoise(None, x, row).denoised for row in (schedule[0], schedule[-1])]
    leaves = [*jax.tree.leaves(schedule), *ends]
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in leaves])


def from_keys(name: SamplerName, **keys: Any) -> kd_diffusers.DiffusersSampler:
    return kd_diffusers.from_config({"_class_name": CLASSES[name], **keys})


# --- where a config comes from ---------------------------------------------------------------


@pytest.mark.parametrize(
    "place", ["s.json", "scheduler_config.json", "scheduler/scheduler_config.json"]
)
def test_dict_file_folder_and_checkpoint_are_the_same(tmp_path: Path, place: str) -> None:
    config = PUBLISHED["ddim-finetune"]
    file = tmp_path / place
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(config))
    expected = kd_diffusers.from_config(config, sampler="dpm2")
    for path in {file, file.parent, tmp_path} if place != "s.json" else {file}:
        assert kd_diffusers.from_config(path, sampler="dpm2") == expected
        assert kd_diffusers.from_config(str(path), sampler="dpm2") == expected


@pytest.mark.parametrize(
    ("text", "message"), [("{", "no JSON"), ("[1]", "holds a list.*one JSON object")]
)
def test_files_that_are_no_config_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "scheduler_config.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        kd_diffusers.from_config(tmp_path, sampler="dpm2")
    assert str(file) in str(error.value)


# --- defaults, round trip, override ----------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
def test_missing_keys_take_the_defaults_of_the_class(name: SamplerName) -> None:
    sampler = from_keys(name)
    assert sampler.name == name
    assert sampler.config == DEFAULTS[name]
    assert sampler.to_config() == {"_class_name": CLASSES[name], **DEFAULTS[name]}


@pytest.mark.parametrize("name", CLASSES)
def test_configs_round_trip_through_json(name: SamplerName) -> None:
    betas = np.linspace(1e-4, 0.02, 60).astype(np.float32)
    for keys in (
        {"prediction_type": "v_prediction", "beta_start": np.float64(0.001)},
        {"num_train_timesteps": np.int64(60), "trained_betas": betas},
    ):
        sampler = from_keys(name, **keys)
        config = json.loads(json.dumps(sampler.to_config()))
        again = kd_diffusers.from_config(config)
        assert again == sampler
        assert again != from_keys(name)
        assert again.to_config() == config
        np.testing.assert_array_equal(outcome(again), outcome(sampler))


@pytest.mark.parametrize("published", PUBLISHED)
@pytest.mark.parametrize("name", CLASSES)
def test_published_configs_of_other_solvers_become_any_sampler(
    published: str, name: SamplerName
) -> None:
    config = PUBLISHED[published]
    sampler = kd_diffusers.from_config(config, sampler=name)
    expected = {k: config.get(k, default) for k, default in DEFAULTS[name].items()}
    assert sampler.to_config() == {"_class_name": CLASSES[name], **expected}
    noise = kd.noise_schedule("scaled_linear")
    spacing = {k: expected[k] for k in ("timestep_spacing", "steps_offset")}
    levels = kd.lcm_levels(noise, 4) if name == "lcm" else kd.levels(noise, 4, **spacing)
    if name == "ddim":
        # These configs have set_alpha_to_one = false, and end at the first training timestep.
        assert (expected["set_alpha_to_one"], expected["steps_offset"]) == (False, 1)
        levels = kd.levels(noise, timesteps=[*levels.timesteps.round(), 0]).end_at(4)
        levels = dataclasses.replace(levels, init_noise_sigma=np.hypot(1, levels.sigmas[0]))
    schedule = BUILD[name](levels)
    found = sampler.schedule(num_inference_steps=4)
    jax.tree.map(np.testing.assert_array_equal, found, schedule)


def test_sampler_overrides_the_class() -> None:
    for name in CLASSES:
        for other in CLASSES:
            config = {"_class_name": CLASSES[name], "beta_schedule": "scaled_linear"}
            assert kd_diffusers.from_config(config, sampler=other).name == other


def test_a_velocity_network_needs_a_flow_matching_config() -> None:
    for sampler in CLASSES:
        with pytest.raises(ValueError, match="prediction_type = 'flow_prediction' is not known"):
            from_keys(sampler, prediction_type="flow_prediction")
    assert kd_diffusers.from_config(FLOW).name == "euler"


# --- keys ------------------------------------------------------------------------------------

KDPM2_NAMES: tuple[SamplerName, ...] = ("dpm2", "dpm2_ancestral")
SPACED: tuple[SamplerName, ...] = ("euler", "euler_ancestral", *KDPM2_NAMES)
GRIDS: tuple[Literal["karras", "exponential", "beta"], ...] = ("karras", "exponential", "beta")
HONOURED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    # sampler, the key, the keys that make it matter
    *(
        (name, key, {})
        for name in CLASSES
        for key in (
            {"num_train_timesteps": 900},
            {"beta_start": 0.001},
            {"beta_end": 0.015},
            {"beta_schedule": "squaredcos_cap_v2"},
            {"trained_betas": [0.001 * (1 + i % 7) for i in range(1000)]},
            {"prediction_type": "v_prediction"},
            {"prediction_type": "sample"},
        )
    ),
    *((n, {f"use_{grid}_sigmas": True}, {}) for n in ("euler", *KDPM2_NAMES) for grid in GRIDS),
    *((n, {"timestep_spacing": how}, {}) for n in SPACED for how in ("leading", "trailing")),
    *((n, {"steps_offset": 1}, {"timestep_spacing": "leading"}) for n in ("euler", "ddim")),
    ("ddim", {"timestep_spacing": "linspace"}, {}),
    ("ddim", {"set_alpha_to_one": False}, {"steps_offset": 1}),
    ("ddim", {"clip_sample": False}, {}),
    ("ddim", {"clip_sample_range": 2.0}, {}),
    ("ddim", {"thresholding": True}, {"sample_max_value": 1.5}),
    ("dpm2", {"steps_offset": 1}, {"timestep_spacing": "leading"}),
    ("lcm", {"original_inference_steps": 25}, {}),
    ("lcm", {"clip_sample": True}, {}),
    ("lcm", {"clip_sample_range": 2.0}, {"clip_sample": True}),
    ("lcm", {"thresholding": True}, {}),
    ("lcm", {"sample_max_value": 3.0}, {"thresholding": True}),
    ("lcm", {"dynamic_thresholding_ratio": 0.5}, {"thresholding": True, "sample_max_value": 9.0}),
    ("lcm", {"timestep_scaling": 0.01}, {}),
    *((n, {"rescale_betas_zero_snr": True}, {"prediction_type": "v_prediction"}) for n in CLASSES),
]


@pytest.mark.parametrize(("name", "key", "others"), HONOURED, ids=str)
def test_every_honoured_key_changes_the_outcome(name: SamplerName, key: dict, others: dict) -> None:
    plain, changed = outcome(from_keys(name, **others)), outcome(from_keys(name, **others, **key))
    assert not np.array_equal(plain, changed)
    assert np.all(np.isfinite(changed))


WITHOUT_EFFECT: list[tuple[str, dict[str, Any]]] = [
    # Keys of another solver, whatever the value.
    *(
        (name, key)
        for name in KDPM2_NAMES
        for key in (
            {"clip_sample": True, "clip_sample_range": 0.1},
            {"thresholding": True, "sample_max_value": 0.5},
            {"set_alpha_to_one": False},
            {"timestep_scaling": 1.0},
        )
    ),
    # Parameters of LCMScheduler that do nothing, here as there.
    ("lcm", {"set_alpha_to_one": False}),
    ("lcm", {"steps_offset": 3}),
    ("lcm", {"timestep_spacing": "trailing"}),
    ("lcm", {"use_karras_sigmas": True}),
    *(
        (name, {key: value})
        for name in CLASSES
        for key, value in {
            "variance_type": "fixed_small",
            "algorithm_type": "sde-dpmsolver++",
            "solver_order": 3,
            "skip_prk_steps": True,
            "_diffusers_version": "0.6.0",
            "interpolation_type": "linear",
            "timestep_type": "discrete",
            "final_sigmas_type": "zero",
            "sigma_min": None,
            "sigma_max": None,
            "rescale_betas_zero_snr": False,
            "a_key_of_tomorrow": [1, {"2": None}],
        }.items()
    ),
]


@pytest.mark.parametrize(("name", "key"), WITHOUT_EFFECT, ids=str)
def test_other_keys_leave_the_outcome_alone(name: SamplerName, key: dict) -> None:
    np.testing.assert_array_equal(outcome(from_keys(name, **key)), outcome(from_keys(name)))


REFUSED: dict[str, Any] = {
    "interpolation_type": "log_linear",
    "timestep_type": "continuous",
    "final_sigmas_type": "sigma_min",
    "sigma_min": 0.03,
    "sigma_max": 80.0,
    "use_flow_sigmas": True,
    "use_lu_lambdas": True,
    "snr_shift_scale": 3.0,
    "beta_schedule": "sigmoid",
    "prediction_type": "flow_prediction",
    "timestep_spacing": "even",
    "steps_offset": -1,
    "trained_betas": [0.1, 0.2],
    "num_train_timesteps": "1000",
    "beta_end": 1.5,
}


@pytest.mark.parametrize("key", REFUSED)
@pytest.mark.parametrize("name", CLASSES)
def test_keys_that_would_change_the_result_are_refused_by_name(name: SamplerName, key: str) -> None:
    with pytest.raises(ValueError, match=key):
        from_keys(name, **{key: REFUSED[key]})
    config = {"_class_name": "DPMSolverMultistepScheduler", key: REFUSED[key]}
    with pytest.raises(ValueError, match=key):
        kd_diffusers.from_config(config, sampler=name)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
@pytest.mark.parametrize("name", KDPM2_NAMES)
def test_zero_terminal_snr_starts_at_the_sigma_of_diffusers_euler(
    name: SamplerName, prediction_type: str
) -> None:
    found = from_keys(name, rescale_betas_zero_snr=True, prediction_type=prediction_type)
    assert found.schedule(5).sigmas[0] == np.float32(np.sqrt(2.0**24 - 1))
    assert kd_diffusers.from_config(json.loads(json.dumps(found.to_config()))) == found
    plain = from_keys(name, rescale_betas_zero_snr=False, prediction_type=prediction_type)
    assert plain == from_keys(name, prediction_type=prediction_type) != found
    assert "rescale_betas_zero_snr" not in plain.to_config()


def test_schedules_are_those_of_the_samplers() -> None:
    # diffusers' schedulers have these betas with every beta_schedule.
    noise = kd.noise_schedule("linear", beta_start=0.00085, beta_end=0.012)
    for name in KDPM2_NAMES:
        for grid in GRIDS:
            found = from_keys(name, **{f"use_{grid}_sigmas": True}).schedule(7)
            # diffusers rounds the timesteps of Karras grids.
            levels = kd.levels(noise, 7, grid=grid, round_timesteps=grid == "karras")
            expected = BUILD[name](levels)
            jax.tree.map(np.testing.assert_array_equal, found, expected)
            ours = from_keys(name, **{f"use_{grid}_sigmas": True}).levels(7)
            jax.tree.map(np.testing.assert_array_equal, ours, levels)
    lcm, noise = from_keys("lcm", original_inference_steps=40), kd.noise_schedule()
    given: dict[str, Any] = {"timesteps": [900, 300, 20], "strength": 0.67}
    found, expected = lcm.schedule(**given), kd.lcm(kd.lcm_levels(noise, **given))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    found = lcm.schedule(3, original_inference_steps=20, strength=0.5)
    expected = kd.lcm(kd.lcm_levels(noise, 3, original_steps=20, strength=0.5))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    levels = lcm.levels(3, original_inference_steps=20, strength=0.5)
    # Every T / 20 = 50 timesteps up to half of T, at the places 0, 3 and 6 of ten from the top.
    assert levels.timesteps.tolist() == [499, 349, 199]


@pytest.mark.parametrize("name", KDPM2_NAMES)
def test_levels_are_cut_before_a_sampler_is_chosen(name: SamplerName) -> None:
    """Image to image: `begin_index` of diffusers, and a sampler that the config does not name."""
    sampler = from_keys(name, timestep_spacing="leading", steps_offset=1)
    whole, levels = sampler.schedule(10), sampler.levels(10)
    assert levels.timesteps.tolist() == [1 + 100 * i for i in range(9, -1, -1)]
    assert isinstance(sampler.noise, kd.NoiseSchedule)
    np.testing.assert_allclose(levels.sigmas[:-1], sampler.noise.sigmas[901::-100], rtol=1e-12)
    rest = BUILD[name](levels.start_at(4))
    # The rest of the rows, each with the noise that it has in the whole run.
    expected = jax.tree.map(lambda leaf: np.asarray(leaf)[8:], whole.rows)
    jax.tree.map(np.testing.assert_array_equal, rest.rows, expected)
    assert kd.euler(levels.start_at(4)).num_rows == 6
    for refused in ({"timesteps": [9, 3]}, {"strength": 0.5}, {"original_inference_steps": 20}):
        message = f"{next(iter(refused))} given to a {name} sampler; only lcm takes them"
        for call in (sampler.levels, sampler.schedule):
            with pytest.raises(ValueError, match=message):
                call(10, **refused)


# --- overrides -------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "key", "others"), HONOURED, ids=str)
def test_an_override_is_the_key_of_the_config(name: SamplerName, key: dict, others: dict) -> None:
    config = {"_class_name": CLASSES[name], **others}
    found = kd_diffusers.from_config(config, **key)
    assert found == from_keys(name, **others, **key) != from_keys(name, **others)
    assert config == {"_class_name": CLASSES[name], **others}


def test_overrides_replace_the_keys_of_a_config(tmp_path: Path) -> None:
    config = PUBLISHED["realistic-vision-v51"] | {"final_sigmas_type": "sigma_min"}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="final_sigmas_type = 'sigma_min'"):
        kd_diffusers.from_config(tmp_path, "dpm2")
    found = kd_diffusers.from_config(
        tmp_path,
        "dpm2",
        final_sigmas_type="zero",
        use_exponential_sigmas=True,
        prediction_type="sample",
    )
    assert found.config == {
        **DEFAULTS["dpm2"],
        **{key: value for key, value in config.items() if key in DEFAULTS["dpm2"]},
        "use_exponential_sigmas": True,
        "prediction_type": "sample",
    }
    again = kd_diffusers.from_config(found.to_config(), use_exponential_sigmas=False)
    assert again == kd_diffusers.from_config(
        {**config, "final_sigmas_type": "zero"}, "dpm2", prediction_type="sample"
    )


REFUSED_OVERRIDES: list[tuple[Any, dict[str, Any], str]] = [
    ("dpm2", {"use_karas_sigmas": True}, "^use_karas_sigmas given to from_config.*use_karras_sig"),
    ("dpm2", {"solver_order": 3, "clip_sample": True}, "^clip_sample and solver_order given"),
    ("dpm2", {"original_inference_steps": 20}, "original_inference_steps given"),
    ("lcm", {"use_karras_sigmas": True}, "use_karras_sigmas given.*a lcm sampler"),
    ("lcm", {"shift": 3.0}, "shift given"),
    ("dpm2", {"final_sigmas_type": "sigma_min"}, "final_sigmas_type = 'sigma_min'"),
    ("dpm2", {"beta_schedule": "sigmoid"}, "beta_schedule"),
    ("dpm2", {"use_karras_sigmas": True, "use_beta_sigmas": True}, "both true"),
    ("dpm2", {"use_karras_sigmas": 1}, "use_karras_sigmas = 1"),
]


@pytest.mark.parametrize(("name", "overrides", "message"), REFUSED_OVERRIDES, ids=str)
def test_overrides_that_change_nothing_or_too_much_are_refused(
    name: SamplerName, overrides: dict, message: str
) -> None:
    # Keys that the file of a checkpoint may hold without harm.
    ignored = {"solver_order": 3, "clip_sample": True, "use_karras_sigmas": False}
    config = {"_class_name": "DPMSolverMultistepScheduler", **ignored}
    kd_diffusers.from_config(config, sampler=name)
    with pytest.raises(ValueError, match=message):
        kd_diffusers.from_config(config, sampler=name, **overrides)


def test_overrides_of_a_flow_are_keys_of_a_flow() -> None:
    found = kd_diffusers.from_config(FLOW, "dpm2", shift=3.0, use_beta_sigmas=True)
    assert found == kd_diffusers.from_config(
        {**FLOW, "shift": 3.0, "use_beta_sigmas": True}, "dpm2"
    )
    assert found.noise == kd.flow_schedule(3.0)
    with pytest.raises(ValueError, match="beta_start given to from_config"):
        kd_diffusers.from_config(FLOW, "dpm2", beta_start=0.1)


# --- the table of samplers -------------------------------------------------------------------


def test_the_table_of_samplers_is_the_type_of_their_names() -> None:
    assert set(METHODS) == set(get_args(SamplerName)) == {*CLASSES, *SOLVERS}
    assert {method.class_name for method in METHODS.values()} == set(get_args(ClassName))
    assert {name: method.class_name for name, method in METHODS.items()} == CLASSES | SOLVERS
    assert {method.flow_class_name for method in METHODS.values()} <= set(FLOW_CLASSES)
    assert set(get_args(FlowClassName)) == set(FLOW_CLASSES)


def test_a_sampler_prints_in_one_line() -> None:
    sampler = from_keys("dpm2", trained_betas=np.linspace(1e-4, 0.02, 1000))
    assert repr(sampler) == (
        "DiffusersSampler('dpm2', beta_schedule='linear', prediction_type='epsilon')"
    )
    flow = kd_diffusers.from_config(FLOW, "lcm", shift=3.0)
    assert repr(flow) == "DiffusersSampler('lcm', shift=3.0)"


# --- with diffusers at hand ------------------------------------------------------------------


@pytest.fixture(name="diffusers", scope="module")
def _diffusers() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in ("torch", "diffusers"):
            pytest.importorskip(module, reason=f"{module} is not installed (the extra 'bench')")
        return importlib.import_module("diffusers")


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize("name", CLASSES)
def test_diffusers_has_these_defaults_and_reads_our_configs(
    diffusers: Any, name: SamplerName
) -> None:
    theirs = getattr(diffusers, CLASSES[name])
    parameters = inspect.signature(theirs.__init__).parameters
    defaults = {k: p.default for k, p in parameters.items() if k != "self"}
    # What is not honoured is read with its default, and refused with anything else.
    assert all(defaults.pop(k) in REQUIRED[k] for k in set(defaults) & set(REQUIRED))
    assert defaults == DEFAULTS[name]
    ours = from_keys(name, beta_end=0.02, prediction_type="sample", timestep_spacing="trailing")
    scheduler = theirs.from_config(ours.to_config())
    assert {k: scheduler.config[k] for k in ours.config} == ours.config
    assert kd_diffusers.from_config(json.loads(scheduler.to_json_string())) == ours


@pytest.mark.filterwarnings("ignore")
def test_every_class_of_diffusers_is_read_or_refused(diffusers: Any) -> None:
    wrong = []
    for class_name in dir(diffusers.schedulers):
        if not class_name.endswith("Scheduler") or class_name in CLASSES.values():
            continue
        try:
            config = json.loads(getattr(diffusers, class_name)().to_json_string())
        except (ImportError, AttributeError, TypeError):
            continue  # needs another package, or arguments of its own
        # CogVideoX shifts its noise levels.
        supported = "beta_schedule" in config and "snr_shift_scale" not in config
        supported |= class_name in FLOW_CLASSES
        if supported != _is_read(config):
            wrong.append(class_name)
    assert wrong == []


def _is_read(config: dict[str, Any]) -> bool:
    try:
        kd_diffusers.from_config(config, sampler="dpm2")
    except ValueError:
        return False
    return True
