"""What is refused from the table on, and that the message shows what was received."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
from denoise_refusals import REFUSED as MORE_DENOISERS
from refusals import Refusal, check, every, unreached

import kdiff_jax as kd

NOISE, FLOW = kd.noise_schedule("scaled_linear"), kd.flow_schedule()
NO_SIGNAL = kd.noise_schedule(rescale_zero_terminal_snr=True)
LEVELS, SHORT = kd.levels(NOISE, 3), kd.levels(NOISE, 2)
CHURNED, UP = LEVELS.churned(1.0), LEVELS.reversed()
EULER, DPM2, ANCESTRAL = kd.euler(LEVELS), kd.dpm2(LEVELS), kd.dpm2_ancestral(LEVELS)
LCM = kd.lcm(kd.lcm_levels(NOISE, 3))
HISTORIES = kd.unipc(LEVELS)
CHURN = kd.dpm2(CHURNED)
STACK = kd.stack([DPM2, DPM2])
AT_TWO = STACK.rows_at(np.zeros(2, int))
X = jnp.ones((2, 3))
KEY = jax.random.key(0)
PREDICTION = kd.Prediction(X, X)
GIVEN = jnp.ones((3, 2, 3))


def network(params: Any, x: jax.Array, timestep: jax.Array, cond: Any = None) -> jax.Array:
    del timestep, cond
    return params * x


DENOISE = kd.denoiser(network)
VELOCITY = kd.denoiser(network, "flow_prediction")


def guided(cond: Any = None, **options: Any) -> kd.Prediction:
    denoise = kd.guided(DENOISE, 2.0, jnp.zeros(()), **options)
    return denoise(1.0, X, DPM2[0], cond)


def step(schedule: kd.Schedule, row: kd.Row, state: kd.State | None = None, **given: Any) -> Any:
    return kd.step(kd.init(schedule, X) if state is None else state, row, PREDICTION, **given)


def sample(schedule: kd.Schedule, x: Any = X, *args: Any, **options: Any) -> Any:
    denoise = options.pop("denoise", DENOISE)
    return kd.sample(denoise, np.float32(0.1), schedule, x, *args, **options)


def ratio(new: Any = None, x_next: Any = X) -> Any:
    old = kd.init(DPM2, X), PREDICTION
    return kd.log_ratio(DPM2[0], old if new is None else new, old, x_next)


def traced(function: Any, *args: Any) -> Any:
    return jax.make_jaxpr(function)(*args)


# --- tables ----------------------------------------------------------------------------------

SAMPLERS: list[Refusal] = [
    (lambda: kd.dpm2_ancestral(LEVELS, eta=-0.1), "eta = -0.1 must be finite and not negative"),
    (
        lambda: kd.dpm2_ancestral(LEVELS, eta=1.5),
        r"eta = 1.5 is too large: .* allows eta below 1.0",
    ),
    (lambda: kd.dpm2_ancestral(LEVELS, eta=math.nan), "eta = nan"),
    (lambda: kd.dpm2_ancestral(LEVELS, np.ones(2)), r"eta has shape \(2,\).*\[3\]"),
    (lambda: kd.dpm2_ancestral(LEVELS, s_noise=-1.0), "s_noise = -1.0 must be finite and not neg"),
    (lambda: kd.euler(LEVELS, eta=9.0), "eta = 9.0 is too large.*lower eta or take more steps"),
    (lambda: kd.euler(LEVELS, np.array([1, 1, math.inf])), "eta = .*inf.* must be finite"),
    (
        lambda: kd.euler(kd.levels(FLOW, 3), eta=5.0),
        "eta = 5.0 is too large: .* to 0.001 allows eta below",
    ),
    (lambda: kd.euler(LEVELS, s_noise=-1.0, eta=0.5), "s_noise = -1.0"),
    (lambda: kd.dpm2_ancestral(CHURNED), "eta = 1.0 adds noise of its own to levels with churn"),
    (lambda: kd.euler(CHURNED, eta=0.0), "eta = 0.0 adds noise of its own.*take one of the two"),
    (lambda: kd.lcm(CHURNED), "lcm adds noise of its own to levels with churn"),
    (
        lambda: kd.dpmpp_2m(LEVELS, solver="huen"),  # type: ignore[arg-type]
        "solver = 'huen' is not known.*'midpoint', 'heun'",
    ),
    (lambda: kd.dpmpp_2m(LEVELS, eta=-0.1), "eta = -0.1 must be finite and not negative"),
    (lambda: kd.dpmpp_3m(LEVELS, 1.0, np.ones(2)), r"s_noise has shape \(2,\).*\[3\]"),
    (lambda: kd.dpmpp_3m(LEVELS, published="no"), "published = 'no' is neither True nor False"),  # type: ignore[arg-type]
    (lambda: kd.dpmpp_3m(LEVELS, lower_order_final=1), "lower_order_final = 1 is neither True"),  # type: ignore[arg-type]
    (lambda: kd.unipc(LEVELS, corrector=None), "corrector = None is neither True nor False"),  # type: ignore[arg-type]
    *(
        (functools.partial(sampler, [10.0, 1.0]), r"levels = \[10.*of type list; pass levels")  # type: ignore[arg-type]
        for sampler in (kd.heun, kd.dpmpp_2m, kd.dpmpp_3m, kd.dpmpp_sde, kd.unipc, kd.tcd)
    ),
    (lambda: kd.euler(LEVELS, s_noise="1"), "s_noise = '1' is not a list of numbers"),  # type: ignore[arg-type]
    (lambda: kd.lcm(LEVELS, s_noise_end=1e30), r"s_noise_end = 1e\+30 must be finite and not neg"),
    (lambda: kd.dpmpp_2m(CHURNED), "dpmpp_2m goes on from estimates of earlier.*kd.dpm2 or kd.eul"),
    (
        lambda: kd.dpmpp_3m(CHURNED),
        "dpmpp_3m goes on from estimates of earlier levels, and the noi",
    ),
    (lambda: kd.unipc(CHURNED), "unipc goes on from estimates of earlier levels, and the noise"),
    (lambda: kd.dpmpp_2m(CHURNED, 1.0), "eta = 1.0 adds noise of its own to levels with churn"),
    (lambda: kd.dpmpp_3m(UP, 1.0), "eta = 1.0 draws noise, and these levels ascend.*kd.dpm2"),
    (lambda: kd.dpm2_ancestral(UP), "eta = 1.0 draws noise, and these levels ascend.*kd.dpm2"),
    (lambda: kd.euler(UP, eta=0.5), "eta = 0.5 draws noise, and these levels ascend"),
    (lambda: kd.lcm(UP), "lcm draws noise, and these levels ascend"),
    (lambda: kd.lcm(LEVELS, s_noise=-1.0), "s_noise = -1.0"),
    (lambda: kd.lcm(LEVELS, np.ones(2)), r"s_noise has shape \(2,\).*\[3\]"),
    (lambda: kd.lcm(LEVELS, s_noise_end=-0.5), "s_noise_end = -0.5"),
    (lambda: kd.lcm(LEVELS, np.ones(3), 0.5), r"s_noise has shape \(3,\) and s_noise_end \(\)"),
]

TABLES: list[Refusal] = [
    (lambda: DPM2[3:3], "rows 3:3:1 of 5 are no run.*take one row or more"),
    (lambda: DPM2[9:], "rows 5:5:1 of 5 are no run"),
    (lambda: DPM2[::2], r"rows 0:5:2 of 5 are no run.*schedule\[a:\]"),
    (lambda: DPM2[::-1], "rows 4:-1:-1 of 5 are no run"),
    (lambda: traced(lambda table: table[1:], DPM2), "schedule is traced here; slice .* before jit"),
    (lambda: STACK[0], r"rows have shape \(2, 5\), those of a stack.*rows_at\(i\)"),
    (lambda: STACK[1:], r"rows have shape \(2, 5\), those of a stack.*rows_at\(i\)"),
    (
        lambda: traced(len, DPM2.pad(9)),
        "length of a padded schedule is traced.*use schedule.length",
    ),
    (lambda: DPM2.pad(4), "num_rows = 4 is too small for a schedule of 5 rows.*at least 5"),
    (lambda: DPM2.pad(5.0), "num_rows = 5.0.*integer"),  # type: ignore[arg-type]
    (lambda: DPM2.pad(9).pad(12), "num_rows = 12 .* already padded to 9 rows; pad .* before"),
    (lambda: STACK.pad(9), r"rows have shape \(2, 5\); pad lengthens one table.*before stacking"),
    (lambda: DPM2.pad(9, ["noise"]), r"columns names \['noise'\]; expected .*noise_weight"),
    (lambda: DPM2.pad(9, ["idle"]), r"columns names \['idle'\]; expected columns of Row"),
    (lambda: DPM2.pad(9, 3), "columns = 3; pass names of columns"),  # type: ignore[arg-type]
    (lambda: DPM2.rows_at(np.array([-1])), r"i = array\(\[-1\]\) is below 0; pass row numbers"),
    (lambda: DPM2.pad(9, "noise_weight"), r"leaves out \['advances', 'anchor_weight'.*name all"),
    (lambda: kd.stack([]), "an empty list; pass a list of at least one schedule"),
    (lambda: kd.stack([DPM2, LEVELS]), r"given Levels\(3 steps.*pass a list"),  # type: ignore[list-item]
    (lambda: kd.stack([DPM2, STACK]), r"rows have shapes \[\(5,\), \(2, 5\)\]; stack single"),
    (lambda: kd.stack([kd.stack([STACK])]), r"rows have shapes \[\(1, 2, 5\)\]; stack single"),
    (
        lambda: kd.stack([STACK, kd.stack([EULER, EULER])]),
        r"stacks have rows of \[\(2, 3\), \(2, 5\)\]; pad their tables alike",
    ),
    (lambda: kd.stack([DPM2, in_float64()]), "tables of float32 and float64 .*build them alike"),
    (lambda: kd.stack([DPM2, kd.dpm2(kd.levels(FLOW, 3))]), "of a rectified flow .*stack them apa"),
    (lambda: kd.stack([EULER.pad(4), DPM2]), r"padded to \[4\] rows and the stack needs 5; pad"),
    (lambda: DPM2.rows_at(0), r"i has shape \[\]; pass \[B\]"),
    (lambda: DPM2.rows_at(jnp.zeros(2)), "i is float32; pass int32 row numbers"),
    (lambda: DPM2.rows_at(np.zeros((2, 3, 4), int)), r"i has shape \[2, 3, 4\]; pass \[B\]"),
    (lambda: STACK.rows_at(np.zeros(3, int)), r"i has shape \[3\]; pass \[2\], one number a samp"),
]


def in_float64() -> kd.Schedule:
    with sp.x64():
        return kd.dpm2(LEVELS)


# --- denoisers: refused when they are built, but for what only the call can know --------------

DENOISERS: list[Refusal] = [
    (lambda: kd.denoiser(network, "flow"), "prediction_type = 'flow'.*'v_prediction'"),  # type: ignore[arg-type]
    (lambda: kd.denoiser(3), "model_fn = 3 is not callable"),  # type: ignore[arg-type]
    (lambda: kd.denoiser(network, dtype=int), "dtype .*int"),
    (lambda: kd.clipped(DENOISE, 0.0), "clip_range = 0.0"),
    (lambda: kd.clipped(DENOISE, np.array([1, -1])), "clip_range = -1.0 is out of range"),
    (lambda: kd.thresholded(DENOISE, sample_max_value=0.5), "sample_max_value = 0.5.*at least 1"),
    (lambda: kd.thresholded(DENOISE, ratio=1.5), r"ratio = 1.5.*\(0, 1\]"),
    (lambda: kd.consistency(DENOISE, timestep_scaling=0.0), "timestep_scaling = 0.0"),
    (lambda: kd.consistency(DENOISE, sigma_data=-0.5), "sigma_data = -0.5"),
    (lambda: kd.edm_denoiser(network, 0.0), "sigma_data = 0.0"),
    (lambda: kd.continuous(DENOISE, "log"), "c_noise = 'log'.*'log_sigma'"),  # type: ignore[arg-type]
    (lambda: kd.inpainted(DENOISE, 0.0, 1.5), r"mask spans \[1.5, 1.5\]; expected \[0, 1\]"),
    (lambda: kd.inpainted(DENOISE, X[:, :2], X)(1.0, X, DPM2[0]), r"known has shape \(2, 2\)"),
    (lambda: kd.guided(DENOISE, float("nan"), 0), "scale = nan"),
    (lambda: kd.guided(DENOISE, 2.0, 0, interval=3.0), "interval = 3.0; expected two noise levels"),  # type: ignore[arg-type]
    (lambda: kd.guided(DENOISE, 2.0, 0, interval=(5, 1)), r"interval = \(5, 1\) holds no noise le"),
    (lambda: kd.guided(DENOISE, 2.0, 0, rescale=1.5), r"rescale = 1.5 .*\[0, 1\]"),
    (lambda: kd.guided(DENOISE, 2.0, 0, rescale_of="sample"), "'sample' .*rescale was not given"),
    (lambda: kd.guided(sp.identity_denoise, 2.0, 0, rescale=0.7), "give rescale_of, one of"),
    (lambda: guided(), "without cond; pass cond="),
    (lambda: guided({"label": X}), "cond is .*label.*expected the same pytree"),
    (lambda: kd.denoiser(lambda p, x, t: x[0])(0, X, DPM2[0]), r"shape \(3,\).*shape \(2, 3\)"),
    (lambda: DENOISE(1.0, jnp.ones((3, 3)), AT_TWO), r"shape \(2,\) met a sample of .*\(3, 3\)"),
    (lambda: DENOISE(1.0, X.astype(int), DPM2[0]), "sample is int32.*cast it first"),
    (
        lambda: DENOISE(1.0, X, dataclasses.replace(DPM2[0], timestep=jnp.ones((2, 4)))),
        r"timesteps of shape \(2, 4\) met a sample of shape \(2, 3\)",
    ),
    (lambda: kd.guidance_embedding(np.ones((2, 1)), 8), r"w has shape \(2, 1\); pass \[B\]"),
    (lambda: kd.guidance_embedding(np.array([np.nan]), 8), "w = .*NaN or an infinity; pass finite"),
    (lambda: kd.guidance_embedding(np.array(["a"]), 8), "w = .*no real numbers; pass"),
]


# --- noise -----------------------------------------------------------------------------------

WITHOUT_SIGNAL = kd.lcm_levels(kd.noise_schedule("linear", rescale_zero_terminal_snr=True), 4)
NOISES: list[Refusal] = [
    (lambda: kd.initial_sample(DPM2, jax.random.key(0, impl="rbg"), (2, 3)), "rbg.*threefry"),
    (lambda: kd.initial_sample(DPM2, KEY, ()), r"shape is empty; expected \(B, \.\.\.\)"),
    (lambda: kd.initial_sample(DPM2, KEY, (2, 3.0)), "shape = 3.0.*integer"),  # type: ignore[arg-type]
    (lambda: kd.initial_sample(DPM2, 7, (2, 3)), r"key = 7 is no PRNG key; pass jax\.random\.key"),  # type: ignore[arg-type]
    (lambda: kd.row_noise(jnp.ones(2), DPM2[0], (2, 3)), r"key is float32\(2,\), no PRNG key"),
    (lambda: kd.row_noise(jnp.ones(3, jnp.uint32), DPM2[0], (2, 3)), r"key is uint32\(3,\).*pass"),
    (lambda: kd.row_noise(KEY, AT_TWO, (3,)), r"index of shape \(2,\)"),
    (lambda: kd.row_noise(None, DPM2[0], (2, 3)), "key = None is no PRNG key"),  # type: ignore[arg-type]
    (lambda: kd.row_noise([KEY, KEY], DPM2[0], (2, 3)), r"key = \[.* is no .*jnp.stack\(keys\)"),  # type: ignore[arg-type]
    (lambda: kd.row_noise(KEY, 3, (2, 3)), r"row is 3; expected one row .*pass schedule\[i\]"),  # type: ignore[arg-type]
    (lambda: kd.row_noise(KEY, DPM2, (2, 3)), r"row is Schedule\(3 steps.*expected one row"),  # type: ignore[arg-type]
    (lambda: kd.initial_sample(LEVELS, KEY, (2, 3)), r"schedule is Levels\(3 steps.*kd.dpm2\(kd.l"),  # type: ignore[arg-type]
    (lambda: kd.initial_sample(25, KEY, (2, 3)), "schedule is 25; expected what a sampler makes"),  # type: ignore[arg-type]
    *(
        (lambda shape=shape: kd.initial_sample(DPM2, KEY, shape), message)
        for shape, message in (
            (4, r"shape = 4; expected \(B, \.\.\.\)"),
            ("28", "shape = '28'; expected"),
            (None, "shape = None; expected"),
            ({2: 3}, "shape = {2: 3}; expected"),
            ((2, -1), "shape = -1 is too small"),
            ((2, True), "shape = True is not an integer"),
            ((10**400, 2), "shape = 1000.* is too large"),
            ((2**39, 4), r"shape = \(549755813888, 4\) holds more numbers than any memory"),
        )
    ),
    (lambda: kd.add_noise(X, X, X), r"row is float32\[2, 3\]; expected one row"),  # type: ignore[arg-type]
    (lambda: kd.add_noise(DPM2[0], {"x": X}, X), r"x0 is a dict; expected an array \[B"),  # type: ignore[arg-type]
    (lambda: kd.add_noise(DPM2[0], X, X > 0), "eps is bool; expected a real floating dtype"),
    (lambda: kd.slerp([[1.0]], X, 0.5), r"first is a list; expected an array \[B"),  # type: ignore[arg-type]
    *(
        (
            lambda sampler=sampler: sampler(WITHOUT_SIGNAL),
            r"levels hold sigma = inf.* kd.lcm and kd.tcd run them; .* take kd.levels",
        )
        for sampler in (kd.euler, kd.dpm2, kd.heun, kd.dpmpp_sde, kd.dpmpp_3m, kd.unipc)
    ),
    (lambda: kd.slerp(X, X, "0.5"), "fraction = '0.5' is not a"),  # type: ignore[arg-type]
    (lambda: kd.slerp(X, X, np.ones((2, 2))), r"fraction = .* of rank 2.* pass one number"),
    (lambda: kd.slerp(X, X, np.ones(5)), r"fraction has shape \(5,\); pass one number"),
    (lambda: kd.slerp(X, np.full((2, 3), np.nan), 0.5), "second holds a NaN or an infinity"),  # type: ignore[arg-type]
    (lambda: kd.slerp(X, X, math.inf), "fraction = inf is out of range"),
    (lambda: kd.slerp(X, X, jnp.ones(2, int)), "fraction is int32; expected a real floating dtype"),
    (lambda: kd.given_noise([X, X]), "noise is a list; expected an array"),  # type: ignore[arg-type]
    (lambda: kd.given_noise(GIVEN)(None, 2, (2, 3)), "row is 2; expected one row"),  # type: ignore[arg-type]
    (lambda: kd.given_noise(GIVEN)(7, DPM2[0], (2, 3)), "key = 7 is no PRNG key"),
    (lambda: kd.given_noise(GIVEN)(None, DPM2[0], 2), "shape = 2; pass that of the sample"),  # type: ignore[arg-type]
    (
        lambda: sample(ANCESTRAL, noise_fn=kd.given_noise(GIVEN[:1])),
        r"noise has shape \(1, 2, 3\), 1 steps, and step 1 of the run .*N of at least 2",
    ),
    (
        lambda: sample(kd.dpmpp_sde(kd.levels(NOISE, 3)), noise_fn=kd.given_noise(GIVEN)),
        r"one entry a step, and the run draws twice in a step; pass \[N, 2, B, \.\.\.\]",
    ),
    (
        lambda: sample(LCM, noise_fn=lambda key, row, shape: None),
        "noise_fn returned is None; exp",
    ),
    (
        lambda: sample(LCM, X, KEY, noise_fn=kd.brownian_noise(0.9, 1.0)),
        "the run goes from sigma 0.99.* and the path of brownian_noise spans 0.9 to 1; pass",
    ),
    (lambda: kd.brownian_noise(1.0, 1.0 + 1e-12), "sigma_min = 1.0 is not below sigma_max = 1.0"),
    (lambda: kd.brownian_noise(5e-324), "sigma_min = 5e-324 to .* more than float32 holds; pass"),
    (lambda: kd.brownian_noise(1e-30, 1e30), "sigma_max = 1e[+]30 is more than float32 holds"),
    (lambda: kd.brownian_noise("0.1"), "sigma_min = '0.1' is not a number"),  # type: ignore[arg-type]
    (lambda: kd.brownian_noise()(KEY, None, (2, 3)), "row is None; expected one row"),  # type: ignore[arg-type]
    (lambda: kd.add_noise(DPM2[0], X, X[0]), r"x0 \(2, 3\) and eps \(3,\)"),
    (lambda: kd.add_noise(DPM2[0], X.astype(int), X), "x0 is int32.*cast it first"),
    (lambda: kd.slerp(X, X[0], 0.5), r"first \(2, 3\) and second \(3,\) differ"),
    (lambda: kd.given_noise(jnp.ones(3)), r"noise has shape \(3,\); pass \[N, B, \.\.\.\]"),
    (lambda: kd.given_noise(jnp.ones((3, 1)))(None, DPM2[0], (2, 3)), r"shape \(3, 1\) and the sa"),
    (lambda: sample(LCM, noise_fn=lambda key, row, shape: X[0]), r"returned float32\[3\] for a"),
    (lambda: kd.brownian_noise(2.0, 1.0), "sigma_min = 2.0 is not below sigma_max = 1.0; pass"),
    (lambda: kd.brownian_noise(depth=21), "depth = 21 is too large.*pass at most 20"),
]

# --- stepping and sampling -------------------------------------------------------------------

RUNS: list[Refusal] = [
    (lambda: kd.init(DPM2, jnp.float32(1)), r"x is a scalar; expected \[B, \.\.\.\]"),
    (lambda: kd.init(DPM2, jnp.ones((2, 3), int)), "int32.*floating"),
    (lambda: kd.init(DPM2[1:], X), r"slice that reads anchor .*pass the State.*start_at\(step\)"),
    (lambda: kd.init(HISTORIES[1:], X), "reads denoised_1 and denoised_2 of the rows before"),
    (lambda: sample(DPM2[2:]), "slice that reads anchor .*pass the State"),
    (lambda: sample(DPM2.pad(9)[2:]), "slice that reads anchor .*pass the State"),
    (lambda: sample(kd.stack([DPM2[2:], DPM2])), "slice that reads anchor .*pass the State"),
    (lambda: kd.init(DPM2, kd.init(EULER, X)), "holds no history and the rows read anchor; pass"),
    (lambda: kd.init(EULER, kd.init(DPM2, X)), "holds anchor and the rows read none; pass the St"),
    (
        lambda: sample(HISTORIES, kd.init(DPM2, X)),
        "holds anchor and the rows read denoised_1 and denoised_2; pass the State",
    ),
    (lambda: sample(EULER, kd.init(HISTORIES, X)), "holds denoised_1 and denoised_2 and the rows"),
    (lambda: step(DPM2, EULER[0]), "holds anchor and the rows read none"),
    (lambda: step(EULER, DPM2[0]), "holds no history and the rows read anchor"),
    (
        lambda: step(ANCESTRAL, ANCESTRAL[1]),
        rf"row 1 draws noise \(noise_weight = {ANCESTRAL[1].noise_weight}\).*key=.*noise=",
    ),
    (lambda: step(ANCESTRAL, ANCESTRAL[1], key=KEY, noise=X), "both key and noise; give one"),
    (lambda: step(ANCESTRAL, ANCESTRAL[1], noise=X[0]), r"noise has shape \(3,\).*\(2, 3\)"),
    (lambda: step(ANCESTRAL, ANCESTRAL[1], key=7), "key = 7 is no PRNG key"),
    (lambda: sample(ANCESTRAL), "draws noise.*no key; pass key="),
    (lambda: sample(CHURN), "draws noise.*no key; pass key="),
    (lambda: sample(ANCESTRAL, key=7), "key = 7"),
    (lambda: sample(ANCESTRAL, X, jax.random.split(KEY, 3)), r"\(3,\).*2 samples"),
    (lambda: sample(ANCESTRAL, noise_fn=DENOISE), r"noise_fn is Denoiser\(.*expected noise_fn"),
    (lambda: sample(ANCESTRAL, noise_fn=3), "noise_fn = 3 is not callable; pass a function"),
    (lambda: sample(DPM2, noise_fn=kd.row_noise), "draws no noise.*leave it out.*kd.euler with an"),
    (lambda: kd.init(DPM2, np.zeros((0, 3))), r"x is empty; expected \[B, \.\.\.\]"),  # type: ignore[arg-type]
    (lambda: kd.transition(kd.init(DPM2, X), DPM2, PREDICTION), "row is Schedule.*; expected one"),  # type: ignore[arg-type]
    (lambda: kd.transition(kd.init(DPM2, X), DPM2[0], X), "prediction is float32.*; expected a Pr"),  # type: ignore[arg-type]
    (lambda: ratio(new=X), r"new is float32\[2, 3\]; expected two: pass \(state, prediction\)"),
    (  # which would broadcast without a word
        lambda: ratio(new=jax.tree.map(lambda leaf: leaf[:1], (kd.init(DPM2, X), PREDICTION))),
        r"new is of samples \(1, 3\) and old of \(2, 3\); give two runs of the same samples",
    ),
    (lambda: ratio(x_next=[1.0]), "x_next is a list; expected an array"),
    (lambda: ratio(x_next=X[:1]), r"x_next has shape \(1, 3\) and the sample \(2, 3\); give"),
    (lambda: sample(DPM2, save_fn=3), "save_fn = 3 is not callable; pass a function"),
    (lambda: sample(DPM2, save_fn=lambda *a: "x"), "what save_fn returned = 'x' is neither an arr"),
    (lambda: sample(STACK, save_fn=lambda *a: 1), "save_fn was given with a stack.*jax.vmap"),
    (lambda: sample(DPM2, unroll=0), "unroll = 0 is too small"),
    (lambda: sample(DPM2, remat="all"), "remat = 'all'.*'segments'"),
    (lambda: sample(DPM2.pad(9), unroll=2), "unroll = 2 and remat = 'none' with a padded schedule"),
    (lambda: sample(DPM2.pad(9), remat="rows"), "remat = 'rows' with a padded schedule"),
    (lambda: sample(STACK, jnp.ones((3, 3))), r"stack of \[2\] tables and x holds 3 samples"),
    (lambda: sample(DPM2, progress=3), "progress = 3; pass True"),
    (
        lambda: sample(LEVELS),  # type: ignore[arg-type]
        r"schedule is Levels\(3 .*pass kd.dpm2\(kd.levels\(noise, 25\)\)",
    ),
    (lambda: sample(25), "schedule is 25; expected what a sampler makes of levels"),  # type: ignore[arg-type]
    (lambda: sample("dpm2"), "schedule is 'dpm2'; expected what a sampler"),  # type: ignore[arg-type]
    (lambda: sample(NOISE), r"schedule is NoiseSchedule\(.*in the order kd.sample\(denoise, par"),  # type: ignore[arg-type]
    (lambda: kd.sample(DENOISE, DPM2, {"w": X}, X), "schedule is a dict; .*in the order kd.sample"),  # type: ignore[call-overload]
    (lambda: kd.sample(DENOISE, 1.0, X, DPM2), r"schedule is float32\[2, 3\]; .*in the order"),  # type: ignore[call-overload]
    (lambda: kd.sample(DENOISE, X, DPM2, {"w": X}), r"x is a dict; expected an array \[B"),  # type: ignore[call-overload]
    (lambda: kd.init(LEVELS, X), r"schedule is Levels\(3 steps"),  # type: ignore[arg-type]
    (lambda: kd.init(X, DPM2), r"schedule is float32\[2, 3\]"),  # type: ignore[arg-type]
    (lambda: kd.init(DPM2, None), "x is None; expected an array"),  # type: ignore[arg-type]
    (lambda: kd.init(DPM2, [[1.0]]), "x is a list; expected an array"),  # type: ignore[arg-type]
    (lambda: kd.init(EULER, kd.State("x")), "state.sample is 'x'; expected an array"),  # type: ignore[arg-type]
    (
        lambda: step(DPM2, DPM2[0], kd.State(X, X[:1])),
        r"state.anchor has shape \(1, 3\) and state.sample \(2, 3\)",
    ),
    (lambda: step(DPM2, DPM2[0], X), r"state is float32\[2, 3\]; expected a State: pass kd.init"),  # type: ignore[arg-type]
    (lambda: step(DPM2, DPM2), r"row is Schedule\(3 steps, 5 rows.*pass schedule\[i\]"),  # type: ignore[arg-type]
    (
        lambda: kd.step(kd.init(EULER, X), EULER[0], X),  # type: ignore[arg-type]
        r"prediction is float32\[2, 3\]; expected a Prediction: .*kd.denoiser\(model_fn\)",
    ),
    (
        lambda: kd.step(kd.init(EULER, X), EULER[0], kd.Prediction(X[:1], X)),
        r"prediction.denoised has shape \(1, 3\) and the sample \(2, 3\)",
    ),
    (lambda: step(ANCESTRAL, ANCESTRAL[1], noise=0.5), r"noise is 0.5; expected an array \[B"),
    (
        lambda: sample(DPM2, denoise=network),
        r"takes \(params, x, timestep, cond\), as a network does",
    ),
    (
        lambda: sample(DPM2, denoise=lambda params, x, t: x),
        r"denoise takes \(params, x, t\); expected denoise\(params, x, row, cond\): pass kd",
    ),
    (
        lambda: sample(EULER, denoise=kd.clipped(kd.cfg_plus_plus(DENOISE, 0.6, 0))),
        "kd.cfg_plus_plus inside of Clipped.*wrap kd.cfg_plus_plus around it",
    ),
    (lambda: sample(DPM2, denoise=kd.Denoiser), "denoise is <class .*kd.denoiser.model_fn"),
    (lambda: sample(DPM2, denoise=None), "denoise is None; expected denoise"),
    (
        lambda: sample(DPM2, denoise=lambda params, x, row, cond: x),
        r"what denoise returned is .*expected a Prediction: .*kd.denoiser\(model_fn\)",
    ),
    (
        lambda: sample(DPM2, denoise=kd.guided(DENOISE, np.ones(2), 0.0, per_step=True), cond=X),
        r"scale has shape \(2,\) with per_step=True, and the run goes to step 2; pass .*\[3\]",
    ),
    (lambda: sample(ANCESTRAL, X, [KEY, KEY]), r"key = \[.*jnp.stack\(keys\)"),
    (lambda: sample(DPM2, key=7), r"key = 7 is no PRNG key; pass jax.random.key\(seed\)"),
    (
        lambda: sample(ANCESTRAL, X, KEY, noise_fn=lambda sigma, sigma_next: X),
        r"noise_fn takes \(sigma, sigma_next\); expected noise_fn\(key, row, shape\)",
    ),
    (
        lambda: sample(DPM2, save_fn=lambda state: 1),
        r"save_fn takes \(state\); expected save_fn",
    ),
    (lambda: sample(DPM2, unroll="2"), "unroll = '2' is not an integer"),
    (lambda: sample(DPM2, remat=True), "remat = True is not known; choose one of 'none'"),
    *(
        (
            lambda table=table: sample(table, X, KEY),
            "prediction_type='epsilon'.*rescale_zero_terminal_snr=True.*use a v_prediction",
        )
        for table in (
            kd.euler(kd.levels(NO_SIGNAL, 4)),
            kd.dpm2(kd.levels(NO_SIGNAL, 4)),
            kd.dpm2_ancestral(kd.levels(NO_SIGNAL, 4)),
            kd.lcm(kd.lcm_levels(NO_SIGNAL, 4)),
        )
    ),
    (lambda: sample(kd.dpm2(kd.levels(FLOW, 3))), "prediction_type='epsilon' on .*rectified flow"),
    (lambda: sample(DPM2, denoise=VELOCITY), "'flow_prediction' on a schedule that is not.*build"),
]

REFUSED = SAMPLERS + TABLES + DENOISERS + MORE_DENOISERS + NOISES + RUNS


@every(REFUSED)
def test_bad_input_is_refused_by_name_with_what_was_received(call, message):
    check(call, message)


def test_every_refusal_of_these_modules_is_in_the_table():
    names = {
        "_table": "ancestral check lcm schedule stack",
        "_denoise": "arguments clip consistency continuous guidance guidance_embedding inpaint "
        "network prediction",
        "_noise": "brownian given keyed slerp",
        "_run": "check loop progress sample state step transition",
    }
    modules = [f"{folder}.{name}" for folder, files in names.items() for name in files.split()]
    assert unreached(modules, REFUSED) == set()


def test_what_is_no_row_is_an_index_or_a_type_error():
    for i in (5, -6):
        with pytest.raises(IndexError, match=f"row {i} of a schedule with 5 rows"):
            DPM2[i]
    with pytest.raises(TypeError, match=r"got 1\.5; .*levels\.start_at"):
        DPM2[1.5]  # type: ignore[call-overload]


def test_consistency_on_a_table_with_midpoints_warns():
    denoise = kd.clipped(kd.consistency(DENOISE))
    for schedule in (DPM2, kd.dpmpp_2m(kd.levels(NOISE, 3))):
        with pytest.warns(UserWarning, match=r"kd.consistency .* midpoints.*take kd.lcm") as told:
            kd.sample(denoise, jnp.float32(0.1), schedule, X)
        assert told[0].filename == __file__
    # Euler's columns beside an anchor that no row reads.
    kd.sample(
        denoise,
        jnp.float32(0.1),
        EULER.pad(9, ("anchor_weight", "input_scale", "epsilon_weight")),
        X,
    )
    kd.sample(denoise, jnp.float32(0.1), EULER, X)
