"""maxdiffusion's own sampling loops with the schedulers of the adapter, against `kd.sample`."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from clients import flax_runs as runs
from clients import tiny_checkpoint

from kdiff_jax.adapters import flax as kd_flax

runs.skip_without("maxdiffusion", "maxdiffusion")
# Its own; ours are errors in the rest of the suite.
pytestmark = [pytest.mark.usefixtures("lenient"), pytest.mark.filterwarnings("ignore")]

BATCH, SIZE, SEED = 8, 16, 3  # one sample a device of the suite; pixels
PROMPT, NEGATIVE = "a castle", "red"
AXES = ("data", "fsdp", "context", "tensor")
RULES = (("batch", "data"),)


class Config(SimpleNamespace):
    """What the loops read of a yml."""

    def get_keys(self) -> dict[str, Any]:
        return vars(self)


class SeenVae:
    """A VAE that keeps the latents it is given to decode."""

    def __init__(self, vae: Any) -> None:
        self.vae, self.latents = vae, None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.vae, name)

    def apply(self, variables: Any, z: jax.Array, method: Callable[..., Any]) -> Any:
        self.latents = z * self.vae.config.scaling_factor
        return self.vae.apply(variables, z, method=method)


class Weights(NamedTuple):
    """What the loops read of a train state."""

    params: Any


def mesh() -> jax.sharding.Mesh:
    return jax.sharding.Mesh(np.array(jax.devices()).reshape(-1, 1, 1, 1), AXES)


def latents_noise() -> jax.Array:
    """What the pipelines draw."""
    return jax.random.normal(jax.random.PRNGKey(SEED), (BATCH, 4, 8, 8))


@pytest.fixture(scope="module")
def client(lenient: None) -> Any:
    """maxdiffusion, with the schedulers of the adapter in it."""
    maxdiffusion = import_module("maxdiffusion")
    kd_flax.register(maxdiffusion)
    return maxdiffusion


@pytest.fixture(scope="module")
def checkpoints(client: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """The folders of SD and of SDXL."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {xl: tiny_checkpoint.save(root / f"xl_{xl}", client, xl) for xl in (False, True)}


@pytest.fixture(scope="module")
def pipelines(client: Any, checkpoints: dict[bool, Path]) -> dict[bool, Any]:
    """The pipelines and weights of SD and of SDXL; each with the VAE that keeps its latents."""
    made = {}
    for xl, folder in checkpoints.items():
        name = "FlaxStableDiffusionXLPipeline" if xl else "FlaxStableDiffusionPipeline"
        pipeline, params = getattr(client, name).from_pretrained(
            str(folder), split_head_dim=True, attention_kernel="dot_product"
        )
        pipeline.vae = SeenVae(pipeline.vae)
        made[xl] = pipeline, params
    return made


def network_of(pipeline: Any) -> Callable[..., jax.Array]:
    """Its UNet, told a condition that begins with the text."""

    def network(params: Any, x: jax.Array, timestep: jax.Array, cond: Any) -> jax.Array:
        text, *added = cond
        extra = {"added_cond_kwargs": added[0]} if added else {}
        return pipeline.unet.apply(
            {"params": params}, x, timestep, encoder_hidden_states=text, **extra
        ).sample

    return network


def condition_of(generate: Any, pipeline: Any, params: Any, xl: bool, prompt: str) -> Any:
    """What the UNet is told of a prompt."""
    if not xl:
        ids = generate.tokenize([prompt] * BATCH, pipeline.tokenizer)
        return (pipeline.text_encoder(ids, params=params["text_encoder"])[0],)
    text, pooled = generate.get_embeddings(
        generate.tokenize([prompt] * BATCH, pipeline), pipeline, params
    )
    ids = jnp.array([[SIZE, SIZE, 0, 0, SIZE, SIZE]] * BATCH, text.dtype)
    return text, {"text_embeds": pooled, "time_ids": ids}


def sampled(generate: Any, pipeline: Any, params: Any, calls: int) -> np.ndarray:
    """The latents of `run_inference` of generate.py or generate_sdxl.py, compiled as there."""
    states = {
        f"{name}_state": Weights(weights) for name, weights in params.items() if name != "scheduler"
    }
    config = Config(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        guidance_scale=runs.SCALE,
        guidance_rescale=0.0,
        num_inference_steps=calls,
        resolution=SIZE,
        per_device_batch_size=1,
        logical_axis_rules=RULES,
        do_classifier_free_guidance=True,
        data_sharding=(AXES,),
    )

    def latents(states: Any) -> jax.Array:
        key = jax.random.PRNGKey(SEED)
        generate.run_inference(states, pipeline, params, config, key, mesh(), BATCH)
        return pipeline.vae.latents

    everywhere = jax.sharding.NamedSharding(mesh(), jax.sharding.PartitionSpec())
    with jax.set_mesh(mesh()):
        return np.asarray(jax.jit(latents)(jax.device_put(states, everywhere)))


LOOPS = [("sd", case) for case in runs.CASES] + [("sdxl", case) for case in runs.FEW]


@pytest.mark.parametrize(("model", "case"), LOOPS, ids=[f"{m}-{runs.name_of(c)}" for m, c in LOOPS])
def test_the_loops_of_stable_diffusion(
    model: str, case: runs.Case, client: Any, pipelines: dict[bool, Any]
) -> None:
    xl = model == "sdxl"
    generate = import_module("maxdiffusion.generate_sdxl" if xl else "maxdiffusion.generate")
    pipeline, params = pipelines[xl]
    pipeline.scheduler = getattr(client, case[0]).from_config(runs.config_of(case))
    got = sampled(
        generate, pipeline, {**params, "scheduler": pipeline.scheduler.create_state()}, case[2]
    )
    cond, uncond = (
        condition_of(generate, pipeline, params, xl, prompt) for prompt in (PROMPT, NEGATIVE)
    )
    expected = runs.reference(
        case, network_of(pipeline), params["unet"], latents_noise(), cond, uncond
    )
    runs.check(f"maxdiffusion {model}", case, got, expected)


@pytest.fixture(scope="module")
def wan(client: Any) -> Any:
    """A transformer of Wan 2.1 with tiny random weights."""
    nnx = import_module("flax.nnx")
    rules = import_module("flax.linen.partitioning").axis_rules(RULES)
    model = import_module("maxdiffusion.models.wan.transformers.transformer_wan").WanModel
    # As its own tests have it.
    import_module("flax").config.update("flax_always_shard_variable", False)
    with mesh(), rules:
        return model(
            rngs=nnx.Rngs(jax.random.key(0)),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=16,
            freq_dim=16,
            ffn_dim=32,
            num_layers=2,
            rope_max_seq_len=32,
            mesh=mesh(),
            attention="dot_product",
        )


@pytest.mark.parametrize("scan", [False, True], ids=["python_loop", "lax_scan"])
@pytest.mark.parametrize("case", runs.FLOW_CASES, ids=runs.name_of)
def test_the_pipeline_of_wan(case: runs.Case, scan: bool, client: Any, wan: Any) -> None:
    nnx = import_module("flax.nnx")
    module = import_module("maxdiffusion.pipelines.wan.wan_pipeline_2_1")
    config = Config(
        scan_diffusion_loop=scan,
        skip_first_n_steps_for_profiler=0,
        profiler_steps=0,
        model_name="wan2.1",
        activations_dtype="float32",
        use_batched_text_encoder=False,
        global_batch_size_to_train_on=BATCH,
        per_device_batch_size=1,
        logical_axis_rules=RULES,
    )
    # Its statistics are all that a run to latents reads of the VAE.
    vae = SimpleNamespace(
        temperal_downsample=(False, True, True),
        z_dim=4,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    scheduler = getattr(client, case[0]).from_config(runs.config_of(case))
    unused: dict[str, Any] = dict.fromkeys(
        ("tokenizer", "text_encoder", "vae_cache", "devices_array")
    )
    pipeline = module.WanPipeline2_1(
        config,
        wan,
        vae=vae,
        scheduler=scheduler,
        scheduler_state=scheduler.create_state(),
        mesh=mesh(),
        **dict.fromkeys(unused),
    )
    z = jax.random.normal(jax.random.key(1), (2, 4, 2, 4, 4))
    cond, uncond = jax.random.normal(jax.random.key(2), (2, 2, 6, 16))
    got, _ = pipeline(
        num_frames=5,
        num_inference_steps=case[2],
        guidance_scale=5.0,
        latents=z,
        prompt_embeds=cond,
        negative_prompt_embeds=uncond,
        output_type="latent",
    )
    graph, weights, rest = nnx.split(wan, nnx.Param, ...)

    def network(params: Any, x: jax.Array, timestep: jax.Array, cond: Any) -> jax.Array:
        model = nnx.merge(graph, *params)
        return model(hidden_states=x, timestep=timestep, encoder_hidden_states=cond)

    with mesh(), import_module("flax.linen.partitioning").axis_rules(RULES):
        expected = runs.reference(case, network, (weights, rest), z, cond, uncond, scale=5.0)
    runs.check(f"maxdiffusion wan {'scan' if scan else 'loop'}", case, got, expected)


# The keys of a yml of a checkpoint; "" is what base14.yml has where nothing is set.
YMLS = {
    "all_keys": {
        "_class_name": "KDPM2AncestralDiscreteScheduler",
        "prediction_type": "v_prediction",
        "rescale_zero_terminal_snr": False,
        "timestep_spacing": "trailing",
    },
    "name_alone": {
        "_class_name": "FlaxKDPM2DiscreteScheduler",
        "prediction_type": "",
        "rescale_zero_terminal_snr": False,
        "timestep_spacing": "",
    },
}


@pytest.mark.parametrize("keys", YMLS.values(), ids=YMLS.keys())
def test_generate_started_from_a_yml(
    keys: dict[str, Any],
    client: Any,
    checkpoints: dict[bool, Path],
    pipelines: dict[bool, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generate = import_module("maxdiffusion.generate")
    source = Path(client.__file__).parent / "configs" / "base14.yml"
    config = yaml.safe_load(source.read_text(encoding="utf-8"))
    config |= {
        "pretrained_model_name_or_path": str(checkpoints[False]),
        "activations_dtype": "float32",
        "diffusion_scheduler_config": keys,
        "skip_jax_distributed_system": True,
        "run_name": "tiny",
        "output_dir": str(tmp_path / "out"),
        "resolution": SIZE,
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "num_inference_steps": 9,
        "seed": SEED,
    }
    (tmp_path / "tiny.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    generate.main(["generate.py", str(tmp_path / "tiny.yml")])

    pipeline, params = pipelines[False]
    cond, uncond = (
        condition_of(generate, pipeline, params, False, prompt) for prompt in (PROMPT, NEGATIVE)
    )
    given = {key: value for key, value in keys.items() if value != ""}
    case = "Flax" + keys["_class_name"].removeprefix("Flax"), given, 9
    latents = runs.reference(
        case, network_of(pipeline), params["unet"], latents_noise(), cond, uncond
    )
    images = generate.vae_decode(latents, Config(params=params["vae"]), pipeline)
    for i, image in enumerate(np.asarray(images)):
        found = import_module("PIL.Image").open(tmp_path / f"image_{i}.png")
        assert np.max(np.abs(np.asarray(found) - image * 255)) <= 0.51  # rounded to a byte


THEIR_TESTS = "maxdiffusion.tests.legacy_hf_tests.schedulers.test_scheduler_flax"
# The tests that every scheduler of theirs inherits, and changes that those of DDIM and DDPM try.
COMMON = [
    "test_from_save_pretrained",
    "test_step_shape",
    "test_scheduler_outputs_equivalence",
    "test_deprecated_kwargs",
]
CHANGES: list[dict[str, Any]] = [
    {"num_train_timesteps": 500},
    {"beta_start": 0.001, "beta_end": 0.02},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"prediction_type": "v_prediction"},
]
SCHEDULERS = sorted({case[0] for case in runs.CASES + runs.FLOW_CASES})


def their_tests(client: Any, name: str) -> Any:
    """Their tests of a scheduler, of one of ours."""
    common = import_module(THEIR_TESTS).FlaxSchedulerCommonTest
    config: dict[str, Any] = {
        "num_train_timesteps": 1000,
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "beta_schedule": "linear",
    }
    if "FlowMatch" in name:
        config = {"num_train_timesteps": 1000, "shift": 3.0}

    class OfOurs(common):  # type: ignore[misc, valid-type]
        scheduler_classes = (getattr(client, name),)
        forward_default_kwargs = (("num_inference_steps", 10),)

        def get_scheduler_config(self, **changes: Any) -> dict[str, Any]:
            return {**config, **changes}

    return OfOurs


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("method", COMMON)
def test_its_common_scheduler_tests(method: str, name: str, client: Any) -> None:
    getattr(their_tests(client, name)(method), method)()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_its_checks_over_configs(name: str, client: Any) -> None:
    tests = their_tests(client, name)(COMMON[0])
    for changes in [{"shift": 5.0}] if "FlowMatch" in name else CHANGES:
        tests.check_over_configs(**changes)
    for timestep in (1, 10, 49):
        tests.check_over_forward(time_step=timestep)
