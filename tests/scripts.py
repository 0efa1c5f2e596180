"""Scripts of the examples run in this process, MNIST files without MNIST, a small network."""

import contextlib
import gzip
import io
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest


def run(script: ModuleType, *arguments: str) -> str:
    """What the main of a script prints with these arguments, here, where programs are shared."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", [f"{script.__name__}.py", *arguments])
        script.main()
    return printed.getvalue()


def kept_calls(patch: pytest.MonkeyPatch, module: ModuleType, name: str) -> list[tuple[Any, Any]]:
    """(arguments, result) of each call of a module's function from now on; it is called as ever."""
    calls: list[tuple[Any, Any]] = []
    function = getattr(module, name)

    def kept(*arguments: Any) -> Any:
        result = function(*arguments)
        calls.append((arguments, result))
        return result

    patch.setattr(module, name, kept)
    return calls


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


def fake_mnist(folder: Path, count: int) -> None:
    """The four files of MNIST, of random images."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = rng.integers(0, 10, count, dtype=np.uint8)
    for prefix in ("train", "t10k"):
        _write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", images)
        _write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", labels)


class SmallUnet:
    """Takes the place of the module `unet` in a training script: two weights, no layers.

    A step of training the U-Net takes seconds to compile, and what stops and goes on does not look
    inside the network.
    """

    NO_CLASS = 10

    @staticmethod
    def init_params(key: jax.Array) -> dict[str, jax.Array]:
        return {"gain": jax.random.normal(key, (2,)), "shift": jnp.float32(0.1)}

    @staticmethod
    def with_guidance(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return params | {"guidance": jnp.float32(0)}

    @staticmethod
    def load(path: Path) -> tuple[Any, dict[str, jax.Array]]:
        from safetensors.numpy import load_file  # of an extra that not every script needs

        tensors = load_file(path)
        return SmallUnet.model_fn, {
            name: jnp.asarray(t, jnp.float32) for name, t in tensors.items()
        }

    @staticmethod
    def model_fn(params: Any, x: jax.Array, timestep: jax.Array, cond: Any) -> jax.Array:
        gain = params["gain"][0] + params["gain"][1] * timestep / 1000
        if "guidance" in params:
            gain = gain + params["guidance"] * cond["scale"]
            cond = cond["label"]
        shift = params["shift"] * cond.astype(jnp.float32)
        return jnp.tanh(gain)[:, None, None, None] * x + shift[:, None, None, None]


def _write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))
