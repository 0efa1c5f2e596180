"""Records runs of maxdiffusion's own loops with the schedulers of the Flax adapter.

maxdiffusion is in no package registry: `tests/clients/install_flax.sh` makes an environment of it.

    python tests/golden/generate_maxdiffusion.py       # writes maxdiffusion.npz beside this file

The loops are `run_inference` of generate.py and of generate_sdxl.py, and `WanPipeline2_1` with a
Python loop and with `lax.scan`, all unmodified. The network is `recorded_maxdiffusion.network`; the
tokenizers, text encoders and VAEs are stand-ins. Of every run: the class and config of its
scheduler, the noise that it begins with, what the network was told at each call (the timestep, and
the conditions of both halves of the batch), and the latents that reach the VAE.
"""

import importlib
import json
import platform
import re
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from maxdiffusion import generate, generate_sdxl
from maxdiffusion.pipelines.wan.wan_pipeline_2_1 import WanPipeline2_1

from kdiff_jax.adapters import flax as kd_flax

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
recorded = importlib.import_module("recorded_maxdiffusion")
runs = importlib.import_module("clients.flax_runs")

BATCH, SIZE = 2, 4
AXES = ("data", "fsdp", "context", "tensor")
MESH = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1, 1), AXES)
DPM2, ANCESTRAL = "FlaxKDPM2DiscreteScheduler", "FlaxKDPM2AncestralDiscreteScheduler"
MULTISTEP, UNIPC = "FlaxDPMSolverMultistepScheduler", "FlaxUniPCMultistepScheduler"
RUNS: list[tuple[str, Any]] = [
    ("sd", (DPM2, {}, 7)),
    ("sd", (ANCESTRAL, {"prediction_type": "v_prediction"}, 8)),
    ("sd", ("FlaxLCMScheduler", {}, 4)),
    ("sd", (MULTISTEP, {"timestep_spacing": "leading"}, 6)),
    ("sdxl", (DPM2, {"use_karras_sigmas": True}, 5)),
    ("wan", (UNIPC, runs.WAN, 6)),
    ("wan scan", (UNIPC, runs.WAN, 6)),
]
TOLD: list[Any] = []  # one entry a call
TEXTS = np.random.default_rng(0).standard_normal((2, BATCH, 4, 3)).astype(np.float32)


def told_network(weight: Any, x: jax.Array, timestep: jax.Array, cond: Any) -> jax.Array:
    """The network, which writes down what it is told."""
    jax.debug.callback(lambda *given: TOLD.append(given), timestep, *cond, ordered=True)
    return recorded.network(weight, x, timestep, cond)


class Unet:
    config = SimpleNamespace(in_channels=4)

    def apply(
        self, variables: Any, x: Any, timestep: Any, encoder_hidden_states: Any, **added: Any
    ) -> Any:
        more = added.get("added_cond_kwargs", {})
        cond = [encoder_hidden_states, *(more[name] for name in sorted(more))]
        return SimpleNamespace(sample=told_network(variables["params"], x, timestep, cond))


class Vae:
    """Keeps what it is to decode."""

    config = SimpleNamespace(block_out_channels=(1,), scaling_factor=1.0)
    latents, decode = None, None

    def apply(self, variables: Any, latents: jax.Array, method: Any) -> Any:
        self.latents = latents
        return SimpleNamespace(sample=latents)


class Tokenizer:
    """Whether a prompt is the negative one, and which sample it is of."""

    model_max_length = 2

    def __call__(self, prompts: list[str], **_: Any) -> Any:
        ids = np.array([[prompt == "negative", i] for i, prompt in enumerate(prompts)])
        return SimpleNamespace(input_ids=ids.astype(np.int32))


def text_encoder(ids: Any, params: Any, **_: Any) -> dict[Any, Any]:
    """What both kinds of loops read of the text encoders of transformers."""
    states = jnp.asarray(TEXTS)[ids[:, 0], ids[:, 1]]
    return {0: states, "hidden_states": [states, None], "text_embeds": states[:, 0]}


class Transformer(nnx.Module):
    """Of Wan."""

    def __init__(self) -> None:
        self.weight = nnx.Param(jnp.asarray(recorded.WEIGHT))

    config = SimpleNamespace(in_channels=4)

    def rope(self, states: jax.Array) -> None:
        """Positions, which the network needs none of."""

    def __call__(
        self, hidden_states: Any, timestep: Any, encoder_hidden_states: Any, **_: Any
    ) -> jax.Array:
        return told_network(self.weight[...], hidden_states, timestep, [encoder_hidden_states])


class Weights(NamedTuple):
    """What the loops read of a train state."""

    params: Any


def of_stable_diffusion(xl: bool, scheduler: Any, calls: int, seed: int) -> tuple[Any, Any]:
    """The noise that `run_inference` draws, and its latents."""
    pipeline = SimpleNamespace(
        unet=Unet(), vae=Vae(), scheduler=scheduler, tokenizer=Tokenizer(), tokenizer_2=Tokenizer()
    )
    pipeline.text_encoder = pipeline.text_encoder_2 = text_encoder
    config = SimpleNamespace(
        prompt="positive",
        negative_prompt="negative",
        guidance_scale=runs.SCALE,
        guidance_rescale=0.0,
        num_inference_steps=calls,
        resolution=SIZE,
        per_device_batch_size=BATCH,
        logical_axis_rules=(("batch", "data"),),
        do_classifier_free_guidance=True,
        data_sharding=(AXES,),
    )
    names = ("unet_state", "vae_state", "text_encoder_state", "text_encoder_2_state")
    key, params = jax.random.PRNGKey(seed), {"scheduler": scheduler.create_state()}

    def latents(weight: Any) -> Any:
        module = generate_sdxl if xl else generate
        states = {name: Weights(weight) for name in names}
        module.run_inference(states, pipeline, params, config, key, MESH, BATCH)
        return pipeline.vae.latents

    with jax.set_mesh(MESH):
        found = jax.jit(latents)(recorded.WEIGHT)
    return jax.random.normal(key, (BATCH, 4, SIZE, SIZE)), found


def of_wan(scan: bool, scheduler: Any, calls: int, seed: int) -> tuple[Any, Any]:
    """The noise that the pipeline is given, and its latents."""
    config: Any = SimpleNamespace(
        scan_diffusion_loop=scan,
        skip_first_n_steps_for_profiler=0,
        profiler_steps=0,
        model_name="wan2.1",
        activations_dtype="float32",
        use_batched_text_encoder=False,
        global_batch_size_to_train_on=BATCH,
        per_device_batch_size=BATCH,
        logical_axis_rules=(("batch", "data"),),
        get_keys=lambda: vars(config),
    )
    vae = SimpleNamespace(
        temperal_downsample=(False, True, True),
        z_dim=4,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    unused = dict.fromkeys(("tokenizer", "text_encoder", "vae_cache", "devices_array"))
    pipeline = WanPipeline2_1(
        config,
        Transformer(),
        vae=vae,
        scheduler=scheduler,
        scheduler_state=scheduler.create_state(),
        mesh=MESH,
        **unused,
    )
    initial = jax.random.normal(jax.random.key(seed), (BATCH, 4, 2, SIZE, SIZE))
    latents, _ = pipeline(
        num_frames=5,
        num_inference_steps=calls,
        guidance_scale=5.0,
        latents=initial,
        prompt_embeds=jnp.asarray(TEXTS[0]),
        negative_prompt_embeds=jnp.asarray(TEXTS[1]),
        output_type="latent",
    )
    return initial, latents


def main() -> None:
    """Writes maxdiffusion.npz."""
    arrays: dict[str, Any] = {}
    about = []
    for i, (loop, case) in enumerate(RUNS):
        TOLD.clear()
        config = runs.config_of(case)
        scheduler = getattr(kd_flax, case[0]).from_config(config)
        wan = loop.startswith("wan")
        run, other = (of_wan, "wan scan") if wan else (of_stable_diffusion, "sdxl")
        initial, latents = run(loop == other, scheduler, case[2], i)
        jax.effects_barrier()
        timesteps = np.array([given[0] for given in TOLD])
        assert timesteps.shape == (case[2], 2 * BATCH)
        assert np.all(timesteps == timesteps[:, :1])
        arrays |= {f"{i}/initial": initial, f"{i}/latents": latents}
        arrays[f"{i}/timesteps"] = timesteps[:, 0]
        # Wan has the condition in the first half of the batch, Stable Diffusion in the second.
        halves = ("cond", "uncond") if wan else ("uncond", "cond")
        for k, leaf in enumerate(TOLD[0][1:]):
            for half, part in zip(halves, np.split(np.asarray(leaf), 2), strict=True):
                arrays[f"{i}/{half}/{k}"] = part
        about.append(
            {
                "loop": loop,
                "scheduler": case[0],
                "config": config,
                "calls": case[2],
                "scale": 5.0 if wan else runs.SCALE,
                "leaves": len(TOLD[0]) - 1,
            }
        )
    script = (HERE.parent / "clients" / "install_flax.sh").read_text(encoding="utf-8")
    commit = re.findall(r"checkout --quiet (\w{40})", script)[0]
    made_by = {"python": platform.python_version(), "maxdiffusion": commit}
    made_by |= {package: version(package) for package in ("jax", "jaxlib", "flax", "numpy")}
    arrays["about"] = np.array(json.dumps({"made_by": made_by, "runs": about}))
    np.savez_compressed(HERE / "maxdiffusion.npz", **arrays)
    print(f"{len(about)} runs, {(HERE / 'maxdiffusion.npz').stat().st_size} bytes")


if __name__ == "__main__":
    main()
