"""Zero terminal SNR for DPM2 and Euler: from a sigma of 4096, exact, and never for epsilon."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import k_truth
import numpy as np
import pytest
from samplers import relative_error, x64

import kdiff_jax as kd

NOISE = kd.noise_schedule("scaled_linear", beta_end=0.0125, rescale_zero_terminal_snr=True)
FLOOR = np.sqrt(2.0**24 - 1)
SAMPLERS: list[Any] = [kd.euler, kd.dpm2, kd.dpm2_ancestral]
MEAN, WIDTH = 0.4, 0.6

with np.load(Path(__file__).parents[1] / "golden" / "grids.npz") as stored:
    CASES = json.loads(str(stored["header"]))["cases"]
    RECORDED = [(case, stored[str(i)]) for i, case in enumerate(CASES)]


@pytest.mark.parametrize("kind", ["zero_snr", "zero_snr_float32"])
def test_the_levels_are_those_of_diffusers_euler(kind: str) -> None:
    rose = 0
    for case, theirs in RECORDED:
        if case["name"] != kind:
            continue
        noise = kd.noise_schedule(**case["arguments"], rescale_zero_terminal_snr=True)
        found = kd.levels(noise, len(theirs)).sigmas[-2::-1]
        assert np.all(np.diff(found) > 0)
        # Where the level before the last is above 4096 already, theirs falls there; ours rises.
        rises = theirs[-1] > theirs[-2]
        rose += bool(rises)
        last = len(theirs) if rises else -1
        # In float32 they take 1 - alphas_cumprod, which cancels at the first levels.
        rtol = 1e-8 if kind == "zero_snr" else 3e-3
        np.testing.assert_allclose(found[:last], theirs[:last], rtol=rtol)
        assert theirs[-1] == pytest.approx(FLOOR, rel=1e-7)
    assert 2 <= rose <= 5


@pytest.mark.parametrize("grid", [None, "karras", "beta", "kl_optimal", "normal"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_tables_are_finite_and_as_exact_as_float32(sampler: Any, grid: Any) -> None:
    for num_steps in (1, 2, 7, 50):
        for spacing in ("linspace", "trailing") if grid != "normal" else ("linspace",):
            options: Any = {"timestep_spacing": spacing, "grid": grid}
            levels = kd.levels(NOISE, num_steps, **options)
            found = sampler(levels)
            with x64():
                exact = sampler(levels)
            assert found.sigmas[0] == found.init_noise_sigma == np.float32(FLOOR)
            assert found.rows.timestep[0] == 999
            assert found.zero_terminal_snr
            for leaf, expected in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
                assert np.all(np.isfinite(leaf))
                np.testing.assert_allclose(leaf, expected, rtol=1.2e-7)


def test_a_traced_noise_schedule_gives_the_same_table() -> None:
    def build(noise: kd.NoiseSchedule) -> kd.Schedule:
        return kd.dpm2_ancestral(kd.levels(noise, 6))

    built, expected = jax.jit(build)(NOISE), build(NOISE)
    for leaf, other in zip(jax.tree.leaves(built), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=5e-6)


def velocity(params: Any, xs: jax.Array, timestep: jax.Array) -> jax.Array:
    """The output of a v network that knows the data exactly: Gaussian, of that mean and width."""
    at, table = np.arange(1000.0), np.log(NOISE.finite().sigmas)
    sigma = jnp.exp(jnp.interp(timestep, at.astype(xs.dtype), table.astype(xs.dtype)))
    sigma = sigma.astype(xs.dtype)[:, None]
    scale = jnp.sqrt(1 + sigma**2)
    # v = eps / scale - sigma * x0 / scale, both halves of x = scale * xs in closed form.
    away = scale * xs - MEAN
    denoised = MEAN + WIDTH**2 / (WIDTH**2 + sigma**2) * away
    return (sigma / (WIDTH**2 + sigma**2) * away - sigma * denoised) / scale


@pytest.mark.parametrize("name", ["dpm2", "dpm2_ancestral"])
def test_a_run_from_4096_is_that_of_k_diffusion_in_float64(name: str) -> None:
    levels = kd.levels(NOISE, 30, grid="karras")
    schedule = getattr(kd, name)(levels)
    x = kd.initial_sample(schedule, jax.random.key(0), (64, 16))
    key = jax.random.key(1)
    sampler = getattr(k_truth, name.replace("dpm2", "k_sample_dpm_2"))
    extra = {}
    if name == "dpm2_ancestral":
        landings = range(1, schedule.num_rows, 2)
        noise = [kd.row_noise(key, schedule[i], x.shape) for i in landings]
        extra = {"noise": np.asarray(noise, np.float64)}

    def model(x: np.ndarray, sigma: float) -> np.ndarray:
        return MEAN + WIDTH**2 / (WIDTH**2 + sigma**2) * (x - MEAN)

    expected = sampler(model, x, levels.sigmas, **extra)
    found = kd.sample(kd.denoiser(velocity, "v_prediction"), None, schedule, x, key)
    assert relative_error(found, expected) < 2e-5


def test_runs_from_4096_converge_to_the_data_at_second_order() -> None:
    """Against the flow of a Gaussian, whose solution is known; the rest is the solver's error."""
    errors = []
    for num_steps in (30, 60):
        schedule = kd.dpm2(kd.levels(NOISE, num_steps, grid="karras"))
        x = kd.initial_sample(schedule, jax.random.key(0), (64, 16))
        found = kd.sample(kd.denoiser(velocity, "v_prediction"), None, schedule, x)
        away = (np.asarray(x, np.float64) - MEAN) / np.hypot(WIDTH, FLOOR)
        errors.append(relative_error(found, MEAN + WIDTH * away))
        assert np.std(found) == pytest.approx(WIDTH, rel=0.08)
    assert errors[0] < 4e-2
    assert errors[0] / errors[1] > 3.5


def test_an_epsilon_network_is_refused_and_the_others_are_not() -> None:
    x, key = jnp.ones((2, 4)), jax.random.key(0)
    for sampler in SAMPLERS:
        schedule = sampler(kd.levels(NOISE, 3)).pad(5)
        with pytest.raises(ValueError, match=r"'epsilon'.*rescale_zero_terminal_snr=True"):
            kd.sample(kd.denoiser(velocity), None, schedule, x, key)
        kind: Any = "sample" if sampler is kd.euler else "v_prediction"
        assert np.all(np.isfinite(kd.sample(kd.denoiser(velocity, kind), None, schedule, x, key)))


def test_other_noise_schedules_are_left_alone_and_lcm_keeps_its_zero() -> None:
    plain = kd.noise_schedule()
    assert plain.finite() is plain
    assert np.isinf(NOISE.sigmas[-1])
    assert kd.lcm(kd.lcm_levels(NOISE, 4))[0].alpha == 0
