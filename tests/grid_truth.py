"""ComfyUI's schedulers and two more grids, written again in float64: what the grids are held to.

Nothing here comes from `kdiff_jax`. Where ComfyUI repeats a level, drops one or runs one more, so
do these: the tests say where the package differs, and that it does so nowhere else. Every function
gives the levels without the closing 0, descending; `levels` are the T training sigmas, ascending.

Facts from comfy/samplers.py and comfy/k_diffusion/sampling.py of ComfyUI; numpy and plain Python
stand in for torch, exact fractions for its float32 timesteps.
"""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import scipy.optimize
import scipy.stats

Array = np.ndarray


def simple(levels: Array, num_steps: int) -> Array:
    """Whole timesteps from the top, `T / N` apart, rounded up."""
    count = len(levels)
    return np.array([levels[count - 1 - x * count // num_steps] for x in range(num_steps)])


def ddim_uniform(levels: Array, num_steps: int) -> Array:
    """Timesteps 1, 1 + T // N, ... below T, however many they are."""
    stride = max(len(levels) // num_steps, 1)
    return np.array([levels[t] for t in range(1, len(levels), stride)])[::-1]


def _at(levels: Array, timestep: Fraction) -> float:
    """Between two training levels the mean of their logarithms, weighted by the fraction."""
    below = math.floor(timestep)
    part = float(timestep - below)
    above = min(below + 1, len(levels) - 1)
    return math.exp((1 - part) * math.log(levels[below]) + part * math.log(levels[above]))


def normal(levels: Array, num_steps: int) -> Array:
    """Even timesteps from T - 1 to 0."""
    last = Fraction(len(levels) - 1)
    gaps = max(num_steps - 1, 1)
    return np.array([_at(levels, last - last * i / gaps) for i in range(num_steps)])


def sgm_uniform(levels: Array, num_steps: int) -> Array:
    """Even timesteps from T - 1 on, the last of N + 1 left out."""
    return normal(levels, num_steps + 1)[:-1]


def beta_timesteps(count: int, num_steps: int) -> list[int]:
    """Rounded quantiles of Beta(0.6, 0.6) on [0, T - 1]; repeated ones run once."""
    shares = [1 - i / num_steps for i in range(num_steps)]
    found = [round(scipy.stats.beta.ppf(share, 0.6, 0.6) * (count - 1)) for share in shares]
    return list(dict.fromkeys(found))


def linear_quadratic(
    num_steps: int, sigma_max: float, threshold: float, linear_steps: int
) -> Array:
    """`1 - y(i)`: y rises to the threshold on a line, then on the parabola that leaves it there.

    The parabola has the line's value and slope at `linear_steps` and reaches 1 at N.
    """
    at, slope = float(linear_steps), threshold / linear_steps
    conditions = [[at**2, at, 1], [2 * at, 1, 0], [float(num_steps) ** 2, num_steps, 1]]
    parabola = np.linalg.solve(np.array(conditions), np.array([threshold, slope, 1.0]))
    i = np.arange(num_steps)
    return sigma_max * (1 - np.where(i < linear_steps, slope * i, np.polyval(parabola, i)))


def kl_optimal(num_steps: int, low: float, high: float) -> Array:
    """Even in the angle whose tangent is sigma."""
    first, last = math.atan(high), math.atan(low)
    gaps = num_steps - 1
    return np.array([math.tan((i * last + (gaps - i) * first) / gaps) for i in range(num_steps)])


def laplace(num_steps: int, low: float, high: float, mu: float, beta: float) -> Array:
    """Quantiles of a Laplace distribution of log sigma, held between the ends: they may repeat."""
    found = []
    for x in np.linspace(0, 1, num_steps):
        away = math.log(1 - 2 * abs(0.5 - x) + 1e-5)
        log_sigma = mu - beta * away if x < 0.5 else mu + beta * away if x > 0.5 else mu
        found.append(min(max(math.exp(log_sigma), low), high))
    return np.array(found)


def align_your_steps(num_steps: int, table: Any) -> Array:
    """The table's polygon in log sigma, cut at N even places."""
    found = []
    for i in range(num_steps):
        place = Fraction(i * (len(table) - 1), max(num_steps - 1, 1))
        entry = min(math.floor(place), len(table) - 2)
        part = float(place - entry)
        found.append(table[entry] ** (1 - part) * table[entry + 1] ** part)
    return np.array(found)


def vp_between(num_steps: int, low: float, high: float, beta_d: float, beta_min: float) -> Array:
    """Even in the time of the process, its ends found as roots of `sigma(t) = end`."""

    def level(t: float) -> float:
        return math.sqrt(math.expm1(beta_d * t**2 / 2 + beta_min * t))

    def time_at(sigma: float) -> float:
        return scipy.optimize.brentq(lambda t: math.log(level(t) / sigma), 1e-9, 5.0, xtol=1e-15)

    times = np.linspace(time_at(high), time_at(low), num_steps)
    return np.array([level(t) for t in times])
