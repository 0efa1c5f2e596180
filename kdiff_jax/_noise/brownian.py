"""Brownian noise: the noise of every step is an increment of one path, whatever the levels.

    z = (W(u1) - W(u0)) / deviation,    deviation = sqrt(|u1 - u0|)
    u = log(sigma_max / sigma) / log(sigma_max / sigma_min)

W is Levy's construction of Brownian motion on [0, 1]: a line to W(1), a tent of random height on
each half, quarter, ..., and a bridge on each of the 2^depth last pieces. Every height is drawn
from the sample's key and the name of its piece when it is needed, so nothing is stored. Two ends
within one last piece move together: their deviation is another one, and known as well.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kdiff_jax._arrays import along, as_float, is_traced, on_own_mesh
from kdiff_jax._checks import check_int, check_number
from kdiff_jax._denoise.prediction import brief
from kdiff_jax._noise.keyed import check_shape, draw, sample_keys
from kdiff_jax._table.check import check_row, is_known
from kdiff_jax._table.row import Row
from kdiff_jax._table.schedule import Schedule

_DOMAIN = 0x62726F77  # a domain of the key of its own, beside those of keyed
_MAX_DEPTH = 20  # beyond, places on the path differ by less than float32 resolves


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class BrownianNoise:
    """Made by `kd.brownian_noise`."""

    sigma_min: jax.Array
    sigma_max: jax.Array
    depth: int = field(metadata={"static": True})

    def __call__(self, key: jax.Array, row: Row, shape: Sequence[int]) -> jax.Array:
        check_row(row)
        shape = check_shape(shape)
        # A path has no derivative: gradients take z as a constant, as they do other noise.
        path, left, reached = jax.lax.stop_gradient((self, row.sigma_left, row.sigma_reached))
        keys = sample_keys(key, shape[0])
        return _increment(path, keys, jnp.asarray(left), jnp.asarray(reached), shape)

    def check_run(self, schedule: Schedule, shape: tuple[int, ...]) -> None:
        """Refuses a run with levels outside the path, where both are known."""
        del shape
        ends = self.sigma_min, self.sigma_max
        columns = schedule.rows.sigma_left, schedule.rows.sigma_reached
        if not all(map(is_known, (*ends, *columns))):
            return
        low, high, *levels = (np.float64(leaf) for leaf in jax.device_get((*ends, *columns)))
        sigmas = np.stack(levels)
        sigmas = sigmas[sigmas > 0]
        # As far past the ends as `_place` takes for rounding.
        past = (high / low) ** 9e-7
        if sigmas.size and (sigmas.min() * past < low or sigmas.max() > high * past):
            raise ValueError(
                f"the run goes from sigma {sigmas.max():.6g} to {sigmas.min():.6g}, and the path "
                f"of brownian_noise spans {low:.6g} to {high:.6g}; pass it sigma_min and "
                "sigma_max that hold every run that is to see the path."
            )

    def __repr__(self) -> str:
        ends = f"{brief(self.sigma_min)} to {brief(self.sigma_max)}"
        return f"BrownianNoise({ends}, depth {self.depth})"


# Compiled, for those who step by hand: one program for every row.
@functools.partial(jax.jit, static_argnums=4)
@on_own_mesh
def _increment(
    path: BrownianNoise,
    keys: jax.Array,
    left: jax.Array,
    reached: jax.Array,
    shape: tuple[int, ...],
) -> jax.Array:
    u0, u1 = _place(path, left), _place(path, reached)
    (there, names), (here, others) = _heights(u1, path.depth), _heights(u0, path.depth)

    def add(carry: tuple[jax.Array, jax.Array], term: tuple[jax.Array, jax.Array]) -> Any:
        (w, keys), (height, name) = carry, term
        z = draw(keys, _DOMAIN, name, shape)
        return (w + along(height, z) * z, keys), None

    # The sum begins as a zero made of the keys and the levels: under a mesh of explicit axes it is
    # sharded as they are, as a carry of the loop must be from the start.
    start = jnp.zeros(shape, jnp.float32)
    start += along(jnp.zeros_like(jax.random.key_data(keys)[:, 0], jnp.float32), start)
    start += along(jnp.zeros_like(u0), start)
    # One draw in the program, and no array of the sample's size but the sum. The keys are carried
    # since JAX 0.6, in reverse mode, cannot move what is the same in every pass out of the loop.
    terms = jnp.concatenate([there, -here]), jnp.concatenate([names, others])
    (w, _), _ = jax.lax.scan(add, (start, keys), terms)
    # Of the very sum: each piece is drawn once, so that its two heights are one where both have it.
    apart = jnp.where(names == others, (there - here) ** 2, there**2 + here**2)
    variance = jnp.sum(apart, axis=0)
    return w / along(jnp.sqrt(jnp.where(variance == 0, 1, variance)), w)


def _place(path: BrownianNoise, sigma: jax.Array) -> jax.Array:
    """Where on the path a noise level lies: 0 at sigma_max, 1 at sigma_min, NaN outside."""
    levels = sigma, path.sigma_min, path.sigma_max
    sigma, low, high = (level.astype(jnp.float32) for level in levels)
    # The closing step draws no noise; called by hand it has noise of the last level all the same.
    sigma = jnp.where(sigma == 0, low, sigma)
    u = jnp.log(high / sigma) / jnp.log(high / low)
    # Levels at the very ends may round past them.
    return jnp.where(jnp.abs(u - 0.5) < 0.500001, jnp.clip(u, 0, 1), jnp.nan)


def _heights(u: jax.Array, depth: int) -> tuple[jax.Array, jax.Array]:
    """`W(u) = sum of height * z(name)`: heights and names, [depth + 2, ...] for u of [...]."""
    level = jnp.arange(depth + 1, dtype=jnp.uint32).reshape(-1, *(1,) * u.ndim)
    pieces = jnp.broadcast_to(jnp.uint32(1) << level, (depth + 1, *u.shape))
    count = pieces.astype(u.dtype)
    at = u[None] * count
    i = jnp.clip(jnp.floor(at), 0, count - 1)
    inside = at - i
    # The middle of a piece of length d has variance d / 4 given its ends, and the tent is straight
    # from there to them. In a last piece any point has its own, d * s * (1 - s).
    tents = (1 - jnp.abs(2 * inside - 1)) / jnp.sqrt(4 * count)
    bridge = jnp.sqrt(inside * (1 - inside) / count)
    names = pieces + i.astype(jnp.uint32)
    # The line to W(1) has the name 0, which no piece has.
    return (
        jnp.concatenate([u[None], tents[:-1], bridge[-1:]]),
        jnp.concatenate([jnp.zeros_like(names[:1]), names]),
    )


def brownian_noise(
    sigma_min: ArrayLike = 1e-5, sigma_max: ArrayLike = 1e5, *, depth: int = 17
) -> BrownianNoise:
    """A `noise_fn` for `kd.sample`: one key gives one path, and each step takes its increment.

    With `u = log(sigma_max / sigma) / log(sigma_max / sigma_min)` and W a Brownian path on
    [0, 1], the noise of an outer step from level s0 to s1 is
    `z = (W(u1) - W(u0)) / sqrt(|u1 - u0|)`: unit Gaussian, and independent of that of every
    other step. Runs with other levels see the same path, so that the samples of 20, 40, 80, ...
    ancestral steps converge, about as 1 / N; with independent noise they are other samples.
    The first of the two draws of a `dpmpp_sde` step is the increment to its midpoint.

    In the limit the clock of the path does not matter, and at a finite N little: where sigma is
    far above the spread of the data, increments in 1 / sigma^2 fit the ancestral step exactly,
    where it is far below, in sigma^2. log sigma lies between them and came out best where both
    occur; it serves every eta.

    The noise of churn belongs to no interval between two levels: it is unit noise here too, but
    does not converge.

    Args:
      sigma_min, sigma_max: the levels that the path spans, those of every run that is to see it:
        another range is another path. A level outside is refused by `kd.sample` where it can be
        seen, and gives NaN elsewhere (a closing 0 is allowed: it draws no noise). The default holds
        the training schedules in use: "squaredcos_cap_v2" begins at 20,291, one of zero terminal
        SNR at 4,096, and a flow of 1,000 timesteps with shift 0.25 ends at 0.00006.
      depth: halvings of the path, 1 to 20; a row costs 2 * depth + 4 times the numbers of
        independent noise. The noise of every step has unit deviation; that of neighbouring steps
        is independent where they are longer than `log(sigma_max / sigma_min) / 2^depth` in log
        sigma, 0.00018 by default. The shortest of 200 steps of "linear_quadratic" has 0.00025.

    Returns:
      A pytree, called as `noise_fn(key, row, shape) -> [B, ...]` float32, by `kd.sample` or by
      hand: `kd.step(state, row, prediction, noise=noise_fn(key, row, shape))`. It uses
      `row.sigma_left`, `row.sigma_reached` and the sample's key alone; levels of [B, F] give
      each frame a path of its own.

    Raises:
      ValueError: levels that are not positive, not in this order, or further apart than float32
        knows ratios; in `kd.sample`, a run with levels outside the path; a depth outside its range;
        a key or shape as for `initial_sample`.

    Example:
      >>> import jax, jax.numpy as jnp, kdiff_jax as kd
      >>> denoise = kd.denoiser(lambda params, x, timestep: params * x)
      >>> noise, key = kd.noise_schedule("scaled_linear"), jax.random.key(0)
      >>> for steps in (20, 40):
      ...     schedule = kd.dpm2_ancestral(kd.levels(noise, steps, grid="karras"), eta=1.0)
      ...     x = kd.initial_sample(schedule, key, (2, 8))
      ...     x0 = kd.sample(
      ...         denoise, jnp.float32(0.1), schedule, x, key, noise_fn=kd.brownian_noise()
      ...     )
      >>> x0.shape
      (2, 8)

    Source: Levy's construction of Brownian motion; `BrownianTreeNoiseSampler` of k-diffusion
    (whose clock is sigma by default) on `BrownianTree` of torchsde; `VirtualBrownianTree` of
    diffrax; Li et al. 2020 (arXiv:2001.01328), section 4.
    """
    low = check_number("sigma_min", sigma_min, above=0)
    high = check_number("sigma_max", sigma_max, above=0)
    tiny, most = (float(end) for end in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))
    known = not is_traced(low, high)
    if known and (low < tiny or max(low, high) > most or high / low > most):
        raise ValueError(
            f"sigma_min = {low} to sigma_max = {high} is more than float32 holds; pass a narrower "
            "range."
        )
    if known and not np.float32(low) < np.float32(high):
        raise ValueError(
            f"sigma_min = {sigma_min} is not below sigma_max = {sigma_max}; pass the lowest and "
            "the highest noise level of the runs."
        )
    if check_int("depth", depth, 1) > _MAX_DEPTH:
        raise ValueError(
            f"depth = {depth} is too large: float32 does not tell the levels apart; pass at most "
            f"{_MAX_DEPTH}, or a narrower range."
        )
    return BrownianNoise(as_float(low), as_float(high), depth)
