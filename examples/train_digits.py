r"""Trains the class-conditional digits network on MNIST: noise prediction over 1000 timesteps.

The weights in `weights/digits.safetensors` were made with

    python examples/train_digits.py --data FOLDER --steps 8000 --batch 128 --seed 0 \
        --out examples/weights/digits.safetensors --checkpoint CHECKPOINTS

where FOLDER holds the four MNIST files: about an hour on two cores. With `--checkpoint` a run that
was interrupted goes on where it stopped, and ends with the same weights: step k sees the same
images, timesteps and noise whatever happened before.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import commands
import jax
import jax.numpy as jnp
import numpy as np
import optax
from training import (
    add_arguments,
    average,
    batches,
    finish,
    load_images,
    restore_checkpoint,
    run,
    strata,
)

import kdiff_jax as kd
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

    The power leans towards small timesteps: where x is nearly pure noise there is little to learn.
    """
    timesteps = jnp.floor(NUM_TIMESTEPS * strata(key, batch) ** TIMESTEP_POWER).astype(jnp.int32)
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


@functools.partial(jax.jit, static_argnums=1)  # one program instead of one for every shape
def fresh_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; each of its arrays is given away in it, so none twice."""
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(params, ema, optimizer.init(params), jnp.asarray(0, jnp.int32))


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
        ema = average(state.ema, params, EMA_DECAY, state.step)
        return TrainState(params, ema, opt_state, state.step + 1), loss

    return jax.jit(train_step, donate_argnums=0)


def main() -> None:
    parser = commands.parser(__doc__)
    add_arguments(parser, steps=8000, batch=128, out="digits.safetensors")
    args = parser.parse_args()

    images, labels = load_images(parser, args)
    noise = kd.noise_schedule(
        "linear", num_train_timesteps=NUM_TIMESTEPS, beta_start=1e-4, beta_end=0.02
    )
    init_key, train_key = jax.random.split(jax.random.key(args.seed))
    optimizer = make_optimizer(args.steps)
    state = fresh_state(unet.init_params(init_key), optimizer)
    settings = {"steps": str(args.steps), "batch": str(args.batch), "seed": str(args.seed)}
    with commands.refused(parser):
        state = restore_checkpoint(args.checkpoint, state, settings)
    train_step = make_train_step(optimizer)

    def one(state: TrainState, index: np.ndarray) -> tuple[TrainState, jax.Array]:
        return train_step(state, noise, images[index], labels[index], train_key)

    indices = batches(len(images), args.batch, args.seed, int(state.step), args.steps)
    state = run(state, one, indices, args, settings)
    finish(args, state.ema)


if __name__ == "__main__":
    main()
