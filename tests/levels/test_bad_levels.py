"""What is refused before a table is filled, and that the message shows what was received."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import Refusal, check, every, unreached

import kdiff_jax as kd

NOISE = kd.noise_schedule("scaled_linear")
FLOW = kd.flow_schedule(shift=3.0)
X = jnp.ones((2, 3))
LEVELS = kd.levels(NOISE, 3)
UP = LEVELS.reversed()
CHURNED = LEVELS.churned(1.0)


def noise(**arguments: Any) -> kd.NoiseSchedule:
    return kd.noise_schedule(**arguments)


def of(*args: Any, **options: Any) -> kd.Levels:
    return kd.levels(NOISE, *args, **options)


def alone(*args: Any, **options: Any) -> kd.Levels:
    return kd.levels(None, *args, **options)


def on_flow(*args: Any, **options: Any) -> kd.Levels:
    return kd.levels(FLOW, *args, **options)


def lcm(*args: Any, **options: Any) -> kd.Levels:
    return kd.lcm_levels(NOISE, *args, **options)


NOISE_SCHEDULE: list[Refusal] = [
    (lambda: noise(beta_schedule="cosine"), "beta_schedule = 'cosine'.*'linear'.*'scaled_linear'"),
    (lambda: noise(beta_schedule=None), "beta_schedule = None"),
    (lambda: noise(num_train_timesteps=0), "num_train_timesteps = 0"),
    (lambda: noise(num_train_timesteps=10.5), "num_train_timesteps = 10.5.*integer"),
    (lambda: noise(beta_start=0.0), "beta_start = 0.0"),
    (lambda: noise(beta_end=1.0), "beta_end = 1.0"),
    (lambda: noise(beta_end=float("nan")), "beta_end = nan"),
    (lambda: noise(beta_start="0.1"), "beta_start = '0.1'"),
    (lambda: jax.jit(lambda b: noise(beta_end=b).sigmas)(0.02), "beta_end is traced.*pass a numb"),
    (lambda: jax.jit(lambda b: noise(trained_betas=b).sigmas)(X[0]), "trained_betas is traced"),
    (lambda: noise(rescale_zero_terminal_snr="false"), "rescale_zero_terminal_snr = 'false' is ne"),
    (
        lambda: noise(
            num_train_timesteps=3,
            trained_betas=[0.99, 1e-17, 1e-17],
            rescale_zero_terminal_snr=True,
        ),
        "levels that do not rise",
    ),
    (lambda: NOISE.sigma_at(math.nan), "timestep = nan"),
    (lambda: NOISE.sigma_at("9"), "timestep = '9' is not a list of numbers"),  # type: ignore[arg-type]
    (lambda: NOISE.timestep_at("9"), "sigma = '9' is not a list of numbers"),  # type: ignore[arg-type]
    (lambda: NOISE.add_noise("a", X, jnp.array([1, 2])), "x0 = 'a' is no array"),  # type: ignore[arg-type]
    (lambda: NOISE.add_noise(X, X, np.array([2**32 + 3, 1])), "timesteps = .* is no array of numb"),
    (lambda: NOISE.add_noise(X, np.full((2, 3), np.nan), jnp.ones(2, int)), "eps holds a NaN or"),
    (lambda: FLOW.velocity(X, X, np.array([0.5, -1])), r"timesteps = .* leaves \[0, 1000\]"),
    (lambda: NOISE.add_noise(X, None, jnp.array([1, 2])), "eps = None is no array"),  # type: ignore[arg-type]
    (lambda: NOISE.add_noise(X, X, [[1], [2, 3]]), r"timesteps = \[\[1\], \[2, 3\]\] is no arr"),  # type: ignore[arg-type]
    (lambda: NOISE.add_noise(X, X.astype(complex), jnp.array([1, 2])), "eps is complex64"),
    (lambda: kd.noise_schedule() == NOISE, "two values of NoiseSchedule hold arrays.*take chex"),
    (lambda: noise(trained_betas=[0.1, 0.2]), "trained_betas has 2 .*num_train_timesteps is 1000"),
    (lambda: noise(num_train_timesteps=2, trained_betas=[0.1, 1.0]), r"trained_betas .*0.1, 1.0\]"),
    (lambda: noise(num_train_timesteps=2, trained_betas=[0, 0.5]), r"trained_betas .*\[0.0, 0.5\]"),
    (lambda: noise(num_train_timesteps=1, trained_betas=[np.nan]), "trained_betas .*NaN"),
    (lambda: noise(trained_betas=[]), r"trained_betas .*\(0,\)"),
    (lambda: noise(trained_betas=[[0.1]]), r"trained_betas .*\(1, 1\)"),
    (lambda: noise(num_train_timesteps=1, rescale_zero_terminal_snr=True), "rescale_zero.*got 1"),
    (
        lambda: noise(beta_schedule="linear", beta_start=0.5, beta_end=0.55),
        "alphas_cumprod = .* lower beta_end",
    ),
    (
        lambda: NOISE.add_noise(X, X, jnp.array([0, 1000])),
        r"timesteps span \[0, 1000\].*\[0, 999\]",
    ),
    (lambda: NOISE.add_noise(X, X, jnp.array([-1, 5])), r"timesteps span \[-1, 5\]"),
    (lambda: NOISE.velocity(X, X, jnp.array([0.5, 5])), "timesteps are float32.*integers"),
    (lambda: NOISE.velocity(X, X, jnp.array(5)), r"timesteps \(\) do not fit"),
    (lambda: NOISE.add_noise(X, X[0], jnp.array([1, 2])), r"x0 \(2, 3\), eps \(3,\)"),
    (lambda: NOISE.add_noise(X.astype(int), X, jnp.array([1, 2])), "int32.*floating"),
    (
        lambda: NOISE.timestep_at(np.array([0.5, 0])),
        r"sigma = array\(\[0.5, 0. \]\) is not positive.*leave out",
    ),
]

FLOWS: list[Refusal] = [
    (lambda: kd.flow_schedule(0.0), "shift = 0.0 is out of range"),
    (lambda: kd.flow_schedule(2.0, mu=1.0), "shift and mu were given.*give one"),
    (lambda: kd.flow_schedule(mu=1.0, image_seq_len=9), "mu and image_seq_len were given"),
    (lambda: kd.flow_schedule(shift_terminal=1.0), r"shift_terminal = 1.0 .*\(0, 1\)"),
    (lambda: kd.flow_schedule(num_train_timesteps=0), "num_train_timesteps = 0"),
    (
        lambda: kd.flow_schedule(image_seq_len=9, base_image_seq_len=4, max_image_seq_len=4),
        "base_image_seq_len and max_image_seq_len are both 4",
    ),
    (lambda: kd.flow_schedule("3"), "shift = '3' is not a number"),  # type: ignore[arg-type]
    (lambda: kd.flow_schedule(1e300), r"shift = 1e\+300 leaves"),
    (lambda: kd.flow_schedule(mu=1000.0), r"mu = .*1000.* leaves \[-80, 80\]"),
    (lambda: FLOW.sigma_at(1001.0), r"timestep = 1001.0 leaves \[0, 1000\]"),
    (lambda: FLOW.timestep_at(1.5), r"sigma = 1.5 leaves \[0, 1\]"),
    (lambda: FLOW.shifted([1.0, -0.1]), r"sigmas = \[1.0, -0.1\] leaves \[0, 1\]"),
    (
        lambda: FLOW.add_noise(X, X, jnp.array([5000.0, 1])),
        r"timesteps = .*5.*03.* leaves \[0, 1000",
    ),
    (lambda: FLOW.add_noise(X, X, [math.nan, 1]), r"timesteps = \[nan, 1\] leaves"),  # type: ignore[arg-type]
    (lambda: FLOW.add_noise(X, X[0], jnp.array([1, 2])), r"x0 \(2, 3\) and eps \(3,\)"),
    (lambda: FLOW.add_noise(X, X, jnp.array(5)), r"timesteps \(\) do not fit x0 \(2, 3\)"),
    (lambda: kd.levels(kd.flow_schedule(num_train_timesteps=1), 5), "is 1 here; take 'trailing'"),
    (lambda: on_flow(sigmas=[1.5, 0.5]), r"sigmas begin at 1.5.*\(0, 1\]"),
    (lambda: on_flow(timesteps=[1500, 500]), r"sigmas begin at 1.5"),
    (lambda: on_flow(5, grid="vp"), "grid = 'vp' is laid out for noise over signal.*take 'karras'"),
    (lambda: on_flow(5, timestep_spacing="leading"), "timestep_spacing = 'leading'.*'trailing'"),
    (lambda: on_flow(5, grid="karras", sigma_max=2.0), r"sigma_max = 2.0.*\(0, 1\]"),
    (lambda: on_flow(5, round_timesteps=True), "round_timesteps=True .*leave it out"),
]

COUNTS_AND_GRIDS: list[Refusal] = [
    (lambda: of(0), "num_steps = 0.*at least 1"),
    (lambda: of(-3), "num_steps = -3"),
    (lambda: of(2.0), "num_steps = 2.0.*integer"),
    (lambda: of("5"), "num_steps = '5'.*integer"),
    (lambda: of(True), "num_steps = True.*integer"),
    (lambda: of(), "num_steps is missing.*give it"),
    (lambda: of(5, timestep_spacing="even"), "timestep_spacing = 'even'.*'trailing'"),
    (lambda: of(5, grid="cosine"), "grid = 'cosine'.*'karras'"),
    (lambda: of(5, grid=["karras"]), r"grid = \['karras'\]"),
    (lambda: kd.levels("linear", 5), r"noise = 'linear' is of type str; pass kd.noise_schedule\("),  # type: ignore[arg-type]
    (lambda: kd.levels(kd.dpm2(LEVELS), 5), r"noise = Schedule\(.* is of type Schedule; pass kd"),  # type: ignore[arg-type]
    (lambda: kd.levels(LEVELS, 5), r"noise = Levels\(.* is of type Levels; pass"),  # type: ignore[arg-type]
    (lambda: kd.levels(kd.NoiseSchedule, 5), "noise = .* is a class; pass"),  # type: ignore[arg-type]
    (lambda: kd.lcm_levels(5, 4), "noise = 5 is of type int; pass"),  # type: ignore[arg-type]
    (lambda: of(5, round_timesteps="no"), "round_timesteps = 'no' is neither True nor False"),
    (lambda: of(5, discard_penultimate="no"), "discard_penultimate = 'no' is neither"),
    (lambda: of(10**400), "num_steps = 1000.*too large"),
    (lambda: of(5, grid="karras", rho=np.ones(2)), r"rho = array\(\[1., 1.\]\) is not a number"),
    (lambda: of(5, grid="karras", sigma_max=np.array([9.0])), "sigma_max = .* is not a number"),
    (lambda: of(5, grid="karras", sigma_max=10**400), "sigma_max = 1000.*out of range"),
    (lambda: of(sigmas=[10**400, 1]), "sigmas = .*holds a number that no float"),
    # what float32 cannot hold, or tell apart
    (lambda: of(sigmas=[1 + 1e-12, 1]), "sigmas between .* too small for float32.*take"),
    (lambda: of(sigmas=[1e39, 1]), r"sigmas: a level is 1e\+39, and float32.*choose"),
    (lambda: of(sigmas=[1, 1e-46]), "sigmas: a level is 1e-46"),
    (lambda: alone(sigmas=[1, 1e-39]), "sigmas: a level is 1e-39"),
    (
        lambda: kd.levels(noise(num_train_timesteps=1), 5),
        r"noise = NoiseSchedule\(1 timestep.*= 5; t",
    ),
    (lambda: kd.levels(kd.flow_schedule(shift_terminal=1 - 1e-9), 5), "noise = Flow.*too small"),
    (
        lambda: kd.dpm2(kd.lcm_levels(noise(rescale_zero_terminal_snr=True), 4)),
        r"sigma = inf.*take kd.levels",
    ),
    (lambda: kd.lcm(alone(sigmas=[2e5, 1e5, 1.0])), "the table between sigma = 1 and .*too small"),
    (lambda: kd.euler(LEVELS, 1.0, s_noise=1e39), r"s_noise = 1e\+39 must be .* at most 1.84e\+19"),
    (lambda: of(1001, timestep_spacing="leading"), "num_steps = 1001.*num_train_timesteps = 1000"),
    (lambda: of(1001, timestep_spacing="trailing"), "num_steps = 1001.*'trailing'"),
    (lambda: of(10, timestep_spacing="leading", steps_offset=100), "steps_offset = 100.*999"),
    (lambda: of(1, timestep_spacing="leading", steps_offset=1000), "steps_offset = 1000.*999"),
    (lambda: of(10, steps_offset=-1), "steps_offset = -1"),
    (lambda: of(10, steps_offset=0.5), "steps_offset = 0.5.*integer"),
    (lambda: of(5, grid="normal", steps_offset=1), "steps_offset = 1 were given to grid='normal'"),
    (lambda: of(timesteps=[9, 5], sigmas=[3.0, 1.0]), "timesteps and sigmas.*give one"),
    (lambda: of(grid="karras", sigmas=[3.0, 1.0]), "grid and sigmas.*give one"),
    (lambda: of(sigma_max=9.0, timesteps=[9, 5]), "sigma_max and timesteps.*give one"),
    (lambda: of(5, sigma_max=9.0), "sigma_max = 9.0.*grid="),
    (lambda: of(5, grid="beta", rho=3.0), "rho = 3.0.*'beta'"),
    (lambda: of(5, grid="karras", rho=0.0), "rho = 0.0"),
    (lambda: of(5, grid="karras", sigma_min=0.0), "sigma_min = 0.0"),
    (lambda: of(5, grid="karras", sigma_max=float("inf")), "sigma_max = inf"),
    (lambda: of(5, grid="beta", sigma_min=2.0, sigma_max=1.0), "sigma_min = 2.0.*sigma_max = 1.0"),
    (lambda: of(5, grid="linear_quadratic", sigma_min=0.1), "sigma_min = 0.1.*closing 0; drop"),
    (
        lambda: of(40, grid="karras", sigma_min=1.0, sigma_max=1.000001),
        r"grid='karras' between sigma = 1 and 1 has steps too small.*num_steps = 40; take fewer",
    ),
    (lambda: of(5, timesteps=[9, 5]), "num_steps = 5.*timesteps holds 2"),
    (lambda: of(timesteps=[5, 9]), r"timesteps = \[5.0, 9.0\].*descending"),
    (lambda: of(timesteps=[1000, 9]), r"timesteps span \[9.0, 1000.0\].*\[0, 999\]"),
    (lambda: of(timesteps=[9, -0.5]), r"timesteps span \[-0.5, 9.0\]"),
    (lambda: of(timesteps=[]), r"timesteps .*\(0,\)"),
    (lambda: of(sigmas=[1.0, 3.0]), r"sigmas = \[1.0, 3.0\].*descending"),
    (lambda: of(sigmas=[3.0, 3.0]), r"sigmas = \[3.0, 3.0\].*strictly"),
    (lambda: of(sigmas=[3.0, -1.0]), r"sigmas = \[3.0, -1.0\].*positive"),
    (lambda: of(sigmas=[0.0]), r"sigmas = \[0.0\]"),
    (lambda: of(sigmas=[3.0, np.nan]), "sigmas .*NaN"),
    (lambda: of(sigmas="all"), "sigmas = 'all' is not a list of numbers"),
    # an image-to-image strength
    (lambda: of(5, strength=0.0), r"strength = 0.0 is out of range"),
    (lambda: of(5, strength=1.2), r"strength = 1.2 .*\(0, 1\]"),
    (
        lambda: of(5, strength=1e-9),
        r"strength = 1e-09 and num_steps = 5 make a run of 5e\+09 steps",
    ),
    (lambda: of(5, strength=1e-320), r"strength = 1e-320 and num_steps = 5 make"),
    (lambda: of(5, strength=float("nan")), "strength = nan"),
    (lambda: of(sigmas=[3.0, 1.0], strength=0.5), r"strength = 0.5 .*sigmas.*start_at_strength\("),
    (
        lambda: of(600, timestep_spacing="leading", strength=0.5),
        "^strength = 0.5 builds 1200 steps: num_steps = 1200",
    ),
    (
        lambda: of(600, grid="simple", strength=0.6, discard_penultimate=True),
        "^strength = 0.6 and discard_penultimate=True build 1001 steps: num_steps = 1001",
    ),
    # sigmas alone
    (lambda: alone(5), "noise = None has no training timesteps.*give sigmas="),
    (lambda: alone(5, grid="normal"), "noise = None .*grid='normal'"),
    (lambda: alone(5, grid="karras", sigma_max=9.0), "give sigma_min, or sigmas="),
    (lambda: alone(timesteps=[9, 5]), r"noise = None .*timesteps = \[9, 5\].*give sigmas="),
    (lambda: alone(sigmas=[3.0], round_timesteps=True), "round_timesteps=True .*leave them out"),
]

LCM: list[Refusal] = [
    (lambda: lcm(0), "num_steps = 0.*at least 1"),
    (lambda: lcm(2.5), "num_steps = 2.5.*integer"),
    (lambda: lcm(), "num_steps = None and timesteps = None.*exactly one"),
    (lambda: lcm(4, timesteps=[9, 5]), r"num_steps = 4 and timesteps = \[9, 5\].*exactly one"),
    (lambda: lcm(4, sigmas=[9.0, 5.0]), "num_steps = 4 and timesteps = None were given with sig"),
    (lambda: lcm(sigmas=[5.0, 9.0]), r"sigmas = \[5.0, 9.0\].*descending"),
    (lambda: lcm(sigmas=[5.0, 3.0], strength=0.4), "strength = 0.4 leaves none of 2 sigmas"),
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
    (lambda: kd.lcm_levels(None, 4), r"noise = None .*give sigmas="),
    (lambda: kd.lcm_levels(FLOW, 4), r"rectified flow.*kd\.lcm\(kd\.levels\(flow, 4\)\)"),  # type: ignore[arg-type]
]

METHODS: list[Refusal] = [
    (lambda: kd.dpm2(kd.dpm2(LEVELS)), r"levels = Schedule\(.* is of type Schedule; pass levels"),  # type: ignore[arg-type]
    (lambda: kd.dpm2_ancestral(NOISE), r"levels = NoiseSchedule\(.*; pass levels, from kd.levels"),  # type: ignore[arg-type]
    (lambda: kd.euler(3), "levels = 3 is of type int"),  # type: ignore[arg-type]
    (lambda: kd.euler("x", 1.0), "levels = 'x' is of type str"),  # type: ignore[arg-type]
    (lambda: kd.lcm({}), "levels = {} is of type dict"),  # type: ignore[arg-type]
    (lambda: kd.levels(NOISE, 3) == LEVELS, "two values of Levels hold arrays.*take chex"),
    (lambda: kd.dpm2(LEVELS) == kd.dpm2(LEVELS), "two values of Schedule hold arrays"),
    (lambda: kd.dpm2(LEVELS).rows == kd.dpm2(UP).rows, "two values of Row hold arrays"),
    (lambda: kd.euler(LEVELS, eta="1"), "eta = '1' is not a list of numbers"),  # type: ignore[arg-type]
    (lambda: kd.euler(LEVELS, eta=[True, 1, 1]), r"eta = \[True, 1, 1\] is not a list"),
    (
        lambda: jax.jit(lambda e: kd.euler(LEVELS, eta=e).sigmas)(jnp.ones(2)),
        r"eta has shape \(2,\); pass a number or one a step, \[3\]",
    ),
    (lambda: LEVELS.churned(1.0, 0.0, np.ones(2)), "s_tmax = .* is not a number"),
    (lambda: LEVELS.churned(1.0, 0.0, "inf"), "s_tmax = 'inf' is not a number"),  # type: ignore[arg-type]
    (lambda: LEVELS.start_at(3), "step = 3 is past the end of a run of 3 steps.*at most 2"),
    (lambda: LEVELS.start_at(-1), "step = -1"),
    (lambda: LEVELS.start_at(0.5), "step = 0.5.*integer"),  # type: ignore[arg-type]
    (lambda: LEVELS.start_at_strength(0.3), "strength = 0.3 leaves none of 3 outer steps.*raise"),
    (lambda: LEVELS.start_at_strength(0), "strength = 0.0 is out of range"),
    (lambda: LEVELS.start_at_strength(1.2), r"strength = 1.2 .*\(0, 1\]"),
    (lambda: LEVELS.end_at(4), "step = 4 is past the end of a run of 3 steps.*at most 3"),
    (lambda: LEVELS.end_at(0), "step = 0.*at least 1"),
    (lambda: LEVELS.end_at(True), "step = True.*integer"),
    (lambda: CHURNED.reversed(), r"have churn, whose noise no way back can find; leave churned"),
    (lambda: kd.levels(NOISE, 1).reversed(), "one step, which closes at 0.*take at least 2"),
    (lambda: CHURNED.churned(1.0), "have churn already; churn the levels before"),
    (lambda: UP.churned(1.0), r"levels ascend \(inversion\).*leave churned"),
    (lambda: on_flow(3).churned(2.0), "s_churn = 2.0 on a rectified flow.*leave it out"),
    (lambda: LEVELS.churned(-1.0), "s_churn = -1.0 must be finite and not negative"),
    (lambda: LEVELS.churned(np.ones(2)), r"s_churn has shape \(2,\).*\[3\]"),
    (lambda: LEVELS.churned(1.0, s_noise=np.nan), "s_noise = nan must be finite"),
    (lambda: LEVELS.churned(1.0, -0.1), "s_tmin = -0.1 is out of range"),
    (lambda: LEVELS.churned(1.0, 0.0, -1.0), "s_tmax = -1.0 is out of range"),
    (lambda: LEVELS.churned(1.0, 2.0, 1.0), "s_tmin = 2.0 is above s_tmax = 1.0.*swap them"),
    (lambda: LEVELS.churned(1.0, math.nan), "s_tmin = nan is out of range"),
]

REFUSED = NOISE_SCHEDULE + FLOWS + COUNTS_AND_GRIDS + LCM + METHODS


@every(REFUSED)
def test_bad_input_is_refused_by_name_with_what_was_received(call, message):
    check(call, message)


def test_every_refusal_of_these_modules_is_in_the_table():
    names = ("alone", "betas", "build", "flow", "lcm_levels", "levels", "noise_schedule", "spacing")
    modules = [f"_levels.{name}" for name in names]
    assert unreached(modules, REFUSED) == set()


def test_what_is_traced_cannot_be_inspected_and_passes():
    def levels(sigma_max, s_churn):
        return kd.levels(NOISE, 3, grid="karras", sigma_max=sigma_max).churned(s_churn).sigmas

    assert np.all(np.isfinite(jax.jit(levels)(9.0, 1.0)))


def test_what_decides_the_shape_of_a_table_must_not_be_traced():
    for strength in (
        lambda s: kd.levels(NOISE, 3, strength=s).sigmas,
        lambda s: kd.lcm_levels(NOISE, 3, strength=s).sigmas,
        lambda s: LEVELS.start_at_strength(s).sigmas,
    ):
        with pytest.raises(ValueError, match=r"strength is traced.*pass a number"):
            jax.jit(strength)(0.9)
    for count in (
        lambda n: kd.levels(NOISE, n).sigmas,
        lambda n: LEVELS.start_at(n).sigmas,
        lambda n: LEVELS.end_at(n).sigmas,
    ):
        with pytest.raises(ValueError, match=r"is traced.*pass an integer"):
            jax.jit(count)(2)
