"""The table of every sampler, row by row, against closed forms in float64."""

import itertools
import math
from typing import Any

import jax
import numpy as np
import pytest
from samplers import NOISE, SAMPLERS, x64

import kdiff_jax as kd

COSINE = kd.noise_schedule("squaredcos_cap_v2")
BOTH = pytest.mark.parametrize("noise", [NOISE, COSINE], ids=["scaled_linear", "squaredcos_cap_v2"])
LCM_TIMESTEPS = [999, 759, 499, 259]

# Sampler, levels, options: several grids, eta and s_noise as numbers and one a step.
TABLES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "euler": (kd.euler, {"num_steps": 7}, {}),
    "euler, eta": (kd.euler, {"num_steps": 7}, {"eta": 0.6, "s_noise": 1.1}),
    "euler, one step": (kd.euler, {"num_steps": 1}, {}),
    "dpm2": (kd.dpm2, {"num_steps": 7}, {}),
    "dpm2, karras": (kd.dpm2, {"num_steps": 25, "grid": "karras"}, {}),
    "dpm2, one step": (kd.dpm2, {"num_steps": 1}, {}),
    "dpm2, two sigmas": (kd.dpm2, {"sigmas": [3.0, 0.5, 0]}, {}),
    "ancestral": (kd.dpm2_ancestral, {"num_steps": 7}, {}),
    "ancestral, leading": (
        kd.dpm2_ancestral,
        {"num_steps": 7, "timestep_spacing": "leading"},
        {},
    ),
    "ancestral, eta": (kd.dpm2_ancestral, {"num_steps": 10}, {"eta": 0.3, "s_noise": 0.9}),
    "ancestral, eta > 1": (kd.dpm2_ancestral, {"num_steps": 100}, {"eta": 1.04}),
    "ancestral, eta a step": (
        kd.dpm2_ancestral,
        {"num_steps": 4},
        {"eta": np.array([1, 0.5, 0, 1]), "s_noise": np.array([1, 2, 3, 4])},
    ),
}
# What a column that is None stands for.
ABSENT = {"alpha": 1.0, "input_scale": 1.0}


def split(s0: float, s1: float, eta: float) -> tuple[float, float]:
    """sigma_down and sigma_up of a step: the published difference, benign on these grids."""
    up = eta * math.sqrt(s1**2 * (s0**2 - s1**2) / s0**2)
    return math.sqrt(s1**2 - up**2), up


def expected_rows(sampler: Any, sigmas: np.ndarray, options: dict[str, Any]) -> list[dict]:
    """The table in words: one dict a row, from the levels with their closing 0."""
    num_steps = len(sigmas) - 1
    default = 1.0 if sampler is kd.dpm2_ancestral else 0.0
    eta = np.broadcast_to(options.get("eta", default), num_steps)
    s_noise = np.broadcast_to(options.get("s_noise", 1.0), num_steps)
    rows: list[dict] = []
    for i, (s0, s1) in enumerate(itertools.pairwise(sigmas)):
        down, up = split(s0, s1, eta[i])
        row = {"step": i, "sigma": s0, "anchor_weight": 0, "denoised_weight": 1}
        row |= {"epsilon_weight": 0, "noise_weight": 0, "sigma_left": s0, "sigma_reached": s1}
        if s1 == 0:
            rows.append({**row, "advances": True})
        elif sampler is kd.euler:
            noise = up * s_noise[i]
            rows.append({**row, "epsilon_weight": down, "noise_weight": noise, "advances": True})
        else:
            mid = math.exp((math.log(s0) + math.log(down)) / 2)
            rows.append({**row, "epsilon_weight": mid, "advances": False})
            landing = {"sigma": mid, "anchor_weight": 1, "denoised_weight": 0}
            landing |= {"epsilon_weight": down - s0, "noise_weight": up * s_noise[i]}
            rows.append({**row, **landing, "advances": True})
    return rows


def column_of(rows: kd.Row, name: str) -> np.ndarray:
    """A column, and what it stands for where it is None."""
    column = getattr(rows, name)
    like = np.asarray(rows.sigma)
    return np.full_like(like, ABSENT.get(name, 0.0)) if column is None else np.asarray(column)


def assert_column(found: Any, expected: Any, name: str) -> None:
    """Equal to two units in the last place of float32."""
    expected = np.asarray(expected, np.float64)
    scale = np.spacing(np.abs(expected).astype(np.float32))
    assert np.asarray(found).dtype == np.float32, name
    assert np.all(np.abs(np.asarray(found, np.float64) - expected) <= 2 * scale), name


def sigmas_in_float64(levels: kd.Levels, arguments: dict[str, Any]) -> np.ndarray:
    """The levels of linspace written again; of another grid as they are."""
    if set(arguments) == {"num_steps"} and arguments["num_steps"] > 1:
        timesteps = np.linspace(999, 0, arguments["num_steps"])
        return np.append(np.interp(timesteps, np.arange(1000), NOISE.sigmas), 0)
    return np.asarray(levels.sigmas)


@pytest.mark.parametrize("name", TABLES)
def test_sigma_space_tables_match_their_closed_forms(name: str) -> None:
    sampler, arguments, options = TABLES[name]
    levels = kd.levels(NOISE, **arguments)
    sigmas = sigmas_in_float64(levels, arguments)
    expected = expected_rows(sampler, sigmas, options)
    schedule = sampler(levels, **options)
    rows = schedule.rows
    assert len(schedule) == schedule.num_rows == len(expected)
    assert schedule.num_steps == len(sigmas) - 1
    np.testing.assert_array_equal(rows.index, np.arange(len(expected)))
    np.testing.assert_array_equal(rows.step, [row["step"] for row in expected])
    if sampler is kd.euler:
        assert rows.advances is None
    else:
        np.testing.assert_array_equal(rows.advances, [row["advances"] for row in expected])
    assert_column(schedule.sigmas, sigmas, "sigmas")
    assert rows.alpha is None
    sigma = np.array([row["sigma"] for row in expected])
    assert_column(rows.input_scale, 1 / np.sqrt(1 + sigma**2), "input_scale")
    names = set(expected[0]) - {"step", "advances"}
    for column in names:
        assert_column(column_of(rows, column), [row[column] for row in expected], column)
    if sampler is not kd.euler:  # a midpoint has a timestep of its own
        timesteps = NOISE.timestep_at(sigma[1::2])
        np.testing.assert_allclose(rows.timestep[1::2], timesteps, rtol=1e-7, atol=1e-9)
    # The same in float64, to the accuracy of that.
    with x64():
        exact = sampler(levels, **options)
    for column in names:
        found = column_of(exact.rows, column)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, [row[column] for row in expected], rtol=1e-12)


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("timesteps", [LCM_TIMESTEPS, [999], [998, 3, 0]])
def test_the_table_of_lcm_matches_its_closed_form(timesteps: list[int], zero_snr: bool) -> None:
    noise = kd.noise_schedule(rescale_zero_terminal_snr=zero_snr)
    schedule = kd.lcm(kd.lcm_levels(noise, timesteps=timesteps))
    abar = noise.alphas_cumprod[timesteps]
    alpha, sigma = np.sqrt(abar), np.sqrt(1 - abar)
    count = len(timesteps)
    expected = {
        "timestep": timesteps,
        "alpha": alpha,
        "sigma": sigma,
        "denoised_weight": np.append(alpha[1:], 1),
        "noise_weight": np.append(sigma[1:], 0),
        "sigma_left": sigma,
        "sigma_reached": np.append(sigma[1:], 0),
    }
    for name, values in expected.items():
        assert_column(getattr(schedule.rows, name), values, name)
    np.testing.assert_array_equal(schedule.rows.index, np.arange(count))
    np.testing.assert_array_equal(schedule.rows.step, np.arange(count))
    assert schedule.num_steps == schedule.num_rows == count
    if zero_snr and timesteps[0] == 999:
        assert schedule[0].alpha == 0
        assert schedule[0].sigma == 1


FACTORS: list[tuple[dict[str, Any], list[float]]] = [
    ({}, [1, 1, 1]),
    ({"s_noise": 0.7}, [0.7, 0.7, 0.7]),
    ({"s_noise": [1.0, 0.5, 0.0, 9.0]}, [1, 0.5, 0]),
    ({"s_noise": 1.0, "s_noise_end": 0.4}, [1, 0.8, 0.6]),
]


@pytest.mark.parametrize(("options", "factors"), FACTORS)
def test_the_noise_of_lcm_is_scaled_step_by_step(
    options: dict[str, Any], factors: list[float]
) -> None:
    levels = kd.lcm_levels(NOISE, 4)
    schedule, plain = kd.lcm(levels, **options), kd.lcm(levels)
    weight: Any = schedule.rows.noise_weight
    level = np.sqrt(1 - NOISE.alphas_cumprod[LCM_TIMESTEPS[1:]])
    np.testing.assert_allclose(weight, [*(level * factors), 0], rtol=2e-7)
    for name in ("denoised_weight", "alpha", "sigma", "timestep"):
        np.testing.assert_array_equal(getattr(schedule.rows, name), getattr(plain.rows, name))


def test_the_factors_of_lcm_may_be_traced_and_are_checked() -> None:
    levels = kd.lcm_levels(NOISE, 4)
    with x64():
        slope = jax.jacobian(lambda end: kd.lcm(levels, s_noise_end=end).rows.noise_weight)(0.4)
    level = np.sqrt(1 - NOISE.alphas_cumprod[LCM_TIMESTEPS[1:]])
    np.testing.assert_allclose(slope, [*(level * [0, 1 / 3, 2 / 3]), 0], rtol=1e-12)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"s_noise": -0.5}, "s_noise = -0.5"),
        ({"s_noise": np.ones(3)}, r"s_noise has shape \(3,\).*\[4\]"),
        ({"s_noise_end": -0.5}, "s_noise_end = -0.5"),
        ({"s_noise": np.ones(4), "s_noise_end": 0.5}, r"s_noise has shape \(4,\).*two numbers"),
    ]
    for options, message in refused:
        with pytest.raises(ValueError, match=message):
            kd.lcm(levels, **options)


# --- the columns -----------------------------------------------------------------------------

ALWAYS = {"index", "step", "timestep", "sigma", "sigma_left", "sigma_reached", "denoised_weight"}
EULER, ANCHOR = {"epsilon_weight", "input_scale"}, {"anchor_weight", "advances"}
COLUMNS = {
    "euler": EULER,
    "euler_ancestral": EULER | {"noise_weight"},
    "dpm2": EULER | ANCHOR,
    "dpm2_karras": EULER | ANCHOR,
    "dpm2_sigmas_alone": EULER | ANCHOR,
    "dpm2_churn": EULER | ANCHOR | {"noise_weight"},
    "dpm2_ends_above_0": EULER | ANCHOR,
    "ancestral": EULER | ANCHOR | {"noise_weight"},
    "ancestral_half_eta": EULER | ANCHOR | {"noise_weight"},
    "heun": EULER | ANCHOR,
    "2s_ancestral": EULER | ANCHOR | {"noise_weight"},
    "sde": EULER | ANCHOR | {"noise_weight"},
    "lcm": {"noise_weight", "alpha"},
    "tcd": {"epsilon_weight", "noise_weight", "alpha"},
    "inversion": EULER | ANCHOR,
    "dpmpp_2m": EULER | {"denoised_weight_1"},
    "dpmpp_2m_sde": EULER | {"denoised_weight_1", "noise_weight"},
    "dpmpp_3m_sde": EULER | {"denoised_weight_1", "denoised_weight_2", "noise_weight"},
    "unipc": EULER | {"denoised_weight_1", "denoised_weight_2"},
}


def columns_of(schedule: kd.Schedule) -> set[str]:
    return {name for name, column in vars(schedule.rows).items() if column is not None}


def test_a_column_that_a_sampler_does_not_use_is_not_there() -> None:
    for name, columns in COLUMNS.items():
        assert columns_of(SAMPLERS[name](3)) == ALWAYS | columns, name


def test_an_eta_of_0_keeps_the_column_of_noise_and_none_has_none() -> None:
    levels = kd.levels(NOISE, 3)
    for sampler in (kd.euler, kd.dpm2_ancestral, kd.dpmpp_2s_ancestral, kd.dpmpp_sde):
        schedule = sampler(levels, eta=0.0)
        assert schedule.rows.noise_weight is not None
        assert not np.any(schedule.rows.noise_weight)
    assert kd.euler(levels).rows.noise_weight is None


@BOTH
def test_eta_zero_is_bitwise_plain_dpm2_and_plain_euler(noise: kd.NoiseSchedule) -> None:
    for arguments in ({"num_steps": 1}, {"num_steps": 2}, {"num_steps": 20, "grid": "karras"}):
        levels = kd.levels(noise, **arguments)
        for plain, general in ((kd.dpm2, kd.dpm2_ancestral), (kd.euler, kd.euler)):
            expected, found = plain(levels), general(levels, eta=0.0, s_noise=1.3)
            assert columns_of(found) - columns_of(expected) == {"noise_weight"}
            for name in columns_of(expected):
                columns = getattr(found.rows, name), getattr(expected.rows, name)
                np.testing.assert_array_equal(*columns, err_msg=name)


# --- the ancestral split ---------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("num_steps", [2, 10, 100])
def test_at_eta_one_the_midpoint_is_the_next_noise_level(
    noise: kd.NoiseSchedule, num_steps: int
) -> None:
    schedule = kd.dpm2_ancestral(kd.levels(noise, num_steps), eta=1.0)
    rows: Any = schedule.rows
    np.testing.assert_array_equal(rows.sigma[1::2], schedule.sigmas[1:-1])
    np.testing.assert_array_equal(rows.epsilon_weight[:-1:2], schedule.sigmas[1:-1])


@BOTH
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_down_and_up_add_to_the_variance_of_the_next_level(
    noise: kd.NoiseSchedule, eta: float
) -> None:
    # At few steps of the cosine schedule sigma falls 700-fold in one: differences of squares
    # keep no digit of sigma_down there in float32, and few in float64.
    for num_steps in (2, 3, 10, 200):
        levels = kd.levels(noise, num_steps)
        with x64():
            tables = kd.euler(levels, eta=eta), kd.dpm2_ancestral(levels, eta=eta)
        euler, dpm2 = jax.tree.map(np.asarray, tables)
        down, up = euler.rows.epsilon_weight[:-1], euler.rows.noise_weight[:-1]
        mid = dpm2.rows.epsilon_weight[:-1:2]
        s0, s1 = dpm2.sigmas[:-2], dpm2.sigmas[1:-1]
        np.testing.assert_allclose(down**2 + up**2, s1**2, rtol=1e-14)
        np.testing.assert_allclose(mid**2, s0 * down, rtol=1e-14)
        np.testing.assert_array_equal(dpm2.rows.noise_weight[1::2], up)
        if eta == 1.0:
            np.testing.assert_allclose(down, s1**2 / s0, rtol=1e-14)


def test_eta_may_approach_its_bound() -> None:
    s0, s1 = 2.0, 1.0
    bound = 1 / math.sqrt(1 - (s1 / s0) ** 2)
    row: Any = kd.euler(kd.levels(NOISE, sigmas=[s0, s1]), eta=bound * (1 - 1e-9))[0]
    assert row.noise_weight == pytest.approx(s1, rel=1e-6)
    assert 0 < row.epsilon_weight < 1e-4
