"""Pipelines of diffusers with tiny random networks, and the same networks as functions of JAX."""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kdiff_jax as kd

# Not importorskip: where one of them is absent, to import the others would take seconds.
if absent := [name for name in ("torch", "diffusers", "torchax") if find_spec(name) is None]:
    reason = f"{', '.join(absent)} not installed; tests/clients/install_torch.sh installs them"
    pytest.skip(reason, allow_module_level=True)
import diffusers
import torch
from torch._ops import OpOverloadPacket

# With more, the threads of torch and of XLA wait for each other: seconds a call.
torch.set_num_threads(1)

BATCH, TOKENS, WIDTH = 2, 5, 16
SCALE = 7.5  # of guidance, and of a guidance embedding
IMAGE, PACKED, VIDEO = (BATCH, 4, 8, 8), (BATCH, 16, 16), (BATCH, 4, 2, 8, 8)
UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}
XL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + WIDTH,
}
FLUX: dict[str, Any] = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": WIDTH,
    "pooled_projection_dim": WIDTH,
    "axes_dims_rope": (2, 2, 4),
    "guidance_embeds": True,
}
WAN: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": WIDTH,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 1,
    "rope_max_seq_len": 32,
}


def import_torchax() -> Any:
    """torchax; its newest version names overloads of named tensors, which torch 2.13 dropped."""
    own = OpOverloadPacket.__getattr__

    def overload(packet: Any, name: str) -> Any:
        try:
            return own(packet, name)
        except AttributeError:
            if "name" not in name.lower():
                raise
            return object()  # stands in lists of operations, and is none of them

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OpOverloadPacket, "__getattr__", overload)
        import torchax
        import torchax.decompositions

        return torchax


@contextlib.contextmanager
def lenient() -> Iterator[None]:
    """What is not ours may warn and promote ranks and dtypes; the rest of the run does not."""
    with (
        warnings.catch_warnings(),
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
    ):
        warnings.simplefilter("ignore")
        yield


def normal(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@dataclass(frozen=True)
class Client:
    """A pipeline, and what it does to call its network, written down for JAX.

    Attributes:
      pipeline: of a scheduler.
      module: its network.
      arguments: what `pipeline(scheduler)` is called with.
      inputs: the positional and keyword arguments of the network, of `(x, timestep, cond)`.
      shape: of the latents.
      cond, uncond: conditions of `kd.sample` and `kd.guided`.
    """

    pipeline: Callable[[Any], Any]
    module: Any
    arguments: dict[str, Any]
    inputs: Callable[[Any, Any, Any], tuple[tuple[Any, ...], dict[str, Any]]]
    shape: tuple[int, ...]
    cond: Any
    uncond: Any = None

    @functools.cached_property
    def jax_network(self) -> tuple[Any, Callable[..., jax.Array]]:
        """The weights, and the network as `kd.denoiser` takes it."""
        with lenient():
            params, call = import_torchax().extract_jax(self.module)

        def model_fn(params: Any, x: jax.Array, timestep: jax.Array, cond: Any) -> jax.Array:
            args, kwargs = self.inputs(x, timestep, cond)
            with lenient():
                return call(params, args, {**kwargs, "return_dict": False})[0]

        return params, model_fn

    def torch_run(self, scheduler: Any, **arguments: Any) -> np.ndarray:
        """The latents that the pipeline returns."""
        arguments = {**self.arguments, **arguments}
        tensors = {
            name: torch.tensor(value) if isinstance(value, np.ndarray) else value
            for name, value in arguments.items()
        }
        with lenient():
            pipe = self.pipeline(scheduler)
            pipe.set_progress_bar_config(disable=True)
            return pipe(**tensors, output_type="latent", return_dict=False)[0].numpy()


def made(kind: Any, config: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return kind(**config).eval()


def stable_diffusion(kind: Any, **config: Any) -> Client:
    unet = made(diffusers.UNet2DConditionModel, {**UNET, **config})
    parts = ("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor")
    without: dict[str, Any] = dict.fromkeys(parts)
    embeds, none = normal(BATCH, TOKENS, WIDTH, seed=1), normal(BATCH, TOKENS, WIDTH, seed=2)
    arguments = {"prompt_embeds": embeds, "guidance_scale": SCALE}
    guided = kind is diffusers.StableDiffusionPipeline

    def inputs(x: Any, timestep: Any, cond: Any) -> Any:
        if guided:
            return (x, timestep, cond), {}
        embedding = kd.guidance_embedding(cond["scale"] - 1, config["time_cond_proj_dim"])
        return (x, timestep, cond["embeds"]), {"timestep_cond": embedding}

    return Client(
        lambda scheduler: kind(
            unet=unet, scheduler=scheduler, requires_safety_checker=False, **without
        ),
        unet,
        {**arguments, "negative_prompt_embeds": none} if guided else arguments,
        inputs,
        IMAGE,
        embeds if guided else {"embeds": embeds, "scale": np.full(BATCH, SCALE, np.float32)},
        none if guided else None,
    )


def stable_diffusion_xl() -> Client:
    unet = made(diffusers.UNet2DConditionModel, {**UNET, **XL})
    parts = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    without: dict[str, Any] = dict.fromkeys(parts)

    def cond(seed: int) -> dict[str, np.ndarray]:
        return {
            "embeds": normal(BATCH, TOKENS, WIDTH, seed=seed),
            "text_embeds": normal(BATCH, WIDTH, seed=seed + 1),
            # The size, the crop and the target size that the pipeline fills in.
            "time_ids": np.tile(np.array([64, 64, 0, 0, 64, 64], np.float32), (BATCH, 1)),
        }

    prompt, negative = cond(1), cond(3)

    def inputs(x: Any, timestep: Any, cond: Any) -> Any:
        added = {name: cond[name] for name in ("text_embeds", "time_ids")}
        return (x, timestep, cond["embeds"]), {"added_cond_kwargs": added}

    return Client(
        lambda scheduler: diffusers.StableDiffusionXLPipeline(
            unet=unet, scheduler=scheduler, add_watermarker=False, **without
        ),
        unet,
        {
            "prompt_embeds": prompt["embeds"],
            "pooled_prompt_embeds": prompt["text_embeds"],
            "negative_prompt_embeds": negative["embeds"],
            "negative_pooled_prompt_embeds": negative["text_embeds"],
            "guidance_scale": SCALE,
        },
        inputs,
        IMAGE,
        prompt,
        negative,
    )


def flux(true_cfg_scale: float = 1.0) -> Client:
    transformer = made(diffusers.FluxTransformer2DModel, FLUX)
    parts = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    without: dict[str, Any] = dict.fromkeys(parts)

    def cond(seed: int) -> dict[str, np.ndarray]:
        return {
            "embeds": normal(BATCH, TOKENS, WIDTH, seed=seed),
            "pooled": normal(BATCH, WIDTH, seed=seed + 1),
            "guidance": np.full(BATCH, SCALE, np.float32),
        }

    prompt, negative = cond(1), cond(3)
    rows, columns = np.divmod(np.arange(16, dtype=np.float32), 4)
    places = np.stack([0 * rows, rows, columns], axis=1)

    def inputs(x: Any, timestep: Any, cond: Any) -> Any:
        return (), {
            "hidden_states": x,
            "timestep": timestep / 1000,
            "guidance": cond["guidance"],
            "pooled_projections": cond["pooled"],
            "encoder_hidden_states": cond["embeds"],
            "txt_ids": jnp.zeros((TOKENS, 3)),
            "img_ids": jnp.asarray(places),
        }

    return Client(
        lambda scheduler: diffusers.FluxPipeline(
            transformer=transformer, scheduler=scheduler, **without
        ),
        transformer,
        {
            "prompt_embeds": prompt["embeds"],
            "pooled_prompt_embeds": prompt["pooled"],
            "negative_prompt_embeds": negative["embeds"],
            "negative_pooled_prompt_embeds": negative["pooled"],
            "guidance_scale": SCALE,
            "true_cfg_scale": true_cfg_scale,
            "height": 64,
            "width": 64,
        },
        inputs,
        PACKED,
        prompt,
        negative if true_cfg_scale > 1 else None,
    )


def wan() -> Client:
    transformer = made(diffusers.WanTransformer3DModel, WAN)
    embeds, none = normal(BATCH, TOKENS, WIDTH, seed=1), normal(BATCH, TOKENS, WIDTH, seed=2)
    return Client(
        lambda scheduler: diffusers.WanPipeline(
            transformer=transformer,
            scheduler=scheduler,
            tokenizer=None,
            text_encoder=None,
            vae=None,
        ),
        transformer,
        {
            "prompt_embeds": embeds,
            "negative_prompt_embeds": none,
            "guidance_scale": SCALE,
            "num_frames": 5,
            "height": 64,
            "width": 64,
        },
        lambda x, timestep, cond: ((x, timestep, cond), {}),
        VIDEO,
        embeds,
        none,
    )


@functools.cache
def client(name: str) -> Client:
    """A pipeline by the name of its model."""
    makers: dict[str, Callable[[], Client]] = {
        "sd": lambda: stable_diffusion(diffusers.StableDiffusionPipeline),
        "sdxl": stable_diffusion_xl,
        "lcm": lambda: stable_diffusion(
            diffusers.LatentConsistencyModelPipeline, time_cond_proj_dim=32
        ),
        "flux": flux,
        "flux cfg": lambda: flux(true_cfg_scale=SCALE),
        "wan": wan,
    }
    return makers[name]()
