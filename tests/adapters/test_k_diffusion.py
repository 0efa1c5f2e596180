"""k-diffusion's names against k-diffusion: runs of it on torch in float64, with the same noise.

The float64 runs are the reference: in float32 k-diffusion is itself up to 1e-5 from them.
"""

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recorded_k_diffusion as recorded
import truth
from recordings import relative_error

import kdiff_jax as kd
from kdiff_jax.adapters import k_diffusion as K

CASES, RECORDED = recorded.load()
SAMPLERS: dict[str, Callable[..., Any]] = {
    "dpm_2": K.sample_dpm_2,
    "dpm_2_ancestral": K.sample_dpm_2_ancestral,
    "lcm": K.sample_lcm,
}


def network(x: jax.Array, time: jax.Array, net: dict[str, jax.Array]) -> jax.Array:
    return recorded.network(jnp, net, recorded.WEIGHT, recorded.BIAS, x, time)


def plain_model(x: jax.Array, sigma: jax.Array, net: dict[str, jax.Array]) -> jax.Array:
    return recorded.denoised(jnp, functools.partial(network, net=net), x, sigma)


def model_of(case: recorded.Case) -> Any:
    if case.config is None:
        return plain_model
    wrap = {"epsilon": K.DiscreteEpsDDPMDenoiser, "v_prediction": K.DiscreteVDDPMDenoiser}
    return wrap[case.model](network, truth.alphas_cumprod(case.config), case.quantize)


def run(case: recorded.Case, callback: Any = None) -> np.ndarray:
    draws = iter(case.noise)

    def noise_sampler(sigma: float, sigma_next: float) -> np.ndarray:
        assert sigma > sigma_next
        return next(draws)

    # Numbers of one dtype, so that cases of one length share a program.
    net = {name: np.float32(value) for name, value in case.net.items()}
    out = SAMPLERS[case.sampler](
        model_of(case),
        case.x,
        case.sigmas,
        {"net": net},
        callback,
        noise_sampler=noise_sampler,
        **case.controls,
    )
    return np.asarray(out)


def error(found: np.ndarray, case: recorded.Case) -> float:
    return relative_error(found[None], case.final[None])


# --- runs ------------------------------------------------------------------------------------


def test_there_are_recordings_of_every_kind() -> None:
    assert len(CASES) >= 60
    assert RECORDED["versions"]["k-diffusion"] == "0.1.1.post1"
    controls = [case.controls for case in CASES]
    assert sum(c.get("s_churn", 0) > 0 for c in controls) >= 20
    assert sum("s_tmin" in c for c in controls) >= 15
    assert sum(c.get("eta", 1) > 1 for c in controls) >= 3
    assert sum(0 < c.get("eta", 0) < 1 for c in controls) >= 5
    assert sum(case.sigmas[-1] > 0 for case in CASES) >= 5
    assert sum(case.quantize for case in CASES) >= 10
    assert {case.model for case in CASES} == {"plain", "epsilon", "v_prediction"}
    assert {len(case.sigmas) for case in CASES} >= {2, 3, 30}


@pytest.fixture
def one_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of one shape, with the columns of all samplers: one program for each kind of model."""
    columns = ("noise_weight", "epsilon_weight", "anchor_weight", "input_scale")
    sample = kd.sample

    def sample_padded(
        denoise: Any,
        params: Any,
        schedule: kd.Schedule,
        x: jax.Array,
        key: None,
        *,
        noise_fn: Any,
        progress: bool,
    ) -> jax.Array:
        noise = np.full((32, *recorded.SHAPE), np.nan, np.float32)
        if noise_fn is not None:
            noise[: len(noise_fn.noise)] = noise_fn.noise
        noise_fn = kd.given_noise(jnp.asarray(noise))
        return sample(
            denoise, params, schedule.pad(64, columns), x, key, noise_fn=noise_fn, progress=progress
        )

    monkeypatch.setattr(kd, "sample", sample_padded)


@pytest.mark.usefixtures("one_program")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_run_is_that_of_k_diffusion(case: recorded.Case) -> None:
    assert error(run(case), case) < 2e-6


def test_k_diffusion_in_float32_is_further_from_itself() -> None:
    errors = {
        name: [error(case.final32, case) for case in CASES if case.sampler == name]
        for name in SAMPLERS
    }
    # sigma_down as a difference of squares: not what a bound on us could be taken from.
    assert 5e-6 < max(errors["dpm_2_ancestral"]) < 5e-5


@pytest.mark.parametrize("case", CASES[::12], ids=lambda case: case.name)
def test_the_callback_is_shown_what_k_diffusion_shows(case: recorded.Case) -> None:
    shown: list[dict[str, Any]] = []
    # In its own program, which the runs above do not compile.
    assert error(run(case, shown.append), case) < 2e-6
    num_steps = len(case.sigmas) - 1
    assert [call["i"] for call in shown] == list(range(num_steps))
    np.testing.assert_array_equal([call["sigma"] for call in shown], case.sigmas[:-1])
    for call, expected in zip(shown, case.shown, strict=True):
        assert set(call) == {"x", "i", "sigma", "sigma_hat", "denoised"}
        assert relative_error(np.asarray(call["x"])[None], expected[None]) < 2e-6
        assert call["denoised"].shape == call["x"].shape
        assert call["sigma_hat"] >= call["sigma"]
    if case.sampler == "dpm_2" and case.controls["s_churn"] > 0 and "s_tmin" not in case.controls:
        assert shown[0]["sigma_hat"] > shown[0]["sigma"]


# --- noise from a key ------------------------------------------------------------------------


def still(x: jax.Array, sigma: jax.Array) -> jax.Array:
    """Nothing is to be removed, so that only noise moves the sample."""
    return x


def test_churn_draws_each_steps_noise_once_and_the_first_from_the_row_before() -> None:
    key, shape = jax.random.key(3), (2, 5000)
    sigmas, s_churn = np.array([4.0, 2.0, 1.0]), 0.5
    x = jnp.zeros(shape)
    out = np.asarray(K.sample_dpm_2(still, x, sigmas, s_churn=s_churn, s_noise=0.9, key=key))
    # N = 2 real steps, gamma = 1/4: each adds 0.9 * sigma * sqrt(1.25^2 - 1) = 0.675 sigma.
    levels = kd.levels(kd.noise_schedule(), sigmas=[4.0, 2.0, 1.0]).end_at(2)
    schedule = kd.dpm2(levels.churned(s_churn))
    second = np.asarray(kd.row_noise(key, schedule[1], shape))
    first = (out - 0.675 * 2 * second) / (0.675 * 4)
    assert abs(np.mean(first)) < 0.03
    assert abs(np.std(first) - 1) < 0.03
    others = [kd.row_noise(key, row, shape) for row in schedule]
    others.append(kd.initial_sample(kd.lcm(kd.lcm_levels(kd.noise_schedule(), 4)), key, shape))
    for other in others:
        assert abs(np.mean(first * np.asarray(other))) < 0.03


def test_a_key_is_per_sample_and_the_run_is_kd_sample() -> None:
    sigmas, key = K.get_sigmas_karras(6, 0.03, 14.0), jax.random.key(0)
    x = 14 * jax.random.normal(key, (3, 6))
    net = {"net": {k: np.float32(v) for k, v in CASES[0].net.items()}}
    wrapped = K.DiscreteEpsDDPMDenoiser(network, kd.noise_schedule().alphas_cumprod)
    keys = jax.random.split(key, 3)
    out = K.sample_dpm_2_ancestral(wrapped, x, sigmas, net, eta=0.7, key=keys)
    turned = K.sample_dpm_2_ancestral(wrapped, x[::-1], sigmas, net, eta=0.7, key=keys[::-1])
    np.testing.assert_allclose(out[::-1], turned, rtol=1e-5, atol=1e-6)
    levels = kd.levels(kd.noise_schedule(), sigmas=sigmas)
    schedule = kd.dpm2_ancestral(levels, eta=0.7)
    denoise = kd.denoiser(lambda params, x, t: network(x, t, params))
    expected = kd.sample(denoise, net["net"], schedule, x, keys)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    # Without churn there is no noise to draw.
    expected = kd.sample(denoise, net["net"], kd.dpm2(levels), x)
    np.testing.assert_allclose(K.sample_dpm_2(wrapped, x, sigmas, net), expected, rtol=1e-5)


def test_controls_are_one_a_step_of_a_grid_that_ends_above_0() -> None:
    sigmas, x, key = [4.0, 2.0, 1.0], jnp.ones((2, 4)), jax.random.key(5)
    noise = np.random.default_rng(0).normal(size=(2, 2, 4))
    calls: list[tuple[Callable[..., Any], dict[str, Any], Any]] = [
        (K.sample_dpm_2, {"s_churn": [0.5, 0.2], "s_noise": [0.9, 0.4]}, [0.9 * 4, 0.4 * 2]),
        (K.sample_dpm_2_ancestral, {"eta": 0.9, "s_noise": [1.0, 0.5]}, [2.0, 0.5]),
        (K.sample_lcm, {"s_noise": [1.0, 0.5]}, [2.0, 0.5]),
    ]
    for sampler, controls, weight in calls:
        if sampler is K.sample_dpm_2:  # gamma = s_churn / 2
            gamma = np.array([0.25, 0.1])
            weight = weight * np.sqrt(gamma * (2 + gamma))
        elif sampler is K.sample_dpm_2_ancestral:  # sigma_up = eta * sigma_next * sqrt(3/4)
            weight = 0.9 * np.sqrt(0.75) * np.array(weight)
        draws = iter(noise)
        out = sampler(still, x, sigmas, noise_sampler=lambda *_, d=draws: next(d), **controls)
        np.testing.assert_allclose(out, x + np.tensordot(weight, noise, 1), rtol=1e-5)
        assert next(draws, None) is None
        with pytest.raises(ValueError, match=r"s_noise has shape \(3,\).*\[2\]"):
            sampler(still, x, sigmas, key=key, s_noise=[1.0, 1.0, 1.0])


# --- programs --------------------------------------------------------------------------------


def test_other_numbers_do_not_retrace_and_sigmas_may_be_optimised() -> None:
    traces: list[None] = []

    def model(x: jax.Array, sigma: jax.Array, gain: Any) -> jax.Array:
        traces.append(None)
        return gain * x / (1 + sigma[:, None] ** 2)

    key, x = jax.random.key(0), jnp.ones((2, 4))
    sigmas = K.get_sigmas_karras(4, 0.1, 8.0)
    for gain, levels, s_churn in (
        (0.9, sigmas, 1.0),
        (0.5, sigmas, 1.5),
        (0.9, K.get_sigmas_exponential(4, 0.2, 5.0), 0.3),
    ):
        extra_args = {"gain": np.float32(gain)}
        K.sample_dpm_2(model, x, levels, extra_args, s_churn=s_churn, key=key)
    assert len(traces) == 1

    def loss(levels: Any, sampler: Callable[..., Any], **controls: Any) -> jax.Array:
        out = sampler(model, x, levels, {"gain": np.float32(0.9)}, key=key, **controls)
        return jnp.sum(out**2)

    runs: list[tuple[Any, dict[str, Any]]] = [
        (K.sample_dpm_2, {"s_churn": 1.0}),
        (K.sample_dpm_2_ancestral, {"eta": 0.5}),
        (K.sample_lcm, {"s_noise_end": 0.5}),
    ]
    levels = jnp.asarray(sigmas, jnp.float32)
    for sampler, controls in runs:
        value, slope = jax.jit(
            jax.value_and_grad(functools.partial(loss, sampler=sampler, **controls))
        )(levels)
        expected = loss(np.asarray(levels), sampler, **controls)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        assert np.all(np.isfinite(slope))
        assert np.any(slope != 0)


def test_disable_false_shows_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    for disable, shown in ((None, False), (True, False), (False, True)):
        K.sample_dpm_2(still, jnp.ones((1, 3)), [2.0, 1.0, 0.0], disable=disable)
        assert ("3/3" in capsys.readouterr().err) == shown


def test_arguments_come_in_the_order_of_k_diffusion() -> None:
    common = ["model", "x", "sigmas", "extra_args", "callback", "disable"]
    churn = ["s_churn", "s_tmin", "s_tmax", "s_noise"]
    eta = ["eta", "s_noise", "noise_sampler"]
    ancestral = (K.sample_euler_ancestral, K.sample_dpmpp_2s_ancestral, K.sample_dpmpp_3m_sde)
    expected: dict[Any, list[str]] = {
        K.sample_dpm_2: [*common, *churn],
        K.sample_dpm_2_ancestral: [*common, *eta],
        K.sample_lcm: [*common, "noise_sampler", "s_noise", "s_noise_end", "noise_clip_std"],
        **{sampler: [*common, *churn] for sampler in (K.sample_euler, K.sample_heun)},
        **{sampler: [*common, *eta] for sampler in ancestral},
        K.sample_dpmpp_sde: [*common, *eta, "r"],
        K.sample_dpmpp_2m: common,
        K.sample_dpmpp_2m_sde: [*common, *eta, "solver_type"],
        K.VDenoiser: ["inner_model"],
        K.OpenAIDenoiser: ["model", "diffusion", "quantize", "has_learned_sigmas"],
        K.BrownianTreeNoiseSampler: ["x", "sigma_min", "sigma_max", "seed", "transform"],
        K.get_sigmas_karras: ["n", "sigma_min", "sigma_max", "rho"],
        K.get_sigmas_exponential: ["n", "sigma_min", "sigma_max"],
        K.get_sigmas_polyexponential: ["n", "sigma_min", "sigma_max", "rho"],
        K.get_sigmas_vp: ["n", "beta_d", "beta_min", "eps_s"],
        K.get_ancestral_step: ["sigma_from", "sigma_to", "eta"],
        K.to_d: ["x", "sigma", "denoised"],
        K.DiscreteEpsDDPMDenoiser: ["model", "alphas_cumprod", "quantize"],
        K.CompVisVDenoiser: ["model", "quantize"],
    }
    for function, names in expected.items():
        parameters = inspect.signature(function).parameters.values()
        assert [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY] == names


def test_defaults_are_those_of_k_diffusion() -> None:
    expected: dict[Any, dict[str, Any]] = {
        K.sample_dpm_2: {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": math.inf, "s_noise": 1.0},
        K.sample_dpm_2_ancestral: {"eta": 1.0, "s_noise": 1.0},
        K.get_sigmas_karras: {"rho": 7.0},
        K.get_sigmas_polyexponential: {"rho": 1.0},
        K.get_sigmas_vp: {"beta_d": 19.9, "beta_min": 0.1, "eps_s": 1e-3},
        K.get_ancestral_step: {"eta": 1.0},
        K.DiscreteEpsDDPMDenoiser: {"quantize": False},
        K.CompVisVDenoiser: {"quantize": False},
    }
    for function, defaults in expected.items():
        parameters = inspect.signature(function).parameters
        assert {name: parameters[name].default for name in defaults} == defaults


# --- functions -------------------------------------------------------------------------------


def test_grids_and_ancestral_steps_are_those_of_k_diffusion() -> None:
    functions = RECORDED["functions"]
    for name, arguments, expected in functions["grids"]:
        np.testing.assert_allclose(getattr(K, name)(*arguments), expected, rtol=2e-12, err_msg=name)
    for arguments, expected in functions["ancestral_steps"]:
        np.testing.assert_allclose(K.get_ancestral_step(*arguments), expected, rtol=1e-12)
    # Past the bound k-diffusion stops at sigma_down = 0.
    assert K.get_ancestral_step(2.0, 1.0, 3.0) == (0.0, 1.0)
    slope = jax.grad(lambda *a: jnp.sum(jnp.stack(K.get_ancestral_step(*a))), (0, 1, 2))
    for point in ((2.0, 1.0, 3.0), (1.0, 1.0, 1.0), (2.0, 0.0, 1.0)):
        assert np.all(np.isfinite(slope(*point)))
    for rho in (0.5, 1.0, 2.0):
        slope_of_rho = jax.grad(lambda r: jnp.sum(K.get_sigmas_polyexponential(5, 0.1, 9.0, r)))
        assert np.isfinite(slope_of_rho(rho))


def test_wrappers_know_the_levels_of_training() -> None:
    levels = RECORDED["functions"]["levels"]
    wrapped = K.DiscreteEpsDDPMDenoiser(network, truth.alphas_cumprod(recorded.SCALED_LINEAR))
    sigma, t = np.array(levels["sigma"]), np.array(levels["t"])
    np.testing.assert_allclose(wrapped.sigma_to_t(sigma), levels["sigma_to_t"], atol=1e-9)
    np.testing.assert_array_equal(wrapped.sigma_to_t(sigma, quantize=True), levels["quantized"])
    np.testing.assert_allclose(wrapped.t_to_sigma(t), levels["t_to_sigma"], rtol=1e-12)
    np.testing.assert_allclose([wrapped.sigma_min, wrapped.sigma_max], levels["ends"], rtol=1e-12)
    np.testing.assert_allclose(wrapped.get_sigmas()[::100], levels["all"], rtol=1e-12)
    assert wrapped.get_sigmas(7).shape == (8,)


@dataclass(frozen=True)
class CompVis:
    alphas_cumprod: np.ndarray

    def apply_model(self, x: jax.Array, t: jax.Array) -> jax.Array:
        return t[:, None] / 1000 * jnp.tanh(x)


@pytest.mark.parametrize("quantize", [False, True])
def test_wrappers_are_models_of_their_own(quantize: bool) -> None:
    abar = truth.alphas_cumprod(recorded.SCALED_LINEAR)
    x = np.asarray(jax.random.normal(jax.random.key(0), (2, 6)))
    sigma = np.array([3.0, 0.2], np.float32)
    compvis = CompVis(abar)
    time = np.interp(np.log(sigma), np.log(np.sqrt((1 - abar) / abar)), np.arange(1000))
    time = np.round(time) if quantize else time
    scale = 1 / np.sqrt(1 + sigma.astype(np.float64)[:, None] ** 2)
    out = time[:, None] / 1000 * np.tanh(x * scale)
    expected = {
        K.CompVisDenoiser: x - sigma[:, None] * out,
        K.CompVisVDenoiser: scale**2 * x - sigma[:, None] * scale * out,
    }
    for wrap, denoised in expected.items():
        model = wrap(compvis, quantize)
        np.testing.assert_allclose(model(x, sigma), denoised, rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(jax.jit(model)(x, sigma), denoised, rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(model(x[:1], 3.0), denoised[:1], rtol=2e-5, atol=2e-6)


SIGMAS, X, KEY = [4.0, 2.0, 0.0], jnp.ones((2, 3)), jax.random.key(0)
REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: K.sample_dpm_2(still, X, SIGMAS, s_churn=1.0), "neither key nor noise_sampler"),
    (lambda: K.sample_lcm(still, X, SIGMAS), "neither key nor noise_sampler"),
    (
        lambda: K.sample_dpm_2_ancestral(
            still, X, SIGMAS, key=KEY, noise_sampler=lambda *sigmas: X
        ),
        "both key and noise_sampler",
    ),
    (
        lambda: K.sample_lcm(still, X, SIGMAS, noise_sampler=lambda *sigmas: X[0]),
        r"noise_sampler returned shape \(3,\)",
    ),
    (lambda: K.sample_dpm_2_ancestral(still, X, SIGMAS, eta=3.0, key=KEY), "allows eta below 1.15"),
    (lambda: K.sample_dpm_2(still, X, SIGMAS, s_tmin=3.0, s_tmax=1.0), "s_tmin = 3.0 is above"),
    (lambda: K.sample_dpm_2(still, X, [0.0, 2.0]), "no grid"),
    (lambda: K.sample_dpm_2(still, X, [2.0]), r"sigmas = \[2.0\] holds no step"),
    (lambda: K.sample_dpm_2(still, X, SIGMAS, {"mode": "fast"}), "extra_args hold 'fast'"),
    (lambda: K.sample_dpm_2(lambda x, sigma: x[0], X, SIGMAS), r"returned shape \(3,\)"),
    (lambda: K.sample_lcm(still, X, SIGMAS, s_noise=-1.0, key=KEY), "s_noise = -1.0"),
    (lambda: K.DiscreteEpsDDPMDenoiser(network, [0.1, 0.9]), "alphas_cumprod runs from 0.1"),
    (lambda: K.DiscreteEpsDDPMDenoiser(network, [0.9, 0.0]), "alphas_cumprod runs from 0.9"),
    (lambda: K.DiscreteVDDPMDenoiser("network", [0.9, 0.1]), "model = 'network'"),  # type: ignore
    (lambda: K.get_sigmas_karras(0, 0.1, 1.0), "n = 0"),
    (lambda: K.get_sigmas_karras(5, 2.0, 1.0), "sigma_min = 2.0 is above"),
    (lambda: K.get_sigmas_polyexponential(5, 0.1, 1.0, 0.0), "rho = 0.0"),
    (lambda: K.get_sigmas_vp(5, eps_s=0.0), "eps_s = 0.0"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
