"""What the training scripts share: batches, the loop with its progress bar, checkpoints.

A state is a NamedTuple with at least the fields `ema`, the averaged weights, and `step`.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import commands
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

import mnist
import unet


def add_arguments(parser: argparse.ArgumentParser, steps: int, batch: int, out: str) -> None:
    """The arguments that every training script has, with this script's defaults."""
    add = parser.add_argument
    add("--data", required=True, help="folder with the four MNIST files")
    add("--steps", type=commands.count, default=steps, help="optimiser steps")
    add("--batch", type=commands.count, default=batch, help="images per step")
    add("--seed", type=commands.seed, default=0, help="of weights, batches and noise")
    add("--out", type=commands.output, default=out, help="file for the weights")
    add("--checkpoint", type=commands.folder, help="folder for checkpoints; resumes from it")
    minutes = commands.positive
    add("--checkpoint-minutes", type=minutes, default=4.0, help="time between checkpoints")


def load_images(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Any:
    """Training images and labels; a folder without them, or too large a batch, is an error."""
    with commands.refused(parser):
        images, labels = mnist.load(args.data, "train")
    if args.batch > len(images):
        parser.error(f"--batch {args.batch}: there are {len(images)} images")
    return images, labels


def batches(num_images: int, batch: int, seed: int, start: int, stop: int) -> Iterator[np.ndarray]:
    """Indices [B] of the images of the steps start..stop-1; each epoch is a fresh shuffle.

    They depend on the seed and the number of the step alone, so that a resumed run sees the same.
    """
    per_epoch = num_images // batch
    order, order_epoch = np.arange(0), -1
    for step in range(start, stop):
        epoch, i = divmod(step, per_epoch)
        if epoch != order_epoch:
            order, order_epoch = np.random.default_rng([seed, epoch]).permutation(num_images), epoch
        yield order[i * batch : (i + 1) * batch]


def strata(key: jax.Array, batch: int) -> jax.Array:
    """Uniform numbers in [0, 1), float32 [B], one from each of B equally likely strata.

    Timesteps drawn from them take most of the noise out of the gradient that comes from the choice
    of timesteps.
    """
    return (jnp.arange(batch, dtype=jnp.float32) + jax.random.uniform(key, (batch,))) / batch


def average(ema: Any, params: Any, decay: float, step: jax.Array | None = None) -> Any:
    """The exponential moving average of the weights, one step on.

    Given the number of the step its memory is short at first, so that it forgets the start.
    """
    keep: Any = decay
    if step is not None:
        count = step.astype(jnp.float32)
        keep = jnp.minimum(decay, (1.0 + count) / (10.0 + count))
    return jax.tree.map(lambda old, new: keep * old + (1.0 - keep) * new, ema, params)


def run(
    state: Any,
    train_step: Callable[[Any, np.ndarray], tuple[Any, jax.Array]],
    indices: Iterable[np.ndarray],
    args: argparse.Namespace,
    settings: dict[str, str],
) -> Any:
    """`state, loss = train_step(state, index)` for every index, with progress and checkpoints."""
    last_checkpoint, smooth_loss = time.monotonic(), None
    with tqdm(total=args.steps, initial=int(state.step), unit="step", mininterval=1.0) as bar:
        try:
            for index in indices:
                state, latest = train_step(state, index)
                loss = float(latest)
                smooth_loss = loss if smooth_loss is None else 0.98 * smooth_loss + 0.02 * loss
                bar.set_postfix(loss=f"{smooth_loss:.4f}", refresh=False)
                bar.update()
                minutes = (time.monotonic() - last_checkpoint) / 60
                if args.checkpoint and minutes > args.checkpoint_minutes:
                    save_checkpoint(args.checkpoint, state, settings)
                    last_checkpoint = time.monotonic()
        finally:  # after an interruption too
            if args.checkpoint:
                save_checkpoint(args.checkpoint, state, settings)
    return state


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Calls write(temporary path), then renames it: a reader sees a whole file, old or new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    os.replace(temporary, path)


def save_weights(path: Path, params: Any) -> None:
    """The weights in half precision, ready to use."""
    write_atomically(path, lambda temporary: unet.save(temporary, params))


def finish(args: argparse.Namespace, params: Any) -> None:
    """Writes the trained weights, and says so."""
    save_weights(args.out, params)
    print(f"wrote {args.out}")


def save_checkpoint(folder: Path, state: Any, settings: dict[str, str]) -> None:
    """The whole state in `state.safetensors`; the averaged weights, ready to use, beside it."""
    leaves = {f"{i:04d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    write_atomically(folder / "state.safetensors", lambda path: save_file(leaves, path, settings))
    save_weights(folder / "ema.safetensors", state.ema)


def restore_checkpoint(folder: Path | None, fresh: Any, settings: dict[str, str]) -> Any:
    """The state of the checkpoint in the folder, or `fresh` where there is none."""
    path = None if folder is None else folder / "state.safetensors"
    if path is None or not path.is_file():
        return fresh
    try:
        with safe_open(path, "numpy") as file:
            found = file.metadata()
            leaves = [jnp.asarray(file.get_tensor(name)) for name in sorted(file.keys())]
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no whole safetensors file: {error}; delete it, or give another --checkpoint"
            " folder, to start afresh."
        ) from None
    if found != settings:
        raise ValueError(
            f"{path} was written by a run with {found}, but this one has {settings}; give the"
            " same arguments to resume it, or another --checkpoint folder to start afresh."
        )
    return jax.tree.unflatten(jax.tree.structure(fresh), leaves)
