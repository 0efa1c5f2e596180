"""Noise that the caller brings: a function of their own, or an array with one z a draw."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdiff_jax._arrays import per_sample, state_dtype
from kdiff_jax._checks import check_batch, shown
from kdiff_jax._denoise.prediction import brief
from kdiff_jax._noise.keyed import sample_keys
from kdiff_jax._table.check import check_row, is_known
from kdiff_jax._table.row import Row
from kdiff_jax._table.schedule import Schedule

# noise_fn(key, row, shape) -> [B, ...]; the key is [B] keys, or None where none was given.
NoiseFn = Callable[[Any, Row, tuple[int, ...]], jax.Array]


def add_noise_of(noise_fn: NoiseFn, x: jax.Array, row: Row, keys: jax.Array | None) -> jax.Array:
    """`x + noise_weight * z`, with the z of the caller's own function.

    The function is called where the row draws noise: under a condition for a scalar weight, always
    for weights of several samples, of which it may have no z for those whose weight is 0.
    """
    if row.noise_weight is None:
        return x
    weight = per_sample(row.noise_weight, x)

    def noisy(x: jax.Array) -> jax.Array:
        z = check_batch("what noise_fn returned", noise_fn(keys, row, x.shape))
        if z.shape != x.shape:
            raise ValueError(
                f"noise_fn returned {z.dtype}{list(z.shape)} for a sample of {x.dtype}"
                f"{list(x.shape)}; return unit Gaussian noise of the sample's shape."
            )
        if weight.ndim:
            # Where there is no z there may be a NaN, and 0 * NaN is one too, in gradients as well.
            z = jnp.where(weight != 0, z, 0)
        return x + weight * z.astype(x.dtype)

    return noisy(x) if weight.ndim else jax.lax.cond(weight != 0, noisy, lambda x: x, x)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class GivenNoise:
    """Made by `kd.given_noise`."""

    noise: jax.Array

    def __call__(self, key: Any, row: Row, shape: Sequence[int]) -> jax.Array:
        check_row(row)
        if not isinstance(shape, (tuple, list)) or any(isinstance(n, jax.Array) for n in shape):
            raise ValueError(f"shape = {shown(shape)}; pass that of the sample, (B, ...).")
        one_a_step = self.noise.shape[1:] == tuple(shape)
        if not one_a_step and self.noise.shape[1:] != (2, *shape):
            raise ValueError(
                f"noise has shape {self.noise.shape} and the sample {tuple(shape)}; give "
                "[N, B, ...], the sample's shape for every outer step, or [N, 2, B, ...] for "
                "kd.dpmpp_sde, which draws twice a step."
            )
        if key is not None and not isinstance(key, jax.Array):
            sample_keys(key, shape[0])  # not used, and refused where it is none
        return _entries(self.noise, row, one_a_step)

    def check_run(self, schedule: Schedule, shape: tuple[int, ...]) -> None:
        """Refuses a run with a draw that the array has no entry for, where it is known.

        An array that goes on after the run is right: a run that was cut leaves out its own entries.
        """
        rows = schedule.rows
        if not all(map(is_known, (rows.step, rows.noise_weight))):
            return
        step, weight, last = jax.device_get((rows.step, rows.noise_weight, rows.advances))
        needs = int(np.max(step, initial=-1, where=weight != 0)) + 1
        if needs > self.noise.shape[0]:
            raise ValueError(
                f"noise has shape {self.noise.shape}, {self.noise.shape[0]} steps, and step "
                f"{needs - 1} of the run draws noise; pass [N, B, ...] with N of at least {needs}."
            )
        twice = last is not None and np.any(~last & (weight != 0))
        if twice and self.noise.shape[1:] == shape:
            raise ValueError(
                f"noise has shape {self.noise.shape}, one entry a step, and the run draws twice in "
                "a step; pass [N, 2, B, ...], one entry for each draw."
            )

    def __repr__(self) -> str:
        return f"GivenNoise({brief(self.noise)})"


# Compiled, so that its constants are no transfers.
@functools.partial(jax.jit, static_argnums=2)
def _entries(noise: jax.Array, row: Row, one_a_step: bool) -> jax.Array:
    step, last = row.step, row.advances
    samples = jnp.indices(step.shape, sparse=True)
    if not one_a_step:
        draw = jnp.ones_like(step) if last is None else last.astype(int)
        return noise.at[(step, draw, *samples)].get(mode="fill", fill_value=jnp.nan)
    if last is not None and row.noise_weight is not None:
        # A draw before the last row of a step wants a z of its own: past the end, a NaN.
        step = jnp.where(~last & (row.noise_weight != 0), noise.shape[0], step)
    return noise.at[(step, *samples)].get(mode="fill", fill_value=jnp.nan)


def given_noise(noise: jax.Array) -> GivenNoise:
    """A `noise_fn` for `kd.sample` that takes its noise from an array: `z = noise[row.step]`.

    Args:
      noise: [N, B, ...] unit Gaussian noise, one entry for each outer step of the whole run: the
        entries of steps that `levels.start_at` cuts off are not read. The last step draws none, so
        N - 1 entries are enough. Where a row has a step for each sample, [B], or for each frame,
        [B, F], each reads the entry of its own step. `kd.dpmpp_sde` draws twice a step and takes
        [N, 2, B, ...], one entry for each draw; a row that ends its step takes the second.

    Returns:
      A pytree, called as `noise_fn(key, row, shape)`; the key may be None. `kd.sample` refuses a
      run with a draw that the array has no entry for; where the table is traced, and by hand, such
      a draw gives NaN, not the noise of another one.

    Raises:
      ValueError: an array without a step and a batch axis, or not of a floating dtype; when it is
        used, one of another shape than the samples.

    Example:
      >>> import jax, jax.numpy as jnp, kdiff_jax as kd
      >>> schedule = kd.lcm(kd.lcm_levels(kd.noise_schedule("scaled_linear"), 4))
      >>> denoise = kd.denoiser(lambda params, x, timestep: params * x)
      >>> x, *noise = jax.random.normal(jax.random.key(0), (4, 2, 8))
      >>> noise_fn = kd.given_noise(jnp.stack(noise))
      >>> kd.sample(denoise, jnp.float32(0.1), schedule, x, noise_fn=noise_fn).shape
      (2, 8)

    Source: the `noise_sampler` arguments of k-diffusion's samplers.
    """
    noise = check_batch("noise", noise, finite=False)  # entries that are not read may be anything
    if noise.ndim < 2:
        raise ValueError(f"noise has shape {noise.shape}; pass [N, B, ...], one z a step.")
    return GivenNoise(noise.astype(state_dtype(noise)))
