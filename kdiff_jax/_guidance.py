"""Guidance: moving the estimate of x0 away from the unconditional one, or telling how far.

`guided` evaluates the network with and without its condition; a network that guidance was distilled
into is told the scale instead, by `guidance_embedding`, and is evaluated once.
"""

import functools
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kdiff_jax._checks import check_choice, check_int, check_number, is_traced
from kdiff_jax._denoise import (
    Denoise,
    Prediction,
    as_float,
    as_pytree,
    evaluate_traced_once,
    per_sample,
    prediction_type_of,
)
from kdiff_jax._schedule import Row

RESCALED = ("epsilon", "v_prediction", "sample", "flow_prediction")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Guided:
    """Made by `kd.guided`."""

    denoise: Denoise
    scale: Any
    uncond: Any
    interval: Any
    rescale: Any
    per_step: bool = field(metadata={"static": True})
    rescale_of: str | None = field(metadata={"static": True})
    batched: bool = field(metadata={"static": True})

    def __call__(self, params: Any, x: jax.Array, row: Row, cond: Any = None) -> Prediction:
        x = jnp.asarray(x)
        cond, uncond = self._conditions(cond)
        inside = None if self.interval is None else _inside(self.interval, row, x)
        if self.batched:
            with_cond, without = _in_one_batch(self.denoise, params, x, row, cond, uncond)
            guided = self._mixed(row, with_cond, without)
        else:
            with_cond = evaluate_traced_once(self.denoise, params, x, row, cond)

            def guide(with_cond: Prediction) -> Prediction:
                without = evaluate_traced_once(self.denoise, params, x, row, uncond)
                return self._mixed(row, with_cond, without)

            if inside is None:
                return guide(with_cond)
            guided = jax.lax.cond(jnp.any(inside), guide, lambda said: said, with_cond)
        if inside is None:
            return guided
        return jax.tree.map(functools.partial(jnp.where, inside), guided, with_cond)

    def _conditions(self, cond: Any) -> tuple[Any, Any]:
        if cond is None:
            raise ValueError(
                "a guided denoiser was called without cond; pass cond=..., or take the denoiser "
                "without kd.guided."
            )
        got, expected = (str(jax.tree.structure(tree)) for tree in (cond, self.uncond))
        if got != expected:
            raise ValueError(
                f"cond is {got} and uncond {expected}; expected the same pytree, so that both are "
                "conditions of one network."
            )
        cond = jax.tree.map(jnp.asarray, cond)
        return cond, jax.tree.map(
            lambda c, u: jnp.broadcast_to(jnp.asarray(u, c.dtype), c.shape), cond, self.uncond
        )

    def _mixed(self, row: Row, with_cond: Prediction, without: Prediction) -> Prediction:
        scale = _at_step(self.scale, row.step) if self.per_step else self.scale

        def mix(with_cond: jax.Array, without: jax.Array) -> jax.Array:
            return without + per_sample(scale, without) * (with_cond - without)

        # Both halves are mixed alike, so x = alpha D + sigma epsilon still holds, uncancelled.
        guided = jax.tree.map(mix, with_cond, without)
        if self.rescale is None:
            return guided
        return _rescaled(guided, with_cond, row, self.rescale, str(self.rescale_of))


def _in_one_batch(
    denoise: Denoise, params: Any, x: jax.Array, row: Row, cond: Any, uncond: Any
) -> tuple[Prediction, Prediction]:
    def twice(leaf: jax.Array) -> jax.Array:
        return jnp.concatenate([leaf, leaf])

    rows = jax.tree.map(lambda leaf: twice(leaf) if jnp.ndim(leaf) else leaf, row)
    both = jax.tree.map(lambda c, u: jnp.concatenate([c, u]), cond, uncond)
    said = denoise(params, twice(x), rows, both)
    (d_cond, d_uncond), (e_cond, e_uncond) = (
        jnp.split(half, 2) for half in (said.denoised, said.epsilon)
    )
    return Prediction(d_cond, e_cond), Prediction(d_uncond, e_uncond)


def _at_step(scale: jax.Array, step: ArrayLike) -> jax.Array:
    step = jnp.asarray(step)
    index = (step, jnp.arange(scale.shape[1])) if scale.ndim == 2 and step.ndim else step
    # A step past the end must not quietly take the last scale.
    return scale.at[index].get(mode="fill", fill_value=jnp.nan)


def _inside(interval: tuple[Any, Any], row: Row, x: jax.Array) -> jax.Array:
    alpha, sigma = per_sample(row.alpha, x), per_sample(row.sigma, x)
    signal = alpha > 0
    level = jnp.where(signal, sigma / jnp.where(signal, alpha, 1), jnp.inf)
    low, high = (per_sample(end, x) for end in interval)
    return (low < level) & (level <= high)


def _rescaled(
    guided: Prediction, with_cond: Prediction, row: Row, phi: Any, rescale_of: str
) -> Prediction:
    x = guided.denoised
    alpha, sigma = per_sample(row.alpha, x), per_sample(row.sigma, x)
    norm = jnp.sqrt(alpha**2 + sigma**2)
    weights: dict[str, tuple[ArrayLike, ArrayLike]] = {
        "epsilon": (0.0, 1.0),
        "sample": (1.0, 0.0),
        "v_prediction": (-sigma / norm, alpha / norm),
        "flow_prediction": (-1.0, 1.0),
    }
    of_denoised, of_epsilon = (jnp.asarray(w, x.dtype) for w in weights[rescale_of])
    # x = alpha D + sigma epsilon allows one direction of change only, (-sigma, alpha).
    size = alpha * of_epsilon - sigma * of_denoised

    def variance(quantity: jax.Array) -> jax.Array:
        return jnp.var(quantity, axis=tuple(range(1, x.ndim)), keepdims=True)

    quantity = of_denoised * guided.denoised + of_epsilon * guided.epsilon
    wanted = variance(of_denoised * with_cond.denoised + of_epsilon * with_cond.epsilon)
    found = variance(quantity)
    # A constant image has no contrast to give or to keep; the root has no slope there either.
    varies = (wanted > 0) & (found > 0)
    ratio = jnp.sqrt(jnp.where(varies, wanted, 1) / jnp.where(varies, found, 1))
    change = per_sample(phi, x) * (ratio - 1) * quantity
    return Prediction(
        guided.denoised - sigma / size * change, guided.epsilon + alpha / size * change
    )


def guided(
    denoise: Denoise,
    scale: ArrayLike,
    uncond: Any,
    *,
    per_step: bool = False,
    interval: tuple[ArrayLike, ArrayLike] | None = None,
    rescale: ArrayLike | None = None,
    rescale_of: str | None = None,
    batched: bool = True,
) -> Guided:
    """Classifier-free guidance: `D <- D_uncond + scale * (D_cond - D_uncond)`, epsilon alike.

    With an interval, only where `low < sigma / alpha <= high`; elsewhere `D_cond`. With rescale,
    `q <- q * (1 + rescale * (std(q_cond) / std(q) - 1))` of the guided `q`, std over each sample,
    and D and epsilon follow from the new q. `uncond` may be any condition: a negative prompt
    pushes away from what it says. The network is traced once.

    Args:
      denoise: the denoiser to wrap.
      scale: scalar or [B], one a sample; 1 is no guidance, 0 unconditional. Another value does
        not recompile, and it may be differentiated.
      uncond: the pytree of `cond` that means "no condition", or what to keep away from; leaves
        broadcast to those of cond, so one label or one embedding serves the batch.
      per_step: scale is [N], one an outer step, or [N, B]; counted by `row.step`, so that after
        `start_at` it is still the scale of the whole run. A step past its end gives NaN.
      interval: (low, high) in noise levels sigma / alpha, the sigmas of DPM2; each scalar or [B].
        high may be infinite. None guides everywhere.
      rescale: phi, in [0, 1], scalar or [B]; None, or 0, leaves the contrast as it is. 0.7 in the
        paper.
      rescale_of: the q: "epsilon", "v_prediction", "sample" (D) or "flow_prediction"; None takes
        what the network predicts, as the paper does.
      batched: True makes one call with a batch of twice the size, first the conditional half.
        False makes two calls, in half the memory, of which the second is left out where no sample
        is inside the interval; values one a sample are then welcome inside the guidance too.

    Returns:
      A denoiser that must be given cond.

    Raises:
      ValueError: a scale that is not finite, or of another rank; an interval without room; a
        rescale outside [0, 1], a rescale_of that is unknown, or not given for a denoiser that
        does not say what its network predicts; when it is traced, a missing cond or one of
        another structure than uncond.

    Example:
      >>> import jax, jax.numpy as jnp, kdiff_jax as kd
      >>> def model_fn(params, x, timestep, label):
      ...     return params * x * label[:, None]
      >>> denoise = kd.guided(kd.denoiser(model_fn), scale=2.0, uncond=jnp.float32(0))
      >>> row = kd.dpm2_schedule(kd.noise_schedule(), 10)[0]
      >>> denoise(jnp.float32(0.1), jnp.ones((3, 4)), row, jnp.ones(3)).denoised.shape
      (3, 4)
      >>> away_from_7 = kd.guided(kd.denoiser(model_fn), 2.0, uncond=jnp.float32(7))
      >>> rising = kd.guided(kd.denoiser(model_fn), jnp.linspace(1, 4, 10), jnp.float32(0),
      ...                    per_step=True, interval=(0.3, 5.0), rescale=0.7, batched=False)

    Source: Ho and Salimans 2022 (arXiv:2207.12598), equation 6, with scale = 1 + w there, the
    `guidance_scale` of diffusers; Lin et al. 2023 (arXiv:2305.08891), section 3.4, the
    `guidance_rescale` of diffusers; Kynkäänniemi et al. 2024 (arXiv:2404.07724).
    """
    scale = _check_scale(scale, per_step)
    if interval is not None:
        interval = _check_interval(interval)
    if rescale is None:
        if rescale_of is not None:
            raise ValueError(
                f"rescale_of = {rescale_of!r} says what is rescaled, and rescale was not given; "
                "give rescale=0.7, or drop rescale_of."
            )
    else:
        if not is_traced(rescale):
            for number in np.ravel(np.asarray(rescale, object)):
                if check_number("rescale", number, at_least=0) > 1:
                    raise ValueError(f"rescale = {rescale} is no share; expected it in [0, 1].")
        rescale, rescale_of = as_float(rescale), rescale_of or prediction_type_of(denoise)
        if rescale_of is None:
            raise ValueError(
                "rescale was given for a denoiser that does not say what its network predicts; "
                f"give rescale_of, one of {', '.join(map(repr, RESCALED))}."
            )
        check_choice("rescale_of", rescale_of, RESCALED)
    return Guided(
        as_pytree(denoise), scale, uncond, interval, rescale, per_step, rescale_of, batched
    )


def _check_scale(scale: ArrayLike, per_step: bool) -> jax.Array:
    ranks, expected = ((1, 2), "[N] or [N, B]") if per_step else ((0, 1), "one or [B]")
    finite = is_traced(scale) or np.all(np.isfinite(np.asarray(scale).astype(np.float64)))
    if np.ndim(scale) not in ranks or not finite:
        raise ValueError(
            f"scale = {scale!r} is no guidance scale with per_step={per_step}; expected finite "
            f"numbers, {expected}."
        )
    return as_float(scale)


def _check_interval(interval: Any) -> tuple[jax.Array, jax.Array]:
    if not isinstance(interval, (tuple, list)) or len(interval) != 2:
        raise ValueError(f"interval = {interval!r}; expected two noise levels, (low, high).")
    low, high = interval
    if not is_traced(low, high) and not np.all((np.asarray(low) >= 0) & (low < np.asarray(high))):
        raise ValueError(
            f"interval = ({low}, {high}) holds no noise level; expected 0 <= low < high."
        )
    return as_float(low), as_float(high)


def guidance_embedding(w: ArrayLike, dim: int) -> jax.Array:
    """Sines and cosines of guidance scales, for a network that guidance was distilled into.

    With `half = dim // 2`, `f_i = 10000^(-i / (half - 1))` and `a_i = 1000 * w * f_i`:
    `[sin a_0 .. sin a_(half-1), cos a_0 .. cos a_(half-1)]`, and a 0 at the end where dim is odd.

    Args:
      w: [B] guidance scales; may be traced. Published latent-consistency checkpoints count from
        0: they are told `w = scale - 1`, where scale is that of `guided`.
      dim: the size of the embedding, at least 4: `time_cond_proj_dim` of a diffusers network, 256
        in published checkpoints.

    Returns:
      [B, dim] float32 (float64 where w is float64).

    Raises:
      ValueError: w that is not [B] or not finite, a dim that is no integer or below 4.

    Example:
      >>> import jax.numpy as jnp, kdiff_jax as kd
      >>> kd.guidance_embedding(jnp.array([0.5, 1.0]), 256).shape
      (2, 256)

    Source: Luo et al. 2023 (arXiv:2310.04378), section 4.2; `get_guidance_scale_embedding` of
    diffusers' LatentConsistencyModelPipeline.
    """
    dim = check_int("dim", dim, 4)
    if not is_traced(w):
        values = np.asarray(w)
        if values.dtype.kind not in "iuf" and values.dtype != jnp.bfloat16:
            raise ValueError(f"w = {w!r} holds no real numbers; pass [B] guidance scales.")
        if not np.all(np.isfinite(values.astype(np.float64))):
            raise ValueError(f"w = {w!r} holds a NaN or an infinity; pass finite guidance scales.")
    if jnp.ndim(w) != 1:
        raise ValueError(
            f"w has shape {jnp.shape(w)}; pass [B] guidance scales, one a sample: "
            "jnp.full(batch, w)."
        )
    w = jnp.asarray(w)
    w = w.astype(np.float64 if w.dtype == np.float64 else np.float32)
    half = dim // 2
    # In float64 on the host: an angle may be thousands of radians, so its frequency must be right.
    frequencies = np.exp(np.arange(half) * (-np.log(10_000.0) / (half - 1)))
    angles = 1000.0 * w[:, None] * jnp.asarray(frequencies, w.dtype)[None]
    embedding = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.pad(embedding, [(0, 0), (0, dim % 2)])
