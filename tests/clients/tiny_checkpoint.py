"""A checkpoint folder of Stable Diffusion with tiny random weights, in the Flax format.

Nothing is downloaded: the tokenizer's vocabulary is the single bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

PNDM = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.35.2",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
WIDTH, TOKENS = 32, 16


def save(folder: Path, module: ModuleType, xl: bool = False) -> Path:
    """Writes the parts of `module`, which is maxdiffusion or diffusers, and returns the folder."""
    import jax
    from transformers import FlaxCLIPTextModel, FlaxCLIPTextModelWithProjection

    parts: dict[str, list[str | None]] = {}
    text = _save_text(folder, "", FlaxCLIPTextModel)
    if xl:
        text |= _save_text(folder, "_2", FlaxCLIPTextModelWithProjection)
    parts |= {name: ["transformers", class_name] for name, class_name in text.items()}
    for i, (name, model) in enumerate(_networks(module, xl).items()):
        params = jax.jit(model.init_weights)(jax.random.PRNGKey(i))
        params = jax.tree.map(lambda leaf: getattr(leaf, "value", leaf), params, is_leaf=_boxed)
        if name == "unet":
            # Guidance would amplify one rounding of the noise to more than is tested here.
            params = {**params, "conv_out": jax.tree.map(lambda w: w / 4, params["conv_out"])}
        model.save_pretrained(folder / name, params=params)
        parts[name] = [module.__name__, type(model).__name__]
    parts["scheduler"] = [module.__name__, "FlaxPNDMScheduler"]
    _write(folder / "scheduler" / "scheduler_config.json", PNDM)
    if not xl:
        parts |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    name = "FlaxStableDiffusionXLPipeline" if xl else "FlaxStableDiffusionPipeline"
    _write(folder / "model_index.json", {"_class_name": name, **parts})
    return folder


def _boxed(leaf: Any) -> bool:
    """maxdiffusion's weights carry the names of their axes."""
    return hasattr(leaf, "value") and hasattr(leaf, "names")


def _networks(module: ModuleType, xl: bool) -> dict[str, Any]:
    extra: dict[str, Any] = {}
    if xl:
        extra = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + WIDTH,
        }
    unet = module.FlaxUNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=2 * WIDTH if xl else WIDTH,
        attention_head_dim=2,
        **extra,
    )
    vae = module.FlaxAutoencoderKL(
        sample_size=16,
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
    )
    return {"unet": unet, "vae": vae}


def _save_text(folder: Path, suffix: str, model_class: Any) -> dict[str, str]:
    from transformers import CLIPTextConfig, CLIPTokenizer

    codes = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(code) for code in codes] + [chr(256 + i) for i in range(256 - len(codes))]
    special = ["<|startoftext|>", "<|endoftext|>"]
    words = [*letters, *(letter + "</w>" for letter in letters), *special]
    source = folder / "words"
    _write(source / "vocab.json", {word: i for i, word in enumerate(words)})
    (source / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    tokenizer = CLIPTokenizer(
        str(source / "vocab.json"), str(source / "merges.txt"), model_max_length=TOKENS
    )
    tokenizer.save_pretrained(folder / f"tokenizer{suffix}")
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
        pad_token_id=len(words) - 1,
    )
    model_class(config, seed=len(suffix)).save_pretrained(folder / f"text_encoder{suffix}")
    return {
        f"tokenizer{suffix}": "CLIPTokenizer",
        f"text_encoder{suffix}": model_class.__name__,
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
