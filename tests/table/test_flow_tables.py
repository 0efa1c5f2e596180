"""Rectified flow: the tables of every sampler, against ComfyUI's formulas and exact marginals."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flows import FLOW, SAMPLERS, SD3, every_sampler
from samplers import relative_error

import kdiff_jax as kd


@every_sampler
def test_rows_are_levels_of_the_flow(name):
    levels = kd.levels(SD3, 7)
    schedule = SAMPLERS[name](levels)
    rows: Any = schedule.rows
    np.testing.assert_allclose(schedule.sigmas, levels.sigmas, rtol=1e-7)
    np.testing.assert_allclose(rows.alpha + rows.sigma, 1, atol=1e-7)
    np.testing.assert_allclose(rows.timestep, 1000 * np.asarray(rows.sigma), rtol=1e-6)
    assert rows.input_scale is None
    assert schedule.flow
    assert float(schedule.init_noise_sigma) == 1
    assert float(rows.denoised_weight[-1]) == 1
    step = np.asarray(rows.step)
    np.testing.assert_array_equal(rows.sigma_left, schedule.sigmas[step])
    np.testing.assert_array_equal(rows.sigma_reached, schedule.sigmas[step + 1])


@every_sampler
def test_levels_and_timesteps_are_taken_verbatim(name):
    sigmas = [0.95, 0.6, 0.25, 0.1]
    timesteps = [950, 600, 250, 100]
    for given in ({"sigmas": sigmas}, {"sigmas": [*sigmas, 0]}, {"timesteps": timesteps}):
        schedule = SAMPLERS[name](kd.levels(SD3, **given))
        np.testing.assert_allclose(schedule.sigmas, [*sigmas, 0], rtol=1e-7)


def test_the_noise_of_lcm_is_multiplied_step_by_step():
    levels = kd.levels(SD3, sigmas=[1.0, 0.6, 0.25, 0.1])
    plain: Any = kd.lcm(levels).rows
    np.testing.assert_allclose(plain.noise_weight, [0.6, 0.25, 0.1, 0], rtol=1e-6)
    np.testing.assert_allclose(plain.denoised_weight, [0.4, 0.75, 0.9, 1], rtol=1e-6)
    each: Any = kd.lcm(levels, s_noise=np.array([1, 0.5, 2, 1])).rows.noise_weight
    np.testing.assert_allclose(each, [0.6, 0.125, 0.2, 0], rtol=1e-6)
    ramp: Any = kd.lcm(levels, s_noise=1.0, s_noise_end=0.4).rows.noise_weight
    np.testing.assert_allclose(ramp, [0.6, 0.2, 0.06, 0], rtol=1e-6)


@every_sampler
def test_every_row_carries_the_exact_marginal_to_the_next(name):
    # With D = x0 and epsilon = eps exact, a sample is a weight of x0 and independent noises: the
    # initial one and the z of each row. Their total must be the level of the row it lands on.
    rows: list[Any] = list(SAMPLERS[name](kd.levels(SD3, 7)))
    noises = np.eye(len(rows) + 1)
    sample = anchor = (float(rows[0].alpha), float(rows[0].sigma) * noises[0])
    for place, row in enumerate(rows):
        assert sample[0] == pytest.approx(float(row.alpha), abs=1e-6)
        assert np.linalg.norm(sample[1]) == pytest.approx(float(row.sigma), abs=1e-6)
        weights = (
            getattr(row, f"{kind}_weight") for kind in ("anchor", "denoised", "epsilon", "noise")
        )
        a, d, e, z = (0.0 if weight is None else float(weight) for weight in weights)
        eps = sample[1] / float(row.sigma)
        noise = a * anchor[1] + e * eps + z * noises[place + 1]
        # D of earlier rows is x0 as well.
        earlier = (row.denoised_weight_1, row.denoised_weight_2)
        d += sum(float(weight) for weight in earlier if weight is not None)
        sample = a * anchor[0] + d, noise
        anchor = sample if row.advances is None or bool(row.advances) else anchor
    assert sample[0] == pytest.approx(1, abs=1e-6)
    assert np.linalg.norm(sample[1]) == pytest.approx(0, abs=1e-6)


def test_eta_0_is_the_table_without_noise_bitwise():
    levels = kd.levels(SD3, 9)
    for plain, other in ((kd.dpm2, "ancestral"), (kd.euler, "euler_ancestral")):
        expected, found = plain(levels).rows, SAMPLERS[other](levels, eta=0.0).rows
        assert expected.noise_weight is None
        assert not np.any(found.noise_weight)
        for name, column in vars(expected).items():
            if name != "noise_weight":
                np.testing.assert_array_equal(getattr(found, name), column, err_msg=name)


def test_eta_1_puts_the_midpoint_at_the_next_level():
    schedule = kd.dpm2_ancestral(kd.levels(SD3, 9))
    np.testing.assert_allclose(schedule.rows.sigma[1::2], schedule.sigmas[1:-1], rtol=2e-7)


# --- traced ----------------------------------------------------------------------------------


def test_a_traced_shift_gives_every_table_and_finite_gradients():
    def tables(shift):
        levels = kd.levels(kd.flow_schedule(shift), 5)
        leaves = {name: jax.tree.leaves(build(levels).rows) for name, build in SAMPLERS.items()}
        return {
            name: jnp.stack([leaf for leaf in columns if leaf.dtype == jnp.float32])
            for name, columns in leaves.items()
        }

    found, slopes = jax.jit(lambda shift: (tables(shift), jax.jacfwd(tables)(shift)))(2.5)
    for name, expected in tables(2.5).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=2e-6, err_msg=name)
        assert np.all(np.isfinite(slopes[name]))
        assert np.any(slopes[name] != 0)


def test_a_traced_eta_has_finite_gradients_at_0():
    def weights(eta):
        return kd.dpm2_ancestral(kd.levels(SD3, 5), eta=eta).rows.noise_weight

    slopes = jax.jit(jax.jacrev(weights))
    assert all(np.all(np.isfinite(slopes(eta))) for eta in (0.0, 0.5, 1.0))


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


def comfy_2s(velocity, x, sigmas, noise, eta, s_noise):
    """2S on a flow as `sample_dpmpp_2s_ancestral_RF`, but for where the midpoint lies."""
    for (s0, s1), z in zip(itertools.pairwise(sigmas), noise, strict=True):
        denoised = x - s0 * velocity(x, s0)
        if s1 == 0:
            return denoised
        down = s1 * (1 + (s1 / s0 - 1) * eta)
        middle = np.exp((np.log(s0) + np.log(down)) / 2)
        u = middle / s0 * x + (1 - middle / s0) * denoised
        x = down / s0 * x + (1 - down / s0) * (u - middle * velocity(u, middle))
        ratio = (1 - s1) / (1 - down)
        x = ratio * x + z * s_noise * np.sqrt(max(s1**2 - (down * ratio) ** 2, 0))


def smooth_velocity(params, x, timestep):
    t = (timestep / 1000).astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.sin(1.7 * x) - 0.6 * x + jnp.cos(3 * t)


def smooth_velocity_in_numpy(x, t):
    return np.sin(1.7 * x) - 0.6 * x + np.cos(3 * t)


smooth = kd.denoiser(smooth_velocity, "flow_prediction")


@pytest.mark.parametrize(("eta", "s_noise"), [(0.0, 1.0), (0.4, 0.9), (1.0, 1.0), (1.02, 1.0)])
@pytest.mark.parametrize(
    ("name", "truth"),
    [("ancestral", comfy_dpm2), ("2s_ancestral", comfy_2s), ("euler_ancestral", comfy_euler)],
)
def test_ancestral_runs_are_those_of_comfyui(name, truth, eta, s_noise):
    key, shape = jax.random.key(7), (3, 16)
    schedule = SAMPLERS[name](kd.levels(SD3, 6), eta=eta, s_noise=s_noise)
    x = kd.initial_sample(schedule, key, shape)
    landing = range(5) if name == "euler_ancestral" else range(1, 11, 2)
    noise: Any = [kd.row_noise(key, schedule[i], shape) for i in (*landing, len(schedule) - 1)]
    got = kd.sample(smooth, None, schedule, x, key)
    lowest: Any = SD3.sigma_min
    sigmas = SD3.shifted(1 + np.linspace(0, 1, 6) * (lowest - 1))
    start, noise = np.asarray(x, np.float64), np.asarray(noise, np.float64)
    expected = truth(smooth_velocity_in_numpy, start, [*sigmas, 0.0], noise, eta, s_noise)
    assert relative_error(got, expected) < 2e-6


# --- refusals --------------------------------------------------------------------------------


def test_networks_of_another_process_are_refused():
    x = jnp.ones((3, 16))
    flow, vp = (kd.dpm2(kd.levels(noise, 3)) for noise in (FLOW, kd.noise_schedule()))
    for prediction_type in ("epsilon", "v_prediction"):
        denoise = kd.clipped(kd.denoiser(smooth_velocity, prediction_type))
        with pytest.raises(ValueError, match=r"rectified flow.*'flow_prediction'"):
            kd.sample(denoise, None, flow, x)
    with pytest.raises(ValueError, match=r"rectified flow.*kd\.flow_schedule"):
        kd.sample(smooth, None, vp, x)
    assert np.all(np.isfinite(kd.sample(kd.denoiser(smooth_velocity, "sample"), None, flow, x)))
