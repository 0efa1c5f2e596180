"""Runs turned over: the table, its order on Gaussian data, there and back, and what is refused."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
from samplers import MIXING, NOISE, SAMPLERS, relative_error

import kdiff_jax as kd

MEAN, STD = 0.5, 0.8
BUILDERS: dict[str, Any] = {"dpm2": kd.dpm2_schedule, "euler": kd.euler_schedule}
mixing = kd.denoiser(sp.mixing_model)


def gaussian_denoise(params, x, row, cond=None):
    """The posterior mean of Gaussian data; the estimate of eps is what is left of x."""
    variance = (row.alpha * STD) ** 2 + row.sigma**2
    off = x - row.alpha * MEAN
    return kd.Prediction(MEAN + row.alpha * STD**2 / variance * off, row.sigma / variance * off)


def gaussian_solution(x, start, end):
    """The ODE of Gaussian data keeps (x - alpha * mean) / std; levels are (alpha, sigma)."""
    (a0, s0), (a1, s1) = start, end
    return a1 * MEAN + (x - a0 * MEAN) * np.hypot(a1 * STD, s1) / np.hypot(a0 * STD, s0)


def without_closing_step(schedule):
    rows = jax.tree.map(lambda leaf: leaf[:-1], schedule.rows)
    return dataclasses.replace(schedule, rows=rows, sigmas=schedule.sigmas[:-1], alternating=False)


def levels(schedule):
    """The lowest and the highest (alpha, sigma) of a run down."""
    rows = schedule.rows
    return [(float(rows.alpha[i]), float(rows.sigma[i])) for i in (-1, 0)]


def orders(counts, errors):
    return [
        np.log(a / b) / np.log(m / n)
        for (n, a), (m, b) in itertools.pairwise(zip(counts, errors, strict=True))
    ]


# --- the table -------------------------------------------------------------------------------


def test_the_table_of_dpm2_is_its_formula():
    """sigma from 1 to 4 to 16: midpoints 2 and 8; every number of it exact in binary."""
    up = kd.inversion_schedule(kd.dpm2_schedule(NOISE, sigmas=[16, 4, 1]))
    rows = up.rows
    np.testing.assert_array_equal(rows.sigma, [1, 2, 4, 8])
    np.testing.assert_allclose(rows.timestep, NOISE.timestep_at(np.array([1, 2, 4, 8])), 1e-7)
    np.testing.assert_allclose(rows.input_scale, 1 / np.sqrt(1 + np.array([1, 4, 16, 64])), 1e-7)
    np.testing.assert_array_equal(rows.anchor_weight, [0, 1, 0, 1])
    np.testing.assert_array_equal(rows.denoised_weight, [1, 0, 1, 0])
    np.testing.assert_array_equal(rows.epsilon_weight, [2, 4 - 1, 8, 16 - 4])
    np.testing.assert_array_equal(rows.advances, [False, True, False, True])
    np.testing.assert_array_equal(rows.noise_weight, 0)
    np.testing.assert_array_equal((rows.index, rows.step), ([0, 1, 2, 3], [0, 0, 1, 1]))
    np.testing.assert_array_equal(up.sigmas, [1, 4, 16])
    assert (up.num_steps, up.num_rows, up.deterministic) == (2, 4, True)


def test_the_table_of_euler_is_its_formula():
    up = kd.inversion_schedule(kd.euler_schedule(NOISE, sigmas=[16, 4, 1]))
    np.testing.assert_array_equal(up.rows.sigma, [1, 4])
    np.testing.assert_array_equal(up.rows.epsilon_weight, [4, 16])
    np.testing.assert_array_equal(up.rows.denoised_weight, [1, 1])
    assert (up.num_steps, up.num_rows, up.anchorless) == (2, 2, True)
    assert bool(jnp.all(up.rows.advances))
    assert not np.any(up.rows.anchor_weight)


def test_a_traced_run_turns_over_and_has_gradients():
    def last(sigmas, x):
        up = kd.inversion_schedule(kd.dpm2_schedule(NOISE, sigmas=sigmas))
        return jnp.sum(jnp.sin(kd.sample(gaussian_denoise, None, up, x)))

    with sp.x64():
        x, sigmas = jnp.linspace(-1, 1, 4)[:, None], jnp.array([9.0, 3.0, 0.8, 0.2])
        slope = jax.jit(jax.grad(last))(sigmas, x)
        for i, h in enumerate(1e-6 * np.eye(4)):
            expected = (last(sigmas + h, x) - last(sigmas - h, x)) / 2e-6
            assert float(slope[i]) == pytest.approx(float(expected), rel=1e-5)


# --- there, and back -------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "low", "high"), [("dpm2", 1.95, 2.1), ("euler", 0.95, 1.05)])
def test_the_way_up_has_the_order_of_the_sampler(name, low, high):
    counts, errors = [20, 40, 80], []
    with sp.x64():
        x = jnp.linspace(-2, 2, 5)[:, None]
        for n in counts:
            down = BUILDERS[name](NOISE, n, grid="karras")
            got = kd.sample(gaussian_denoise, None, kd.inversion_schedule(down), x)
            errors.append(relative_error(got, gaussian_solution(np.asarray(x), *levels(down))))
    assert all(low < order < high for order in orders(counts, errors)), orders(counts, errors)


@pytest.mark.parametrize(("name", "low", "high"), [("dpm2", 2.95, 3.15), ("euler", 0.92, 1.05)])
@pytest.mark.parametrize("first", [0, 8])
def test_there_and_back_is_of_third_order(name, low, high, first):
    """From the lowest level to the highest (or to that of a later step), and down again."""
    counts, errors = [20, 40, 80], []
    with sp.x64():
        x = jnp.linspace(-2, 2, 5)[:, None]
        for n in counts:
            down = BUILDERS[name](NOISE, n, grid="exponential").start_at(first * n // 20)
            noise = kd.sample(gaussian_denoise, None, kd.inversion_schedule(down), x)
            back = kd.sample(gaussian_denoise, None, without_closing_step(down), noise)
            errors.append(relative_error(back, x))
    assert all(low < order < high for order in orders(counts, errors)), orders(counts, errors)


def test_what_remains_of_an_image_there_and_back_is_the_closing_step():
    """D(x) - x = (mean - x) * sigma^2 / (std^2 + sigma^2) at the lowest level, whatever N."""
    with sp.x64():
        x = jnp.linspace(-2, 2, 5)[:, None]
        down = kd.dpm2_schedule(NOISE, 400, grid="karras")
        noise = kd.sample(gaussian_denoise, None, kd.inversion_schedule(down), x)
        back = kd.sample(gaussian_denoise, None, down, noise)
        sigma = float(down.sigmas[-2])
        expected = (MEAN - np.asarray(x)) * sigma**2 / (STD**2 + sigma**2)
        assert relative_error(back - x, expected) < 1e-3


def test_samples_of_the_data_become_unit_gaussian_noise():
    """Data brought to the lowest level with its noise, as the docstring says, ends as sigma * z."""
    down = kd.dpm2_schedule(NOISE, 50, grid="karras")
    up = kd.inversion_schedule(down)
    z = np.random.default_rng(0).normal(size=(2, 4, 10_000)).astype(np.float32)
    x = kd.add_noise(up[0], MEAN + STD * z[0], z[1])
    found = (kd.sample(gaussian_denoise, None, up, x) - MEAN) / np.hypot(STD, down.sigmas[0])
    assert abs(float(jnp.mean(found))) < 3 / np.sqrt(found.size)
    assert abs(float(jnp.std(found)) - 1) < 3 / np.sqrt(2 * found.size) + 4e-4  # of 50 steps


def flow_run(num_steps, low=0.02, high=0.98):
    """DPM2 down a straight path, alpha = 1 - t, sigma = t: x + (t1 - t0) * (epsilon_m - D_m)."""
    t = np.geomspace(high, low, num_steps)
    middle = (t[1:] + t[:-1]) / 2
    template = kd.dpm2_schedule(NOISE, num_steps)

    def rows(midpoint, landing, last):
        pairs = np.stack([midpoint + 0 * middle, landing + 0 * middle], -1)
        return jnp.asarray(np.append(pairs.ravel(), last), template.rows.sigma.dtype)

    level = rows(t[:-1], middle, t[-1])
    step = np.diff(t)
    columns = {
        "alpha": 1 - level,
        "sigma": level,
        "denoised_weight": rows(1 - middle, -step, 1),
        "epsilon_weight": rows(middle, step, 0),
    }
    return dataclasses.replace(
        template,
        rows=dataclasses.replace(template.rows, **columns),
        sigmas=jnp.asarray(np.append(t, 0), level.dtype),
        unit_alpha=False,
        alternating=False,
    )


def test_a_run_whose_signal_fades_turns_over_too():
    counts, errors, returns = [20, 40, 80], [], []
    with sp.x64():
        x = jnp.linspace(-2, 2, 5)[:, None]
        for n in counts:
            down = flow_run(n)
            noise = kd.sample(gaussian_denoise, None, kd.inversion_schedule(down), x)
            errors.append(relative_error(noise, gaussian_solution(np.asarray(x), *levels(down))))
            back = kd.sample(gaussian_denoise, None, without_closing_step(down), noise)
            returns.append(relative_error(back, x))
    assert all(order > 1.95 for order in orders(counts, errors)), orders(counts, errors)
    assert all(order > 2.9 for order in orders(counts, returns)), orders(counts, returns)


# --- what is refused -------------------------------------------------------------------------


def test_runs_that_draw_noise_are_refused():
    tables = [SAMPLERS[name](4) for name in sp.STOCHASTIC]
    tables += [kd.dpm2_ancestral_schedule(NOISE, 4, eta=0), kd.euler_schedule(NOISE, 4, eta=0)]
    for table in tables:
        with pytest.raises(ValueError, match=r"draws noise.*no way back.*dpm2_schedule"):
            kd.inversion_schedule(table)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (lambda: kd.dpm2_schedule(NOISE, 1), "one step.*at least 2"),
        (lambda: kd.euler_schedule(NOISE, 1), "one step.*at least 2"),
        (lambda: SAMPLERS["dpm2"](4).start_at(3), "one step.*at least 2"),
        (lambda: SAMPLERS["inversion"](4), "no run down to 0"),
        (lambda: kd.inversion_schedule(SAMPLERS["euler"](4)), "no run down to 0"),
        (lambda: SAMPLERS["dpm2"](4).pad(9), "padded or a stack"),
        (lambda: kd.stack([SAMPLERS["dpm2"](4)] * 2), "padded or a stack"),
        (lambda: SAMPLERS["dpm2"](4).rows, "was given Row"),
    ],
)
def test_what_is_no_single_run_down_is_refused(table, message):
    with pytest.raises(ValueError, match=message):
        kd.inversion_schedule(table())


def test_a_run_turned_over_pads_and_stacks_with_runs_down():
    down = kd.dpm2_schedule(NOISE, 5)
    up = kd.inversion_schedule(down)
    x = jnp.linspace(-1, 1, 16).reshape(2, 8)
    both = kd.sample(mixing, MIXING, kd.stack([up, down]), x)
    alone = [kd.sample(mixing, MIXING, run, x[i : i + 1]) for i, run in enumerate((up, down))]
    assert relative_error(both, np.concatenate(alone)) < 1e-6
