"""The Flax scheduler contract: loops as pipelines write them against the line of the design."""

import dataclasses
import json
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mesh_cases import collectives
from samplers import (
    ELEMENTWISE,
    elementwise_model,
    keys_of_signs,
    relative_error,
    run_in_numpy,
)

import kdiff_jax as kd
from kdiff_jax.adapters import flax as kd_flax
from kdiff_jax.adapters.flax import scheduler as scheduler_file
from kdiff_jax.adapters.flax.run import sign_words
from kdiff_jax.adapters.flax.scheduler import TWO_ROWS

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
LEADING = {**BETAS, "timestep_spacing": "leading", "steps_offset": 1, "clip_sample": False}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dpm2": ("KDPM2Discrete", BETAS),
    "dpm2, karras": ("KDPM2Discrete", {**LEADING, "use_karras_sigmas": True}),
    "dpm2 ancestral": ("KDPM2AncestralDiscrete", BETAS),
    "lcm": ("LCM", BETAS),
    "tcd": ("TCD", BETAS),
    "euler": ("EulerDiscrete", {**BETAS, "prediction_type": "v_prediction"}),
    "euler ancestral": ("EulerAncestralDiscrete", LEADING),
    "heun": ("HeunDiscrete", BETAS),
    "ddim": ("DDIM", {**LEADING, "set_alpha_to_one": False}),
    "2m": ("DPMSolverMultistep", BETAS),
    "3m sde": (
        "DPMSolverMultistep",
        {**BETAS, "algorithm_type": "sde-dpmsolver++", "solver_order": 3},
    ),
    "2s": ("DPMSolverSinglestep", BETAS),
    "unipc": ("UniPCMultistep", FLOW),
    "flow euler": ("FlowMatchEulerDiscrete", {"shift": 3.0}),
    "flow heun": ("FlowMatchHeunDiscrete", {}),
    "flow lcm": ("FlowMatchLCM", {}),
    "flow dpm2": ("KDPM2Discrete", {"_class_name": "FlowMatchEulerDiscreteScheduler"}),
}
LATENTS = jax.random.normal(jax.random.key(3), (2, 3, 5, 5))


def scheduler_of(name: str) -> kd_flax.FlaxScheduler:
    class_name, config = CASES[name]
    return getattr(kd_flax, f"Flax{class_name}Scheduler")(config)


def network(params: Any, x: jax.Array, timestep: jax.Array) -> jax.Array:
    time = jnp.asarray(timestep, jnp.float32).reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.tanh(0.9 * x + jnp.sin(time / 300).astype(x.dtype)) * 0.8


def call(scheduler: kd_flax.FlaxScheduler, state: Any, sample: jax.Array, i: Any) -> Any:
    """One call of a pipeline with guidance: a doubled batch and a timestep cast to int32."""
    t = jnp.array(state.timesteps, dtype=jnp.int32)[i]
    inputs = jnp.concatenate([sample] * 2)
    inputs = scheduler.scale_model_input(state, inputs, t)
    out = network(None, inputs, jnp.broadcast_to(t, inputs.shape[0]))
    low, high = jnp.split(out, 2)
    return scheduler.step(state, low + 2.0 * (high - low), t, sample).to_tuple()


def compiled(scheduler: kd_flax.FlaxScheduler, sample: jax.Array, n: int, begin: int = 0) -> Any:
    """`set_timesteps` and the loop under jit, as maxdiffusion has them."""

    def run(state: Any, sample: jax.Array) -> Any:
        state = scheduler.set_timesteps(state, num_inference_steps=n, shape=sample.shape)
        sample = sample * state.init_noise_sigma
        steps = lambda i, carry: call(scheduler, carry[1], carry[0], i)  # noqa: E731
        return jax.lax.fori_loop(begin, n, steps, (sample, state))[0]

    return jax.jit(run)(scheduler.create_state(), sample)


def by_hand(scheduler: kd_flax.FlaxScheduler, sample: jax.Array, n: int) -> jax.Array:
    """A plain loop over the timesteps, of a run whose shape nobody told."""
    state = scheduler.set_timesteps(scheduler.create_state(), n)
    for i in range(len(state.timesteps)):
        sample, state = call(scheduler, state, sample, i)
    return sample


def rounded(schedule: kd.Schedule) -> kd.Schedule:
    rows = dataclasses.replace(schedule.rows, timestep=jnp.rint(schedule.rows.timestep))
    return dataclasses.replace(schedule, rows=rows)


def table(scheduler: kd_flax.FlaxScheduler, n: int) -> kd.Schedule:
    two = scheduler.sampler.name in TWO_ROWS
    return rounded(scheduler.sampler.schedule((n + 1) // 2 if two else n))


def truth(scheduler: Any, schedule: kd.Schedule, x: Any, keys: Any) -> np.ndarray:
    """The run of a table, and its result with unit variance."""
    shape = np.shape(x)
    draws = schedule.rows.noise_weight is not None
    noise = [kd.row_noise(keys, row, shape) if draws else 0.0 for row in schedule]
    out = run_in_numpy(scheduler.sampler.denoiser(network), None, schedule, x, noise)
    end = float(schedule.sigmas[-1]) if schedule.rows.input_scale is not None else 0.0
    return out / np.hypot(1, end)


# --- whole runs ------------------------------------------------------------------------------


# A loop of each kind, an odd and an even number of calls; every class once.
BY_HAND = ("dpm2", "dpm2 ancestral", "3m sde", "flow dpm2")
RUNS = [(name, *((5, by_hand) if name in BY_HAND else (6, compiled))) for name in CASES]
RUNS.append(("dpm2 ancestral", 6, compiled))


@pytest.mark.parametrize(("name", "n", "run"), RUNS)
def test_a_loop_of_the_contract_is_the_run_of_the_table(name: str, n: int, run: Any) -> None:
    scheduler = scheduler_of(name)
    schedule = table(scheduler, n)
    got = run(scheduler, LATENTS, n)
    x = LATENTS * schedule.init_noise_sigma
    assert relative_error(got, truth(scheduler, schedule, x, keys_of_signs(LATENTS))) < 2e-6


def test_the_run_of_the_table_is_that_of_kd_sample() -> None:
    scheduler = scheduler_of("dpm2 ancestral")
    key = jax.random.key(5)
    state = scheduler.set_timesteps(scheduler.create_state(key=key), 5, LATENTS.shape)
    sample = LATENTS
    for i in range(5):
        sample, state = call(scheduler, state, sample, i)
    schedule = table(scheduler, 5)
    x = LATENTS * schedule.init_noise_sigma
    x0 = kd.sample(scheduler.sampler.denoiser(network), None, schedule, x, key)
    assert relative_error(sample, x0) < 2e-6


def test_the_scan_of_wan_carries_the_state_and_sets_the_counter_itself() -> None:
    scheduler = scheduler_of("unipc")

    @jax.jit
    def run(sample: jax.Array) -> jax.Array:
        state = scheduler.set_timesteps(scheduler.create_state(), 6, shape=sample.shape)
        zero = jnp.array(0, dtype=jnp.int32)
        state = state.replace(last_sample=jnp.zeros_like(sample), step_index=zero)

        def body(carry: Any, t: jax.Array) -> Any:
            sample, state = carry
            inputs = scheduler.scale_model_input(state, sample, t)
            out = network(None, inputs, jnp.broadcast_to(t, len(sample)))
            return scheduler.step(state, out, t, sample, return_dict=False), None

        return jax.lax.scan(body, (sample, state), jnp.array(state.timesteps))[0][0]

    assert relative_error(run(LATENTS), truth(scheduler, table(scheduler, 6), LATENTS, None)) < 2e-6
    assert jax.eval_shape(run, LATENTS.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_timesteps_are_whole_numbers_one_a_call_and_the_noise_has_unit_variance() -> None:
    for n in (1, 2, 7, 8):
        scheduler = scheduler_of("dpm2")
        before = scheduler.create_state()
        state = scheduler.set_timesteps(before, n)
        assert state.timesteps.shape == (n,)
        assert state.timesteps.dtype == jnp.int32
        assert float(before.init_noise_sigma) == float(state.init_noise_sigma) == 1
        exact = table(scheduler, n).rows.timestep
        assert np.array_equal(state.timesteps[: len(exact)], exact)
    # From 14.61, not from hypot(1, 14.61): the network sees 0.9977 of the noise.
    scaled = scheduler.scale_model_input(state, LATENTS, state.timesteps[0])
    assert relative_error(scaled, LATENTS * 14.6146 / np.hypot(1, 14.6146)) < 1e-5
    assert scheduler.scale_model_input(before, LATENTS, 5) is LATENTS
    assert np.array_equal(scheduler.scale_model_input(state, LATENTS, state.timesteps[1]), LATENTS)


# --- from the middle -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sampler", "begin"),
    [
        ("dpm2 ancestral", kd.dpm2_ancestral, 2),
        ("2m", kd.dpmpp_2m, 3),
    ],
)
def test_from_the_middle_on_it_is_the_run_of_cut_levels(
    name: str, sampler: Any, begin: int
) -> None:
    # The second rows of Heun and, at eta = 1, of DPM2 have the timestep of the next step too.
    scheduler, n = scheduler_of(name), 7
    two = scheduler.sampler.name in TWO_ROWS
    levels = scheduler.sampler.levels(4 if two else n).start_at(begin // 2 if two else begin)
    schedule = rounded(sampler(levels))
    scale: Any = schedule[0].input_scale if schedule.rows.input_scale is not None else 1.0
    expected = truth(scheduler, schedule, LATENTS / scale, keys_of_signs(LATENTS))
    assert relative_error(compiled(scheduler, LATENTS, n, begin), expected) < 2e-6


def test_from_a_landing_row_on_the_first_step_is_one_of_euler() -> None:
    scheduler, n, begin = scheduler_of("dpm2"), 7, 3
    schedule = table(scheduler, n)
    row, after = schedule[begin], schedule[begin + 1]
    assert row.input_scale is not None
    x = LATENTS / row.input_scale
    prediction = scheduler.sampler.denoiser(network)(None, x, row)
    x = prediction.denoised + after.sigma * prediction.epsilon
    rest = rounded(kd.dpm2(scheduler.sampler.levels(4).start_at(2)))
    expected = truth(scheduler, rest, x, keys_of_signs(LATENTS))
    assert relative_error(compiled(scheduler, LATENTS, n, begin), expected) < 2e-6


def test_levels_are_at_whole_timesteps_where_the_spacing_is_leading() -> None:
    config = {"_class_name": "PNDMScheduler", **BETAS, "steps_offset": 1, "skip_prk_steps": True}
    for keys, whole in (({}, False), ({"timestep_spacing": "leading"}, True)):
        scheduler = kd_flax.FlaxKDPM2DiscreteScheduler.from_config(config, **keys)
        state = scheduler.set_timesteps(scheduler.create_state(), 9)
        # What image to image is noised to, for each call that begins a step.
        abar = np.asarray(state.common.alphas_cumprod)[state.timesteps[::2]]
        apart = relative_error(np.sqrt(1 / abar - 1), state.schedule.sigmas[:-1])
        assert (apart < 1e-6) == whole


# --- keys ------------------------------------------------------------------------------------


def test_the_noise_of_a_sample_is_its_own_on_every_device() -> None:
    scheduler = scheduler_of("lcm")
    state = scheduler.set_timesteps(scheduler.create_state(), 4, LATENTS.shape)
    out = jnp.zeros_like(LATENTS)
    both = scheduler.step(state, out, 999, LATENTS).prev_sample
    assert np.array_equal(both, scheduler.step(state, out, 999, LATENTS).prev_sample)
    assert np.abs(np.asarray(both[0]) - np.asarray(both[1])).max() > 0.1

    def on_a_device(sample: jax.Array) -> jax.Array:
        state = scheduler.set_timesteps(scheduler.create_state(), 4, sample.shape)
        return scheduler.step(state, jnp.zeros_like(sample), 999, sample).prev_sample

    shared = jax.pmap(on_a_device)(LATENTS[:, None])
    assert relative_error(np.asarray(shared)[:, 0], both) < 1e-6


@pytest.mark.parametrize("name", ["dpm2", "dpm2 ancestral"])
def test_a_batch_shared_out_over_devices_gives_the_same_bits(name: str) -> None:
    scheduler, sample = scheduler_of(name), jax.random.normal(jax.random.key(1), (8, 4, 8, 8))

    @jax.jit
    def run(sample: jax.Array) -> jax.Array:
        state = scheduler.set_timesteps(scheduler.create_state(), 6, shape=sample.shape)

        def body(i: Any, carry: Any) -> Any:
            sample, state = carry
            t = state.timesteps[i]
            out = elementwise_model(ELEMENTWISE, sample, t)
            return scheduler.step(state, out, t, sample).to_tuple()

        return jax.lax.fori_loop(0, 6, body, (sample, state))[0]

    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
    batched = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    shared = jax.device_put(sample, batched)
    program = run.lower(shared).compile().as_text()
    assert program is not None
    assert not collectives(program)
    got = run(shared)
    assert got.sharding.is_equivalent_to(batched, got.ndim)
    np.testing.assert_array_equal(got, run(sample))


@pytest.mark.parametrize("shape", [(2, 3, 70), (3, 4, 9, 9), (2, 22, 3, 1)])
def test_the_first_numbers_of_a_sample_of_any_shape_are_its_key(shape: tuple[int, ...]) -> None:
    sample = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = jax.random.key_data(keys_of_signs(sample))
    assert np.array_equal(jax.jit(sign_words)(sample), expected)


def test_a_key_given_to_step_is_the_key_of_that_step() -> None:
    scheduler = scheduler_of("lcm")
    state = scheduler.set_timesteps(scheduler.create_state(), 4, LATENTS.shape)
    for seed in (1, 2):
        key = jax.random.PRNGKey(seed)
        x = scheduler.step(state, 0 * LATENTS, 999, LATENTS, key).prev_sample
        row = table(scheduler, 4)[0]
        clean = scheduler.step(state, 0 * LATENTS, 999, LATENTS).prev_sample
        z, own = (kd.row_noise(k, row, x.shape) for k in (key, keys_of_signs(LATENTS)))
        assert row.noise_weight is not None
        assert relative_error(x - clean, row.noise_weight * (z - own)) < 1e-5


def test_the_states_of_two_schedulers_are_of_two_structures() -> None:
    # Pipelines of diffusers compile once for themselves and the structure of what they are given:
    # with the same one, the second scheduler would run the program of the first.
    configs = [BETAS, {**BETAS, "use_karras_sigmas": True}]
    made: list[Any] = [kd_flax.FlaxKDPM2DiscreteScheduler(c) for c in (*configs, BETAS)]
    made.append(kd_flax.FlaxKDPM2AncestralDiscreteScheduler(BETAS))
    found: Any = [jax.tree.structure(s.create_state()) for s in made]
    first, karras, again, ancestral = found
    assert first == again
    assert len({first, karras, ancestral}) == 3


# --- noise for training, configs, registering ------------------------------------------------


def test_add_noise_and_get_velocity_are_those_of_the_training_levels() -> None:
    scheduler = scheduler_of("dpm2")
    state, eps = scheduler.create_state(), jnp.ones_like(LATENTS)
    abar = np.asarray(state.common.alphas_cumprod)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    assert relative_error(abar, np.cumprod(1 - betas)) < 1e-6
    assert relative_error(state.common.betas, betas) < 1e-6
    a, s = (np.sqrt(np.array([v[10], v[900]])).reshape(2, 1, 1, 1) for v in (abar, 1 - abar))
    at = jnp.array([10, 900])
    noised = scheduler.add_noise(state, LATENTS, eps, at)
    assert relative_error(noised, a * LATENTS + s) < 1e-6
    assert relative_error(scheduler.get_velocity(state, LATENTS, eps, at), a - s * LATENTS) < 1e-6
    half = scheduler.add_noise(state, LATENTS.astype(jnp.bfloat16), eps, 900)
    assert half.dtype == jnp.bfloat16
    assert relative_error(half.astype(float), a[1:] * LATENTS + s[1:]) < 2e-2
    flow = scheduler_of("flow euler")
    noised = flow.add_noise(flow.create_state(), LATENTS, eps, 250)
    assert relative_error(noised, 0.75 * LATENTS + 0.25) < 1e-6


@pytest.mark.parametrize("name", ["dpm2, karras", "lcm", "unipc", "flow dpm2"])
def test_a_config_is_written_and_read_again(name: str, tmp_path: Any) -> None:
    scheduler = scheduler_of(name)
    scheduler.save_config(tmp_path / "scheduler", push_to_hub=False)
    written = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
    assert written == json.loads(scheduler.to_json_string()) == dict(scheduler.config)
    cls = type(scheduler)
    for args in [(tmp_path / "scheduler",), (str(tmp_path), "scheduler"), (tmp_path,)]:
        again, state = cls.from_pretrained(*args)
        assert again.sampler == scheduler.sampler
        assert len(state.timesteps) == len(again) == again.config.num_train_timesteps == 1000
    assert cls.from_config(scheduler.config).to_json_string() == scheduler.to_json_string()


def test_a_checkpoint_that_is_not_there_is_named_where_no_hub_can_be_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scheduler_file, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"no scheduler config at none/scheduler; expected"):
        kd_flax.FlaxLCMScheduler.from_pretrained("none", "scheduler")


def test_configs_of_the_two_libraries_are_read() -> None:
    config = {"_class_name": "PNDMScheduler", **LEADING, "skip_prk_steps": True}
    # maxdiffusion adds these, and "" where its yml leaves a key empty.
    config |= {"_class_name": "FlaxKDPM2DiscreteScheduler", "prediction_type": ""}
    config |= {"rescale_zero_terminal_snr": False, "_use_default_values": ["timestep_spacing"]}
    scheduler = kd_flax.FlaxKDPM2DiscreteScheduler.from_config(config, use_karras_sigmas=True)
    assert scheduler.config.use_karras_sigmas
    assert scheduler.config["skip_prk_steps"]
    assert scheduler.config.timestep_spacing == "leading"
    assert scheduler.config.prediction_type == "epsilon"
    assert isinstance(scheduler.config, dict)
    assert not hasattr(scheduler.config, "rescale_zero_terminal_snr")
    # as maxdiffusion sets it for the next scheduler
    scheduler.config["rescale_zero_terminal_snr"] = True
    scheduler.config["prediction_type"] = "v_prediction"
    euler = kd_flax.FlaxEulerDiscreteScheduler.from_config(scheduler.config)
    assert euler.sampler.config["rescale_betas_zero_snr"]
    assert {scheduler: 1}[scheduler] == 1


def test_registered_classes_are_found_where_the_library_looks() -> None:
    class Mixin:
        def step(self) -> None:
            raise AssertionError

    library = types.ModuleType("maxdiffusion")
    vars(library)["FlaxSchedulerMixin"] = Mixin
    kd_flax.register(library)
    names = [name for name in vars(kd_flax) if name.startswith("Flax") and name != "FlaxScheduler"]
    assert len(names) == 14
    for name in names:
        found = getattr(library, name)
        assert issubclass(found, (getattr(kd_flax, name), Mixin))
        assert found.__name__ == name
        assert found.__module__.startswith("maxdiffusion.")
        assert found.step is getattr(kd_flax, name).step
    config = vars(library)["FlaxLCMScheduler"](BETAS).config
    assert config.__module__.split(".")[0] == "maxdiffusion"
    assert config._class_name == "FlaxLCMScheduler"


# --- refusals --------------------------------------------------------------------------------


def _step(**changes: Any) -> Any:
    scheduler = scheduler_of("lcm")
    state = scheduler.set_timesteps(scheduler.create_state(), 2)
    call = {"state": state, "model_output": LATENTS, "timestep": 999, "sample": LATENTS}
    return scheduler.step(**{**call, **changes})


HALF: Any = 2.5
REFUSED: list[tuple[Any, str]] = [
    (lambda: kd_flax.FlaxLCMScheduler("folder"), "from_pretrained reads files"),
    (lambda: kd_flax.FlaxLCMScheduler(original_steps=4), "original_steps given to from_config"),
    (
        lambda: kd_flax.FlaxLCMScheduler.from_config({}, return_unused_kwargs=True),
        "return_unused_kwargs given to from_config",
    ),
    (lambda: kd_flax.FlaxLCMScheduler(beta_schedule="no"), "beta_schedule"),
    (lambda: kd_flax.FlaxFlowMatchLCMScheduler(BETAS | {"_class_name": "DDIM"}), "sampler"),
    (lambda: scheduler_of("lcm").set_timesteps(scheduler_of("lcm").create_state(), 0), "num_infer"),
    (
        lambda: scheduler_of("lcm").set_timesteps(scheduler_of("lcm").create_state(), HALF),
        "num_inf",
    ),
    (lambda: _step(state=scheduler_of("lcm").create_state()), r"call set_timesteps\(state, n\)"),
    (lambda: _step(sample=[1.0]), "sample is"),
    (lambda: _step(model_output=None), "model_output is"),
    (lambda: _step(model_output=jnp.zeros((2, 6, 5, 5))), "cut off learned variances"),
    (lambda: _step(key="0"), "no PRNG key"),
    (lambda: _step(key=jax.random.split(jax.random.key(0), 3)), "3.* keys for 2 samples"),
    (lambda: kd_flax.register("maxdiffusion"), "module = 'maxdiffusion' is of type str"),  # type: ignore[arg-type]
    (lambda: scheduler_of("dpm2").add_noise(None, LATENTS, LATENTS, 1000), "timesteps span"),
]


@pytest.mark.parametrize(("refused", "problem"), REFUSED, ids=[problem for _, problem in REFUSED])
def test_wrong_input_is_refused(refused: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        refused()


def test_reprs_are_one_line_whatever_they_hold() -> None:
    scheduler = scheduler_of("lcm")
    state = scheduler.create_state()
    assert repr(scheduler).startswith("FlaxLCMScheduler(DiffusersSampler('lcm'")
    state = scheduler.set_timesteps(state, 4, LATENTS.shape)
    assert repr(state).startswith("SchedulerState(step_index=Array(-1, dtype=int32), schedule=")
    traced = []
    jax.eval_shape(lambda state: traced.append(repr(state)), state)
    assert all("\n" not in text and len(text) < 200 for text in (repr(state), *traced))
    assert len(traced) == 1
