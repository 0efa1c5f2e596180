"""Samplers on data whose exact denoiser is known: order of convergence, and the distribution.

Data X0 is a mixture of Gaussians, so everything is in closed form: the density of X0 + sigma * Z,
its posterior mean E[X0 | x] (the exact denoiser) and, in one dimension, the probability-flow ODE:
it keeps quantiles, so the exact consistency function is `F0^-1(F_t(x))`.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
import scipy.stats
from samplers import NOISE, relative_error

import kdiff_jax as kd

# weights, means, standard deviations
GAUSSIAN = np.array([[1.0], [0.5], [0.8]])
MIXTURE = np.array([[0.3, 0.5, 0.2], [-2.0, 0.5, 3.0], [0.3, 0.6, 0.2]])
DATA = {"gaussian": GAUSSIAN, "mixture": MIXTURE}
# A hundred samples of a thousand numbers, each an independent draw.
SHAPE = (100, 1000)
DRAWS = 100_000


# --- the exact answers -----------------------------------------------------------------------


def posterior_mean(data, x, sigma):
    """E[X0 | X0 + sigma Z = x]: each component's own, weighted by how likely it made x."""
    weight, mean, std = (jnp.asarray(part, x.dtype).reshape(-1, *(1,) * x.ndim) for part in data)
    x, variance = x[None], std**2 + sigma**2
    log_likelihood = jnp.log(weight) - jnp.log(variance) / 2 - (x - mean) ** 2 / (2 * variance)
    of_component = mean + std**2 / variance * (x - mean)
    return jnp.sum(jax.nn.softmax(log_likelihood, axis=0) * of_component, axis=0)


def exact_denoise(data, x, row, cond=None):
    """The exact denoiser at the row's own sigma: a timestep would round it to float32."""
    denoised = posterior_mean(data, x, row.sigma)
    return kd.Prediction(denoised, (x - denoised) / row.sigma)


def exact_gaussian_solution(x, sigma_from, sigma_to):
    """The probability-flow ODE of Gaussian data keeps (x - mean) / standard deviation."""
    _, mean, std = (part.item() for part in GAUSSIAN)
    return mean + (x - mean) * np.sqrt((std**2 + sigma_to**2) / (std**2 + sigma_from**2))


def mixture_cdf(data, x, alpha=1.0, sigma=0.0):
    """P(alpha X0 + sigma Z <= x)."""
    weight, mean, std = (part[:, None] for part in data)
    return np.sum(
        weight * scipy.stats.norm.cdf(x, alpha * mean, np.hypot(alpha * std, sigma)), axis=0
    )


def consistency_tables(data, schedule, size=4001):
    """For every row: x, and the point of the data at the same quantile; float64 until the cast."""
    rows = schedule.rows
    mean, variance = moments(data)[:2]
    points = np.linspace(data[1].min() - 6, data[1].max() + 6, 200_001)
    cdf_of_data = mixture_cdf(data, points)
    rising = np.concatenate([[True], np.diff(cdf_of_data) > 0])
    tables = []
    for alpha, sigma in zip(rows.alpha.tolist(), rows.sigma.tolist(), strict=True):
        spread = np.sqrt(alpha**2 * variance + sigma**2)
        x = np.linspace(alpha * mean - 6 * spread, alpha * mean + 6 * spread, size)
        quantile = mixture_cdf(data, x, alpha, sigma)
        tables.append((x, np.interp(quantile, cdf_of_data[rising], points[rising])))
    both = jnp.asarray(np.array(tables), jnp.float32)
    return {"timestep": rows.timestep, "x": both[:, 0], "x0": both[:, 1]}


def consistency_model(tables, x, timestep):
    """The exact consistency function of a one-dimensional mixture, as a network."""
    here = jnp.argmin(jnp.abs(tables["timestep"] - timestep[0]))
    return jnp.interp(x, tables["x"][here], tables["x0"][here])


def moments(data):
    """Mean, variance and the fourth central moment of the mixture."""
    weight, mean, std = data
    centre = np.sum(weight * mean)
    off = mean - centre
    return (
        centre,
        np.sum(weight * (off**2 + std**2)),
        np.sum(weight * (off**4 + 6 * off**2 * std**2 + 3 * std**4)),
    )


def draw(data, generator, shape):
    component = generator.choice(len(data[0]), shape, p=data[0])
    return data[1][component] + data[2][component] * generator.normal(size=shape)


def assert_distributed_as(data, x):
    """Mean and variance within three standard errors; Kolmogorov-Smirnov against the exact CDF."""
    x = np.asarray(x, np.float64).ravel()
    assert x.size == DRAWS
    mean, variance, fourth = moments(data)
    assert abs(np.mean(x) - mean) < 3 * np.sqrt(variance / DRAWS)
    # The variance of a sample variance is (fourth central moment - variance^2) / n.
    assert abs(np.var(x) - variance) < 3 * np.sqrt((fourth - variance**2) / DRAWS)
    assert scipy.stats.kstest(x, lambda at: mixture_cdf(data, at)).pvalue > 1e-3


# --- order -----------------------------------------------------------------------------------


def errors_at_sigma_min(build, counts):
    """Relative error to the exact solution before the closing step, which no order describes."""
    errors = []
    for n in counts:
        schedule = build(NOISE, n, grid="karras")
        rows = jax.tree.map(lambda leaf: leaf[:-1], schedule.rows)
        to_sigma_min = dataclasses.replace(schedule, rows=rows, sigmas=schedule.sigmas[:-1])
        first, last = float(schedule.sigmas[0]), float(schedule.sigmas[-2])
        x = jnp.linspace(-1, 1, 5)[:, None] * first
        got = kd.sample(exact_denoise, GAUSSIAN, to_sigma_min, x)
        assert got.dtype == jnp.float64
        errors.append(relative_error(got, exact_gaussian_solution(np.asarray(x), first, last)))
    return errors


@pytest.mark.parametrize(
    ("build", "low", "high", "worst"),
    [(kd.dpm2_schedule, 1.95, 2.2, 1e-3), (kd.euler_schedule, 0.95, 1.1, 2e-2)],
    ids=["dpm2", "euler"],
)
def test_order_of_convergence(build, low, high, worst):
    counts = [20, 40, 80]
    with sp.x64():
        errors = errors_at_sigma_min(build, counts)
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    pairs = [np.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert errors[-1] < worst
    assert low < slope < high
    assert all(low < order < high for order in pairs), pairs


# --- marginals -------------------------------------------------------------------------------
# Every run starts from the exact marginal of its first row, so only the steps can be wrong.


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("name", DATA)
def test_ancestral_dpm2_reproduces_the_data(name, eta):
    # At N = 100 a million draws put the bias of the discretisation below 0.4 standard errors of
    # 100,000 draws, for mean and variance; at N = 50 the variance is 2 standard errors off.
    data, generator = DATA[name], np.random.default_rng(2)
    schedule = kd.dpm2_ancestral_schedule(NOISE, 100, grid="karras", sigma_min=0.02, eta=eta)
    x = draw(data, generator, SHAPE)
    x = x + float(schedule.sigmas[0]) * generator.normal(size=SHAPE)
    start = jnp.asarray(x, jnp.float32)
    x0 = kd.sample(exact_denoise, data.astype(np.float32), schedule, start, jax.random.key(3))
    assert_distributed_as(data, x0)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("name", DATA)
def test_lcm_with_the_exact_consistency_function_reproduces_the_data(name, steps):
    # D has the distribution of the data at every row, and alpha D + sigma z that of the next row:
    # there is no discretisation, any N is exact.
    data, generator = DATA[name], np.random.default_rng(4)
    schedule = kd.lcm_schedule(NOISE, steps)
    row = schedule[0]
    x = float(row.alpha) * draw(data, generator, SHAPE)
    x = x + float(row.sigma) * generator.normal(size=SHAPE)
    denoise = kd.denoiser(consistency_model, "sample")
    tables = consistency_tables(data, schedule)
    start = jnp.asarray(x, jnp.float32)
    assert_distributed_as(data, kd.sample(denoise, tables, schedule, start, jax.random.key(5)))


def test_the_consistency_tables_agree_with_the_closed_form_of_gaussian_data():
    schedule = kd.lcm_schedule(NOISE, 4)
    tables = consistency_tables(GAUSSIAN, schedule)
    for row, x, x0 in zip(schedule, tables["x"], tables["x0"], strict=True):
        alpha, sigma = float(row.alpha), float(row.sigma)
        # In units of alpha: x / alpha = X0 + (sigma / alpha) Z.
        inside = slice(600, -600)  # within 4 standard deviations
        expected = exact_gaussian_solution(np.asarray(x) / alpha, sigma / alpha, 0.0)
        np.testing.assert_allclose(x0[inside], expected[inside], atol=2e-5)
