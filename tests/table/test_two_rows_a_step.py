"""Heun, DPM++ 2S and DPM++ SDE against k-diffusion's formulas in float64, and their noise."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import k_truth
import numpy as np
import pytest
import samplers as sp
from flows import SD3
from samplers import NOISE, relative_error, run_in_numpy

import kdiff_jax as kd

SHAPE = (2, 5)
SIGMAS = [14.0, 6.0, 2.5, 1.0, 0.3, 0.05, 0.0]
FLOW_SIGMAS = [1.0, 0.8, 0.5, 0.2, 0.05, 0.0]
BETA, ALONE = kd.levels(NOISE, sigmas=SIGMAS), kd.levels(None, sigmas=SIGMAS)
FLOW = kd.levels(SD3, sigmas=FLOW_SIGMAS)


def denoised(x: Any, sigma: float) -> Any:
    """A smooth function of the sample and the level, in NumPy."""
    return (np.sin(1.7 * x) + 0.3 * np.roll(x, 1, axis=1)) / (1 + sigma)


def run(schedule: kd.Schedule, x: Any, noise: Any) -> np.ndarray:
    """The rows of a table of float64, one after the other, with one z a row."""

    def denoise(params: Any, x: Any, row: Any) -> kd.Prediction:
        x, sigma = np.asarray(x), float(row.sigma)
        output: Any = denoised(x, sigma)
        return kd.Prediction(output, (x - float(row.alpha) * output) / sigma)

    return run_in_numpy(denoise, None, schedule, x, list(noise))


def draws(seed: int, sigmas: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """An initial sample, and noise of two draws a step, [N, 2, ...]."""
    rng = np.random.default_rng(seed)
    count = len(sigmas) - 1
    return sigmas[0] * rng.normal(size=SHAPE), rng.normal(size=(count, 2, *SHAPE))


@pytest.mark.parametrize("levels", [BETA, ALONE, FLOW], ids=["beta", "alone", "flow"])
def test_heun_is_that_of_k_diffusion(levels: kd.Levels) -> None:
    x, noise = draws(0, list(levels.sigmas))
    with sp.x64():
        got = run(kd.heun(levels), x, noise.reshape(-1, *SHAPE)[:-1])
    assert relative_error(got, k_truth.k_sample_heun(denoised, x, list(levels.sigmas))) < 1e-13


def test_heun_with_churn_is_that_of_k_diffusion() -> None:
    x, noise = draws(1, SIGMAS)
    expected = k_truth.k_sample_heun(denoised, x, SIGMAS, 1.5, noise[:, 1])
    with sp.x64():
        schedule = kd.heun(BETA.churned(1.5))
        # The noise of a step's churn is added by the row before it, the first by the caller.
        start = x + noise[0, 1] * math.sqrt(float(schedule[0].sigma) ** 2 - SIGMAS[0] ** 2)
        z = np.concatenate([np.repeat(noise[1:, 1], 2, axis=0), np.zeros((1, *SHAPE))])
        got = run(schedule, start, z)
    assert relative_error(got, expected) < 1e-13


def test_the_second_evaluation_of_heun_has_the_timestep_of_the_next_step() -> None:
    # Between whole timesteps a level's own timestep is another than the grid's.
    levels = kd.levels(NOISE, 5)
    expected = np.append(999.0, np.repeat(levels.timesteps[1:], 2))
    np.testing.assert_array_equal(kd.heun(levels).rows.timestep, np.float32(expected))
    ends_above: Any = kd.heun(levels.end_at(2)).rows.timestep
    np.testing.assert_allclose(ends_above, [999, 749.25, 749.25, 499.50043], rtol=1e-7)
    # Where churn raises the next step, that of the level that is reached.
    churned = levels.churned(2.0, s_tmax=5.0)
    rows: Any = kd.heun(churned).rows
    assert rows.timestep[1] != rows.timestep[2]
    np.testing.assert_allclose(rows.timestep[1::2], NOISE.timestep_at(levels.sigmas[1:-1]), 1e-6)
    only_high = kd.heun(levels.churned(2.0, s_tmin=5.0)).rows.timestep
    np.testing.assert_array_equal(only_high[1:], np.float32(expected[1:]))


@pytest.mark.parametrize(("eta", "s_noise"), [(0.0, 1.0), (0.4, 0.9), (1.0, 1.0), (1.003, 1.1)])
@pytest.mark.parametrize("levels", [BETA, ALONE], ids=["beta", "alone"])
@pytest.mark.parametrize("sampler", [kd.dpmpp_2s_ancestral, kd.dpmpp_sde])
def test_2s_and_sde_are_those_of_k_diffusion(
    sampler: Any, levels: kd.Levels, eta: float, s_noise: float
) -> None:
    x, noise = draws(3, SIGMAS)
    sde = sampler is kd.dpmpp_sde
    expected = k_truth.k_sample_dpmpp(denoised, x, SIGMAS, eta, s_noise, noise, sde=sde)
    with sp.x64():
        schedule = sampler(levels, eta, s_noise)
        got = run(schedule, x, noise.reshape(-1, *SHAPE)[:-1])
    assert relative_error(got, expected) < 1e-12
    assert bool(np.any(np.asarray(schedule.rows.noise_weight)[::2])) == (sde and eta > 0)


def test_eta_and_s_noise_may_be_one_a_step() -> None:
    eta, s_noise = np.array([1, 0.5, 0.0, 1, 0.2, 9.0]), np.array([1, 0.9, 1, 2, 1, 1.0])
    for sampler in (kd.dpmpp_2s_ancestral, kd.dpmpp_sde):
        each: Any = sampler(BETA, eta, s_noise).rows
        for i in range(5):
            one: Any = sampler(BETA, eta[i], s_noise[i]).rows
            for name in ("noise_weight", "epsilon_weight", "anchor_weight", "sigma"):
                step = slice(2 * i, 2 * i + 2)
                np.testing.assert_array_equal(getattr(each, name)[step], getattr(one, name)[step])


def test_without_noise_sde_is_2s() -> None:
    one, other = (sampler(BETA, eta=0.0).rows for sampler in (kd.dpmpp_2s_ancestral, kd.dpmpp_sde))
    for name in ("timestep", "sigma", "anchor_weight", "denoised_weight", "epsilon_weight"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), 1e-6, err_msg=name)


# --- the two draws of a step of SDE ----------------------------------------------------------


def test_given_noise_hands_out_one_z_a_draw() -> None:
    (_, noise), schedule = draws(4, SIGMAS), kd.dpmpp_sde(BETA)
    by_draw = kd.given_noise(jnp.asarray(noise))
    got = np.stack([by_draw(None, row, SHAPE) for row in schedule])
    np.testing.assert_array_equal(got[:-1], np.float32(noise[:-1].reshape(-1, *SHAPE)))
    # A sampler that draws in the last row of a step takes the second.
    for other in (kd.dpm2_ancestral(BETA), kd.euler(BETA, eta=1.0)):
        row = other[len(other) - 2]
        np.testing.assert_array_equal(by_draw(None, row, SHAPE), np.float32(noise[4, 1]))
    # With one z a step the first draw has none: not that of the second.
    by_step = kd.given_noise(jnp.asarray(noise[:, 1]))
    assert np.all(np.isnan(by_step(None, schedule[0], SHAPE)))
    np.testing.assert_array_equal(by_step(None, schedule[1], SHAPE), np.float32(noise[0, 1]))
    tables = kd.stack([schedule, kd.euler(BETA, eta=1.0)])
    rows = tables.rows_at(jnp.array([4, 2]))
    expected = np.stack([noise[2, 0, 0], noise[2, 1, 1]]).astype(np.float32)
    np.testing.assert_array_equal(by_draw(None, rows, SHAPE), expected)
    with pytest.raises(ValueError, match=r"\[N, 2, B, \.\.\.\] for kd.dpmpp_sde"):
        kd.given_noise(jnp.zeros((5, 3, *SHAPE)))(None, schedule[0], SHAPE)


def test_brownian_noise_of_a_step_is_unit_and_overlaps_as_its_levels_do() -> None:
    # From s0 to the middle in log sigma, and from s0 to s1: half of the way is the same.
    schedule, path = kd.dpmpp_sde(BETA), kd.brownian_noise(0.04, 20.0)
    row: Any = schedule[0]
    assert float(row.sigma_reached) == pytest.approx(math.sqrt(14 * 6), rel=1e-6)
    first, second, later = (
        np.asarray(path(jax.random.key(1), schedule[i], (1, 40_000)), np.float64)[0]
        for i in (0, 1, 3)
    )
    for z in (first, second, later):
        assert abs(np.var(z) - 1) < 4 * math.sqrt(2 / 40_000)
    assert np.mean(first * second) == pytest.approx(math.sqrt(0.5), abs=4 / 200)
    assert abs(np.mean(second * later)) < 4 / 200


def test_sde_refuses_a_flow_and_names_what_is_defined_there() -> None:
    with pytest.raises(ValueError, match=r"rectified flow.*kd\.dpmpp_2s_ancestral.*kd\.euler"):
        kd.dpmpp_sde(FLOW)
