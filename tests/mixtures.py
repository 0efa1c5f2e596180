"""Data whose exact denoiser and distribution are known: mixtures of Gaussians.

For x = alpha X0 + sigma Z the density, the posterior means E[X0 | x] and E[Z | x], and in one
dimension the distribution function are in closed form. So is the probability-flow ODE: it keeps
quantiles.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.stats

import kdiff_jax as kd

# weights, means, standard deviations
GAUSSIAN = np.array([[1.0], [0.5], [0.8]])
MIXTURE = np.array([[0.3, 0.5, 0.2], [-2.0, 0.5, 3.0], [0.3, 0.6, 0.2]])
DATA = {"gaussian": GAUSSIAN, "mixture": MIXTURE}
# A hundred samples of a thousand numbers, each an independent draw.
SHAPE = (100, 1000)
DRAWS = 100_000


def posterior(data: Any, x: jax.Array, alpha: Any, sigma: Any) -> tuple[jax.Array, jax.Array]:
    """E[X0 | x] and E[Z | x]: each component's own, weighted by how likely it made x."""
    weight, mean, std = (jnp.asarray(part, x.dtype).reshape(-1, *(1,) * x.ndim) for part in data)
    # Levels of one number, or of one a sample: [B, 1, ..].
    alpha, sigma = (
        jnp.asarray(level)[None] if jnp.ndim(level) else level for level in (alpha, sigma)
    )
    off, variance = x[None] - alpha * mean, (alpha * std) ** 2 + sigma**2
    log_likelihood = jnp.log(weight) - jnp.log(variance) / 2 - off**2 / (2 * variance)
    share = jax.nn.softmax(log_likelihood, axis=0)
    x0 = jnp.sum(share * (mean + alpha * std**2 / variance * off), axis=0)
    return x0, jnp.sum(share * (sigma / variance * off), axis=0)


def exact_denoise(data: Any, x: jax.Array, row: kd.Row, cond: Any = None) -> kd.Prediction:
    """The exact denoiser at the row's own level: a timestep would round it to float32."""
    return kd.Prediction(*posterior(data, x, row.alpha, row.sigma))


def gaussian_denoise(params: Any, x: jax.Array, row: kd.Row, cond: Any = None) -> kd.Prediction:
    """`exact_denoise` of GAUSSIAN, without the sum over components."""
    _, mean, std = (part.item() for part in GAUSSIAN)
    variance = (row.alpha * std) ** 2 + row.sigma**2
    off = x - row.alpha * mean
    return kd.Prediction(mean + row.alpha * std**2 / variance * off, row.sigma / variance * off)


def gaussian_solution(x: Any, start: tuple[float, float], end: tuple[float, float]) -> np.ndarray:
    """The ODE of GAUSSIAN keeps (x - alpha * mean) / its width; levels are (alpha, sigma)."""
    _, mean, std = (part.item() for part in GAUSSIAN)
    (a0, s0), (a1, s1) = start, end
    scale = np.hypot(a1 * std, s1) / np.hypot(a0 * std, s0)
    return a1 * mean + (np.asarray(x, np.float64) - a0 * mean) * scale


def solution(
    data: np.ndarray, x: Any, start: tuple[float, float], end: tuple[float, float]
) -> np.ndarray:
    """Where the ODE of the mixture takes x, [B, 1]: to the point of the same quantile."""

    def solve(quantile: float) -> float:
        def off(y: float) -> float:
            return cdf(data, np.array([y]), *end)[0] - quantile

        return float(scipy.optimize.brentq(off, -20, 20, xtol=1e-14))

    return np.array([solve(quantile) for quantile in cdf(data, np.ravel(x), *start)])[:, None]


def cdf(data: np.ndarray, x: np.ndarray, alpha: float = 1.0, sigma: float = 0.0) -> np.ndarray:
    """P(alpha X0 + sigma Z <= x)."""
    weight, mean, std = (part[:, None] for part in data)
    each = scipy.stats.norm.cdf(x, alpha * mean, np.hypot(alpha * std, sigma))
    return np.asarray(np.sum(weight * each, axis=0))


def consistency_tables(data: np.ndarray, rows: kd.Row, size: int = 4001) -> dict[str, jax.Array]:
    """For every row: x, and the point of the data at the same quantile; float64 until the cast."""
    mean, variance = moments(data)[:2]
    points = np.linspace(data[1].min() - 6, data[1].max() + 6, 200_001)
    of_data = cdf(data, points)
    rising = np.concatenate([[True], np.diff(of_data) > 0])
    tables = []
    for alpha, sigma in zip(np.asarray(rows.alpha), np.asarray(rows.sigma), strict=True):
        alpha, sigma = float(alpha), float(sigma)
        spread = np.sqrt(alpha**2 * variance + sigma**2)
        x = np.linspace(alpha * mean - 6 * spread, alpha * mean + 6 * spread, size)
        quantile = cdf(data, x, alpha, sigma)
        tables.append((x, np.interp(quantile, of_data[rising], points[rising])))
    both = jnp.asarray(np.array(tables), jnp.float32)
    return {"timestep": rows.timestep, "x": both[:, 0], "x0": both[:, 1]}


def consistency_model(tables: dict[str, jax.Array], x: jax.Array, timestep: jax.Array) -> jax.Array:
    """The exact consistency function of a mixture, `F0^-1(F_t(x))`, as a network."""
    here = jnp.argmin(jnp.abs(tables["timestep"] - timestep[0]))
    return jnp.interp(x, tables["x"][here], tables["x0"][here])


def moments(data: np.ndarray) -> tuple[float, float, float]:
    """Mean, variance and the fourth central moment of the mixture."""
    weight, mean, std = data
    centre = np.sum(weight * mean)
    off = mean - centre
    return (
        centre,
        np.sum(weight * (off**2 + std**2)),
        np.sum(weight * (off**4 + 6 * off**2 * std**2 + 3 * std**4)),
    )


def draw(data: np.ndarray, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Independent draws of X0."""
    component = generator.choice(len(data[0]), shape, p=data[0])
    return np.asarray(data[1][component] + data[2][component] * generator.normal(size=shape))


def assert_distributed_as(data: np.ndarray, x: Any) -> None:
    """Mean and variance within three standard errors; Kolmogorov-Smirnov against the exact CDF."""
    x = np.asarray(x, np.float64).ravel()
    assert x.size == DRAWS
    mean, variance, fourth = moments(data)
    assert abs(np.mean(x) - mean) < 3 * np.sqrt(variance / DRAWS)
    # The variance of a sample variance is (fourth central moment - variance^2) / n.
    assert abs(np.var(x) - variance) < 3 * np.sqrt((fourth - variance**2) / DRAWS)
    assert scipy.stats.kstest(x, lambda at: cdf(data, at)).pvalue > 1e-3
