"""Every builder's table, row by row, against closed forms in float64; and the Schedule itself."""

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers import SAMPLERS

import kdiff_jax as kd

X64: Any = jax if hasattr(jax, "enable_x64") else jax.experimental  # before JAX 0.8

NOISE = kd.noise_schedule("scaled_linear")
COSINE = kd.noise_schedule("squaredcos_cap_v2")
LCM_TIMESTEPS = [999, 759, 499, 259]

# Name, arguments: every sampler, several grids, eta and s_noise as numbers and one a step.
TABLES: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("euler", {"num_steps": 7}),
    "euler, eta": ("euler", {"num_steps": 7, "eta": 0.6, "s_noise": 1.1}),
    "euler, one step": ("euler", {"num_steps": 1}),
    "dpm2": ("dpm2", {"num_steps": 7}),
    "dpm2, karras": ("dpm2", {"num_steps": 25, "grid": "karras"}),
    "dpm2, one step": ("dpm2", {"num_steps": 1}),
    "dpm2, two sigmas": ("dpm2", {"sigmas": [3.0, 0.5, 0]}),
    "ancestral": ("dpm2_ancestral", {"num_steps": 7}),
    "ancestral, leading": ("dpm2_ancestral", {"num_steps": 7, "timestep_spacing": "leading"}),
    "ancestral, eta": ("dpm2_ancestral", {"num_steps": 10, "eta": 0.3, "s_noise": 0.9}),
    "ancestral, eta > 1": ("dpm2_ancestral", {"num_steps": 100, "eta": 1.04}),
    "ancestral, eta a step": (
        "dpm2_ancestral",
        {"num_steps": 4, "eta": np.array([1, 0.5, 0, 1]), "s_noise": np.array([1, 2, 3, 4])},
    ),
}


def build(method: str, arguments: dict[str, Any], noise: kd.NoiseSchedule = NOISE) -> kd.Schedule:
    schedule: kd.Schedule = getattr(kd, f"{method}_schedule")(noise, **arguments)
    return schedule


def split(s0: float, s1: float, eta: float) -> tuple[float, float]:
    """sigma_down and sigma_up of a step: the published difference, benign on these grids."""
    up = eta * math.sqrt(s1**2 * (s0**2 - s1**2) / s0**2)
    return math.sqrt(s1**2 - up**2), up


def expected_rows(method: str, sigmas: np.ndarray, arguments: dict[str, Any]) -> list[dict]:
    """The table in words: one dict a row, from the grid with its closing 0."""
    num_steps = len(sigmas) - 1
    default = {"dpm2_ancestral": 1.0}.get(method, 0.0)
    eta = np.broadcast_to(arguments.get("eta", default), num_steps)
    s_noise = np.broadcast_to(arguments.get("s_noise", 1.0), num_steps)
    rows: list[dict] = []
    for i, (s0, s1) in enumerate(itertools.pairwise(sigmas)):
        down, up = split(s0, s1, eta[i])
        row = {"step": i, "sigma": s0, "anchor": 0, "denoised": 1, "epsilon": 0, "noise": 0}
        row |= {"left": s0, "reached": s1}
        if s1 == 0:
            rows.append({**row, "advances": True})
        elif method == "euler":
            rows.append({**row, "epsilon": down, "noise": up * s_noise[i], "advances": True})
        else:
            mid = math.exp((math.log(s0) + math.log(down)) / 2)
            rows.append({**row, "epsilon": mid, "advances": False})
            landing = {"sigma": mid, "anchor": 1, "denoised": 0, "epsilon": down - s0}
            rows.append({**row, **landing, "noise": up * s_noise[i], "advances": True})
    return rows


def assert_column(found: Any, expected: Any, name: str) -> None:
    """Equal to two units in the last place of float32."""
    expected = np.asarray(expected, np.float64)
    scale = np.spacing(np.abs(expected).astype(np.float32))
    assert np.asarray(found).dtype == np.float32, name
    assert np.all(np.abs(np.asarray(found, np.float64) - expected) <= 2 * scale), name


def grid_of(schedule: kd.Schedule, arguments: dict[str, Any]) -> np.ndarray:
    """The grid in float64: from the timesteps of linspace, or as the table rounded it."""
    if set(arguments) <= {"num_steps", "eta", "s_noise"} and arguments["num_steps"] > 1:
        timesteps = np.linspace(999, 0, arguments["num_steps"])
        return np.append(np.interp(timesteps, np.arange(1000), NOISE.sigmas), 0)
    return np.asarray(schedule.sigmas, np.float64)


@pytest.mark.parametrize("name", TABLES)
def test_sigma_space_tables_match_their_closed_forms(name: str) -> None:
    method, arguments = TABLES[name]
    with X64.enable_x64(True):
        exact = build(method, arguments)
        sigmas = grid_of(exact, arguments)
        expected = expected_rows(method, sigmas, arguments)
    schedule = build(method, arguments)
    rows = schedule.rows
    assert len(schedule) == schedule.num_rows == len(expected)
    assert schedule.num_steps == len(sigmas) - 1
    np.testing.assert_array_equal(rows.index, np.arange(len(expected)))
    np.testing.assert_array_equal(rows.step, [row["step"] for row in expected])
    np.testing.assert_array_equal(rows.advances, [row["advances"] for row in expected])
    assert_column(schedule.sigmas, sigmas, "sigmas")
    assert_column(rows.alpha, np.ones(len(expected)), "alpha")
    sigma = np.array([row["sigma"] for row in expected])
    assert_column(rows.sigma, sigma, "sigma")
    assert_column(rows.input_scale, 1 / np.sqrt(1 + sigma**2), "input_scale")
    for weight in ("anchor", "denoised", "epsilon", "noise"):
        column = getattr(rows, f"{weight}_weight")
        assert_column(column, [row[weight] for row in expected], weight)
    for level in ("left", "reached"):
        column = getattr(rows, f"sigma_{level}")
        assert_column(column, [row[level] for row in expected], level)
    if method != "euler":  # a midpoint is told its own timestep
        told = NOISE.timestep_at(sigma[1::2])
        np.testing.assert_allclose(rows.timestep[1::2], told, rtol=1e-7, atol=1e-9)
    # The same in float64, once, to the accuracy of that.
    for weight in ("anchor", "denoised", "epsilon", "noise"):
        column = getattr(exact.rows, f"{weight}_weight")
        assert column.dtype == np.float64
        np.testing.assert_allclose(column, [row[weight] for row in expected], rtol=1e-12)


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("timesteps", [LCM_TIMESTEPS, [999], [998, 3, 0]])
def test_lcm_table_matches_its_closed_form(timesteps: list[int], zero_snr: bool) -> None:
    noise = kd.noise_schedule(rescale_zero_terminal_snr=zero_snr)
    schedule = kd.lcm_schedule(noise, timesteps=timesteps)
    abar = noise.alphas_cumprod[timesteps]
    alpha, sigma = np.sqrt(abar), np.sqrt(1 - abar)
    count = len(timesteps)
    expected = {
        "timestep": timesteps,
        "alpha": alpha,
        "sigma": sigma,
        "input_scale": np.ones(count),
        "anchor_weight": np.zeros(count),
        "denoised_weight": np.append(alpha[1:], 1),
        "epsilon_weight": np.zeros(count),
        "noise_weight": np.append(sigma[1:], 0),
        "sigma_left": sigma,
        "sigma_reached": np.append(sigma[1:], 0),
    }
    for name, values in expected.items():
        assert_column(getattr(schedule.rows, name), values, name)
    assert np.all(schedule.rows.advances)
    np.testing.assert_array_equal(schedule.rows.index, np.arange(count))
    np.testing.assert_array_equal(schedule.rows.step, np.arange(count))
    assert schedule.num_steps == schedule.num_rows == count
    if zero_snr and timesteps[0] == 999:
        assert schedule[0].alpha == 0
        assert schedule[0].sigma == 1


# --- the ancestral split ---------------------------------------------------------------------


def test_eta_zero_is_bitwise_plain_dpm2_and_plain_euler() -> None:
    for noise in (NOISE, COSINE):
        for arguments in ({"num_steps": 1}, {"num_steps": 2}, {"num_steps": 20, "grid": "karras"}):
            for plain, general in (("dpm2", "dpm2_ancestral"), ("euler", "euler")):
                expected = build(plain, arguments, noise)
                found = build(general, {**arguments, "eta": 0.0, "s_noise": 1.3}, noise)
                jax.tree.map(np.testing.assert_array_equal, found.rows, expected.rows)


@pytest.mark.parametrize("noise", [NOISE, COSINE], ids=["scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("num_steps", [2, 10, 100])
def test_at_eta_one_the_midpoint_is_the_next_noise_level(
    noise: kd.NoiseSchedule, num_steps: int
) -> None:
    schedule = kd.dpm2_ancestral_schedule(noise, num_steps, eta=1.0)
    np.testing.assert_array_equal(schedule.rows.sigma[1::2], schedule.sigmas[1:-1])
    np.testing.assert_array_equal(schedule.rows.epsilon_weight[:-1:2], schedule.sigmas[1:-1])


@pytest.mark.parametrize("noise", [NOISE, COSINE], ids=["scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_down_and_up_add_to_the_variance_of_the_next_level(
    noise: kd.NoiseSchedule, eta: float
) -> None:
    # At few steps of the cosine schedule sigma falls 700-fold in one: differences of squares
    # keep no digit of sigma_down there in float32, and few in float64.
    for num_steps in (2, 3, 10, 200):
        with X64.enable_x64(True):
            euler = kd.euler_schedule(noise, num_steps, eta=eta)
            dpm2 = kd.dpm2_ancestral_schedule(noise, num_steps, eta=eta)
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
    row = kd.euler_schedule(NOISE, sigmas=[s0, s1], eta=bound * (1 - 1e-9))[0]
    assert row.noise_weight == pytest.approx(s1, rel=1e-6)
    assert 0 < row.epsilon_weight < 1e-4


# --- Schedule --------------------------------------------------------------------------------

BUILDERS = [
    ("euler", {"num_steps": 6}, 1),
    ("dpm2", {"num_steps": 6}, 2),
    ("dpm2_ancestral", {"num_steps": 6}, 2),
    ("lcm", {"num_steps": 6}, 1),
]


@pytest.mark.parametrize(("method", "arguments", "rows_per_step"), BUILDERS)
def test_indexing_and_iteration_give_scalar_rows(
    method: str, arguments: dict, rows_per_step: int
) -> None:
    schedule = build(method, arguments)
    assert len(schedule) == schedule.num_rows == rows_per_step * 6 - (rows_per_step - 1)
    rows = list(schedule)
    assert len(rows) == len(schedule)
    for i, row in enumerate(rows):
        for leaf, column, last in zip(
            *map(jax.tree.leaves, (row, schedule.rows, schedule[i - len(rows)])), strict=True
        ):
            assert leaf.shape == ()
            assert leaf.dtype == column.dtype
            assert leaf == column[i] == last
    last_row: Any = np.int64(-1)
    assert schedule[last_row].index == len(rows) - 1
    for outside in (len(rows), -len(rows) - 1):
        with pytest.raises(IndexError, match=f"row {outside} .*{len(rows)} rows"):
            schedule[outside]
    for wrong in (slice(0, 2), 1.0, "1", None):
        with pytest.raises(TypeError, match="start_at"):
            schedule[wrong]  # type: ignore[index]


@pytest.mark.parametrize(("method", "arguments", "rows_per_step"), BUILDERS)
def test_start_at_drops_whole_steps_and_keeps_every_other_number(
    method: str, arguments: dict, rows_per_step: int
) -> None:
    schedule = build(method, arguments)
    assert schedule.start_at(0) is schedule
    for step in range(1, 6):
        rest = schedule.start_at(step)
        assert rest.num_steps == 6 - step
        assert rest.num_rows == schedule.num_rows - rows_per_step * step
        assert rest[0].step == step
        assert rest[0].index == rows_per_step * step
        kept = jax.tree.map(lambda leaf, step=step: leaf[rows_per_step * step :], schedule.rows)
        jax.tree.map(np.testing.assert_array_equal, rest.rows, kept)
        np.testing.assert_array_equal(rest.sigmas, schedule.sigmas[step:])
        level = math.hypot(float(rest[0].alpha), float(rest[0].sigma))
        assert rest.init_noise_sigma == pytest.approx(level, rel=2e-7)
    twice = schedule.start_at(2).start_at(3)
    jax.tree.map(np.testing.assert_array_equal, twice, schedule.start_at(5))
    assert (twice.deterministic, twice.anchorless) == (schedule.deterministic, schedule.anchorless)


def test_schedules_rows_and_states_are_immutable_pytrees() -> None:
    schedule = kd.dpm2_schedule(NOISE, 3)
    state = kd.init(schedule, jnp.zeros((1, 2)))
    for value in (schedule, schedule.rows, schedule[0], state, NOISE):
        field = dataclasses.fields(value)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field, 0)
        again = jax.tree.map(lambda leaf: leaf, value)
        assert type(again) is type(value)
        assert all(isinstance(leaf, (jax.Array, np.ndarray)) for leaf in jax.tree.leaves(again))
    assert len(jax.tree.leaves(schedule.rows)) == len(dataclasses.fields(kd.Row)) == 13


@pytest.mark.parametrize("steps", [1, 5])
def test_rows_leave_and_reach_the_levels_of_the_grid_however_the_table_is_cut(steps: int) -> None:
    for name, build in SAMPLERS.items():
        schedule = build(steps)
        tables = [schedule, schedule.pad(11), kd.stack([schedule, build(7)])]
        tables += [schedule.start_at(3), schedule.start_at(3).pad(11)] if steps > 3 else []
        for table in tables:
            at = np.zeros(2, np.int32)
            for i in range(table.num_rows if table.rows.index.ndim == 1 else schedule.num_rows):
                row = jax.tree.map(lambda leaf: leaf[0], table.rows_at(at + i))
                step = int(row.step)
                assert row.sigma_left == schedule.sigmas[step], name
                assert row.sigma_reached == schedule.sigmas[step + 1], name
        idle = slice(schedule.num_rows, None)
        assert np.all(tables[1].rows.sigma_left[idle] == schedule.sigmas[-2]), name
        # 0, or the highest level where the table climbs.
        assert np.all(tables[1].rows.sigma_reached[idle] == schedule.sigmas[-1]), name


def test_static_facts_come_from_the_builder_and_never_from_values() -> None:
    facts = {
        (schedule.deterministic, schedule.anchorless, schedule.unit_alpha): name
        for name, schedule in {
            "euler": kd.euler_schedule(NOISE, 3),
            "euler ancestral": kd.euler_schedule(NOISE, 3, eta=0.0),
            "dpm2": kd.dpm2_schedule(NOISE, 3),
            "dpm2 ancestral": kd.dpm2_ancestral_schedule(NOISE, 3, eta=0.0),
            "lcm": kd.lcm_schedule(NOISE, 3),
        }.items()
    }
    assert facts == {
        (True, True, True): "euler",
        (False, True, True): "euler ancestral",
        (True, False, True): "dpm2",
        (False, False, True): "dpm2 ancestral",
        (False, True, False): "lcm",
    }


def test_stacked_tables_sweep_under_vmap() -> None:
    schedules = [kd.dpm2_ancestral_schedule(NOISE, 4, eta=eta) for eta in (0.0, 0.5, 1.0)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *schedules)
    assert stacked.num_steps == 4
    assert stacked.num_rows == 7
    x, key = jnp.ones((2, 3)), jax.random.key(0)
    denoise = kd.denoiser(_network)
    swept = jax.vmap(kd.sample, (None, None, 0, None, None))(denoise, 0.1, stacked, x, key)
    for found, schedule in zip(swept, schedules, strict=True):
        alone = kd.sample(denoise, 0.1, schedule, x, key)
        np.testing.assert_allclose(found, alone, rtol=2e-6)


def _network(params: jax.Array, x: jax.Array, timestep: jax.Array) -> jax.Array:
    del timestep
    return params * jnp.tanh(x)
