"""What docs/differences.md says in numbers: computed as the code of the others computes it."""

import math
from fractions import Fraction
from pathlib import Path

import grid_truth
import numpy as np

import kdiff_jax as kd
from kdiff_jax.adapters import diffusers as kd_diffusers

PAGE = (Path(__file__).parents[2] / "docs" / "differences.md").read_text(encoding="utf-8")
NOISE = kd.noise_schedule("scaled_linear")


def test_int_of_steps_over_denoise_loses_a_step_in_62_of_10_000_pairs() -> None:
    lost = 0
    for steps in range(1, 101):
        for percent in range(1, 101):
            exact = math.floor(Fraction(100 * steps, percent))
            if int(steps / (percent / 100)) == exact:  # KSampler.set_steps
                continue
            lost += 1
            levels = kd.levels(NOISE, steps, strength=percent / 100)
            assert (levels.num_steps, levels.first_step) == (steps, exact - steps)
    assert f"in {lost} of 10,000 pairs" in PAGE


def test_zero_terminal_snr_begins_at_4518_8_there_and_at_4096_here() -> None:
    theirs = 4.8973451890853435e-08  # rescale_zero_terminal_snr_sigmas
    assert f"sigma {math.sqrt((1 - theirs) / theirs):.1f} |" in PAGE
    ours = kd.levels(kd.noise_schedule(rescale_zero_terminal_snr=True), 4).sigmas[0]
    assert f"| {ours:.0f}, as diffusers' Euler" in PAGE


def test_ddim_with_zero_terminal_snr_begins_at_65536_here_and_without_any_signal_there() -> None:
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    sampler = kd_diffusers.from_config(
        {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", **betas},
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        clip_sample=False,
    )
    schedule = sampler.schedule(10)
    assert schedule.sigmas[0] == 2.0**16
    x, v = np.random.default_rng(0).standard_normal((2, 4, 50)).astype(np.float32)
    state, row = kd.init(schedule, x * schedule.init_noise_sigma), schedule[0]
    denoise = sampler.denoiser(lambda params, x, timestep: params)
    ours = kd.step(state, row, denoise(v, state.sample, row)).sample
    # alphas_cumprod[999] = 0 there: x0 = -v and eps = x, whatever the step.
    sigma = float(schedule.sigmas[1])
    theirs = (sigma * x - v) / math.hypot(1, sigma)
    apart = np.linalg.norm(ours / math.hypot(1, sigma) - theirs) / np.linalg.norm(theirs)
    assert f"after the first step {apart:.0e} of the sample apart" in PAGE


def test_a_run_of_one_step_starts_at_the_highest_level() -> None:
    table = [14.6146412293, 6.4745760956, 0.0291671582]
    # Its node cuts the table at N + 1 places, and puts 0 for the last.
    assert grid_truth.align_your_steps(2, table)[0] == table[0]
    np.testing.assert_allclose(kd.align_your_steps_sigmas(1, table), table[:1], rtol=1e-14)
    assert f"({table[0]:.2f})" in PAGE
    np.testing.assert_array_equal(grid_truth.ddim_uniform(NOISE.sigmas, 1), NOISE.sigmas[[1]])
    for grid in ("ddim_uniform", "kl_optimal"):
        top = kd.levels(NOISE, 1, grid=grid).sigmas[0]
        np.testing.assert_allclose(top, NOISE.sigmas[-1], rtol=1e-12)


def test_ddim_of_diffusers_steps_past_the_timestep_that_it_visits_next_on_a_linspace() -> None:
    visits = np.linspace(0, 999, 10).round()[::-1]  # set_timesteps, and `step`: t - T // N
    assert f"{visits[0] - 1000 // 10:.0f} and {visits[1]:.0f} with linspace at N = 10" in PAGE
    config = {"_class_name": "DDIMScheduler", "timestep_spacing": "linspace"}
    levels = kd_diffusers.from_config(config).levels(10)
    np.testing.assert_array_equal(levels.timesteps, visits)
