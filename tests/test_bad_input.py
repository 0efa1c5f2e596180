"""What is refused, and that the message says what came; and where the references are wrong."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kdiff_jax as kd
from kdiff_jax.adapters import diffusers as kd_diffusers

NOISE = kd.noise_schedule("scaled_linear")
COSINE = kd.noise_schedule("squaredcos_cap_v2")
NO_SIGNAL = kd.noise_schedule(rescale_zero_terminal_snr=True)
ANCESTRAL = kd.dpm2_ancestral_schedule(NOISE, 3)
DPM2 = kd.dpm2_schedule(NOISE, 3)
X = jnp.ones((2, 3))
KEY = jax.random.key(0)
BUILDERS: list[Any] = [kd.euler_schedule, kd.dpm2_schedule, kd.dpm2_ancestral_schedule]


def network(params: Any, x: jax.Array, timestep: jax.Array, cond: Any = None) -> jax.Array:
    del timestep, cond
    return params * x


DENOISE = kd.denoiser(network)
PREDICTION = kd.Prediction(X, X)


def noise(**arguments: Any) -> kd.NoiseSchedule:
    return kd.noise_schedule(**arguments)


def dpm2(*args: Any, **arguments: Any) -> kd.Schedule:
    return kd.dpm2_schedule(NOISE, *args, **arguments)


def ancestral(**arguments: Any) -> kd.Schedule:
    return kd.dpm2_ancestral_schedule(NOISE, 5, **arguments)


def lcm(*args: Any, **arguments: Any) -> kd.Schedule:
    return kd.lcm_schedule(NOISE, *args, **arguments)


def config(name: str = "KDPM2Discrete", sampler: str | None = None, **keys: Any) -> Any:
    return kd_diffusers.from_config({"_class_name": f"{name}Scheduler", **keys}, sampler)


def guided(cond: Any = None) -> kd.Prediction:
    return kd.guided(DENOISE, 2.0, jnp.zeros(()))(1.0, X, DPM2[0], cond)


# Each line: what is called, and a pattern that its message must match: the name of what is
# wrong, and the value that came.
REFUSED: list[tuple[Callable[[], Any], str]] = [
    # noise levels of training
    (lambda: noise(beta_schedule="cosine"), "beta_schedule = 'cosine'.*'linear'.*'scaled_linear'"),
    (lambda: noise(beta_schedule=None), "beta_schedule = None"),
    (lambda: noise(num_train_timesteps=0), "num_train_timesteps = 0"),
    (lambda: noise(num_train_timesteps=10.5), "num_train_timesteps = 10.5.*integer"),
    (lambda: noise(beta_start=0.0), "beta_start = 0.0"),
    (lambda: noise(beta_end=1.0), "beta_end = 1.0"),
    (lambda: noise(beta_end=float("nan")), "beta_end = nan"),
    (lambda: noise(beta_start="0.1"), "beta_start = '0.1'"),
    (lambda: noise(trained_betas=[0.1, 0.2]), "trained_betas has 2 .*num_train_timesteps is 1000"),
    (lambda: noise(num_train_timesteps=2, trained_betas=[0.1, 1.0]), r"trained_betas .*0.1, 1.0\]"),
    (lambda: noise(num_train_timesteps=2, trained_betas=[0, 0.5]), r"trained_betas .*\[0.0, 0.5\]"),
    (lambda: noise(num_train_timesteps=1, trained_betas=[np.nan]), "trained_betas .*NaN"),
    (lambda: noise(trained_betas=[]), r"trained_betas .*\(0,\)"),
    (lambda: noise(trained_betas=[[0.1]]), r"trained_betas .*\(1, 1\)"),
    (lambda: noise(num_train_timesteps=1, rescale_zero_terminal_snr=True), "rescale_zero.*got 1"),
    (
        lambda: NOISE.add_noise(X, X, jnp.array([0, 1000])),
        r"timesteps span \[0, 1000\].*\[0, 999\]",
    ),
    (lambda: NOISE.add_noise(X, X, jnp.array([-1, 5])), r"timesteps span \[-1, 5\]"),
    (lambda: NOISE.velocity(X, X, jnp.array([0.5, 5])), "timesteps are float32.*integers"),
    (lambda: NOISE.velocity(X, X, jnp.array(5)), r"timesteps \(\) do not fit"),
    (lambda: NOISE.add_noise(X, X[0], jnp.array([1, 2])), r"x0 \(2, 3\), eps \(3,\)"),
    (lambda: NOISE.add_noise(X.astype(int), X, jnp.array([1, 2])), "int32.*floating"),
    # step counts and grids
    *((lambda b=b: b(NOISE, 0), "num_steps = 0.*at least 1") for b in [*BUILDERS, kd.lcm_schedule]),
    (lambda: dpm2(-3), "num_steps = -3"),
    (lambda: dpm2(2.0), "num_steps = 2.0.*integer"),
    (lambda: dpm2("5"), "num_steps = '5'.*integer"),
    (lambda: dpm2(True), "num_steps = True.*integer"),
    (lambda: dpm2(), "num_steps is missing"),
    (lambda: lcm(2.5), "num_steps = 2.5.*integer"),
    (lambda: dpm2(5, timestep_spacing="even"), "timestep_spacing = 'even'.*'trailing'"),
    (lambda: dpm2(5, grid="cosine"), "grid = 'cosine'.*'karras'"),
    (lambda: dpm2(5, grid=["karras"]), r"grid = \['karras'\]"),
    (
        lambda: dpm2(1001, timestep_spacing="leading"),
        "num_steps = 1001.*num_train_timesteps = 1000",
    ),
    (lambda: dpm2(1001, timestep_spacing="trailing"), "num_steps = 1001.*'trailing'"),
    (lambda: dpm2(10, timestep_spacing="leading", steps_offset=100), "steps_offset = 100.*999"),
    (lambda: dpm2(1, timestep_spacing="leading", steps_offset=1000), "steps_offset = 1000.*999"),
    (lambda: dpm2(10, steps_offset=-1), "steps_offset = -1"),
    (lambda: dpm2(10, steps_offset=0.5), "steps_offset = 0.5.*integer"),
    (lambda: dpm2(timesteps=[9, 5], sigmas=[3.0, 1.0]), "timesteps and sigmas.*give one"),
    (lambda: dpm2(grid="karras", sigmas=[3.0, 1.0]), "grid and sigmas.*give one"),
    (lambda: dpm2(sigma_max=9.0, timesteps=[9, 5]), "sigma_max and timesteps.*give one"),
    (lambda: dpm2(5, sigma_max=9.0), "sigma_max = 9.0.*grid="),
    (lambda: dpm2(5, grid="beta", rho=3.0), "rho = 3.0.*'beta'"),
    (lambda: dpm2(5, grid="karras", rho=0.0), "rho = 0.0"),
    (lambda: dpm2(5, grid="karras", sigma_min=0.0), "sigma_min = 0.0"),
    (lambda: dpm2(5, grid="karras", sigma_max=float("inf")), "sigma_max = inf"),
    (
        lambda: dpm2(5, grid="beta", sigma_min=2.0, sigma_max=1.0),
        "sigma_min = 2.0.*sigma_max = 1.0",
    ),
    (lambda: dpm2(5, timesteps=[9, 5]), "num_steps = 5.*timesteps holds 2"),
    (lambda: dpm2(timesteps=[5, 9]), r"timesteps = \[5.0, 9.0\].*descending"),
    (lambda: dpm2(timesteps=[1000, 9]), r"timesteps span \[9.0, 1000.0\].*\[0, 999\]"),
    (lambda: dpm2(timesteps=[9, -0.5]), r"timesteps span \[-0.5, 9.0\]"),
    (lambda: dpm2(timesteps=[]), r"timesteps .*\(0,\)"),
    (lambda: dpm2(sigmas=[1.0, 3.0]), r"sigmas = \[1.0, 3.0\].*descending"),
    (lambda: dpm2(sigmas=[3.0, 3.0]), r"sigmas = \[3.0, 3.0\].*strictly"),
    (lambda: dpm2(sigmas=[3.0, -1.0]), r"sigmas = \[3.0, -1.0\].*positive"),
    (lambda: dpm2(sigmas=[0.0]), r"sigmas = \[0.0\]"),
    (lambda: dpm2(sigmas=[3.0, np.nan]), "sigmas .*NaN"),
    # ancestral steps
    (lambda: ancestral(eta=-0.1), "eta = -0.1"),
    (lambda: ancestral(eta=1.5), r"eta = 1.5 is too large: .* to 0.0291672 allows eta below 1.00"),
    (lambda: ancestral(eta=float("nan")), "eta = nan"),
    (lambda: ancestral(eta=np.ones(3)), r"eta has shape \(3,\).*\[5\]"),
    (lambda: ancestral(s_noise=-1.0), "s_noise = -1.0"),
    (lambda: kd.euler_schedule(NOISE, 5, eta=9.0), "eta = 9.0 is too large"),
    # LCM
    (lambda: lcm(), "num_steps = None and timesteps = None.*exactly one"),
    (lambda: lcm(4, timesteps=[9, 5]), r"num_steps = 4 and timesteps = \[9, 5\].*exactly one"),
    (lambda: lcm(timesteps=[5, 9]), r"timesteps = \[5.0, 9.0\].*descending"),
    (lambda: lcm(timesteps=[9, 9]), r"timesteps = \[9.0, 9.0\].*strictly"),
    (lambda: lcm(timesteps=[]), r"timesteps .*\(0,\)"),
    (lambda: lcm(timesteps=[499.7, 5]), r"timesteps = \[499.7, 5.0\].*whole"),
    (lambda: lcm(timesteps=[499, -1]), r"timesteps = \[499.0, -1.0\].*\[0, 999\]"),
    (lambda: lcm(timesteps=[1000, 5]), r"timesteps = \[1000.0, 5.0\].*\[0, 999\]"),
    (lambda: lcm(timesteps=["a"]), "timesteps = .*'a'"),
    (lambda: lcm(4, strength=0.0), "strength = 0.0"),
    (lambda: lcm(4, strength=1.01), r"strength = 1.01.*\(0, 1\]"),
    (lambda: lcm(4, strength=float("nan")), "strength = nan"),
    (lambda: lcm(timesteps=[9, 5], strength=0.4), "strength = 0.4 leaves none of 2"),
    (lambda: lcm(51), "num_steps = 51.*50 timesteps"),
    (lambda: lcm(26, strength=0.5), "num_steps = 26.*25 timesteps.*strength = 0.5"),
    (lambda: lcm(4, original_steps=1001), "original_steps = 1001.*1000"),
    (lambda: lcm(4, original_steps=0), "original_steps = 0"),
    # denoisers
    (lambda: kd.denoiser(network, "flow"), "prediction_type = 'flow'.*'v_prediction'"),
    (lambda: kd.denoiser(3), "model_fn = 3 is not callable"),  # type: ignore[arg-type]
    (lambda: kd.denoiser(network, dtype=int), "dtype .*int"),
    (lambda: kd.clipped(DENOISE, 0.0), "clip_range = 0.0"),
    (lambda: kd.thresholded(DENOISE, sample_max_value=0.5), "sample_max_value = 0.5.*at least 1"),
    (lambda: kd.thresholded(DENOISE, ratio=1.5), r"ratio = 1.5.*\(0, 1\]"),
    (lambda: kd.consistency(DENOISE, timestep_scaling=0.0), "timestep_scaling = 0.0"),
    (lambda: kd.consistency(DENOISE, sigma_data=-0.5), "sigma_data = -0.5"),
    (lambda: kd.guided(DENOISE, float("nan"), 0), "scale = nan"),
    (lambda: guided(), "without cond"),
    (lambda: guided({"label": X}), "cond is .*label"),
    (lambda: kd.denoiser(lambda p, x, t: x[0])(0, X, DPM2[0]), r"shape \(3,\).*shape \(2, 3\)"),
    # stepping and sampling
    (lambda: DPM2.start_at(3), "step = 3 is past the end.*3 outer steps"),
    (lambda: DPM2.start_at(-1), "step = -1"),
    (lambda: DPM2.start_at(0.5), "step = 0.5.*integer"),  # type: ignore[arg-type]
    (lambda: DPM2.start_at_strength(0.3), "strength = 0.3 leaves none of 3 outer steps"),
    (lambda: DPM2.start_at_strength(0), "strength = 0.0 is out of range"),
    (lambda: DPM2.start_at_strength(1.2), "strength = 1.2 is out of range"),
    (
        lambda: kd.step(kd.init(ANCESTRAL, X), ANCESTRAL[1], PREDICTION),
        rf"row 1 draws noise \(noise_weight = {ANCESTRAL[1].noise_weight}\).*key=.*noise=",
    ),
    (
        lambda: kd.step(kd.init(DPM2, X), DPM2[1], PREDICTION, key=KEY, noise=X),
        "both key and noise",
    ),
    (
        lambda: kd.step(kd.init(DPM2, X), DPM2[1], PREDICTION, noise=X[0]),
        r"noise has shape \(3,\).*\(2, 3\)",
    ),
    (lambda: kd.sample(DENOISE, 0.1, ANCESTRAL, X), "draws noise.*no key"),
    (lambda: kd.sample(DENOISE, 0.1, ANCESTRAL, X, key=7), "key = 7"),  # type: ignore[arg-type]
    (lambda: kd.sample(DENOISE, 0.1, ANCESTRAL, X, jax.random.split(KEY, 3)), r"\(3,\).*2 samples"),
    (lambda: kd.initial_sample(DPM2, jax.random.key(0, impl="rbg"), (2, 3)), "rbg.*threefry"),
    (lambda: kd.initial_sample(DPM2, KEY, ()), "shape is empty"),
    (lambda: kd.init(DPM2, jnp.float32(1)), "scalar.*batch axis"),
    (lambda: kd.init(DPM2, jnp.ones((2, 3), int)), "int32.*floating"),
    (lambda: kd.add_noise(DPM2[0], X, X[0]), r"x0 \(2, 3\) and eps \(3,\)"),
    (
        lambda: kd.sample(DENOISE, 0.1, kd.lcm_schedule(NO_SIGNAL, 4), X, KEY),
        "prediction_type='epsilon'.*rescale_zero_terminal_snr=True",
    ),
    *(
        (
            lambda build=build: kd.sample(DENOISE, 0.1, build(NO_SIGNAL, 4), X, KEY),
            "prediction_type='epsilon'.*rescale_zero_terminal_snr=True",
        )
        for build in BUILDERS
    ),
    # configs
    (lambda: config("PNDM"), "_class_name = 'PNDMScheduler'.*sampler='dpm2'"),
    (lambda: config(sampler="ddim"), "sampler = 'ddim'.*'dpm2_ancestral'"),
    (lambda: kd_diffusers.from_config({}), "_class_name = None.*sampler="),
    (
        lambda: config(use_karras_sigmas=True, use_beta_sigmas=True),
        "use_karras_sigmas and use_beta_sigmas",
    ),
    (
        lambda: config("LCM", rescale_betas_zero_snr=True),
        "prediction_type='epsilon'.*rescale_betas_zero_snr=true",
    ),
    (
        lambda: config(rescale_betas_zero_snr=True),
        "prediction_type='epsilon'.*rescale_betas_zero_snr=true",
    ),
    (lambda: config(rescale_betas_zero_snr="no"), "rescale_betas_zero_snr = 'no'.*truth value"),
    (lambda: config("LCM", thresholding=True, sample_max_value=0.5), "sample_max_value = 0.5"),
    (lambda: config("LCM").schedule(), "num_steps = None and timesteps = None"),
    (lambda: config().schedule(5, strength=0.5), "strength given to a dpm2 sampler.*start_at"),
    (lambda: config().schedule(timesteps=[5]), "timesteps given to a dpm2 sampler"),
    (lambda: kd_diffusers.from_config(Path("no/such/folder")), "no scheduler config at no/such"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_bad_input_is_refused_by_name_with_what_came(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        call()


def test_noise_levels_that_float32_cannot_hold_are_refused() -> None:
    # A thousand betas of a half leave less than 1e-300 of the signal.
    for beta in (0.5, 0.9):
        with pytest.raises(ValueError, match="beta"):
            kd.noise_schedule("linear", beta_start=beta, beta_end=beta + 0.05)


# --- where the references are wrong ----------------------------------------------------------


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("builder", BUILDERS)
def test_one_step_is_an_euler_step_from_the_highest_noise(builder: Any, spacing: str) -> None:
    schedule = builder(NOISE, 1, timestep_spacing=spacing)
    assert (schedule.num_steps, schedule.num_rows) == (1, 1)
    assert schedule[0].timestep == 999
    state = kd.init(schedule, 10 * X)
    state = kd.step(state, schedule[0], DENOISE(0.1, state.sample, schedule[0]))
    sigma = NOISE.sigmas[-1]
    expected = 10 - sigma * (0.1 * 10 / np.sqrt(1 + sigma**2))
    np.testing.assert_allclose(state.sample, np.full((2, 3), expected), rtol=1e-6)


def test_trailing_takes_n_steps_where_the_reference_takes_one_more() -> None:
    extra = [n for n in range(1, 1001) if len(np.arange(1000, 0, -1000 / n)) == n + 1]
    assert len(extra) == 62
    assert {61, 103} <= set(extra)
    for num_steps in extra[::10]:  # every N at the level of the grid: test_spacing.py
        schedule = kd.euler_schedule(NOISE, num_steps, timestep_spacing="trailing")
        assert schedule.num_steps == num_steps
        assert schedule[-1].timestep >= 0


@pytest.mark.parametrize("num_steps", [2, 3, 5, 8])
def test_ancestral_steps_of_the_cosine_schedule_are_finite_and_noisy(num_steps: int) -> None:
    sigmas = np.interp(np.linspace(999, 0, num_steps), np.arange(1000), COSINE.sigmas)
    s0, s1 = sigmas[:-1].astype(np.float32), sigmas[1:].astype(np.float32)
    # In float32 the published difference loses sigma_down: 0, NaN or far off.
    up = s1 * np.sqrt((s0**2 - s1**2) / s0**2)
    with np.errstate(invalid="ignore"):
        published = np.sqrt(s1**2 - up**2)
    assert not np.all(np.abs(published / (sigmas[1:] ** 2 / sigmas[:-1]) - 1) < 0.01)

    schedule = kd.dpm2_ancestral_schedule(COSINE, num_steps)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(schedule))
    assert np.all(schedule.rows.noise_weight[1::2] > 0)
    assert schedule[-1].noise_weight == 0
    assert np.all(np.isfinite(kd.sample(DENOISE, 0.1, schedule, X, KEY)))


def test_noise_is_drawn_whenever_the_next_level_is_not_zero() -> None:
    # k-diffusion drops it where sigma_down, here 1e-9, rounds to 0.
    row = kd.dpm2_ancestral_schedule(NOISE, sigmas=[1e3, 1e-3])[1]
    assert row.noise_weight == pytest.approx(1e-3, rel=1e-6)
    assert row.epsilon_weight == pytest.approx(-1e3, rel=1e-6)


def test_networks_that_predict_the_sample_work_in_dpm2() -> None:
    answer = kd.denoiser(lambda params, x, timestep: jnp.full(x.shape, params), "sample")
    found = kd.sample(answer, jnp.float32(0.7), dpm2(6), 10 * X)
    np.testing.assert_array_equal(found, jnp.full((2, 3), 0.7))


def test_runs_start_at_whole_steps_only() -> None:
    for schedule in (DPM2, ANCESTRAL):
        for step in range(schedule.num_steps):
            row = schedule.start_at(step)[0]
            assert (row.step, row.index, row.anchor_weight) == (step, 2 * step, 0)


def test_rows_are_found_by_position_where_timesteps_repeat() -> None:
    schedule = dpm2(100, grid="karras", round_timesteps=True)
    told = np.asarray(schedule.rows.timestep[::2])
    assert len(set(told)) < 100
    # A new level at every step, whatever the network is told.
    assert np.all(np.diff(schedule.rows.sigma[::2]) < 0)
    i = int(np.flatnonzero(np.diff(told) == 0)[0])
    assert schedule[2 * i].timestep == schedule[2 * i + 2].timestep
    assert schedule[2 * i].sigma > schedule[2 * i + 2].sigma


@pytest.mark.parametrize("strength", [1.0, 0.75, 0.5, 0.25])
def test_the_last_lcm_row_is_noiseless_after_timesteps_with_a_strength(strength: float) -> None:
    schedule = lcm(timesteps=[999, 759, 499, 259], strength=strength)
    assert schedule.num_steps == 4 * strength
    assert schedule[-1].noise_weight == 0
    assert schedule[-1].denoised_weight == 1
    assert np.all(schedule.rows.noise_weight[:-1] > 0)
