r"""Trains the class-conditional digits network on MNIST: noise prediction over 1000 timesteps.

The weights in `weights/digits.safetensors` were made with

    python examples/train_digits.py --data FOLDER --steps 8000 --batch 128 --seed 0 \
        --out examples/weights/digits.safetensors --checkpoint CHECKPOINTS

where FOLDER holds the four MNIST files: about an hour on two cores. With `--checkpoint` a run that
was interrupted goes on where it stopped, and ends with the same weights: step k sees the same
images, timesteps and noise whatever happened before.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors import safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

import kdiff_jax as kd
import mnist
import unet

NUM_TIMESTEPS = 1000
LABEL_DROPOUT = 0.1
EMA_DECAY = 0.999
PEAK_LEARNING_RATE = 2e-3
WARMUP_STEPS = 200
TIMESTEP_POWER = 1.3


class TrainState(NamedTuple):
    """All that changes from step to step, so all that a checkpoint holds."""

    params: Any
    ema: Any
    opt_state: Any
    step: jax.Array


def make_optimizer(steps: int) -> optax.GradientTransformation:
    """Adam with a short warm-up, a cosine decay to zero and clipped gradients."""
    learning_rate = optax.warmup_cosine_decay_schedule(
        0.0, PEAK_LEARNING_RATE, min(WARMUP_STEPS, steps // 10 + 1), steps
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(learning_rate, b2=0.99))


def draw_timesteps(key: jax.Array, batch: int) -> jax.Array:
    """Training timesteps int32 [B], one from each of B equally likely strata.

    Strata take most of the noise out of the gradient that comes from the choice of timesteps. The
    power leans towards small timesteps: where x is nearly pure noise there is little to learn.
    """
    u = (jnp.arange(batch) + jax.random.uniform(key, (batch,))) / batch
    timesteps = jnp.floor(NUM_TIMESTEPS * u**TIMESTEP_POWER).astype(jnp.int32)
    return jnp.minimum(timesteps, NUM_TIMESTEPS - 1)


def loss_fn(
    params: Any, noise: kd.NoiseSchedule, images: jax.Array, labels: jax.Array, key: jax.Array
) -> jax.Array:
    """Mean squared error of the predicted noise, weighted by 1 / alpha^2.

    With this weight the error is that of v = alpha * eps - sigma * x0, which is what the layers of
    the network produce. Without it very noisy timesteps would count for next to nothing: alpha^2 is
    4e-5 at the last one.
    """
    key_t, key_eps, key_drop = jax.random.split(key, 3)
    x0 = images.astype(jnp.float32) / 127.5 - 1.0
    timesteps = draw_timesteps(key_t, x0.shape[0])
    eps = jax.random.normal(key_eps, x0.shape)
    x = noise.add_noise(x0, eps, timesteps)
    drop = jax.random.bernoulli(key_drop, LABEL_DROPOUT, labels.shape)
    cond = jnp.where(drop, unet.NO_CLASS, labels)
    predicted = unet.model_fn(params, x, timesteps.astype(jnp.float32), cond)
    errors = jnp.mean((predicted - eps) ** 2, axis=(1, 2, 3))
    return jnp.mean(errors / noise.alphas_cumprod[timesteps])


def make_train_step(optimizer: optax.GradientTransformation) -> Callable[..., Any]:
    """The jitted train step. The state's buffers are given away and reused for the new state."""

    def train_step(
        state: TrainState,
        noise: kd.NoiseSchedule,
        images: jax.Array,
        labels: jax.Array,
        key: jax.Array,
    ) -> tuple[TrainState, jax.Array]:
        key = jax.random.fold_in(key, state.step)
        loss, grads = jax.value_and_grad(loss_fn)(state.params, noise, images, labels, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # A short memory at first, so that the average forgets the random start.
        decay = jnp.minimum(EMA_DECAY, (1.0 + state.step) / (10.0 + state.step))
        ema = jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, state.ema, params)
        return TrainState(params, ema, opt_state, state.step + 1), loss

    return jax.jit(train_step, donate_argnums=0)


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


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Calls write(temporary path), then renames it: a reader sees a whole file, old or new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    os.replace(temporary, path)


def save_checkpoint(folder: Path, state: TrainState, settings: dict[str, str]) -> None:
    """The whole state in `state.safetensors`; the averaged weights, ready to use, beside it."""
    leaves = {f"{i:04d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    write_atomically(folder / "state.safetensors", lambda path: save_file(leaves, path, settings))
    write_atomically(folder / "ema.safetensors", lambda path: unet.save(path, state.ema))


def restore_checkpoint(folder: Path, fresh: TrainState, settings: dict[str, str]) -> TrainState:
    """The state of the checkpoint in the folder, or `fresh` where there is none."""
    path = folder / "state.safetensors"
    if not path.is_file():
        return fresh
    with safe_open(path, "numpy") as file:
        found = file.metadata()
        if found != settings:
            raise ValueError(
                f"{path} was written by a run with {found}, but this one has {settings}; give the"
                " same arguments to resume it, or another --checkpoint folder to start afresh."
            )
        leaves = [jnp.asarray(file.get_tensor(name)) for name in sorted(file.keys())]
    return jax.tree.unflatten(jax.tree.structure(fresh), leaves)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the digits network on MNIST.")
    parser.add_argument("--data", required=True, help="folder with the four MNIST files")
    parser.add_argument("--steps", type=int, default=8000, help="optimiser steps")
    parser.add_argument("--batch", type=int, default=128, help="images per step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path("digits.safetensors"), help="file for the weights"
    )
    parser.add_argument("--checkpoint", type=Path, help="folder for checkpoints; resumes from it")
    parser.add_argument(
        "--checkpoint-minutes", type=float, default=4.0, help="time between checkpoints"
    )
    args = parser.parse_args()

    images, labels = mnist.load(args.data, "train")
    if args.steps < 1 or not 1 <= args.batch <= len(images):
        raise ValueError(
            f"--steps {args.steps} --batch {args.batch}; expected at least one step, and a batch"
            f" between 1 and the number of images, {len(images)}."
        )
    noise = kd.noise_schedule(
        "linear", num_train_timesteps=NUM_TIMESTEPS, beta_start=1e-4, beta_end=0.02
    )
    init_key, train_key = jax.random.split(jax.random.key(args.seed))
    optimizer = make_optimizer(args.steps)
    params = unet.init_params(init_key)
    ema = jax.tree.map(jnp.copy, params)
    state = TrainState(params, ema, optimizer.init(params), jnp.asarray(0, jnp.int32))
    settings = {"steps": str(args.steps), "batch": str(args.batch), "seed": str(args.seed)}
    if args.checkpoint:
        state = restore_checkpoint(args.checkpoint, state, settings)
    start = int(state.step)

    train_step = make_train_step(optimizer)
    last_checkpoint, smooth_loss = time.monotonic(), None
    with tqdm(total=args.steps, initial=start, unit="step", mininterval=1.0) as bar:
        try:
            for index in batches(len(images), args.batch, args.seed, start, args.steps):
                state, loss = train_step(state, noise, images[index], labels[index], train_key)
                loss = float(loss)
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
    write_atomically(args.out, lambda path: unet.save(path, state.ema))


if __name__ == "__main__":
    main()
