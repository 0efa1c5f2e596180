"""Rectified flow: exact velocities, the order, the marginals, ComfyUI's formulas, the tables.

Data X0 is a mixture of Gaussians, so the velocity E[eps - X0 | x] on `x = (1 - t) X0 + t eps` is in
closed form, and in one dimension so is the flow: it keeps quantiles.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
import scipy.optimize
import scipy.stats
from flows import BUILDERS, FLOW, SD3, every_builder
from samplers import relative_error
from test_statistics import DATA, SHAPE, assert_distributed_as, mixture_cdf

import kdiff_jax as kd


def exact_velocity(data, x, timestep):
    """E[eps - X0 | x], as a network that is told 1000 t."""
    t = (timestep / 1000).astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
    return posterior(data, x, 1 - t, t)[2]


def posterior(data, x, alpha, sigma):
    weight, mean, std = (jnp.asarray(part, x.dtype).reshape(-1, *(1,) * x.ndim) for part in data)
    alpha, sigma = jnp.asarray(alpha), jnp.asarray(sigma)
    if alpha.ndim:
        alpha, sigma = alpha[None], sigma[None]
    off, variance = x[None] - alpha * mean, (alpha * std) ** 2 + sigma**2
    log_likelihood = jnp.log(weight) - jnp.log(variance) / 2 - off**2 / (2 * variance)
    share = jax.nn.softmax(log_likelihood, axis=0)
    x0 = jnp.sum(share * (mean + alpha * std**2 / variance * off), axis=0)
    eps = jnp.sum(share * (sigma / variance * off), axis=0)
    return x0, eps, eps - x0


def exact_denoise(data, x, row, cond=None):
    """The exact prediction at the row's own level: a float32 timestep would round it."""
    x0, eps, _ = posterior(data, x, row.alpha, row.sigma)
    return kd.Prediction(x0, eps)


def exact_solution(data, x, t0, t1):
    """Where the flow of the mixture takes x from t0 to t1: the point of the same quantile."""

    def cdf(at, t):
        return mixture_cdf(data, np.ravel(at), 1 - t, t)

    def solve(quantile):
        return scipy.optimize.brentq(lambda y: cdf(y, t1)[0] - quantile, -20, 20, xtol=1e-14)

    return np.array([solve(q) for q in cdf(x, t0)])[:, None]


# --- order -----------------------------------------------------------------------------------


def errors_at_the_last_level(build, data, counts, **grid):
    """Relative error before the closing step to 0, which no order describes."""
    errors = []
    for n in counts:
        schedule = build(FLOW, n, **grid)
        rows = jax.tree.map(lambda leaf: leaf[:-1], schedule.rows)
        cut = dataclasses.replace(schedule, rows=rows, sigmas=schedule.sigmas[:-1])
        x = jnp.linspace(-2, 2, 9)[:, None]
        got = kd.sample(exact_denoise, data, cut, x)
        assert got.dtype == jnp.float64
        ends = float(schedule.sigmas[0]), float(schedule.sigmas[-2])
        errors.append(relative_error(got, exact_solution(data, x, *ends)))
    return errors


@pytest.mark.parametrize("grid", [{}, {"grid": "karras", "sigma_min": 0.02}], ids=str)
@pytest.mark.parametrize(
    ("build", "name", "low", "high", "worst"),
    [
        (kd.dpm2_schedule, "gaussian", 1.9, 2.2, 1e-3),
        (kd.dpm2_schedule, "mixture", 1.9, 2.2, 1e-3),
        (kd.euler_schedule, "gaussian", 0.9, 1.1, 3e-2),
    ],
    ids=["dpm2-gaussian", "dpm2-mixture", "euler-gaussian"],
)
def test_order_of_convergence(name, build, low, high, worst, grid):
    counts = [40, 80, 160]
    with sp.x64():
        errors = errors_at_the_last_level(build, DATA[name], counts, **grid)
    orders = [np.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert errors[-1] < worst
    assert all(low < order < high for order in orders), orders


@pytest.mark.parametrize("name", ["euler", "dpm2"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_straight_lines_are_solved_exactly(name, steps):
    # A velocity that is constant along each line: x0 = x - v, in any number of steps.
    velocity = np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)
    denoise = kd.denoiser(lambda params, x, timestep: params, "flow_prediction")
    schedule = BUILDERS[name](SD3, steps)
    x = kd.initial_sample(schedule, jax.random.key(0), (4, 8))
    got = kd.sample(denoise, velocity, schedule, x)
    np.testing.assert_allclose(got, np.asarray(x) - velocity, atol=2e-6)


# --- marginals -------------------------------------------------------------------------------
# Every run starts from the exact marginal of its first row, so only the steps can be wrong.


@pytest.mark.parametrize(("data_name", "eta"), [("gaussian", 0.5), ("mixture", 1.0)])
def test_ancestral_dpm2_reproduces_the_data(data_name, eta):
    data, generator = DATA[data_name], np.random.default_rng(2)
    schedule = kd.dpm2_ancestral_schedule(FLOW, 100, eta=eta, grid="karras", sigma_min=0.01)
    start = jnp.asarray(generator.normal(size=SHAPE), jnp.float32)  # no signal at t = 1
    denoise = kd.denoiser(exact_velocity, "flow_prediction")
    x0 = kd.sample(denoise, data.astype(np.float32), schedule, start, jax.random.key(3))
    assert_distributed_as(data, x0)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("data_name", DATA)
def test_lcm_with_the_exact_consistency_function_reproduces_the_data(data_name, steps):
    # D has the distribution of the data and (1 - t') D + t' z that of the next row, at any N.
    data, generator = DATA[data_name], np.random.default_rng(4)
    schedule = kd.lcm_schedule(SD3, steps, timestep_spacing="trailing")
    points = np.linspace(data[1].min() - 6, data[1].max() + 6, 200_001)
    of_data = mixture_cdf(data, points)
    rising = np.concatenate([[True], np.diff(of_data) > 0])
    x = np.linspace(-8, 8, 20_001)
    tables = [
        np.interp(mixture_cdf(data, x, 1 - t, t), of_data[rising], points[rising])
        for t in schedule.sigmas[:-1].tolist()
    ]
    params = {
        "timestep": schedule.rows.timestep,
        "x": jnp.asarray(x, jnp.float32),
        "x0": jnp.asarray(np.array(tables), jnp.float32),
    }

    def consistency_model(params, x, timestep):
        here = jnp.argmin(jnp.abs(params["timestep"] - timestep[0]))
        return jnp.interp(x, params["x"], params["x0"][here])

    start = jnp.asarray(generator.normal(size=SHAPE), jnp.float32)
    run = kd.denoiser(consistency_model, "sample"), params, schedule, start, jax.random.key(5)
    assert_distributed_as(data, kd.sample(*run))


@every_builder
def test_every_row_carries_the_exact_marginal_to_the_next(name):
    # With D = x0 and epsilon = eps exact, a sample is a weight of x0 and independent noises: the
    # initial one and the z of each row. Their total must be the level of the row it lands on.
    schedule = BUILDERS[name](SD3, 7)
    rows = list(schedule)
    noises = np.eye(len(rows) + 1)
    sample = anchor = (float(rows[0].alpha), float(rows[0].sigma) * noises[0])
    for place, row in enumerate(rows):
        assert sample[0] == pytest.approx(float(row.alpha), abs=1e-6)
        assert np.linalg.norm(sample[1]) == pytest.approx(float(row.sigma), abs=1e-6)
        a, d, e, z = (
            float(getattr(row, f"{kind}_weight"))
            for kind in ("anchor", "denoised", "epsilon", "noise")
        )
        eps = sample[1] / float(row.sigma)
        noise = a * anchor[1] + e * eps + z * noises[place + 1]
        sample = a * anchor[0] + d, noise
        anchor = sample if bool(row.advances) else anchor
    assert sample[0] == pytest.approx(1, abs=1e-6)
    assert np.linalg.norm(sample[1]) == pytest.approx(0, abs=1e-6)


# --- ComfyUI's formulas, in float64 ----------------------------------------------------------


def comfy_dpm2(velocity, x, sigmas, noise, eta, s_noise):
    """DPM2 on a flow as `sample_dpm_2_ancestral_RF` has it; eta = 0 is `sample_dpm_2`."""
    for (s0, s1), z in zip(itertools.pairwise(sigmas), noise, strict=True):
        slope = velocity(x, s0)
        if s1 == 0:
            x = x - s0 * slope
            continue
        down = s1 * (1 + (s1 / s0 - 1) * eta)
        middle = np.exp((np.log(s0) + np.log(down)) / 2)
        x = x + velocity(x + slope * (middle - s0), middle) * (down - s0)
        ratio = (1 - s1) / (1 - down)
        x = ratio * x + z * s_noise * np.sqrt(max(s1**2 - (down * ratio) ** 2, 0))
    return x


def comfy_euler(velocity, x, sigmas, noise, eta, s_noise):
    """Euler ancestral on a flow as `sample_euler_ancestral_RF` has it."""
    for (s0, s1), z in zip(itertools.pairwise(sigmas), noise, strict=True):
        denoised = x - s0 * velocity(x, s0)
        down = s1 * (1 + (s1 / s0 - 1) * eta)
        x = down / s0 * x + (1 - down / s0) * denoised
        if s1 > 0:
            ratio = (1 - s1) / (1 - down)
            x = ratio * x + z * s_noise * np.sqrt(max(s1**2 - (down * ratio) ** 2, 0))
    return x


def smooth_velocity(params, x, timestep):
    t = (timestep / 1000).astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.sin(1.7 * x) - 0.6 * x + jnp.cos(3 * t)


def smooth_velocity_in_numpy(x, t):
    return np.sin(1.7 * x) - 0.6 * x + np.cos(3 * t)


@pytest.mark.parametrize(("eta", "s_noise"), [(0.0, 1.0), (0.4, 0.9), (1.0, 1.0), (1.02, 1.0)])
@pytest.mark.parametrize(
    ("name", "truth"), [("ancestral", comfy_dpm2), ("euler_ancestral", comfy_euler)]
)
def test_ancestral_runs_are_those_of_comfyui(name, truth, eta, s_noise):
    key, shape = jax.random.key(7), (3, 16)
    schedule = BUILDERS[name](SD3, 6, eta=eta, s_noise=s_noise)
    x = kd.initial_sample(schedule, key, shape)
    noise = [kd.row_noise(key, row, shape) for row in schedule if bool(row.advances)]
    denoise = kd.denoiser(smooth_velocity, "flow_prediction")
    got = kd.sample(denoise, None, schedule, x, key)
    flow = SD3.shifted(1 + np.linspace(0, 1, 6) * (SD3.sigma_min - 1))
    expected = truth(
        smooth_velocity_in_numpy,
        np.asarray(x, np.float64),
        [*flow, 0.0],
        np.asarray(noise, np.float64),
        eta,
        s_noise,
    )
    assert relative_error(got, expected) < 2e-6


def test_eta_0_is_the_table_without_noise_bitwise():
    for build, other in ((kd.dpm2_schedule, "ancestral"), (kd.euler_schedule, "euler_ancestral")):
        plain, ancestral = build(SD3, 9), BUILDERS[other](SD3, 9, eta=0.0)
        jax.tree.map(np.testing.assert_array_equal, plain.rows, ancestral.rows)
        assert (plain.deterministic, ancestral.deterministic) == (True, False)


def test_eta_1_puts_the_midpoint_at_the_next_level():
    schedule = kd.dpm2_ancestral_schedule(SD3, 9)
    np.testing.assert_allclose(schedule.rows.sigma[1::2], schedule.sigmas[1:-1], rtol=2e-7)
