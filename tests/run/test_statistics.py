"""Samplers on data whose exact denoiser is known: order of convergence, and the distribution.

Data X0 is a mixture of Gaussians (tests/mixtures.py), so the exact denoiser, the velocity of a
rectified flow, the solution of the ODE and the exact consistency function are in closed form.
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import mixtures
import numpy as np
import pytest
import samplers as sp
from mixtures import DATA, GAUSSIAN, SHAPE, assert_distributed_as
from samplers import NOISE, relative_error

import kdiff_jax as kd
from kdiff_jax._table.schedule import NEUTRAL

FLOW, SD3 = kd.flow_schedule(), kd.flow_schedule(shift=3.0)
COLUMNS = tuple(set(NEUTRAL) - {"noise_weight"})


# --- order -----------------------------------------------------------------------------------


def errors_at_the_last_level(sampler, noise, data, counts, **grid):
    """Relative error before the closing step to 0, which no order describes."""
    errors = []
    for n in counts:
        levels = kd.levels(noise, n, **grid).end_at(n - 1)
        first, last = float(levels.sigmas[0]), float(levels.sigmas[-1])
        ends = [(1.0 if noise is NOISE else 1 - s, s) for s in (first, last)]
        x = jnp.linspace(-2, 2, 9)[:, None] * (first / 2 if noise is NOISE else 1)
        # One shape and the columns of all samplers and both kinds of levels: one executable.
        table = sampler(levels).pad(640, COLUMNS)
        got = kd.sample(mixtures.exact_denoise, data, table, x)
        assert got.dtype == jnp.float64
        errors.append(relative_error(got, mixtures.solution(data, x, *ends)))
    return errors


KARRAS, TO_0_02 = {"grid": "karras"}, {"grid": "karras", "sigma_min": 0.02}
# From 1/N to the last level of a flow, 0.001, a step is long in log sigma: UniPC has 2.5 there, and
# 2.7 with shift 3.
LINEAR = {"grid": "karras", "rho": 1.0, "sigma_min": 0.02}
FEW, MANY = [20, 40, 80], [40, 80, 160]
FOUR, LATE = [20, 40, 80, 160], [160, 320]


def dpmpp_3m_of_order_3(levels):
    return kd.dpmpp_3m(levels, published=False)


def dpmpp_2s(levels):
    """2S with eta = 0, without its column of noise."""
    table = kd.dpmpp_2s_ancestral(levels, eta=0.0)
    return dataclasses.replace(table, rows=dataclasses.replace(table.rows, noise_weight=None))


@pytest.mark.parametrize(
    ("sampler", "noise", "grid", "name", "counts", "low", "high", "worst"),
    [
        (kd.dpm2, NOISE, KARRAS, "gaussian", FEW, 1.95, 2.2, 1e-3),
        (kd.dpm2, NOISE, KARRAS, "mixture", MANY, 1.95, 2.2, 1e-3),
        (kd.euler, NOISE, KARRAS, "gaussian", FEW, 0.95, 1.1, 2e-2),
        (kd.dpm2, FLOW, {}, "gaussian", MANY, 1.9, 2.2, 1e-3),
        (kd.dpm2, FLOW, {}, "mixture", MANY, 1.9, 2.2, 1e-3),
        (kd.euler, FLOW, {}, "gaussian", MANY, 0.9, 1.1, 3e-2),
        (kd.dpm2, FLOW, TO_0_02, "gaussian", MANY, 1.9, 2.2, 1e-3),
        (kd.dpm2, FLOW, TO_0_02, "mixture", MANY, 1.9, 2.2, 1e-3),
        (kd.euler, FLOW, TO_0_02, "gaussian", MANY, 0.9, 1.1, 3e-2),
        (kd.heun, NOISE, KARRAS, "gaussian", FOUR, 1.9, 2.2, 1e-3),
        (kd.heun, FLOW, {}, "gaussian", LATE, 1.9, 2.2, 1e-3),
        (dpmpp_2s, NOISE, KARRAS, "gaussian", FOUR, 1.9, 2.2, 1e-3),
        (dpmpp_2s, FLOW, {}, "gaussian", LATE, 1.9, 2.2, 1e-3),
        (kd.dpmpp_2m, NOISE, KARRAS, "gaussian", FOUR, 1.9, 2.2, 1e-3),
        (kd.dpmpp_2m, FLOW, {}, "gaussian", LATE, 1.9, 2.2, 1e-3),
        (kd.dpmpp_3m, NOISE, KARRAS, "gaussian", FOUR, 1.35, 2.2, 1e-3),
        (dpmpp_3m_of_order_3, NOISE, KARRAS, "gaussian", FOUR, 2.8, 3.3, 1e-4),
        (kd.unipc, NOISE, KARRAS, "gaussian", FOUR, 2.8, 3.2, 1e-4),
        (kd.unipc, FLOW, LINEAR, "gaussian", LATE, 2.8, 3.2, 1e-4),
        (kd.unipc, FLOW, {}, "gaussian", LATE, 2.45, 2.6, 1e-4),
        (kd.unipc, SD3, {}, "gaussian", LATE, 2.6, 2.8, 1e-3),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_order_of_convergence(sampler, noise, grid, name, counts, low, high, worst):
    with sp.x64():
        errors = errors_at_the_last_level(sampler, noise, DATA[name], counts, **grid)
    orders = [np.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert errors[-1] < worst
    assert all(low < order < high for order in orders), orders


@pytest.mark.parametrize("sampler", [kd.euler, kd.dpm2, kd.heun, kd.dpmpp_2m, kd.unipc])
def test_straight_lines_of_a_flow_are_solved_exactly(sampler):
    # A velocity that is constant along each line: x0 = x - v, in any number of steps.
    velocity = np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)
    for steps in (1, 2, 5):
        schedule = sampler(kd.levels(SD3, steps)).pad(9, COLUMNS)
        x = kd.initial_sample(schedule, jax.random.key(0), (4, 8))
        got = kd.sample(constant, velocity, schedule, x)
        np.testing.assert_allclose(got, np.asarray(x) - velocity, atol=2e-6)


constant = kd.denoiser(lambda params, x, timestep: params, "flow_prediction")


# --- marginals -------------------------------------------------------------------------------
# Every run starts from the exact marginal of its first row, so only the steps can be wrong.


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("name", DATA)
def test_ancestral_dpm2_reproduces_the_data(name, eta):
    # At N = 100 a million draws put the bias of the discretisation below 0.4 standard errors of
    # 100,000 draws, for mean and variance; at N = 50 the variance is 2 standard errors off.
    data, generator = DATA[name], np.random.default_rng(2)
    levels = kd.levels(NOISE, 100, grid="karras", sigma_min=0.02)
    schedule = kd.dpm2_ancestral(levels, eta=eta)
    x = mixtures.draw(data, generator, SHAPE)
    x = x + levels.sigmas[0] * generator.normal(size=SHAPE)
    start, data32 = jnp.asarray(x, jnp.float32), data.astype(np.float32)
    x0 = kd.sample(mixtures.exact_denoise, data32, schedule, start, jax.random.key(3))
    assert_distributed_as(data, x0)


def exact_velocity(data, x, timestep):
    """E[eps - X0 | x], as a network whose timestep is 1000 t."""
    t = (timestep / 1000).astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
    x0, eps = mixtures.posterior(data, x, 1 - t, t)
    return eps - x0


@pytest.mark.parametrize(("name", "eta"), [("gaussian", 0.5), ("mixture", 1.0)])
def test_ancestral_dpm2_on_a_flow_reproduces_the_data(name, eta):
    data, generator = DATA[name], np.random.default_rng(2)
    levels = kd.levels(FLOW, 100, grid="karras", sigma_min=0.01)
    schedule = kd.dpm2_ancestral(levels, eta=eta)
    start = jnp.asarray(generator.normal(size=SHAPE), jnp.float32)  # no signal at t = 1
    denoise = kd.denoiser(exact_velocity, "flow_prediction")
    x0 = kd.sample(denoise, data.astype(np.float32), schedule, start, jax.random.key(3))
    assert_distributed_as(data, x0)


def law_of(schedule, common=0.0):
    """Mean and variance of the last sample of Gaussian data, from the numbers of the rows.

    A sample is a number and weights of independent noises: the first one, and the z of each row.
    `common` is the share of a first draw of a step in the variance of the second.
    """
    rows = {k: np.asarray(v, np.float64) for k, v in vars(schedule.rows).items() if v is not None}
    count, (_, mean, std) = schedule.num_rows, (part.item() for part in GAUSSIAN)
    columns = {k: rows.get(f"{k}_weight", np.zeros(count)) for k in WEIGHTS}
    alphas, advances = (rows.get(k, np.ones(count)) for k in ("alpha", "advances"))
    noises = np.eye(count + 2)  # the first is the constant 1
    spread = np.hypot(alphas[0] * std, rows["sigma"][0])
    sample = anchor = alphas[0] * mean * noises[0] + spread * noises[1]
    for i, (alpha, sigma) in enumerate(zip(alphas, rows["sigma"], strict=True)):
        variance, off = (alpha * std) ** 2 + sigma**2, sample - alpha * mean * noises[0]
        denoised = mean * noises[0] + alpha * std**2 / variance * off
        z = noises[i + 2]
        if common and i % 2:
            z = np.sqrt(common) * noises[i + 1] + np.sqrt(1 - common) * z
        terms = denoised, sigma / variance * off, anchor, z
        sample = sum(columns[k][i] * term for k, term in zip(WEIGHTS, terms, strict=True))
        anchor = sample if advances[i] else anchor
    return sample[0], sample[1:] @ sample[1:]


WEIGHTS = ("denoised", "epsilon", "anchor", "noise")
STOCHASTIC = {
    "2s": lambda n: kd.dpmpp_2s_ancestral(kd.levels(NOISE, n, grid="karras", sigma_min=0.02)),
    "2s, flow": lambda n: kd.dpmpp_2s_ancestral(kd.levels(FLOW, n), eta=0.6),
    "sde": lambda n: kd.dpmpp_sde(kd.levels(NOISE, n, grid="karras", sigma_min=0.02)),
    "tcd": lambda n: kd.tcd(kd.lcm_levels(NOISE, n)),
}


@pytest.mark.parametrize("name", [*STOCHASTIC, "sde, brownian"])
def test_few_steps_have_the_distribution_that_their_own_table_makes(name):
    # The middle in log sigma is the middle of the path, which a step shares with its first row.
    common, noise_fn = (0.5, kd.brownian_noise()) if "brownian" in name else (0.0, None)
    schedule = STOCHASTIC[name.removesuffix(", brownian")](6)
    mean, variance = law_of(schedule, common)
    # One executable for all of them, and one for the path.
    table = schedule.pad(12, (*COLUMNS, "noise_weight"))
    first: Any = schedule[0]
    spread = np.hypot(0.8 * first.alpha, first.sigma)
    draws = np.random.default_rng(7).normal(0.5 * first.alpha, spread, SHAPE)
    start = jnp.asarray(draws, jnp.float32)
    key = jax.random.key(8)
    got = kd.sample(mixtures.gaussian_denoise, None, table, start, key, noise_fn=noise_fn)
    x0 = np.asarray(got, np.float64)
    assert abs(np.mean(x0) - mean) < 3 * np.sqrt(variance / x0.size)
    assert abs(np.var(x0) - variance) < 3 * variance * np.sqrt(2 / x0.size)


@pytest.mark.parametrize(
    ("name", "common", "first", "rate"),
    [
        ("2s", 0.0, 0.056, 0.4),
        ("2s, flow", 0.0, 0.019, 0.3),
        ("sde", 0.5, 0.037, 0.45),
        ("sde", 0.0, 0.242, 0.6),  # two noises that know nothing of each other: first order
    ],
)
def test_many_steps_have_the_distribution_of_the_data(name, common, first, rate):
    laws = [law_of(STOCHASTIC[name](n), common) for n in (20, 40, 80, 160)]
    assert all(mean == pytest.approx(0.5, abs=1e-3) for mean, _ in laws)
    off = [abs(variance / 0.64 - 1) for _, variance in laws]
    assert off[0] == pytest.approx(first, abs=5e-4)
    assert all(b < rate * a for a, b in itertools.pairwise(off)), off


consistency = kd.denoiser(mixtures.consistency_model, "sample")


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("noise", [NOISE, SD3], ids=["beta schedule", "flow"])
def test_lcm_with_the_exact_consistency_function_reproduces_the_data(noise, name, steps):
    # D has the distribution of the data at every row, and alpha D + sigma z that of the next row:
    # there is no discretisation, any N is exact.
    data, generator = DATA[name], np.random.default_rng(4)
    flow = kd.levels(SD3, steps, timestep_spacing="trailing")
    levels = flow if noise is SD3 else kd.lcm_levels(NOISE, steps)
    schedule = kd.lcm(levels)
    row: Any = schedule[0]
    x = float(row.alpha) * mixtures.draw(data, generator, SHAPE)
    x = x + float(row.sigma) * generator.normal(size=SHAPE)
    tables = mixtures.consistency_tables(data, schedule.rows)
    start = jnp.asarray(x, jnp.float32)
    x0 = kd.sample(consistency, tables, schedule, start, jax.random.key(5))
    assert_distributed_as(data, x0)


def test_the_consistency_tables_agree_with_the_closed_form_of_gaussian_data():
    schedule = kd.lcm(kd.lcm_levels(NOISE, 4))
    tables = mixtures.consistency_tables(GAUSSIAN, schedule.rows)
    alphas, sigmas = np.asarray(schedule.rows.alpha), np.asarray(schedule.rows.sigma)
    for *level, x, x0 in zip(alphas, sigmas, tables["x"], tables["x0"], strict=True):
        inside = slice(600, -600)  # within 4 standard deviations
        expected = mixtures.gaussian_solution(x, (float(level[0]), float(level[1])), (1.0, 0.0))
        np.testing.assert_allclose(x0[inside], expected[inside], atol=2e-5)
