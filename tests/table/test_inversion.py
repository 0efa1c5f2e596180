"""Levels turned over: the tables, their order on Gaussian data, there and back, and refusals."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
from mixtures import GAUSSIAN, gaussian_denoise, gaussian_solution
from samplers import MIXING, NOISE, relative_error

import kdiff_jax as kd
from kdiff_jax._table.schedule import NEUTRAL

MEAN, STD = GAUSSIAN[1:, 0]
SAMPLERS: dict[str, Any] = {
    "dpm2": kd.dpm2,
    "heun": kd.heun,
    "euler": kd.euler,
    "2m": kd.dpmpp_2m,
    "unipc": kd.unipc,
}
FLOW = kd.flow_schedule()
mixing = kd.denoiser(sp.mixing_model)


def run(schedule, x):
    """From one executable for all samplers, both ways, every N, and flows too."""
    columns = set(NEUTRAL) - {"noise_weight"}
    return kd.sample(gaussian_denoise, None, schedule.pad(800, columns), x)


def ends(levels):
    """The lowest level above 0 and the highest, as (alpha, sigma)."""
    low, high = float(levels.sigmas[-2]), float(levels.sigmas[0])
    return [(1 - s if levels.noise.flow else 1.0, s) for s in (low, high)]


def orders(counts, errors):
    return [
        np.log(a / b) / np.log(m / n)
        for (n, a), (m, b) in itertools.pairwise(zip(counts, errors, strict=True))
    ]


# --- the table -------------------------------------------------------------------------------


def test_the_table_of_dpm2_is_its_formula():
    """sigma from 1 to 4 to 16: midpoints 2 and 8; every number of it exact in binary."""
    up = kd.dpm2(kd.levels(NOISE, sigmas=[16, 4, 1]).reversed())
    rows: Any = up.rows
    np.testing.assert_array_equal(rows.sigma, [1, 2, 4, 8])
    np.testing.assert_allclose(rows.timestep, NOISE.timestep_at(np.array([1, 2, 4, 8])), 1e-7)
    np.testing.assert_allclose(rows.input_scale, 1 / np.sqrt(1 + np.array([1, 4, 16, 64])), 1e-7)
    np.testing.assert_array_equal(rows.anchor_weight, [0, 1, 0, 1])
    np.testing.assert_array_equal(rows.denoised_weight, [1, 0, 1, 0])
    np.testing.assert_array_equal(rows.epsilon_weight, [2, 4 - 1, 8, 16 - 4])
    np.testing.assert_array_equal(rows.advances, [False, True, False, True])
    assert rows.noise_weight is None
    np.testing.assert_array_equal((rows.index, rows.step), ([0, 1, 2, 3], [0, 0, 1, 1]))
    np.testing.assert_array_equal(up.sigmas, [1, 4, 16])
    assert (up.num_steps, up.num_rows) == (2, 4)


def test_the_table_of_euler_is_its_formula():
    up = kd.euler(kd.levels(NOISE, sigmas=[16, 4, 1]).reversed())
    np.testing.assert_array_equal(up.rows.sigma, [1, 4])
    np.testing.assert_array_equal(up.rows.epsilon_weight, [4, 16])
    np.testing.assert_array_equal(up.rows.denoised_weight, [1, 1])
    assert (up.num_steps, up.num_rows) == (2, 2)
    assert (up.rows.anchor_weight, up.rows.advances) == (None, None)


def test_the_table_of_a_flow_is_its_formula():
    """sigma from 1/32 to 1/8 to 1/2: midpoints 1/16 and 1/4, alpha = 1 - sigma; all exact."""
    up = kd.dpm2(kd.levels(FLOW, sigmas=[1 / 2, 1 / 8, 1 / 32]).reversed())
    sigma = np.array([1 / 32, 1 / 16, 1 / 8, 1 / 4])
    step = np.array([1 / 8 - 1 / 32, 1 / 2 - 1 / 8])
    np.testing.assert_array_equal(up.rows.sigma, sigma)
    np.testing.assert_array_equal(up.rows.alpha, 1 - sigma)
    np.testing.assert_array_equal(up.rows.anchor_weight, [0, 1, 0, 1])
    weights = [1 - 1 / 16, -step[0], 1 - 1 / 4, -step[1]], [1 / 16, step[0], 1 / 4, step[1]]
    np.testing.assert_array_equal(up.rows.denoised_weight, weights[0])
    np.testing.assert_array_equal(up.rows.epsilon_weight, weights[1])
    assert up.flow
    assert up.rows.noise_weight is None
    with pytest.raises(ValueError, match="rectified flow"):
        kd.sample(kd.denoiser(lambda params, x, timestep: x), None, up, jnp.ones((1, 2)))


def test_a_traced_run_turns_over_and_has_gradients():
    def last(sigmas, x):
        up = kd.dpm2(kd.levels(NOISE, sigmas=sigmas).reversed())
        return jnp.sum(jnp.sin(kd.sample(gaussian_denoise, None, up, x)))

    with sp.x64():
        x, sigmas = jnp.linspace(-1, 1, 4)[:, None], jnp.array([9.0, 3.0, 0.8, 0.2])
        slope = jax.jit(jax.grad(last))(sigmas, x)
        for i, h in enumerate(1e-6 * np.eye(4)):
            expected = (last(sigmas + h, x) - last(sigmas - h, x)) / 2e-6
            assert float(slope[i]) == pytest.approx(float(expected), rel=1e-5)


# --- there, and back -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("dpm2", 1.95, 2.1),
        ("heun", 1.95, 2.1),
        ("euler", 0.95, 1.05),
        ("2m", 1.9, 2.2),
        ("unipc", 2.8, 3.2),
    ],
)
def test_the_way_up_has_the_order_of_the_sampler(name, low, high):
    counts, errors = [20, 40, 80], []
    with sp.x64():
        x = jnp.linspace(-2, 2, 5)[:, None]
        for n in counts:
            levels = kd.levels(NOISE, n, grid="karras")
            got = run(SAMPLERS[name](levels.reversed()), x)
            errors.append(relative_error(got, gaussian_solution(x, *ends(levels))))
    assert all(low < order < high for order in orders(counts, errors)), orders(counts, errors)


@pytest.mark.parametrize(
    ("name", "low", "high"), [("dpm2", 2.95, 3.15), ("heun", 2.55, 3.15), ("euler", 0.92, 1.05)]
)
@pytest.mark.parametrize("first", [0, 8])
def test_there_and_back_is_of_third_order(name, low, high, first):
    """From the lowest level to the highest (or to that of a later step), and down again."""
    counts, errors = [20, 40, 80], []
    with sp.x64():
        x = jnp.linspace(-2, 2, 5)[:, None]
        for n in counts:
            levels = kd.levels(NOISE, n, grid="exponential").start_at(first * n // 20)
            noise = run(SAMPLERS[name](levels.reversed()), x)
            to_lowest = levels.end_at(levels.num_steps - 1)
            errors.append(relative_error(run(SAMPLERS[name](to_lowest), noise), x))
    assert all(low < order < high for order in orders(counts, errors)), orders(counts, errors)


@pytest.mark.parametrize(
    ("name", "way_up", "back"), [("dpm2", 1.95, 2.9), ("heun", 1.95, 2.9), ("euler", 0.95, 0.92)]
)
def test_there_and_back_on_a_flow_converges_as_without(name, way_up, back):
    counts, errors, returns = [20, 40, 80], [], []
    with sp.x64():
        x = jnp.linspace(-2, 2, 5)[:, None]
        for n in counts:
            levels = kd.levels(FLOW, n, grid="exponential", sigma_min=0.02)
            noise = run(SAMPLERS[name](levels.reversed()), x)
            errors.append(relative_error(noise, gaussian_solution(x, *ends(levels))))
            again = run(SAMPLERS[name](levels.end_at(n - 1)), noise)
            returns.append(relative_error(again, x))
    assert all(order > way_up for order in orders(counts, errors)), orders(counts, errors)
    assert all(order > back for order in orders(counts, returns)), orders(counts, returns)


def test_what_remains_of_an_image_there_and_back_is_the_closing_step():
    """D(x) - x = (mean - x) * sigma^2 / (std^2 + sigma^2) at the lowest level, whatever N."""
    with sp.x64():
        x = jnp.linspace(-2, 2, 5)[:, None]
        levels = kd.levels(NOISE, 400, grid="karras")
        back = run(kd.dpm2(levels), run(kd.dpm2(levels.reversed()), x))
        sigma = float(levels.sigmas[-2])
        expected = (MEAN - np.asarray(x)) * sigma**2 / (STD**2 + sigma**2)
        assert relative_error(back - x, expected) < 1e-3


def test_samples_of_the_data_become_unit_gaussian_noise():
    """Data brought to the lowest level with its noise, as documented, ends as sigma * z."""
    levels = kd.levels(NOISE, 50, grid="karras")
    up = kd.dpm2(levels.reversed())
    z = np.random.default_rng(0).normal(size=(2, 4, 10_000)).astype(np.float32)
    x = kd.add_noise(up[0], (MEAN + STD * z[0]).astype(np.float32), z[1])
    found = (run(up, x) - MEAN) / np.hypot(STD, levels.sigmas[0])
    assert abs(float(jnp.mean(found))) < 3 / np.sqrt(found.size)
    assert abs(float(jnp.std(found)) - 1) < 3 / np.sqrt(2 * found.size) + 4e-4  # of 50 steps


def test_a_run_turned_over_stacks_with_runs_down():
    levels = kd.levels(NOISE, 5)
    up, down = kd.dpm2(levels.reversed()).pad(9), kd.dpm2(levels).pad(9)
    x = jnp.linspace(-1, 1, 16).reshape(2, 8)
    both = kd.sample(mixing, MIXING, kd.stack([up, down]), x)
    alone = [kd.sample(mixing, MIXING, table, x[i : i + 1]) for i, table in enumerate((up, down))]
    assert relative_error(both, np.concatenate(alone)) < 1e-6


# --- what is refused -------------------------------------------------------------------------

DRAWING: list[Any] = [
    kd.dpm2_ancestral,
    lambda levels: kd.dpm2_ancestral(levels, eta=0.0),
    lambda levels: kd.euler(levels, eta=0.0),
    kd.lcm,
]


@pytest.mark.parametrize("noise", [NOISE, FLOW], ids=["beta schedule", "flow"])
def test_samplers_that_draw_noise_are_refused(noise):
    for sampler in DRAWING:
        with pytest.raises(ValueError, match=r"draws noise.*ascend.*no way back.*kd\.dpm2"):
            sampler(kd.levels(noise, 4).reversed())


@pytest.mark.parametrize(
    "levels", [lambda: kd.levels(NOISE, 1), lambda: kd.levels(NOISE, 4).start_at(3)]
)
def test_a_single_closing_step_has_no_inverse(levels):
    with pytest.raises(ValueError, match=r"one step.*at least 2"):
        levels().reversed()
