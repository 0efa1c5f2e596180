"""Both halves of a prediction belong together, for every denoiser; guidance is its formula."""

import jax
import numpy as np
import pytest
import samplers as sp
from samplers import MIXING, SAMPLERS, relative_error

import kdiff_jax as kd

SHAPE = (4, 8)
KEY = jax.random.key(11)
COND, UNCOND = np.array([0.5, -1, 2, 0], np.float32), np.float32(0.25)
ONE_SCALE, SCALES = np.float32(3), np.array([0, 1, 2.5, 7], np.float32)
mixing = kd.denoiser(sp.mixing_model, "v_prediction")


def start(name):
    schedule = SAMPLERS[name](4)
    return schedule, kd.initial_sample(schedule, KEY, SHAPE)


def denoisers():
    for prediction_type in ("epsilon", "v_prediction", "sample"):
        base = kd.denoiser(sp.mixing_model, prediction_type)
        guided = kd.guided(base, SCALES, UNCOND)
        yield from (base, guided, kd.clipped(guided, 0.8), kd.thresholded(guided, 0.7, 1.5))
        yield from (kd.consistency(base), kd.consistency(kd.clipped(guided)))
        yield kd.guided(kd.consistency(kd.thresholded(base)), ONE_SCALE, UNCOND)
        yield kd.projected(base, SCALES, UNCOND, norm_threshold=2.0)


@pytest.mark.parametrize("name", ["ancestral", "lcm"])
def test_x_is_alpha_denoised_plus_sigma_epsilon_for_every_denoiser(name):
    schedule, x = start(name)
    for row in (schedule[0], schedule[-1], schedule.rows_at(np.array([3, 0, 2, 1]))):
        alpha, sigma = (np.reshape(v, (-1, 1)).astype(float) for v in (row.alpha, row.sigma))
        for denoise in denoisers():
            prediction = denoise(MIXING, x, row, COND)
            parts = alpha * np.asarray(prediction.denoised), sigma * np.asarray(prediction.epsilon)
            size = np.max(np.abs([*parts, x]))
            assert np.max(np.abs(parts[0] + parts[1] - x)) < 1e-6 * size, denoise


@pytest.mark.parametrize("scale", [ONE_SCALE, SCALES], ids=["scalar", "one a sample"])
def test_guidance_is_its_formula(scale):
    schedule, x = start("ancestral")
    for row in (schedule[2], schedule.rows_at(np.arange(4))):
        with_cond = mixing(MIXING, x, row, COND)
        without = mixing(MIXING, x, row, np.full(4, UNCOND))
        guided = kd.guided(mixing, scale, UNCOND)(MIXING, x, row, COND)
        for half in ("denoised", "epsilon"):
            c, u = np.asarray(getattr(with_cond, half)), np.asarray(getattr(without, half))
            expected = u + np.reshape(scale, (-1, 1)) * (c - u)
            assert relative_error(getattr(guided, half), expected) < 1e-6


@pytest.mark.parametrize("name", ["ancestral", "lcm"])
@pytest.mark.parametrize("inner", ["clipped", "thresholded"])
def test_guidance_composes_with_clipping_thresholding_and_consistency(name, inner):
    schedule, x = start(name)
    row = schedule[1]
    guided = kd.guided(kd.denoiser(sp.mixing_model, "sample"), SCALES, UNCOND)
    limited = kd.clipped(guided, 0.9) if inner == "clipped" else kd.thresholded(guided, 0.7, 1.5)
    got = kd.consistency(limited, timestep_scaling=2e-3)(MIXING, x, row, COND).denoised

    d = np.asarray(guided(MIXING, x, row, COND).denoised, np.float64)
    limit = 0.9
    if inner == "thresholded":
        limit = np.clip(np.quantile(np.abs(d), 0.7, axis=1, keepdims=True), 1, 1.5)
    d = np.clip(d, -limit, limit) / (limit if inner == "thresholded" else 1)
    time = float(row.timestep) * 2e-3
    xs = float(row.input_scale) * np.asarray(x)
    expected = time / np.hypot(time, 0.5) * d + 0.25 / (time**2 + 0.25) * xs
    assert relative_error(got, expected) < 1e-6
