"""What a call means by itself: the betas of each schedule, a shift below 1; and what warns."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kdiff_jax as kd

NOISE = kd.noise_schedule("scaled_linear")
FLOW = kd.flow_schedule(3.0)


def test_each_schedule_has_its_own_betas() -> None:
    # DDPM's and Stable Diffusion's, by a plain product.
    for name, betas in (
        ("linear", np.linspace(1e-4, 0.02, 1000)),
        ("scaled_linear", np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2),
    ):
        abar = np.cumprod(1 - betas)
        found = kd.noise_schedule(name)  # type: ignore[arg-type]
        np.testing.assert_allclose(found.alphas_cumprod, abar, rtol=1e-12)
    assert round(float(kd.noise_schedule("linear").sigmas[-1])) == 157
    # One of the two may be given.
    half = kd.noise_schedule("linear", beta_end=0.01)
    betas = np.linspace(1e-4, 0.01, 1000)
    np.testing.assert_allclose(half.alphas_cumprod, np.cumprod(1 - betas), rtol=1e-12)


def test_a_flow_of_any_shift_takes_its_own_levels() -> None:
    shifts = [round(0.01 * i, 2) for i in range(1, 100)]
    for flow in [
        *(kd.flow_schedule(shift) for shift in shifts),
        *(kd.flow_schedule(mu=mu) for mu in np.linspace(-4, 0, 41)),
    ]:
        for options in ({}, {"timestep_spacing": "trailing"}, {"grid": "karras"}):
            levels = kd.levels(flow, 5, **options)  # type: ignore[arg-type]
            assert levels.sigmas[0] == 1
            again = kd.levels(flow, sigmas=levels.sigmas)
            np.testing.assert_array_equal(again.sigmas, levels.sigmas)


def test_a_run_turned_over_in_the_middle_has_the_timesteps_of_the_whole_run() -> None:
    whole = kd.levels(NOISE, 10, grid="karras", round_timesteps=True)
    up = whole.end_at(4).reversed()
    np.testing.assert_array_equal(up.timesteps, whole.timesteps[4:0:-1])
    np.testing.assert_array_equal(up.reversed().timesteps, whole.timesteps[:4])
    down = whole.reversed().reversed()
    np.testing.assert_array_equal(down.timesteps, whole.timesteps[:-1])
    rest = whole.start_at(2).end_at(3).reversed()
    np.testing.assert_array_equal(rest.timesteps, whole.timesteps[5:2:-1])


@pytest.mark.parametrize("noise", [NOISE, FLOW], ids=["beta", "flow"])
def test_pixels_on_the_host_warn(noise: kd.NoiseSchedule | kd.FlowSchedule) -> None:
    pixels = np.linspace(0, 255, 8, dtype=np.float32).reshape(2, 4)
    eps, t = np.ones_like(pixels), np.array([5, 9])
    row = kd.dpm2(kd.levels(noise, 3))[0]
    of_row = functools.partial(kd.add_noise, row, pixels, eps)  # type: ignore[arg-type]
    for add_noise in (functools.partial(noise.add_noise, pixels, eps, t), of_row):
        with pytest.warns(UserWarning, match=r"x0 spans \[0, 255\].*pass x0 / 127.5 - 1") as warned:
            add_noise()
        assert warned[0].filename == __file__
    noise.add_noise(pixels / 127.5 - 1, eps, t)  # warnings are errors here
    noise.add_noise(jnp.asarray(pixels), eps, t)


def test_levels_far_above_training_warn() -> None:
    message = "the noise level 999 is far above 14.6146.*last timestep"
    with pytest.warns(UserWarning, match=message):
        levels = kd.levels(NOISE, sigmas=[999, 500, 1])
    assert levels.timesteps[0] == levels.timesteps[1] == 999
    with pytest.warns(UserWarning, match=message):
        kd.levels(NOISE, 5, grid="karras", sigma_max=999.0)
    with pytest.warns(UserWarning, match=message):
        kd.lcm_levels(NOISE, sigmas=[999, 500, 1])
    kd.levels(NOISE, sigmas=[50.0, 1.0])
    kd.levels(None, sigmas=[999, 500, 1])


def test_rows_that_are_not_there_are_refused_or_nan() -> None:
    schedule = kd.dpm2(kd.levels(NOISE, 3))
    i: Any
    for i in ([-1], [-1, 2], np.array([0, -2])):
        with pytest.raises(ValueError, match=r"i = .* is below 0; pass row numbers"):
            schedule.rows_at(i)
    with pytest.raises(ValueError, match="i = -1 is below 0"):
        kd.stack([schedule]).rows_at(-1)
    for i in ("a", None, [10**400]):
        with pytest.raises(ValueError, match=r"i = .* is no array"):
            schedule.rows_at(i)
    for i in (True, np.True_, 0.5, "a", None, jnp.ones(2)):
        with pytest.raises(TypeError, match="indexed by one integer or by a slice"):
            schedule[i]
    for part in (slice(True, None), slice("a", None), slice(0, 2.5)):
        with pytest.raises(TypeError, match="indexed by one integer or by a slice"):
            schedule[part]
    for table, size in ((schedule, 5), (schedule.pad(9), 5)):
        at = jax.jit(lambda table, i: table[i].denoised_weight)
        for i in (*range(-size, size),):
            assert at(table, i) == schedule.rows.denoised_weight[i]
        assert np.isnan(at(table, size))
        assert np.isnan(at(table, -size - 1))
    places = jnp.array([-1, 0, 9])
    found = schedule.rows_at(places).denoised_weight
    np.testing.assert_array_equal(np.isnan(found), [True, False, False])


def test_columns_that_are_no_names_are_refused() -> None:
    schedule = kd.dpm2(kd.levels(NOISE, 3))
    for columns in (3, [["anchor_weight"]], [None]):
        with pytest.raises(ValueError, match="columns"):
            schedule.pad(9, columns=columns)  # type: ignore[arg-type]


def test_deeply_nested_text_is_no_table() -> None:
    with pytest.raises(ValueError, match="is no JSON"):
        kd.Schedule.from_json("[" * 200_000)


def test_values_without_numbers_compare() -> None:
    schedule = kd.dpm2(kd.levels(NOISE, 3))
    assert schedule == schedule
    assert schedule != 3
    shapes = [jax.eval_shape(lambda table: table, schedule) for _ in range(2)]
    assert shapes[0] == shapes[1]
