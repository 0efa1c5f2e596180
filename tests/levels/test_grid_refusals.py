"""What the grids refuse: every message names what came, what is expected and what to do."""

import re
from collections.abc import Callable
from typing import Any

import jax
import pytest

import kdiff_jax as kd

NOISE = kd.noise_schedule()


def of(*args: Any, noise: kd.NoiseSchedule | None = NOISE, **options: Any) -> kd.Schedule:
    return kd.dpm2(kd.levels(noise, *args, **options))


def alone(*args: Any, **options: Any) -> kd.Schedule:
    return of(*args, noise=None, **options)


def lcm(*args: Any, **options: Any) -> kd.Levels:
    return kd.lcm_levels(NOISE, *args, **options)


REFUSED: list[tuple[Callable[[], Any], str]] = [
    # formulas
    (lambda: kd.karras_sigmas(0, 0.1, 1.0), "num_steps = 0 is too small"),
    (lambda: kd.karras_sigmas(5, 1.0, 0.1), "sigma_min = 1.0 is not below sigma_max = 0.1"),
    (lambda: kd.karras_sigmas(2, 1.0, 0.1), "sigma_min = 1.0 is not below sigma_max = 0.1"),
    (lambda: kd.karras_sigmas(5, 0.0, 1.0), "sigma_min = 0.0 is out of range"),
    (lambda: kd.karras_sigmas(5, 0.1, 1.0, rho=-7.0), "rho = -7.0 is out of range"),
    (lambda: kd.polyexponential_sigmas(5, 0.1, 1.0, rho=0), "rho = 0.0 is out of range"),
    (lambda: kd.kl_optimal_sigmas(5, 0.1, float("inf")), "sigma_max = inf"),
    (lambda: kd.vp_sigmas(5, beta_d=0.0), "beta_d = 0.0 is out of range"),
    (lambda: kd.vp_sigmas(5, eps_s=1.0), "eps_s = 1.0 .*eps_s below 1"),
    (lambda: kd.vp_sigmas(5, 3.0, 2.0), "sigma_min = 3.0, sigma_max = 2.0.*sigma_min below"),
    (lambda: kd.beta_sigmas(5, 0.1, 1.0, alpha=0.0), "alpha = 0.0 is out of range"),
    (
        lambda: jax.jit(lambda a: kd.beta_sigmas(5, 0.1, 1.0, a))(0.6),
        "alpha or beta is traced.*pass numbers",
    ),
    (lambda: kd.beta_timesteps(11, 10), "num_steps = 11 is more than the 10 whole timesteps"),
    (lambda: kd.beta_timesteps(5, 0), "num_train_timesteps = 0"),
    (lambda: kd.linear_quadratic_sigmas(5, -1.0), "sigma_max = -1.0"),
    (lambda: kd.linear_quadratic_sigmas(5, 1.0, linear_steps=5), "linear_steps = 5.*at most 4"),
    (
        lambda: kd.linear_quadratic_sigmas(4, 1.0, threshold_noise=0.7),
        r"threshold_noise = 0.7 is too much for 2 linear steps of 4.*below 0.66",
    ),
    (lambda: kd.laplace_sigmas(5, 0.1, 1.0, beta=0.0), "beta = 0.0 is out of range"),
    (lambda: kd.laplace_sigmas(5, 0.1, 1.0, mu=float("nan")), "mu = nan"),
    (lambda: kd.align_your_steps_sigmas(5, [3.0, 3.0]), r"table = \[3.0, 3.0\].*strictly desc"),
    (lambda: kd.align_your_steps_sigmas(5, [3.0, 0.0]), r"table = .* holds one level"),
    (lambda: kd.karras_sigmas(10, 0.03, 14.6, 1e-3), "grid='karras': a level is .*float32 tables"),
    (lambda: kd.karras_sigmas(10, 1e-30, 1e30), "grid='karras': a level is 1e.30"),
    (
        lambda: kd.laplace_sigmas(10, 0.03, 14.6, beta=1e-17),
        "grid='laplace' .*too small for float3",
    ),
    (lambda: kd.beta_timesteps(9, 100, 1e300, 1e10), "alpha = 1e.300 and beta = 1.* no quantiles"),
    (lambda: kd.vp_sigmas(5, beta_d=1e9), "grid='vp': a level is inf"),
    # names
    (lambda: of(5, grid="cosine"), "grid = 'cosine' is not known.*'kl_optimal'"),
    (lambda: of(5, grid="kl_optimal", rho=3.0), "rho = 3.0 shapes.*'polyexponential'.*'kl_opt"),
    (lambda: of(5, grid="normal", sigma_max=3.0), "sigma_max = 3.0 bound.*grid='normal'"),
    (lambda: of(5, grid="linear_quadratic", sigma_min=0.1), "sigma_min = 0.1.*closing 0; drop"),
    (
        lambda: of(5, grid="simple", timestep_spacing="trailing"),
        "timestep_spacing='trailing'.*grid='simple', which has timesteps of its own",
    ),
    (lambda: of(5, grid="ddim_uniform", steps_offset=1), "steps_offset = 1 .*'ddim_uniform'"),
    (lambda: of(1001, grid="simple"), "num_steps = 1001 is more than the 1000.*'simple'"),
    (lambda: of(1000, grid="ddim_uniform"), "num_steps = 1000 is more than the 999"),
    (lambda: of(200, grid="polyexponential", rho=9.0), "steps too small for float32.*= 200"),
    # verbatim
    (lambda: of(sigmas=[3, 1], discard_penultimate=True), "sigmas and discard_penultimate.*one"),
    (lambda: of(discard_penultimate=True), "num_steps is missing"),
    (
        lambda: of(1000, timestep_spacing="trailing", discard_penultimate=True),
        "discard_penultimate=True builds 1001 steps: num_steps = 1001",
    ),
    (lambda: lcm(4, sigmas=[3.0, 1.0]), "num_steps = 4.*exactly one of the three"),
    (lambda: lcm(timesteps=[9], sigmas=[3.0]), r"timesteps = \[9\].*exactly one of the three"),
    (lambda: lcm(sigmas=[1.0, 3.0]), r"sigmas = \[1.0, 3.0\].*strictly descending"),
    (lambda: lcm(sigmas=[3.0, 1.0], strength=0.4), "strength = 0.4 leaves none of 2 sigmas"),
    # without training timesteps
    (lambda: alone(5), r"noise = None has no training timesteps.*give sigmas=\[...\]"),
    (lambda: alone(5, grid="normal"), "noise = None.*grid='normal'"),
    (lambda: alone(timesteps=[9, 5]), "noise = None has no training timesteps"),
    (lambda: alone(5, grid="karras"), "noise = None.*'karras'.*give sigma_min and sigma_max"),
    (lambda: alone(5, grid="vp", sigma_max=9.0), "noise = None.*'vp'.*give sigma_min, or"),
    (lambda: alone(5, grid="linear_quadratic"), "noise = None.*give sigma_max, or"),
    (
        lambda: alone(sigmas=[3, 1], timestep_spacing="leading"),
        "timestep_spacing='leading'.*noise = None has none",
    ),
    (lambda: alone(sigmas=[3, 1], round_timesteps=True), "round_timesteps=True.*noise = None"),
    (lambda: kd.lcm_levels(None, 4), "noise = None has no timesteps to choose from.*sigmas="),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_a_grid_that_cannot_be_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        call()


def test_karras_own_rho_may_be_passed_along_with_any_grid() -> None:
    for grid in (None, "beta", "normal"):
        assert of(5, grid=grid, rho=7.0).num_steps == 5
