"""The Flax pipelines of diffusers 0.35 with the schedulers of the adapter, against `kd.sample`."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clients import flax_runs as runs
from clients import tiny_checkpoint

from kdiff_jax.adapters import flax as kd_flax

runs.skip_without("diffusers", "diffusers")
if find_spec("diffusers.schedulers.scheduling_ddim_flax") is None:
    reason = "diffusers from 0.40 on has no Flax; tests/clients/install_flax.sh diffusers has one"
    pytest.skip(reason, allow_module_level=True)
pytestmark = [pytest.mark.usefixtures("lenient"), pytest.mark.filterwarnings("ignore")]

SIZE, SHAPE = 16, (2, 4, 8, 8)  # pixels, latents
PROMPTS, NEGATIVES = ["a castle", "a tree"], ["red", ""]


@pytest.fixture(scope="module")
def client(lenient: None) -> Any:
    """diffusers, with the schedulers of the adapter in it."""
    diffusers = import_module("diffusers")
    kd_flax.register(diffusers)
    return diffusers


@pytest.fixture(scope="module")
def pipeline(client: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A pipeline and its weights, loaded as a user does."""
    folder: Path = tiny_checkpoint.save(tmp_path_factory.mktemp("checkpoint"), client)
    load = client.FlaxStableDiffusionPipeline.from_pretrained
    return load(str(folder), safety_checker=None, feature_extractor=None)


def tokens(pipeline: Any, prompts: list[str]) -> np.ndarray:
    """As `prepare_inputs` makes them."""
    length = pipeline.tokenizer.model_max_length
    made = pipeline.tokenizer(prompts, padding="max_length", max_length=length, truncation=True)
    return np.array(made.input_ids)


def texts(pipeline: Any, params: Any, prompts: list[str]) -> jax.Array:
    """What the UNet is told of them."""
    ids = tokens(pipeline, prompts)
    return pipeline.text_encoder(ids, params=params["text_encoder"])[0]


def expected_images(
    pipeline: Any, params: Any, case: runs.Case, z: jax.Array, **start: Any
) -> np.ndarray:
    """The images of `kd.sample`, decoded as the pipeline decodes."""

    def network(weights: Any, x: jax.Array, timestep: jax.Array, cond: jax.Array) -> jax.Array:
        return pipeline.unet.apply(
            {"params": weights}, x, timestep, encoder_hidden_states=cond
        ).sample

    cond, uncond = (texts(pipeline, params, prompts) for prompts in (PROMPTS, NEGATIVES))
    latents = runs.reference(case, network, params["unet"], z, cond, uncond, **start)
    vae = pipeline.vae
    images = vae.apply(
        {"params": params["vae"]}, latents / vae.config.scaling_factor, method=vae.decode
    ).sample
    return np.asarray((images / 2 + 0.5).clip(0, 1).transpose(0, 2, 3, 1))


PARALLEL = [(case, jit) for case in runs.FEW for jit in (False, True)]


@pytest.mark.parametrize(
    ("case", "jit"),
    PARALLEL,
    ids=[f"{runs.name_of(c)}-{'pmap' if j else 'eager'}" for c, j in PARALLEL],
)
def test_text_to_image(case: runs.Case, jit: bool, client: Any, pipeline: Any) -> None:
    pipe, params = pipeline
    pipe.scheduler = getattr(client, case[0]).from_config(runs.config_of(case))
    params = {**params, "scheduler": pipe.scheduler.create_state()}
    z = jax.random.normal(jax.random.key(1), SHAPE)
    ids, negative_ids = pipe.prepare_inputs(PROMPTS), pipe.prepare_inputs(NEGATIVES)
    key = jax.random.PRNGKey(0)  # latents are given: nothing is drawn of it
    arguments = {"latents": z, "neg_prompt_ids": negative_ids}
    every = params
    # A float becomes one number a sample, which its own arithmetic takes under pmap alone.
    scale: Any = runs.SCALE if jit else jnp.float32(runs.SCALE)
    if jit:
        devices = jax.devices()[: len(z)]
        every = jax.device_put_replicated(params, devices)
        key = jax.random.split(key, len(z))
        ids, arguments = jax.tree.map(lambda leaf: leaf[:, None], (ids, arguments))
    got = pipe(
        ids,
        every,
        key,
        num_inference_steps=case[2],
        height=SIZE,
        width=SIZE,
        guidance_scale=scale,
        jit=jit,
        **arguments,
    ).images
    expected = expected_images(pipe, params, case, z)
    runs.check("diffusers text", case, np.reshape(got, expected.shape), expected)


# Levels at whole timesteps: a pipeline adds noise at no other.
WHOLE: runs.Case = "FlaxKDPM2DiscreteScheduler", {"timestep_spacing": "leading"}, 9


@pytest.mark.parametrize("strength", [0.6, 0.8])  # which begin with the first call of a step
@pytest.mark.parametrize("case", [WHOLE], ids=runs.name_of)
def test_image_to_image(case: runs.Case, strength: float, client: Any, pipeline: Any) -> None:
    text, params = pipeline
    parts = {name: getattr(text, name) for name in ("vae", "text_encoder", "tokenizer", "unet")}
    pipe = client.FlaxStableDiffusionImg2ImgPipeline(
        **parts,
        scheduler=getattr(client, case[0]).from_config(runs.config_of(case)),
        safety_checker=None,
        feature_extractor=None,
    )
    params = {**params, "scheduler": pipe.scheduler.create_state()}
    image = jax.random.uniform(jax.random.key(2), (2, 3, SIZE, SIZE), minval=-1)
    z = jax.random.normal(jax.random.key(1), SHAPE)
    key = jax.random.PRNGKey(0)
    got = pipe(
        tokens(text, PROMPTS),
        image,
        params,
        key,
        strength=strength,
        num_inference_steps=case[2],
        height=SIZE,
        width=SIZE,
        guidance_scale=jnp.float32(runs.SCALE),
        noise=z,
        neg_prompt_ids=tokens(text, NEGATIVES),
    ).images
    first_call = pipe.get_timestep_start(case[2], strength)
    encoded = pipe.vae.apply({"params": params["vae"]}, image, method=pipe.vae.encode).latent_dist
    clean = encoded.sample(key=key).transpose(0, 3, 1, 2) * pipe.vae.config.scaling_factor
    expected = expected_images(pipe, params, case, z, image=clean, first_call=first_call)
    runs.check("diffusers image", case, got, expected)
