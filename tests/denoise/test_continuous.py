"""EDM preconditioning and continuous noise levels: networks that are exact for Gaussian data."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers import NOISE, relative_error

import kdiff_jax as kd

MEAN, STD = 0.3, 0.8
LEVELS = [80.0, 20.0, 4.0, 1.0, 0.25, 0.05, 0.002]
SCHEDULE = kd.dpm2(kd.levels(None, sigmas=LEVELS))


def exact(x, sigma):
    """E[x0 | x = x0 + sigma eps] and E[eps | x] of Gaussian data."""
    x0 = MEAN + STD**2 / (STD**2 + sigma**2) * (x - MEAN)
    return x0, sigma / (STD**2 + sigma**2) * (x - MEAN)


def edm_network(sigma_of, sigma_data):
    """F = (D - c_skip x) / c_out, from equation 7 of Karras et al. 2022, where D is exact."""

    def model_fn(params, x_in, time):
        sigma = sigma_of(time.astype(x_in.dtype))[:, None]
        n = jnp.sqrt(sigma**2 + sigma_data**2)
        x = x_in * n
        denoised = exact(x, sigma)[0]
        return (denoised - sigma_data**2 / n**2 * x) / (sigma * sigma_data / n)

    return model_fn


def v_network(params, x_in, time):
    """What v-diffusion is trained on, alpha eps - sigma x0; its time is the angle over pi / 2."""
    angle = time.astype(x_in.dtype)[:, None] * (np.pi / 2)
    x0, eps = exact(x_in / jnp.cos(angle), jnp.tan(angle))
    return jnp.cos(angle) * eps - jnp.sin(angle) * x0


def eps_network(params, x_in, time):
    sigma = time.astype(x_in.dtype)[:, None]
    return exact(x_in * jnp.sqrt(1 + sigma**2), sigma)[1]


def from_log(time):
    return jnp.exp(4 * time)


def same(time):
    return time


EXACT = {
    "edm": kd.edm_denoiser(edm_network(from_log, 0.5)),
    "edm, another sigma_data": kd.edm_denoiser(edm_network(from_log, 1.3), 1.3),
    "k-diffusion's Denoiser": kd.edm_denoiser(edm_network(same, 1.0), 1.0, c_noise="sigma"),
    "k-diffusion's VDenoiser": kd.continuous(kd.denoiser(v_network, "v_prediction"), "angle"),
    "epsilon of sigma": kd.continuous(kd.denoiser(eps_network)),
    "a function": kd.continuous(kd.denoiser(eps_network), same),
}


@pytest.mark.parametrize("name", EXACT)
def test_exact_networks_of_every_form_give_the_exact_prediction(name):
    denoise = jax.jit(lambda x, row: EXACT[name](None, x, row))
    for row in SCHEDULE:
        sigma = float(row.sigma)
        x = np.random.default_rng(3).normal(size=(4, 64)) * np.hypot(sigma, STD) + MEAN
        prediction = denoise(jnp.asarray(x, jnp.float32), row)
        x0, eps = exact(x, sigma)
        # The angle of VDenoiser and the epsilon of a network round in units of x.
        assert np.max(np.abs(prediction.denoised - x0)) < 1e-6 * np.max(np.abs(x))
        # A float32 angle near pi / 2 or 0 holds 5 digits of sigma only.
        loose = 300 if "VDenoiser" in name else 2
        assert np.max(np.abs(prediction.epsilon - eps)) < loose * 1e-6 * np.max(np.abs(x)) / min(
            1, sigma
        )


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_epsilon_does_not_cancel_at_small_noise(sigma_data):
    rng = np.random.default_rng(0)
    x, out = rng.normal(size=(2, 4, 64)).astype(np.float32)
    denoise = kd.edm_denoiser(lambda params, x, time: params, sigma_data)
    for row in SCHEDULE:
        prediction, sigma = denoise(out, x, row), float(row.sigma)
        n = np.hypot(sigma, sigma_data)
        denoised = sigma_data**2 / n**2 * x.astype(float) + sigma * sigma_data / n * out
        assert relative_error(prediction.denoised, denoised) < 1e-6
        assert relative_error(prediction.epsilon, (x - denoised) / sigma) < 1e-6


def test_rows_of_any_alpha_are_the_level_sigma_over_alpha():
    x, out = np.random.default_rng(1).normal(size=(2, 3, 8)).astype(np.float32)
    seen = []

    def model_fn(params, x_in, time):
        seen.append((np.asarray(x_in), float(time[0])))
        return params

    denoise = kd.edm_denoiser(model_fn)
    for row in kd.lcm(kd.lcm_levels(NOISE, 4)):
        alpha, sigma = (float(np.asarray(level)) for level in (row.alpha, row.sigma))
        flat = kd.dpm2(kd.levels(None, sigmas=[sigma / alpha]))[0]
        here, there = denoise(out, x, row), denoise(out, x / np.float32(alpha), flat)
        assert relative_error(here.denoised, there.denoised) < 1e-6
        assert relative_error(here.epsilon, there.epsilon) < 1e-6
        np.testing.assert_allclose(seen[-1][0], seen[-2][0], rtol=1e-5)
        assert seen[-1][1] == pytest.approx(seen[-2][1], abs=1e-6)
        assert seen[-1][1] == pytest.approx(np.log(sigma / alpha) / 4, abs=1e-6)


@pytest.mark.parametrize("name", ["edm", "k-diffusion's Denoiser"])
def test_a_whole_run_follows_the_exact_solution(name):
    levels = np.geomspace(80, 0.002, 60)
    schedule = kd.dpm2(kd.levels(None, sigmas=levels))
    x = kd.initial_sample(schedule, jax.random.key(0), (4, 16))
    got = kd.sample(EXACT[name], None, schedule, x)
    scale = STD / np.sqrt(STD**2 + 80.0**2)
    assert relative_error(got, MEAN + (np.asarray(x) - MEAN) * scale) < 5e-3


def test_the_network_sees_its_dtype_and_wrappers_see_the_timestep():
    seen = []

    def model_fn(params, x, time, label):
        seen.append((x.dtype, time.dtype, time.shape, label))
        return x

    denoise = kd.edm_denoiser(model_fn, dtype=jnp.bfloat16)
    prediction = denoise(None, jnp.ones((2, 3), jnp.bfloat16), SCHEDULE[0], 7)
    assert seen == [(jnp.dtype("bfloat16"), jnp.dtype("float32"), (2,), 7)]
    assert prediction.denoised.dtype == prediction.epsilon.dtype == jnp.float32
    # The boundary scaling of a wrapper goes by the row's timestep, not by the network's time.
    row = SCHEDULE[3]
    inner = kd.edm_denoiser(lambda params, x, time: jnp.zeros_like(x))
    plain, wrapped = inner(None, jnp.ones((1, 1)), row), kd.consistency(inner)
    t = float(row.timestep) * 10
    expected = t / np.hypot(t, 0.5) * float(plain.denoised[0, 0])
    expected += 0.25 / (t**2 + 0.25) * float(np.asarray(row.input_scale))
    assert float(wrapped(None, jnp.ones((1, 1)), row).denoised[0, 0]) == pytest.approx(expected)


def test_sigma_data_is_a_leaf_with_a_gradient_and_another_value_is_the_same_program():
    traces = []

    def model_fn(params, x, time):
        traces.append(1)
        return params * x

    def end(sigma_data):
        denoise = kd.edm_denoiser(model_fn, sigma_data)
        return jnp.sum(kd.sample(denoise, jnp.float32(0.1), SCHEDULE, jnp.ones((2, 3))))

    values = [end(0.5), end(0.6)]
    assert len(traces) == 1
    slope = jax.grad(end)(0.5)
    assert slope == pytest.approx(float(end(0.501) - end(0.499)) / 0.002, rel=0.02)
    assert values[0] != values[1]


BAD: Any = 3
T: Any = "t"
LOG: Any = "log"
REFUSED = [
    (lambda: kd.edm_denoiser(BAD), "model_fn = 3 is not callable"),
    (lambda: kd.edm_denoiser(eps_network, 0.0), "sigma_data = 0.0"),
    (lambda: kd.edm_denoiser(eps_network, dtype=jnp.int32), "int32 is no floating dtype"),
    (lambda: kd.edm_denoiser(eps_network, c_noise=T), "c_noise = 't'"),
    (lambda: kd.continuous(kd.denoiser(eps_network), LOG), "c_noise = 'log'"),
    (lambda: kd.continuous(kd.denoiser(eps_network), BAD), "c_noise = 3"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_edm_network_cannot_begin_where_no_signal_is():
    noise = kd.noise_schedule(rescale_zero_terminal_snr=True)
    no_signal = kd.lcm(kd.lcm_levels(noise, 2))
    for schedule in (no_signal, kd.dpm2(kd.levels(kd.flow_schedule(), 2))):
        with pytest.raises(ValueError, match="prediction_type='edm'"):
            kd.sample(EXACT["edm"], None, schedule, jnp.ones((2, 3)), jax.random.key(0))
