r"""Distils the digits network into a latent-consistency model, for sampling in one to eight steps.

The weights in `weights/digits_lcm.safetensors` were made with

    python examples/distill_lcm.py --data FOLDER --out first.safetensors
    python examples/distill_lcm.py --data FOLDER --init first.safetensors --seed 1 \
        --steps 3000 --huber 0.001 --even-levels \
        --out examples/weights/digits_lcm.safetensors

where FOLDER holds the four MNIST files: 35 and 17 minutes on two cores. The first run finds the
trajectories' ends; the second, with a loss that heeds small differences and low noise levels too,
makes the student's outputs along one trajectory agree. With `--checkpoint FOLDER` a run that was
interrupted goes on where it stopped, and ends with the same weights.

Luo et al. 2023 (arXiv:2310.04378), Algorithm 1. A training image is brought to a noise level of the
distillation grid; the teacher, guided with a random scale, moves it one step of its ODE down the
grid; the student's output at the first point is drawn towards the output of a slow average of the
student at the second. The teacher's step is a row of this library's tables, as in any sampling.
"""

import zlib
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
from digits import LCM_GUIDANCE, WEIGHTS, lcm_denoiser, training_noise

SOLVERS: dict[str, Callable[[kd.Levels], kd.Schedule]] = {"euler": kd.euler, "dpm2": kd.dpm2}
WARMUP_STEPS = 200
TARGET_DECAY = 0.95
EMA_DECAY = 0.998

TEACHER = kd.denoiser(unet.model_fn, "epsilon")
STUDENT = lcm_denoiser()


class DistillState(NamedTuple):
    """All that changes from step to step: student, target, and the average that is shipped."""

    params: Any
    target: Any
    ema: Any
    opt_state: Any
    step: jax.Array


def make_optimizer(steps: int, peak: float) -> optax.GradientTransformation:
    """Adam with a short warm-up, a cosine decay and clipped gradients."""
    learning_rate = optax.warmup_cosine_decay_schedule(
        0.0, peak, min(WARMUP_STEPS, steps // 10 + 1), steps
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(learning_rate, b2=0.99))


def distillation_table(noise: kd.NoiseSchedule, solver: str, original_steps: int) -> kd.Schedule:
    """The teacher's solver on the whole distillation grid, from its top to timestep 0.

    Its outer step n leads from the n-th grid point to the next, k = T / original_steps timesteps
    below; the last leads from the lowest grid point to timestep 0, where the student is the
    identity.
    """
    grid = kd.lcm_levels(noise, original_steps, original_steps=original_steps).timesteps
    return SOLVERS[solver](kd.levels(noise, timesteps=[*np.asarray(grid).tolist(), 0.0]))


def rows_in_step(table: kd.Schedule) -> int:
    """The rows of an outer step: one of Euler, two of DPM2, whose closing step has one."""
    return -(-table.num_rows // table.num_steps)


def rows_at(table: kd.Schedule, step: jax.Array, offset: int = 0) -> kd.Row:
    """A row for each sample, leaves [B]: the row `offset` places into its outer step."""
    return table.rows_at(rows_in_step(table) * step + offset)


def teacher_step(
    params: Any,
    table: kd.Schedule,
    x: jax.Array,
    step: jax.Array,
    labels: jax.Array,
    scale: jax.Array,
) -> jax.Array:
    """Every sample one outer step further down the grid, along the guided teacher's ODE."""
    denoise = kd.guided(TEACHER, scale, uncond=jnp.int32(unet.NO_CLASS))
    state = kd.init(table, x)
    for offset in range(rows_in_step(table)):
        row = rows_at(table, step, offset)
        state = kd.step(state, row, denoise(params, state.sample, row, labels))
    return state.sample


def pseudo_huber(difference: jax.Array, c: float) -> jax.Array:
    """`sqrt(|d|^2 + c^2) - c` of every sample, [B]; |d|^2 is the mean square of its pixels.

    A sample further than c from its target pulls with the same force however far it is, so that
    the noisiest levels do not drown the others (Song and Dhariwal 2023, arXiv:2310.14189).
    """
    square = jnp.mean(difference**2, axis=(1, 2, 3))
    return jnp.sqrt(square + c**2) - c


def loss_fn(
    params: Any,
    target: Any,
    teacher: Any,
    table: kd.Schedule,
    guidance: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    huber: float,
    even_levels: bool,
) -> jax.Array:
    """How far the student is from one output along a step of the teacher's trajectory."""
    key_step, key_scale, key_eps = jax.random.split(key, 3)
    x0 = images.astype(jnp.float32) / 127.5 - 1.0
    batch = x0.shape[0]
    last = table.num_steps - 1  # timestep 0, where there is nothing to learn
    step = jnp.floor(last * strata(key_step, batch)).astype(jnp.int32)
    step = jnp.minimum(step, last - 1)  # float32 may round up to a whole batch
    low, high = guidance
    scale = low + (high - low) * jax.random.uniform(key_scale, (batch,))

    here, there = rows_at(table, step), rows_at(table, step + 1)
    x = kd.add_noise(here, x0, jax.random.normal(key_eps, x0.shape))
    cond = {"label": labels, "scale": scale}
    x_next = teacher_step(teacher, table, x, step, labels, scale)
    wanted = jax.lax.stop_gradient(STUDENT(target, x_next, there, cond).denoised)
    loss = pseudo_huber(STUDENT(params, x, here, cond).denoised - wanted, huber)
    if even_levels:
        # The part of the network's output that reaches its estimate: 0.08 at the lowest level,
        # which would hardly be trained at all.
        assert here.input_scale is not None
        loss = loss / (here.input_scale * here.sigma)
    return jnp.mean(loss)


def make_train_step(
    optimizer: optax.GradientTransformation, huber: float, even_levels: bool
) -> Callable[..., Any]:
    """The jitted train step. The state's buffers are given away and reused for the new state."""

    def train_step(
        state: DistillState,
        teacher: Any,
        table: kd.Schedule,
        guidance: jax.Array,
        images: jax.Array,
        labels: jax.Array,
        key: jax.Array,
    ) -> tuple[DistillState, jax.Array]:
        key = jax.random.fold_in(key, state.step)
        batch = images, labels, key
        loss, grads = jax.value_and_grad(loss_fn)(
            state.params, state.target, teacher, table, guidance, *batch, huber, even_levels
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        target = average(state.target, params, TARGET_DECAY)
        ema = average(state.ema, params, EMA_DECAY, state.step)
        return DistillState(params, target, ema, opt_state, state.step + 1), loss

    return jax.jit(train_step, donate_argnums=0)


def main() -> None:
    parser = commands.parser(__doc__)
    add_arguments(parser, steps=6000, batch=64, out="digits_lcm.safetensors")
    add, positive = parser.add_argument, commands.positive
    add("--teacher", type=commands.file, default=WEIGHTS, help="weights to distil")
    add("--init", type=commands.file, help="a student's weights to go on from")
    add("--learning-rate", type=positive, default=5e-4, help="the highest")
    add("--huber", type=positive, default=0.01, help="c of the loss, in pixel values")
    add("--even-levels", action="store_true", help="train every noise level with the same force")
    add("--solver", choices=SOLVERS, default="euler", help="the teacher's step")
    add("--original-steps", type=commands.count, default=50, help="points of the grid")
    add(
        "--guidance",
        type=commands.number,
        nargs=2,
        default=LCM_GUIDANCE,
        metavar=("LOW", "HIGH"),
        help="range of the guidance scales that the student learns; 1 is none",
    )
    args = parser.parse_args()

    low, high = args.guidance
    if not 0.0 <= low <= high:
        parser.error(f"--guidance {low} {high}; expected two scales, 0 <= LOW <= HIGH.")
    with commands.refused(parser):
        table = distillation_table(training_noise(), args.solver, args.original_steps)
        _, teacher = unet.load(args.teacher)
        params = unet.load(args.init)[1] if args.init else unet.with_guidance(teacher)
    if "guidance" not in params:
        parser.error(
            f"--init {args.init} holds a network without a guidance scale; give weights that "
            "this script wrote, or none to start from the teacher."
        )
    images, labels = load_images(parser, args)
    guidance = jnp.array(args.guidance, jnp.float32)
    optimizer = make_optimizer(args.steps, args.learning_rate)
    student, target, ema = (jax.tree.map(jnp.copy, params) for _ in range(3))
    opt_state = optimizer.init(params)
    state = DistillState(student, target, ema, opt_state, jnp.asarray(0, jnp.int32))
    names = ["steps", "batch", "seed", "solver", "original_steps", "guidance"]
    names += ["learning_rate", "huber", "even_levels"]
    settings = {name: str(getattr(args, name)) for name in names}
    for name in ("teacher", "init"):
        path = getattr(args, name)
        settings[name] = f"{zlib.crc32(path.read_bytes()):08x}" if path else "none"
    with commands.refused(parser):
        state = restore_checkpoint(args.checkpoint, state, settings)
    train_step = make_train_step(optimizer, args.huber, args.even_levels)
    key = jax.random.key(args.seed)

    def one(state: DistillState, index: np.ndarray) -> tuple[DistillState, jax.Array]:
        return train_step(state, teacher, table, guidance, images[index], labels[index], key)

    indices = batches(len(images), args.batch, args.seed, int(state.step), args.steps)
    state = run(state, one, indices, args, settings)
    finish(args, state.ema)


if __name__ == "__main__":
    main()
