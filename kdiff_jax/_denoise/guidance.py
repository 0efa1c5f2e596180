"""Classifier-free guidance: the conditional estimate is pushed away from the unconditional one.

The network is evaluated with its condition and without it. A network that guidance was distilled
into receives the scale instead, see `guidance_embedding`, and is evaluated once.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kdiff_jax._arrays import as_float, is_traced, per_sample, rounded
from kdiff_jax._checks import as_numbers, check_choice, check_flag, shown
from kdiff_jax._denoise.network import PREDICTION_TYPES, PredictionType
from kdiff_jax._denoise.pair import call, check_uncond, conditions, in_one_batch, mixed
from kdiff_jax._denoise.prediction import (
    Denoise,
    Prediction,
    as_denoise,
    as_leaf,
    brief,
    check_call,
    one_of,
    prediction_type_of,
    units,
)
from kdiff_jax._table.row import Row


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Guided:
    """Made by `kd.guided`."""

    denoise: Denoise
    scale: jax.Array
    uncond: Any
    interval: tuple[jax.Array, jax.Array] | None
    rescale: jax.Array | None
    per_step: bool = field(metadata={"static": True})
    rescale_of: PredictionType | None = field(metadata={"static": True})
    batched: bool = field(metadata={"static": True})

    def __call__(self, params: Any, x: jax.Array, row: Row, cond: Any = None) -> Prediction:
        x = check_call(x, row)
        cond, uncond = conditions(self, params, cond, x.shape[0])
        inside = None if self.interval is None else _inside(self.interval, row, x)
        if self.batched:
            with_cond, without = in_one_batch(self.denoise, params, x, row, cond, uncond)
            guided = self._mixed(row, with_cond, without)
        else:
            with_cond = call(self.denoise, params, x, row, cond)

            def guide(with_cond: Prediction) -> Prediction:
                without = call(self.denoise, params, x, row, uncond)
                return self._mixed(row, with_cond, without)

            if inside is None:
                return guide(with_cond)
            if inside.ndim:
                # Whether any sample is inside, each device would have to ask the others.
                guided = guide(with_cond)
            else:
                guided = jax.lax.cond(inside, guide, lambda same: same, with_cond)
        if inside is None:
            return guided
        return jax.tree.map(functools.partial(jnp.where, inside), guided, with_cond)

    def _mixed(self, row: Row, with_cond: Prediction, without: Prediction) -> Prediction:
        scale = _at_step(self.scale, row.step) if self.per_step else self.scale
        guided = mixed(scale, with_cond, without)
        if self.rescale is None or self.rescale_of is None:
            return guided
        return _rescaled(guided, with_cond, row, self.rescale, self.rescale_of)

    def __repr__(self) -> str:
        options = [f"scale {brief(self.scale)}{' per step' if self.per_step else ''}"]
        if self.interval is not None:
            options.append(f"interval ({', '.join(map(brief, self.interval))})")
        if self.rescale is not None:
            options.append(f"rescale {brief(self.rescale)} of {self.rescale_of}")
        if not self.batched:
            options.append("two calls")
        return f"Guided({', '.join(options)}, {brief(self.denoise)})"


# Compiled: outside of a program each constant in here would cross to the device in every call.
@functools.partial(jax.jit, inline=True)
def _at_step(scale: jax.Array, step: ArrayLike) -> jax.Array:
    """The scale of each sample's outer step: [N] at step, or [N, B] at (step, sample)."""
    step = jnp.asarray(step)
    index: Any = step
    if scale.ndim == 2 and step.ndim:
        index = step, jnp.arange(scale.shape[1]).reshape(-1, *(1,) * (step.ndim - 1))
    # A step past the end must not quietly take the last scale.
    return scale.at[index].get(mode="fill", fill_value=jnp.nan)


@functools.partial(jax.jit, inline=True)
def _inside(interval: tuple[jax.Array, jax.Array], row: Row, x: jax.Array) -> jax.Array:
    alpha, sigma, _ = units(row, x)
    signal = alpha > 0
    level = jnp.where(signal, sigma / jnp.where(signal, alpha, 1), jnp.inf)
    low, high = (per_sample(end, x) for end in interval)
    return (low < level) & (level <= high)


def _rescaled(
    guided: Prediction,
    with_cond: Prediction,
    row: Row,
    phi: jax.Array,
    rescale_of: PredictionType,
) -> Prediction:
    x = guided.denoised
    alpha, sigma, _ = units(row, x)
    norm = jnp.sqrt(alpha**2 + sigma**2)
    one = one_of(x.dtype)
    weights: dict[PredictionType, tuple[jax.Array, jax.Array]] = {
        "epsilon": (one - one, one),
        "sample": (one, one - one),
        "v_prediction": (-sigma / norm, alpha / norm),
        "flow_prediction": (-one, one),
    }
    of_denoised, of_epsilon = weights[rescale_of]
    # x = alpha D + sigma epsilon allows one direction of change only, (-sigma, alpha); without
    # signal it changes D alone, so that no change of epsilon is any.
    size = alpha * of_epsilon - sigma * of_denoised
    moves = size != one - one
    size = jnp.where(moves, size, one)
    quantity = of_denoised * guided.denoised + of_epsilon * guided.epsilon
    wanted = of_denoised * with_cond.denoised + of_epsilon * with_cond.epsilon
    change = per_sample(phi, x) * _contrast(wanted, quantity) * quantity
    change = jnp.where(moves, change, one - one)
    return Prediction(
        guided.denoised - sigma / size * change, guided.epsilon + alpha / size * change
    )


@functools.partial(jax.jit, inline=True)
def _contrast(wanted: jax.Array, found: jax.Array) -> jax.Array:
    """`std(wanted) / std(found) - 1` of each sample; 0 where one of them is constant."""
    axes = tuple(range(1, found.ndim))
    # Second derivatives divide by the third power of a variance. A power of two rounds nothing.
    largest = jnp.max(jnp.abs(found), axes, keepdims=True)
    unit = jnp.ldexp(jnp.ones_like(largest), -jnp.frexp(jax.lax.stop_gradient(largest))[1])

    def variance(quantity: jax.Array) -> tuple[jax.Array, jax.Array]:
        value = jnp.var(unit * quantity, axis=axes, keepdims=True)
        # A constant image has no contrast to give or to keep, and its variance is rounding.
        least = (
            16
            * jnp.finfo(quantity.dtype).eps
            * jnp.max(jnp.abs(unit * quantity), axes, keepdims=True)
        )
        varies = value > least**2
        return jnp.where(varies, value, 1), varies

    (wanted, one), (found, other) = variance(wanted), variance(found)
    return jnp.where(one & other, jnp.sqrt(wanted / found) - 1, 0)


def guided(
    denoise: Denoise,
    scale: ArrayLike,
    uncond: Any,
    *,
    per_step: bool = False,
    interval: tuple[ArrayLike, ArrayLike] | None = None,
    rescale: ArrayLike | None = None,
    rescale_of: PredictionType | None = None,
    batched: bool = True,
) -> Guided:
    """Classifier-free guidance: `D <- D_uncond + scale * (D_cond - D_uncond)`, epsilon alike.

    With an interval, only where `low < sigma / alpha <= high`; elsewhere `D_cond`. With rescale,
    `q <- q * (1 + rescale * (std(q_cond) / std(q) - 1))` of the guided `q`, std over each sample,
    and D and epsilon follow from the new q. `uncond` may be any condition: a negative prompt
    pushes away from what it describes. The network is traced once.

    Args:
      denoise: the denoiser to wrap.
      scale: scalar or [B], one a sample; 1 is no guidance, 0 unconditional. Another value does
        not recompile, and it may be differentiated.
      uncond: the pytree of `cond` that means "no condition", or the condition to push away from;
        leaves broadcast to those of cond, so one label or one embedding serves the batch.
      per_step: scale is [N], one an outer step, or [N, B]; counted by `row.step`, so that after
        `levels.start_at` it is still the scale of the whole run. A step past its end gives NaN.
      interval: (low, high) in noise levels sigma / alpha, the sigmas of `kd.levels`; each scalar
        or [B]. high may be infinite. None guides everywhere.
      rescale: phi, in [0, 1], scalar or [B]; None, or 0, leaves the contrast as it is. 0.7 in the
        paper.
      rescale_of: the q: "epsilon", "v_prediction", "sample" (D) or "flow_prediction"; None takes
        what the network predicts, as the paper does.
      batched: True makes one call with a batch of twice the size, each sample followed by its
        unconditional twin, so that both are on one device of a sharded batch; each leaf of cond
        then needs the batch axis. False makes two calls, in half the memory, of which the second
        is left out in rows outside the interval, if all samples have one row and one interval;
        values one a sample may then be inside the guidance too.

    Returns:
      A denoiser, which must be called with cond.

    Raises:
      ValueError: a scale that is not finite, or of another rank; an interval without room; a
        rescale outside [0, 1], a rescale_of that is unknown, or missing for a denoiser whose
        prediction type is not known. When it is called: a missing cond, or one of another
        structure than uncond; with batched=True a leaf of cond whose first axis is not B; an
        uncond that the cast to the dtype of cond changes, as 0.5 for labels (rounding is none).

    Example:
      >>> import jax.numpy as jnp, kdiff_jax as kd
      >>> def model_fn(params, x, timestep, label):
      ...     return params * x * label[:, None]
      >>> denoise = kd.guided(kd.denoiser(model_fn), scale=2.0, uncond=jnp.float32(0))
      >>> row = kd.dpm2(kd.levels(kd.noise_schedule(), 10))[0]
      >>> denoise(jnp.float32(0.1), jnp.ones((3, 4)), row, jnp.ones(3)).denoised.shape
      (3, 4)
      >>> away_from_7 = kd.guided(kd.denoiser(model_fn), 2.0, uncond=jnp.float32(7))
      >>> rising = kd.guided(kd.denoiser(model_fn), jnp.linspace(1, 4, 10), jnp.float32(0),
      ...                    per_step=True, interval=(0.3, 5.0), rescale=0.7, batched=False)

    Source: Ho and Salimans 2022 (arXiv:2207.12598), equation 6, with scale = 1 + w there, the
    `guidance_scale` of diffusers; Lin et al. 2023 (arXiv:2305.08891), section 3.4, the
    `guidance_rescale` of diffusers; Kynkäänniemi et al. 2024 (arXiv:2404.07724).
    """
    check_flag("per_step", per_step)
    check_flag("batched", batched)
    denoise = as_denoise(denoise)
    check_uncond(uncond)
    scale = _check_scale(scale, per_step)
    ends = None if interval is None else _check_interval(interval)
    phi, rescale_of = _check_rescale(rescale, rescale_of, denoise)
    return Guided(denoise, scale, uncond, ends, phi, per_step, rescale_of, batched)


def _check_scale(scale: ArrayLike, per_step: bool) -> jax.Array:
    ranks, expected = ((1, 2), "[N] or [N, B]") if per_step else ((0, 1), "one or [B]")
    finite = is_traced(scale) or np.all(np.isfinite(rounded(as_numbers("scale", scale))))
    if np.ndim(scale) not in ranks or not finite or not np.size(scale):
        raise ValueError(
            f"scale = {shown(scale)} is no guidance scale with per_step={per_step}; expected "
            f"finite numbers, {expected}."
        )
    return as_float(scale)


def _check_interval(interval: tuple[ArrayLike, ArrayLike]) -> tuple[jax.Array, jax.Array]:
    if not isinstance(interval, (tuple, list)) or len(interval) != 2:
        raise ValueError(f"interval = {shown(interval)}; expected two noise levels, (low, high).")
    low, high = interval
    if not is_traced(low, high):
        ends = (rounded(as_numbers("interval", end)) for end in interval)
        if not _holds_levels(*ends):
            raise ValueError(
                f"interval = {shown((low, high))} holds no noise level; expected 0 <= low < high."
            )
    return as_float(low), as_float(high)


def _holds_levels(low: np.ndarray, high: np.ndarray) -> bool:
    try:
        inside = (low >= 0) & (low < high)
    except ValueError:  # of as many samples as no batch has
        return False
    return inside.size > 0 and bool(np.all(inside))


def _check_rescale(
    rescale: ArrayLike | None, rescale_of: PredictionType | None, denoise: Denoise
) -> tuple[jax.Array | None, PredictionType | None]:
    if rescale is None:
        if rescale_of is not None:
            raise ValueError(
                f"rescale_of = {shown(rescale_of)} names what is rescaled, and rescale was not "
                "given; give rescale=0.7, or drop rescale_of."
            )
        return None, None
    phi = as_leaf("rescale", rescale, at_least=0)
    if not is_traced(rescale) and np.any(as_numbers("rescale", rescale) > 1):
        raise ValueError(f"rescale = {shown(rescale)} is no share; expected it in [0, 1].")
    quantity = prediction_type_of(denoise) if rescale_of is None else rescale_of
    if quantity is None:
        raise ValueError(
            "rescale was given for a denoiser whose network's prediction type is not known; "
            f"give rescale_of, one of {', '.join(map(repr, PREDICTION_TYPES))}."
        )
    return phi, check_choice("rescale_of", quantity, PREDICTION_TYPES)
