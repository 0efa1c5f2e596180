"""Noise levels by formula: the grids of k-diffusion, diffusers and ComfyUI, for `sigmas=`.

Every function gives N levels, strictly descending and without the closing 0. Its numbers may be
traced, for sweeps and gradients; N, and what only scipy can compute, stays on the host.
"""

from __future__ import annotations

import numpy as np
from jax.typing import ArrayLike

from kdiff_jax._arrays import Array, common_namespace, is_traced
from kdiff_jax._checks import check_int, check_number
from kdiff_jax._levels.between import beta_quantiles, checked, ends_of


@checked
def karras_sigmas(
    num_steps: int, sigma_min: ArrayLike, sigma_max: ArrayLike, rho: ArrayLike = 7.0
) -> Array:
    """Evenly spaced in `sigma^(1/rho)`, so that steps shorten towards sigma_min.

    `(max^(1/rho) + i/(N-1) (min^(1/rho) - max^(1/rho)))^rho`, i = 0 .. N - 1.

    Args:
      num_steps: N; a single step is sigma_max, here and in every grid below.
      sigma_min, sigma_max: the last level and the first, positive; may be traced.
      rho: above 0, usually 5 to 10; may be traced.

    Returns:
      [N] float64 on the host, or a traced array where an argument is traced.

    Raises:
      ValueError: N that is no positive integer, numbers out of range, ends in the wrong order.

    Example:
      >>> import kdiff_jax as kd
      >>> kd.karras_sigmas(4, 0.03, 14.6).round(3).tolist()
      [14.6, 3.181, 0.452, 0.03]

    Source: Karras et al. 2022 (arXiv:2206.00364), eq. 5; `get_sigmas_karras` of k-diffusion.
    """
    ramp, low, high = ends_of(num_steps, sigma_min, sigma_max)
    rho = check_number("rho", rho, above=0)
    _, ramp, low, high, rho = common_namespace(ramp, low, high, rho)
    first, last = high ** (1 / rho), low ** (1 / rho)
    return ((1 - ramp) * first + ramp * last) ** rho


@checked
def exponential_sigmas(num_steps: int, sigma_min: ArrayLike, sigma_max: ArrayLike) -> Array:
    """Evenly spaced in log sigma: `max^(1-r) min^r`, r = i/(N-1).

    Args, returns and errors as for `karras_sigmas`, without rho.

    Example:
      >>> import kdiff_jax as kd
      >>> kd.exponential_sigmas(3, 0.01, 100.0).round(6).tolist()
      [100.0, 1.0, 0.01]

    Source: `get_sigmas_exponential` of k-diffusion.
    """
    return _polyexponential(*ends_of(num_steps, sigma_min, sigma_max), 1.0)


@checked
def polyexponential_sigmas(
    num_steps: int, sigma_min: ArrayLike, sigma_max: ArrayLike, rho: ArrayLike = 1.0
) -> Array:
    """A polynomial in log sigma: `log sigma = log min + (1 - i/(N-1))^rho (log max - log min)`.

    rho = 1 is the exponential grid; a larger rho stays longer near sigma_min.

    Args, returns and errors as for `karras_sigmas`.

    Example:
      >>> import kdiff_jax as kd
      >>> kd.polyexponential_sigmas(3, 0.01, 100.0, rho=2.0).round(6).tolist()
      [100.0, 0.1, 0.01]

    Source: `get_sigmas_polyexponential` of k-diffusion.
    """
    rho = check_number("rho", rho, above=0)
    return _polyexponential(*ends_of(num_steps, sigma_min, sigma_max), rho)


def _polyexponential(ramp: np.ndarray, low: ArrayLike, high: ArrayLike, rho: ArrayLike) -> Array:
    inside = ramp < 1
    # 0^rho has no gradient in rho, so the last level takes another base, and is put in its place.
    base = np.where(inside, 1 - ramp, 1.0)
    xp, base, low, high, rho = common_namespace(base, low, high, rho)
    share = xp.where(inside, base**rho, xp.zeros_like(base))
    return xp.exp(xp.log(low) + share * (xp.log(high) - xp.log(low)))


@checked
def vp_sigmas(
    num_steps: int,
    sigma_min: ArrayLike | None = None,
    sigma_max: ArrayLike | None = None,
    *,
    beta_d: ArrayLike = 19.9,
    beta_min: ArrayLike = 0.1,
    eps_s: ArrayLike = 1e-3,
) -> Array:
    """Evenly spaced in the time of a variance-preserving process with a linear beta.

    `sigma(t) = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1)`, t from 1 down to eps_s; where an end
    is given, from or to the time at which the process has that level.

    Args:
      num_steps: N.
      sigma_min, sigma_max: the last level and the first in place of `sigma(eps_s)` and
        `sigma(1)`, which is 152; positive.
      beta_d, beta_min: the slope and the start of beta, above 0.
      eps_s: the last time, in (0, 1); without effect where sigma_min is given. All of these
        five may be traced.

    Returns:
      [N] float64 on the host, or a traced array where an argument is traced.

    Raises:
      ValueError: as for `karras_sigmas`.

    Example:
      >>> import kdiff_jax as kd
      >>> kd.vp_sigmas(3).round(3).tolist()
      [152.167, 3.422, 0.01]
      >>> kd.vp_sigmas(3, 0.03, 14.6).round(3).tolist()
      [14.6, 1.726, 0.03]

    Source: Karras et al. 2022, table 1, column VP; `get_sigmas_vp` of k-diffusion.
    """
    num_steps = check_int("num_steps", num_steps, 1)
    numbers = {"beta_d": beta_d, "beta_min": beta_min, "eps_s": eps_s}
    numbers |= {"sigma_min": 1.0 if sigma_min is None else sigma_min}
    numbers |= {"sigma_max": 1.0 if sigma_max is None else sigma_max}
    checked = [check_number(name, value, above=0) for name, value in numbers.items()]
    xp, ramp, d, m, eps, low, high = common_namespace(np.linspace(0, 1, num_steps), *checked)

    def exponent_at(t: ArrayLike) -> Array:
        return t * (d * t / 2 + m)

    first = exponent_at(1.0) if sigma_max is None else xp.log1p(high**2)
    last = exponent_at(eps) if sigma_min is None else xp.log1p(low**2)
    if num_steps > 1 and not is_traced(first, last) and not last < first:
        raise ValueError(
            f"sigma_min = {sigma_min}, sigma_max = {sigma_max} and eps_s = {eps_s} end the grid "
            "above its start; expected sigma_min below sigma_max, and eps_s below 1."
        )
    start, end = (2 * e / (m + xp.sqrt(m**2 + 2 * d * e)) for e in (first, last))
    return xp.sqrt(xp.expm1(exponent_at((1 - ramp) * start + ramp * end)))


@checked
def beta_sigmas(
    num_steps: int,
    sigma_min: ArrayLike,
    sigma_max: ArrayLike,
    alpha: float = 0.6,
    beta: float = 0.6,
) -> Array:
    """Quantiles of a beta distribution laid over sigma, as diffusers lays them.

    `min + Q(1 - i/(N-1)) (max - min)`, Q the quantiles of Beta(alpha, beta). The paper lays them
    over the timestep: `kd.beta_timesteps`.

    Args:
      num_steps, sigma_min, sigma_max: as for `karras_sigmas`.
      alpha, beta: above 0, never traced: JAX has no such quantiles, so the host takes them.

    Returns and errors as for `karras_sigmas`; alpha or beta traced is refused.

    Example:
      >>> import kdiff_jax as kd
      >>> kd.beta_sigmas(3, 0.03, 14.6).round(3).tolist()
      [14.6, 7.315, 0.03]

    Source: Lee et al. 2024 (arXiv:2407.12173); `_convert_to_beta` of diffusers.
    """
    ramp, low, high = ends_of(num_steps, sigma_min, sigma_max)
    _, quantiles, low, high = common_namespace(beta_quantiles(1 - ramp, alpha, beta), low, high)
    return low + quantiles * (high - low)


@checked
def linear_quadratic_sigmas(
    num_steps: int,
    sigma_max: ArrayLike,
    threshold_noise: ArrayLike = 0.025,
    linear_steps: int | None = None,
) -> Array:
    """First evenly spaced in sigma, then by a parabola down to 0 that goes on at the same slope.

    With L = linear_steps, Q = N - L, h = threshold_noise and j = i - L: `max (1 - h i / L)` for
    i < L, then `max (1 - j/Q) (1 - h + (L - h N) j / (L Q))`. The closing 0 belongs to the
    parabola, so this grid has no sigma_min.

    Args:
      num_steps: N.
      sigma_max: the first level, positive; may be traced.
      threshold_noise: h, the share of sigma_max that the linear steps take off, above 0 and below
        `2 L / (N + L)`, where the parabola would turn; may be traced.
      linear_steps: L, from 1 to N - 1; N // 2 by default.

    Returns:
      As `karras_sigmas`.

    Raises:
      ValueError: as for `karras_sigmas`; linear_steps or threshold_noise out of range.

    Example:
      >>> import kdiff_jax as kd
      >>> kd.linear_quadratic_sigmas(4, 1.0, threshold_noise=0.1).round(4).tolist()
      [1.0, 0.95, 0.9, 0.65]

    Source: Mochi 1, `linear_quadratic_schedule`; the scheduler of that name in ComfyUI.
    """
    num_steps = check_int("num_steps", num_steps, 1)
    high = check_number("sigma_max", sigma_max, above=0)
    h = check_number("threshold_noise", threshold_noise, above=0)
    if num_steps == 1:
        return common_namespace(high)[1].reshape(1)
    linear = check_int("linear_steps", num_steps // 2 if linear_steps is None else linear_steps, 1)
    if linear >= num_steps:
        raise ValueError(
            f"linear_steps = {linear} leaves no quadratic step of {num_steps}; expected at most "
            f"{num_steps - 1}."
        )
    bound = 2 * linear / (num_steps + linear)
    if not is_traced(h) and h >= bound:
        raise ValueError(
            f"threshold_noise = {h} is too much for {linear} linear steps of "
            f"{num_steps}: the levels after them would fall below 0; expected it below {bound}."
        )
    i = np.arange(num_steps)
    quadratic = num_steps - linear
    xp, at, past, high, h = common_namespace(i, i - linear, high, h)
    line = 1 - h * at / linear
    curve = (1 - past / quadratic) * (
        1 - h + (linear - h * num_steps) * past / (linear * quadratic)
    )
    return high * xp.where(i < linear, line, curve)


@checked
def kl_optimal_sigmas(num_steps: int, sigma_min: ArrayLike, sigma_max: ArrayLike) -> Array:
    """Evenly spaced in the arctangent of sigma: `tan((1-r) atan(max) + r atan(min))`, r = i/(N-1).

    Args, returns and errors as for `karras_sigmas`, without rho.

    Example:
      >>> import kdiff_jax as kd
      >>> kd.kl_optimal_sigmas(3, 0.03, 14.6).round(3).tolist()
      [14.6, 0.962, 0.03]

    Source: Sabour et al. 2024 (arXiv:2404.14507), section 3; "kl_optimal" of ComfyUI.
    """
    ramp, low, high = ends_of(num_steps, sigma_min, sigma_max)
    xp, ramp, low, high = common_namespace(ramp, low, high)
    angle = (1 - ramp) * xp.arctan(high) + ramp * xp.arctan(low)
    # Close to a right angle its complement keeps the digits.
    complement = (1 - ramp) * xp.arctan(1 / high) + ramp * xp.arctan(1 / low)
    return xp.where(angle < 1, xp.tan(angle), 1 / xp.tan(complement))


@checked
def laplace_sigmas(
    num_steps: int,
    sigma_min: ArrayLike,
    sigma_max: ArrayLike,
    mu: ArrayLike = 0.0,
    beta: ArrayLike = 0.5,
) -> Array:
    """Quantiles of a Laplace distribution of log sigma: dense about `exp(mu)`.

    `log sigma = mu - beta sign(1/2 - x) log(1 - 2 |1/2 - x| + 1e-5)`, x = i/(N-1), held between
    log sigma_min and log sigma_max; levels that would repeat an end are spread evenly in log
    sigma between it and the next level (ComfyUI repeats the end). A narrow distribution starts
    below sigma_max and ends above sigma_min.

    Args:
      num_steps, sigma_min, sigma_max: as for `karras_sigmas`.
      mu, beta: the log sigma of the densest place, and the width, above 0; may be traced.

    Returns and errors as for `karras_sigmas`.

    Example:
      >>> import kdiff_jax as kd
      >>> kd.laplace_sigmas(5, 0.03, 14.6).round(3).tolist()
      [14.6, 1.414, 1.0, 0.707, 0.03]

    Source: Hang et al. 2024 (arXiv:2407.03297); `get_sigmas_laplace` of ComfyUI's k-diffusion.
    """
    ramp, low, high = ends_of(num_steps, sigma_min, sigma_max)
    mu, beta = check_number("mu", mu), check_number("beta", beta, above=0)
    unit = np.sign(0.5 - ramp) * -np.log(1 - 2 * np.abs(0.5 - ramp) + 1e-5)
    xp, unit, mu, beta, low, high = common_namespace(unit, mu, beta, low, high)
    bottom, top = xp.log(low), xp.log(high)
    logs = _apart_below(xp.clip(mu + beta * unit, bottom, top), top, bottom)
    return xp.exp(-_apart_below(-logs[::-1], -bottom, -top)[::-1])


def _apart_below(levels: Array, top: Array, bottom: Array) -> Array:
    """The levels that lie on the top, spread between it and the next; at the bottom for none."""
    num_steps = levels.shape[0]
    xp, i, levels, top, bottom = common_namespace(np.arange(num_steps), levels, top, bottom)
    repeated = (levels >= top).sum()
    count = repeated.astype(levels.dtype)
    target = xp.where(count < num_steps, levels[xp.minimum(repeated, num_steps - 1)], bottom)
    gaps = xp.clip(count, 1, max(num_steps - 1, 1))
    return xp.where(i < count, top + i / gaps * (target - top), levels)
