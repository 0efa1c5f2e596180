"""A row that draws noise as a Gaussian transition: its mean, its deviation, its density.

    x_next ~ N(mean, scale^2)      mean = the line of `step` without its noise, scale = noise_weight

So a trajectory has a probability, and what raises a reward of its last sample can be learned with
policy gradients: Black et al. 2023 (arXiv:2305.13301), DDPO; Liu et al. 2025 (arXiv:2505.05470),
Flow-GRPO.
"""

from __future__ import annotations

import math
from dataclasses import replace

import jax
import jax.numpy as jnp

from kdiff_jax._arrays import along, per_sample
from kdiff_jax._checks import brought, check_batch
from kdiff_jax._denoise.prediction import Prediction
from kdiff_jax._run.state import State, check_state
from kdiff_jax._run.step import advance, check_prediction
from kdiff_jax._table.check import check_row
from kdiff_jax._table.row import Row


def transition(state: State, row: Row, prediction: Prediction) -> tuple[jax.Array, jax.Array]:
    """The Gaussian that a row draws its next sample from: `x_next = mean + scale * z`.

    Args:
      state: from `init` or from the step before.
      row: the row that the prediction was made for; leaves scalar, [B] or [B, F].
      prediction: `denoise(params, state.sample, row, cond)`.

    Returns:
      mean [B, ...] and scale, scalar or [B, 1, ...] (as the row's weights are), in the dtype of the
      state; scale is 0 in a row that draws no noise.

    Raises:
      ValueError: a State of other columns than the row.

    Example:
      >>> import jax, jax.numpy as jnp, kdiff_jax as kd
      >>> schedule = kd.euler(kd.levels(kd.noise_schedule("scaled_linear"), 5), eta=1.0)
      >>> denoise = kd.denoiser(lambda params, x, timestep: params * x)
      >>> state = kd.init(schedule, kd.initial_sample(schedule, jax.random.key(0), (2, 8)))
      >>> prediction = denoise(jnp.float32(0.1), state.sample, schedule[0])
      >>> mean, scale = kd.transition(state, schedule[0], prediction)
      >>> mean.shape, round(float(scale), 3)
      ((2, 8), 3.923)

    Source: Ho et al. 2020 (arXiv:2006.11239), equation 1; the table of each sampler.
    """
    _check(state, row, prediction)
    mean = advance(state, row, prediction, None).sample
    return mean, _scale(row, mean)


def log_prob(state: State, row: Row, prediction: Prediction, x_next: jax.Array) -> jax.Array:
    """The log-density of a row's next sample, summed over the sample.

        sum(-(x_next - mean)^2 / (2 scale^2) - log(scale) - log(2 pi) / 2)

    Args:
      state: from `init` or from the step before.
      row: the row that the prediction was made for; leaves scalar, [B] or [B, F].
      prediction: `denoise(params, state.sample, row, cond)`.
      x_next: [B, ...] the sample after the row.

    Returns:
      [B], in the dtype of the state. A row that draws no noise has no density: 0, with gradient 0.
      For two rows' ratio take `log_ratio`, whose rounding is a hundred times smaller.

    Raises:
      ValueError: a State of other columns than the row, an x_next of another shape.

    Example:
      >>> import jax, jax.numpy as jnp, kdiff_jax as kd
      >>> schedule = kd.euler(kd.levels(kd.noise_schedule("scaled_linear"), 5), eta=1.0)
      >>> denoise = kd.denoiser(lambda params, x, timestep: params * x)
      >>> key = jax.random.key(0)
      >>> state = kd.init(schedule, kd.initial_sample(schedule, key, (2, 8)))
      >>> prediction = denoise(jnp.float32(0.1), state.sample, schedule[0])
      >>> after = kd.step(state, schedule[0], prediction, key=key)
      >>> kd.log_prob(state, schedule[0], prediction, after.sample).shape
      (2,)

    Source: Black et al. 2023 (arXiv:2305.13301), section 4.3; `ddim_step_with_logprob` of
    ddpo-pytorch, which averages over the sample where this sums.
    """
    mean, scale = transition(state, row, prediction)
    draws, safe = _safe(scale)
    z = (_like(x_next, mean) - mean) / safe
    log_density = -z * z / 2 - jnp.log(safe) - 0.5 * math.log(2 * math.pi)
    return _summed(jnp.where(draws, log_density, jnp.zeros_like(mean)))


def log_ratio(
    row: Row,
    new: tuple[State, Prediction],
    old: tuple[State, Prediction],
    x_next: jax.Array,
) -> jax.Array:
    """The log-ratio of two densities of the same next sample, `log p_new - log p_old`.

        sum(shift (z_old - shift / 2))      shift = (mean_new - mean_old) / scale
                                            z_old = (x_next - mean_old) / scale

    It is taken from the difference of the means, which is the row's line of the differences, so
    that it is exactly 0 where both are the same, and small where they are near: the difference of
    two log-densities errs by 5e-8 a number in float32, more than trainers clip at.

    Args:
      row: the row, the same for both.
      new: (state, prediction) of the parameters that are trained. Two states, since estimates of
        rows before (a multistep sampler's) and a midpoint depend on the parameters too.
      old: (state, prediction) of the parameters that drew the sample.
      x_next: [B, ...] the sample after the row.

    Returns:
      [B], in the dtype of the state; 0 with gradient 0 for a row that draws no noise.

    Raises:
      ValueError: a State of other columns than the row, samples or an x_next of another shape.

    Example:
      >>> import jax, jax.numpy as jnp, kdiff_jax as kd
      >>> schedule = kd.euler(kd.levels(kd.noise_schedule("scaled_linear"), 5), eta=1.0)
      >>> denoise = kd.denoiser(lambda params, x, timestep: params * x)
      >>> key, row = jax.random.key(0), schedule[0]
      >>> state = kd.init(schedule, kd.initial_sample(schedule, key, (2, 8)))
      >>> old = denoise(jnp.float32(0.1), state.sample, row)
      >>> after = kd.step(state, row, old, key=key)
      >>> kd.log_ratio(row, (state, old), (state, old), after.sample).tolist()
      [0.0, 0.0]

    Source: Schulman et al. 2017 (arXiv:1707.06347), equation 6; Black et al. 2023
    (arXiv:2305.13301), equation 5.
    """
    for name, pair in (("new", new), ("old", old)):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ValueError(f"{name} is {brought(pair)}; expected two: pass (state, prediction).")
        _check(pair[0], row, pair[1])
    if (shape := new[0].sample.shape) != old[0].sample.shape:
        raise ValueError(
            f"new is of samples {shape} and old of {old[0].sample.shape}; give two runs of the "
            "same samples."
        )
    mean_old, scale = transition(old[0], row, old[1])
    # A step is linear in the State and the prediction, so it maps differences to differences.
    difference = jax.tree.map(jnp.subtract, new, old)
    moved = advance(difference[0], replace(row, idle=None), difference[1], None).sample
    draws, safe = _safe(scale)
    z_old = (_like(x_next, mean_old) - mean_old) / safe
    shift = moved / safe
    return _summed(jnp.where(draws, shift * (z_old - shift / 2), jnp.zeros_like(mean_old)))


def _check(state: State, row: Row, prediction: Prediction) -> None:
    check_row(row)
    check_state(state, row)
    check_prediction("prediction", prediction, state.sample)


def _scale(row: Row, x: jax.Array) -> jax.Array:
    if row.noise_weight is None:
        return jnp.zeros((), x.dtype)
    scale = per_sample(row.noise_weight, x)
    return (
        scale if row.idle is None else jnp.where(along(row.idle, x), jnp.zeros_like(scale), scale)
    )


def _safe(scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether noise is drawn, and a deviation to divide by, not 0: its gradient would be NaN."""
    draws = scale > 0
    return draws, jnp.where(draws, scale, jnp.ones_like(scale))


def _like(x_next: jax.Array, mean: jax.Array) -> jax.Array:
    if (x_next := check_batch("x_next", x_next)).shape != mean.shape:
        raise ValueError(
            f"x_next has shape {x_next.shape} and the sample {mean.shape}; give the sample after "
            "the row."
        )
    return x_next.astype(mean.dtype)


def _summed(terms: jax.Array) -> jax.Array:
    return terms.reshape(terms.shape[0], -1).sum(1)
