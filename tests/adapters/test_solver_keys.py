"""Keys of DPM-Solver, UniPC, Heun and TCD: honoured, or refused by name; names and round trips."""

import json
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
import pytest
from refusals import Refusal, check, every
from test_diffusers_adapter import PUBLISHED, SOLVERS
from test_solvers_diffusers import ABOUT, network

import kdiff_jax as kd
from kdiff_jax.adapters import diffusers as kd_diffusers
from kdiff_jax.adapters.diffusers.keys import METHODS, SamplerName

PIPELINES = Path(__file__).parents[1] / "golden" / "pipelines.json"
MULTISTEP, UNIPC = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
SINGLESTEP = "DPMSolverSinglestepScheduler"
# As published: Wan 2.1 (480p), Sana 1.5, without the keys that are their defaults.
OF_FLOW = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
WAN = {
    "_class_name": UNIPC,
    "_diffusers_version": "0.33.0.dev0",
    "disable_corrector": [],
    "predict_x0": True,
    "solver_p": None,
    "solver_type": "bh2",
    **OF_FLOW,
}
SANA = {
    "_class_name": MULTISTEP,
    "_diffusers_version": "0.32.0.dev0",
    "algorithm_type": "dpmsolver++",
    "lambda_min_clipped": -np.inf,
    "variance_type": None,
    **OF_FLOW,
}
FLOW: dict[str, Any] = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}


def read(class_name: str, sampler: Any = None, /, **keys: Any) -> kd_diffusers.DiffusersSampler:
    return kd_diffusers.from_config({"_class_name": class_name, **keys}, sampler)


def leaves(value: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(value)]


def outcome(sampler: kd_diffusers.DiffusersSampler, steps: int = 6) -> tuple[bytes, ...]:
    """Every number that a config decides."""
    levels, table = sampler.levels(steps), sampler.schedule(steps)
    denoise = sampler.denoiser(network)
    numbers = [*leaves(levels), *leaves(table), *leaves(denoise)]
    return (*(leaf.tobytes() for leaf in numbers), repr(denoise).encode())


@pytest.mark.parametrize("class_name", ABOUT["defaults"])
def test_defaults_are_those_of_diffusers(class_name: str) -> None:
    sampler, theirs = read(class_name), dict(ABOUT["defaults"][class_name])
    required = {} if sampler.flow else METHODS[sampler.name].required
    # What is not honoured is read with its default, and refused with anything else.
    assert all(theirs.pop(key) in required[key] for key in set(theirs) & set(required))
    assert theirs.items() <= sampler.config.items()
    assert set(theirs) == set(sampler.config) or sampler.flow


def test_a_class_is_the_sampler_of_its_order() -> None:
    for order, name in ((1, "dpmpp_2m"), (2, "dpmpp_2m"), (3, "dpmpp_3m")):
        found = read(MULTISTEP, solver_order=order)
        assert (found.name, found.config["solver_order"]) == (name, order)
        assert read("PNDMScheduler", MULTISTEP, solver_order=order) == found
    names: list[tuple[SamplerName, int]] = [("dpmpp_2m", 2), ("dpmpp_3m", 3)]
    for name, order in names:  # a name decides the order, whatever the file says
        assert read(MULTISTEP, name, solver_order=5 - order).config["solver_order"] == order
        assert read(UNIPC, name).config["solver_order"] == order


@pytest.mark.parametrize("name", SOLVERS)
def test_any_config_becomes_any_sampler_and_round_trips(name: SamplerName) -> None:
    for config in (*PUBLISHED.values(), {"_class_name": SOLVERS[name]}):
        sampler = kd_diffusers.from_config(config, name)
        written = json.loads(json.dumps(sampler.to_config()))
        assert sampler.name == name
        assert written["_class_name"] == SOLVERS[name]
        assert kd_diffusers.from_config(written) == sampler
        assert sampler.levels(4).num_steps == sampler.schedule(4).num_steps == 4
    if name in ("dpmpp_sde", "tcd"):
        with pytest.raises(ValueError, match=f"{name} was given levels of a rectified flow"):
            kd_diffusers.from_config(FLOW, name)
        return
    flow = kd_diffusers.from_config(FLOW, name)
    assert kd_diffusers.from_config(json.loads(json.dumps(flow.to_config()))) == flow
    if name != "dpmpp_2s":  # no sampler of kd
        table = getattr(kd, name)(flow.levels(5))
        jax.tree.map(np.testing.assert_array_equal, flow.schedule(5), table)


def test_what_a_live_scheduler_filled_in_takes_the_defaults_of_the_new_class() -> None:
    # dict(KDPM2DiscreteScheduler(steps_offset=1).config) of diffusers, in which DPM-Solver reads
    # beta_start = 0.0001: its own default.
    live = {**METHODS["dpm2"].keys, "steps_offset": 1}
    live["_use_default_values"] = sorted(set(live) - {"steps_offset"})
    found = read("KDPM2DiscreteScheduler", MULTISTEP, **live)
    assert found == read(MULTISTEP, steps_offset=1)
    assert (live["beta_start"], found.config["beta_start"]) == (0.00085, 0.0001)


def test_plain_runs_are_the_tables_of_the_library() -> None:
    for name, steps in (("heun", 5), ("dpmpp_2m", 20), ("unipc", 5), ("dpmpp_2s_ancestral", 5)):
        sampler = read("PNDMScheduler", name, use_karras_sigmas=True)
        table = getattr(kd, name)(sampler.levels(steps))
        jax.tree.map(np.testing.assert_array_equal, sampler.schedule(steps), table)
    # Levels even in log(alpha / sigma): every midpoint is where 2S has its own.
    sampler = read(SINGLESTEP, use_exponential_sigmas=True)
    found, ends = sampler.schedule(9).rows, sampler.levels(9).sigmas[::2]
    whole = kd.dpmpp_2s_ancestral(kd.levels(sampler.noise, sigmas=ends), eta=0.0).rows
    for column in ("sigma", "denoised_weight", "epsilon_weight", "anchor_weight"):
        ours, theirs = np.asarray(getattr(found, column)), np.asarray(getattr(whole, column))
        np.testing.assert_allclose(ours, theirs[: len(ours)], 1e-5, 2e-6)
    np.testing.assert_allclose(np.asarray(found.denoised_weight_1), 0, atol=2e-6)


def test_wan_and_sana_are_read_as_published() -> None:
    wan, sana = kd_diffusers.from_config(WAN), kd_diffusers.from_config(SANA)
    assert (wan.name, sana.name, wan.flow, sana.flow) == ("unipc", "dpmpp_2m", True, True)
    assert repr(wan) == "DiffusersSampler('unipc', flow_shift=3.0)"
    assert wan.denoiser(network) == kd.denoiser(network, "flow_prediction")
    assert wan.noise == sana.noise == kd.flow_schedule(3.0)
    for sampler in (wan, sana):
        assert kd_diffusers.from_config(json.loads(json.dumps(sampler.to_config()))) == sampler
        # A sample of pure noise has unit variance, wherever the levels begin.
        assert float(sampler.schedule(20).init_noise_sigma) == 1
    # A flow-matching config with the overrides of a solver is the solver's, as in diffusers.
    assert read(FLOW["_class_name"], UNIPC, **OF_FLOW) == wan
    assert kd_diffusers.from_config(FLOW, "dpmpp_2m", **OF_FLOW) == sana  # with a shift of its own
    runs = json.loads(PIPELINES.read_text(encoding="utf-8"))["levels"]
    runs = [run for run in runs if "Wan" in run["pipeline"]]
    assert runs
    for run in runs:
        levels = kd_diffusers.from_config(run["config"]).levels(run["steps"])
        np.testing.assert_allclose(levels.sigmas, run["sigmas"], rtol=1e-6)
        np.testing.assert_array_equal(levels.timesteps, run["timesteps"])


def test_a_traced_mu_gives_the_table_of_the_same_number() -> None:
    wan = kd_diffusers.from_config({**WAN, "disable_corrector": [2]}, use_dynamic_shifting=True)
    traced = jax.jit(lambda mu: wan.schedule(5, mu=mu))(0.9)
    for got, leaf in zip(leaves(traced), leaves(wan.schedule(5, mu=0.9)), strict=True):
        np.testing.assert_allclose(got, leaf, 2e-5, 1e-5)


# --- keys --------------------------------------------------------------------------------------

CLIPPED = {"sample_max_value": 2.0, "thresholding": True}
SDE = {"algorithm_type": "sde-dpmsolver++"}
LOW: dict[str, Any] = {"final_sigmas_type": "sigma_min"}
COMMON: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"num_train_timesteps": 900}, {}),
    ({"beta_start": 0.001}, {}),
    ({"beta_end": 0.015}, {}),
    ({"beta_schedule": "squaredcos_cap_v2"}, {}),
    ({"trained_betas": [0.001 * (1 + i % 7) for i in range(1000)]}, {}),
    ({"prediction_type": "sample"}, {}),
    *(({f"use_{grid}_sigmas": True}, {}) for grid in ("karras", "exponential", "beta")),
]
SPACED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"timestep_spacing": "trailing"}, {}),
    ({"steps_offset": 1}, {"timestep_spacing": "leading"}),
    ({"rescale_betas_zero_snr": True}, {"prediction_type": "v_prediction"}),
]
OF_SOLVERS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    *COMMON,
    ({"thresholding": True}, {}),
    ({"sample_max_value": 3.0}, CLIPPED),
    ({"dynamic_thresholding_ratio": 0.5}, CLIPPED),
    (LOW, {}),
    ({"use_flow_sigmas": True, "prediction_type": "flow_prediction"}, {}),
    ({"flow_shift": 2.0}, OF_FLOW),
]
# Of each class: the key, and the keys that make it matter.
HONOURED: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {
    "HeunDiscreteScheduler": [
        *COMMON,
        *SPACED,
        ({"clip_sample": True}, {}),
        ({"clip_sample_range": 2.0}, {"clip_sample": True}),
    ],
    MULTISTEP: [
        *OF_SOLVERS,
        *SPACED,
        ({"solver_order": 1}, {}),
        ({"solver_order": 3}, {}),
        (SDE, {}),
        (SDE, {"solver_order": 3}),
        ({"solver_type": "heun"}, {}),
        ({"lower_order_final": False}, {"solver_order": 3}),
        ({"lower_order_final": False}, LOW),
        ({"euler_at_final": True}, {**LOW, "lower_order_final": False}),
        ({"use_lu_lambdas": True}, {}),
    ],
    SINGLESTEP: [
        *OF_SOLVERS,
        ({"solver_order": 1}, {}),
        ({"solver_type": "heun"}, {}),
        ({"lower_order_final": True}, LOW),
    ],
    UNIPC: [
        *OF_SOLVERS,
        *SPACED,
        ({"disable_corrector": [0, 2]}, {}),
        ({"lower_order_final": False}, LOW),
        ({"shift_terminal": 0.1}, OF_FLOW),
    ],
    "TCDScheduler": [
        *COMMON[:6],
        SPACED[-1],
        ({"original_inference_steps": 25}, {}),
    ],
}


@pytest.mark.parametrize("class_name", HONOURED)
def test_every_honoured_key_changes_the_outcome(class_name: str) -> None:
    for key, others in HONOURED[class_name]:
        plain, changed = read(class_name, **others), read(class_name, **{**others, **key})
        assert outcome(plain) != outcome(changed), (key, others)
        given = {"_class_name": class_name, **others}
        assert kd_diffusers.from_config(given, **key) == changed
    matter = {key for keys, _ in HONOURED[class_name] for key in keys}
    # Those of a shift that is given with each image are in the recordings.
    idle = {"use_dynamic_shifting", "time_shift_type"}
    options = METHODS[read(class_name).name].options
    idle |= {key for key, allowed in options.items() if len(allowed) == 1}
    if class_name == "TCDScheduler":  # they have no effect, here as there
        idle = {"clip_sample", "clip_sample_range", "set_alpha_to_one", "steps_offset"}
        idle |= {"thresholding", "dynamic_thresholding_ratio", "sample_max_value"}
        idle |= {"timestep_spacing", "timestep_scaling"}
    assert set(read(class_name).config) - matter <= idle


def test_keys_without_effect_have_none() -> None:
    tcd: dict[str, Any] = {
        "clip_sample": True,
        "thresholding": True,
        "set_alpha_to_one": False,
        "steps_offset": 3,
    }
    tcd |= {"timestep_spacing": "trailing", "timestep_scaling": 1.0, "use_karras_sigmas": True}
    assert outcome(read("TCDScheduler", **tcd)) == outcome(read("TCDScheduler"))
    # diffusers takes these names of other solvers for its own.
    for name in ("logrho", "bh1", "bh2"):
        assert read(MULTISTEP, solver_type=name) == read(MULTISTEP)
    assert read(MULTISTEP, algorithm_type="deis") == read(MULTISTEP)
    assert read("DEISMultistepScheduler", "unipc", solver_type="logrho") == read(UNIPC)
    # 15 steps and more have no lower order in the end, and `zero` always has one.
    heun = {"solver_order": 3, "solver_type": "heun"}
    plain, lower = read(MULTISTEP, **heun), read(MULTISTEP, **heun, lower_order_final=False)
    assert outcome(plain, 15) == outcome(lower, 15)
    assert outcome(plain, 14) != outcome(lower, 14)
    assert outcome(read(MULTISTEP, euler_at_final=True)) == outcome(read(MULTISTEP))


REFUSED: list[Refusal] = [
    (lambda: read(MULTISTEP, solver_order=4), "solver_order = 4 .*expected 1, 2, 3"),
    (lambda: read(MULTISTEP, algorithm_type="dpmsolver"), "algorithm_type = 'dpmsolver' is not"),
    (lambda: read(MULTISTEP, algorithm_type="sde-dpmsolver"), "algorithm_type = 'sde-dpmsolver'"),
    (lambda: read(MULTISTEP, solver_type="rk4"), "solver_type = 'rk4' is not.*'midpoint', 'heun'"),
    (lambda: read(MULTISTEP, final_sigmas_type="one"), "final_sigmas_type = 'one' is not"),
    (lambda: read(MULTISTEP, lambda_min_clipped=-5.1), "lambda_min_clipped = -5.1"),
    (lambda: read(MULTISTEP, variance_type="learned_range"), "variance_type = 'learned_range'"),
    (lambda: read(MULTISTEP, time_shift_type="linear"), "time_shift_type = 'linear' is not"),
    (lambda: read(SINGLESTEP, solver_order=3), "solver_order = 3 is not .*expected 1, 2"),
    (lambda: read(SINGLESTEP, **SDE), "algorithm_type = 'sde-dpmsolver\\+\\+' is not"),
    (
        lambda: read(SINGLESTEP, **LOW, use_beta_sigmas=True),
        "final_sigmas_type = 'sigma_min' with use_beta_sigmas = true.*no grid",
    ),
    (lambda: read(UNIPC, solver_order=3), "solver_order = 3 is not .*a unipc .*expected 2"),
    (lambda: read(UNIPC, solver_type="bh1"), "solver_type = 'bh1' is not.*expected 'bh2'"),
    (lambda: read(UNIPC, predict_x0=False), "predict_x0 = False"),
    (lambda: read(UNIPC, solver_p={"_class_name": "X"}), "solver_p = "),
    (lambda: read(UNIPC, sigma_max=80.0), "sigma_max = 80.0"),
    (lambda: read(UNIPC, disable_corrector=[-1]), "disable_corrector = -1 is too small"),
    (lambda: read(UNIPC, disable_corrector=3), "disable_corrector = 3 is no list"),
    (lambda: read(UNIPC, lower_order_final=False), "lower_order_final = false with final_sigmas"),
    (lambda: read(UNIPC, **LOW, use_karras_sigmas=True), "'sigma_min' with use_karras_sigmas"),
    (lambda: read(UNIPC, shift_terminal=0.1), "shift_terminal = 0.1.*pass use_flow_sigmas=True"),
    (lambda: read(UNIPC, use_flow_sigmas=True), "use_flow.*prediction_type = 'epsilon'; pass"),
    (lambda: read(UNIPC, prediction_type="flow_prediction"), "prediction_type = 'flow_prediction"),
    (lambda: read(MULTISTEP, **OF_FLOW, use_karras_sigmas=True), "use_flow.*use_karras_sigmas"),
    (lambda: read(MULTISTEP, **OF_FLOW, **LOW), "use_flow_sigmas.*final_sigmas_type = 'sigma_min"),
    (lambda: read(MULTISTEP, **{**OF_FLOW, "flow_shift": -1.0}), "flow_shift = -1.0"),
    (
        lambda: read(MULTISTEP, use_karras_sigmas=True, use_lu_lambdas=True),
        "use_karras_sigmas and use_lu_lambdas are both true",
    ),
    (
        lambda: read(UNIPC, "euler", **OF_FLOW),
        r"use_flow_sigmas = True .*kd.euler\(kd_diffusers.from_config\(config\).levels\(N\)\)",
    ),
    (
        lambda: read(UNIPC, "FlowMatchEulerDiscreteScheduler"),
        "reads configs of flow matching, and this one is of 'UniPCMultistepScheduler'",
    ),
    (lambda: read(UNIPC, _use_default_values="solver_order"), "_use_default_values = .* no list"),
    (
        lambda: kd_diffusers.from_config(SANA, "dpmpp_2m", solver_order=3),
        "solver_order = 3 given to from_config with sampler='dpmpp_2m'",
    ),
    (lambda: read(MULTISTEP, **LOW, use_karras_sigmas=True).levels(1), "no step on a grid"),
    (lambda: read(MULTISTEP).levels(2000), "num_inference_steps = 2000 is more than the 1000"),
    (lambda: read(MULTISTEP, timestep_spacing="leading").levels(1000), "= 1000 is more than"),
    (lambda: read(MULTISTEP, **OF_FLOW).levels(sigmas=[1.0, 0.5]), "sigmas given to a DPM-Solver"),
    (lambda: read(UNIPC, **OF_FLOW).levels(3, sigmas=[1.0, 0.5]), "sigmas holds 2"),
    (lambda: read(UNIPC, **OF_FLOW).levels(), "num_inference_steps is missing"),
    (lambda: read(UNIPC, **OF_FLOW).levels(3, mu=1.0), "mu given.*use_dynamic_shifting = false"),
    (
        lambda: read(UNIPC, **OF_FLOW, use_dynamic_shifting=True).levels(3, image_seq_len=64),
        "image_seq_len = 64 given.*pass mu=",
    ),
    (lambda: read(UNIPC).levels(3, mu=1.0), "mu given to a sampler with a beta schedule"),
    (lambda: read("TCDScheduler").levels(timesteps=[0]), "leave TCD no step"),
    (
        lambda: read("TCDScheduler").levels(50, original_inference_steps=40),
        "num_inference_steps = 50 is too large",
    ),
    (lambda: read("HeunDiscreteScheduler").levels(4, strength=0.5), "strength given to a heun"),
    (lambda: read("HeunDiscreteScheduler", beta_schedule="exp"), "beta_schedule = 'exp'"),
]


@every(REFUSED)
def test_keys_and_calls_that_cannot_be_honoured_are_refused_by_name(call, message):
    check(call, message)


def test_every_key_that_a_class_has_beside_the_honoured_ones_is_looked_at() -> None:
    for class_name, theirs in ABOUT["defaults"].items():
        if class_name.startswith("Flow"):
            continue
        method = METHODS[read(class_name).name]
        assert set(theirs) <= {*method.keys, *method.required}
    assert len(get_args(SamplerName)) == len(METHODS)
