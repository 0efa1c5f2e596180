"""Against a float64 truth: recorded runs of diffusers, and k-diffusion's published algorithms.

The yardstick is the truth (tests/truth.py), not diffusers: its float32 rounds too, and where it is
wrong and not just inexact the recordings leave it out (tests/golden/generate.py).
"""

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import k_truth
import numpy as np
import pytest
import recordings
import truth

import kdiff_jax as kd
from kdiff_jax.adapters import diffusers as kd_diffusers

CASES = recordings.load_cases()
MOST_ROWS = max(len(case.timesteps) for case in CASES)
CALL_KEYS = ("num_inference_steps", "timesteps", "original_inference_steps", "strength")


# --- one recorded run ------------------------------------------------------------------------


def network(net: dict[str, jax.Array], x: jax.Array, timestep: jax.Array) -> jax.Array:
    """`recordings.network` in float32, its coefficients params, so that one jit serves all."""
    flat, time = x.reshape(x.shape[0], -1), timestep[:, None]
    early = 1 - (time + 1) / net["num_train_timesteps"]
    wave = jnp.cos(net["frequency"] * time + net["phase"])
    hidden = jnp.tanh(flat @ net["weight"] + wave * net["bias"][None])
    linear = net["linear"] + net["linear_slope"] * early**2
    gain = net["gain"] + net["gain_slope"] * early
    return (linear * flat + gain * hidden).reshape(x.shape)


@jax.jit
def evaluate(denoise: Any, params: Any, x: jax.Array, row: kd.Row) -> kd.Prediction:
    prediction: kd.Prediction = denoise(params, x, row)
    return prediction


def schedule_of(case: recordings.Case) -> kd.Schedule:
    """The whole run of a case."""
    arguments = {k: case.call[k] for k in CALL_KEYS if case.call[k] is not None}
    return kd_diffusers.from_config(case.config).schedule(**arguments)


def started(case: recordings.Case) -> kd.Schedule:
    """The run of a case from the step where it began."""
    sampler = kd_diffusers.from_config(case.config)
    arguments = {k: case.call[k] for k in CALL_KEYS if case.call[k] is not None}
    levels = sampler.levels(**arguments).start_at(case.call["begin_index"])
    schedule: kd.Schedule = getattr(kd, sampler.name)(levels)
    return schedule


def run(case: recordings.Case) -> np.ndarray:
    """The sample after every evaluation, stepped by hand with the noise that was recorded."""
    denoise = kd_diffusers.from_config(case.config).denoiser(network)
    # One shape, so that the programs that take a row are few.
    schedule = started(case).pad(MOST_ROWS)
    params = {k: jnp.float32(v) for k, v in dataclasses.asdict(case.network).items()}
    noise = dict(zip(case.noise_rows, case.noise, strict=True))
    state = kd.init(schedule, jnp.asarray(case.initial))
    samples = []
    for row in schedule:
        prediction = evaluate(denoise, params, state.sample, row)
        # A noise row without its noise is refused, so the rows that draw are checked as well.
        state = kd.step(state, row, prediction, noise=noise.pop(int(row.index), None))
        samples.append(np.asarray(state.sample))
    assert not noise, "noise was recorded for rows that do not exist"
    return np.stack(samples)


@dataclasses.dataclass(frozen=True)
class Errors:
    """Relative to the truth, the worst over all evaluations of a case."""

    ours: float
    theirs: float  # of diffusers
    rounding: float  # of the truth with the network's input, output and the state in float32


def errors_of(case: recordings.Case) -> Errors:
    exact = truth.replay(case).samples
    return Errors(
        recordings.relative_error(run(case), exact),
        recordings.relative_error(case.samples, exact),
        recordings.relative_error(truth.replay(case, round32=True).samples, exact),
    )


# --- the truth -------------------------------------------------------------------------------


def test_there_are_enough_recordings_of_every_kind() -> None:
    assert len(CASES) >= 150
    assert recordings.load_versions()["diffusers"] == "0.42.1"
    for class_name in (recordings.KDPM2, recordings.ANCESTRAL, recordings.LCM):
        of_class = [case for case in CASES if case.config["_class_name"] == class_name]
        assert len(of_class) >= 40
        assert sum(case.call["begin_index"] > 0 for case in of_class) >= 5
    for what in ("timesteps", "strength", "original_inference_steps"):
        assert sum(case.call[what] is not None for case in CASES) >= 5


def test_recorded_runs_are_as_exact_as_float32_allows_and_more_than_in_diffusers(
    record_property: Callable[[str, object], None],
) -> None:
    # One test: the runs take ten seconds, and each worker would make them anew.
    errors = {case.name: errors_of(case) for case in CASES}
    for name, error in errors.items():
        # NaN fails as well.
        assert error.ours <= max(2e-5, error.theirs / 2, 10 * error.rounding), (name, error)

    summary = {}
    for who in ("ours", "theirs", "rounding"):
        values = [getattr(error, who) for error in errors.values()]
        median, ninth, worst = np.quantile(values, [0.5, 0.9, 1.0])
        summary[who] = {"median": median, "p90": ninth, "max": worst}
    text = json.dumps(summary)
    record_property("relative error to the truth", text)
    print(text)  # shown where the test fails
    assert summary["ours"]["median"] <= 3e-7
    assert summary["ours"]["p90"] <= 1e-6
    for quantile, value in summary["ours"].items():
        assert value <= summary["theirs"][quantile] / 2


def test_every_table_has_the_grid_of_the_truth() -> None:
    for case in CASES:
        schedule, exact = schedule_of(case), truth.replay(case)
        assert schedule.num_rows == len(exact.timesteps), case.name
        timesteps = np.asarray(schedule.rows.timestep)
        np.testing.assert_allclose(timesteps, exact.timesteps, 2e-7, 1e-5, err_msg=case.name)
        if len(exact.sigmas):  # LCM has its levels in variance-preserving units
            np.testing.assert_allclose(schedule.sigmas, exact.sigmas, 2e-7, err_msg=case.name)
        start = float(schedule.init_noise_sigma)
        assert start == pytest.approx(exact.init_noise_sigma, rel=2e-7), case.name
        weight = schedule.rows.noise_weight
        draws = np.flatnonzero([] if weight is None else weight)
        draws = draws[draws >= case.first_row]
        np.testing.assert_array_equal(draws, case.noise_rows, err_msg=case.name)


def test_image_to_image_starts_at_the_level_of_its_first_row() -> None:
    for case in (case for case in CASES if case.clean is not None):
        row = started(case).pad(MOST_ROWS)[0]
        found = kd.add_noise(row, jnp.asarray(case.clean), jnp.asarray(case.clean_noise))
        clean, noise = (np.asarray(v, np.float64) for v in (case.clean, case.clean_noise))
        if case.config["_class_name"] == recordings.LCM:
            abar = truth.alphas_cumprod(case.config)[
                int(truth.replay(case).timesteps[case.first_row])
            ]
            exact = math.sqrt(abar) * clean + math.sqrt(1 - abar) * noise
        else:
            exact = clean + truth.replay(case).sigmas[case.call["begin_index"]] * noise
        assert recordings.relative_error(found[None], exact[None]) < 3e-7, case.name
        # diffusers starts there too, within its own rounding of the level.
        assert recordings.relative_error(case.initial[None], exact[None]) < 2e-4, case.name


# --- k-diffusion -----------------------------------------------------------------------------

NOISE = kd.noise_schedule("scaled_linear")


def score(params: jax.Array, x: jax.Array, timestep: jax.Array) -> jax.Array:
    """A smooth network that mixes neighbours and does not read its timestep."""
    del timestep
    return params * jnp.tanh(x) + 0.2 * jnp.roll(x, 1, axis=1)


def k_denoiser(params: float) -> Callable[[np.ndarray, float], np.ndarray]:
    """The same network as k-diffusion wraps it: `denoised = x - sigma * out(x / sqrt(1 + s^2))`."""

    def denoised(x: np.ndarray, sigma: float) -> np.ndarray:
        scaled = x / math.sqrt(1 + sigma**2)
        return x - sigma * (params * np.tanh(scaled) + 0.2 * np.roll(scaled, 1, axis=1))

    return denoised


def random_grid(rng: np.random.Generator) -> np.ndarray:
    """Descending noise levels over three decades, closed by 0."""
    count = int(rng.integers(1, 16))
    return np.append(np.sort(np.exp(rng.uniform(np.log(0.02), np.log(50), count)))[::-1], 0)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("ancestral", [False, True])
def test_dpm2_is_k_diffusion_on_random_grids(seed: int, ancestral: bool) -> None:
    rng = np.random.default_rng([seed, ancestral])
    sigmas = random_grid(rng)
    params = float(np.float32(rng.uniform(0.2, 0.6)))
    x = (sigmas[0] * rng.standard_normal((2, 6))).astype(np.float32)
    noise = rng.standard_normal((len(sigmas) - 1, 2, 6)).astype(np.float32)
    expected: list[np.ndarray] = []
    if ancestral:
        eta, s_noise = (
            float(rng.choice([0.0, rng.uniform(0, 1), 1.0])),
            float(rng.uniform(0.5, 1.5)),
        )
        schedule = kd.dpm2_ancestral(kd.levels(NOISE, sigmas=sigmas), eta=eta, s_noise=s_noise)
        k_truth.k_sample_dpm_2_ancestral(
            k_denoiser(params), x, sigmas, eta, s_noise, noise, trace=expected
        )
    else:
        schedule = kd.dpm2(kd.levels(NOISE, sigmas=sigmas))
        k_truth.k_sample_dpm_2(k_denoiser(params), x, sigmas, trace=expected)

    denoise, schedule = kd.denoiser(score), schedule.pad(32)
    state = kd.init(schedule, jnp.asarray(x))
    found = []
    for row in schedule:
        prediction = evaluate(denoise, jnp.float32(params), state.sample, row)
        state = kd.step(state, row, prediction, noise=jnp.asarray(noise[int(row.step)]))
        found.append(state.sample)
    assert len(found) == len(expected) == 2 * len(sigmas) - 3
    assert recordings.relative_error(np.stack(found), np.stack(expected)) < 2e-6
    if not ancestral:
        whole = kd.sample(denoise, jnp.float32(params), schedule, jnp.asarray(x))
        assert recordings.relative_error(whole[None], expected[-1][None]) < 2e-6
