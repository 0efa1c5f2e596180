"""Denoisers, noise and runs for the fuzzer: a valid call, and what it may accept."""

from dataclasses import replace
from typing import Any

import fuzz_values as fv
import jax.numpy as jnp
import numpy as np
from fuzz_calls import POSITIVE, SAMPLES, TO_INFINITY, Argument, Call, X
from fuzz_values import an, anything, count, either, flag, number, numbers, one_of, optional

import kdiff_jax as kd

FLOATS = {np.dtype(name) for name in ("float16", "float32", "float64", jnp.bfloat16)}


def _key(value: Any) -> bool:
    dtype = getattr(value, "dtype", None)
    return dtype is not None and (str(dtype).startswith("key") or dtype == np.uint32)


def _dtype(value: Any) -> bool:
    return isinstance(value, (type, str, np.dtype)) and jnp.dtype(value) in FLOATS


def _shape(value: Any) -> bool:
    entries = list(value) if isinstance(value, (list, tuple, np.ndarray)) else []
    return len(entries) > 0 and all(count(0)(entry) for entry in entries)


def _interval(value: Any) -> bool:
    pair = isinstance(value, (list, tuple)) and len(value) == 2
    return pair and all(either(TO_INFINITY, numbers(0))(end) for end in value)


def _pair(value: Any) -> bool:
    pair = isinstance(value, (list, tuple)) and len(value) == 2
    return pair and isinstance(value[0], kd.State) and isinstance(value[1], kd.Prediction)


NETWORK: Argument = (fv.network, callable)
DTYPE: Argument = (None, optional(_dtype))
DENOISE: Argument = (fv.DENOISE, callable)
FUNCTION: Argument = (None, optional(callable))
KEY: Argument = (fv.KEY, optional(_key))
PARAMS: Argument = (jnp.float32(0.1), anything)
TABLE: Argument = (fv.NOISY, an(kd.Schedule))
ROW: Argument = (fv.ROW, an(kd.Row))
STATE: Argument = (fv.STATE, an(kd.State))
PREDICTION: Argument = (fv.PREDICTION, an(kd.Prediction))
START: Argument = (fv.SAMPLE, either(SAMPLES, an(kd.State)))
SHAPE: Argument = ((2, 4), _shape)
# One number, or one a sample.
SCALE: Argument = (1.0, numbers(0, above=True))
C_NOISE: Argument = (
    "log_sigma",
    either(one_of("log_sigma", "sigma", "angle"), callable),
)
IN_FLOAT32 = 1 + 1e-8  # that is 1
TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction")
# Half of the sample is known: what is painted over may be NaN, what is kept may not.
MASK = jnp.zeros((2, 4)).at[:, :2].set(1)


def _leaf(name: str, value: Any) -> Any:
    return kd.step(replace(fv.STATE, **{name: value}), fv.ROW, fv.PREDICTION, key=fv.KEY)


def _half(name: str, value: Any) -> Any:
    return kd.step(fv.STATE, fv.ROW, replace(fv.PREDICTION, **{name: value}), key=fv.KEY)


_V_DENOISE = kd.denoiser(fv.network, "v_prediction")

WRAPPER_CALLS = [
    Call(
        "denoiser",
        kd.denoiser,
        {"model_fn": NETWORK, "prediction_type": ("epsilon", one_of(*TYPES)), "dtype": DTYPE},
    ),
    Call(
        "edm_denoiser",
        kd.edm_denoiser,
        {"model_fn": NETWORK, "sigma_data": SCALE, "dtype": DTYPE, "c_noise": C_NOISE},
    ),
    Call("continuous", kd.continuous, {"denoise": DENOISE, "c_noise": C_NOISE}),
    Call("clipped", kd.clipped, {"denoise": DENOISE, "clip_range": SCALE}),
    Call(
        "thresholded",
        kd.thresholded,
        {
            "denoise": DENOISE,
            "ratio": (0.995, number(0, 1, above=True)),
            "sample_max_value": (1.0, numbers(1)),
        },
    ),
    Call(
        "consistency",
        kd.consistency,
        {"denoise": DENOISE, "timestep_scaling": SCALE, "sigma_data": SCALE},
    ),
    Call(
        "guided",
        kd.guided,
        {
            "denoise": DENOISE,
            "scale": (2.0, numbers()),
            "uncond": (jnp.zeros((2, 1)), anything),
            "per_step": (False, flag),
            "interval": (None, optional(_interval)),
            "rescale": (None, optional(numbers(0, 1))),
            "rescale_of": (None, one_of(None, *TYPES)),
            "batched": (True, flag),
        },
    ),
    Call(
        "cfg_plus_plus",
        kd.cfg_plus_plus,
        {
            "denoise": DENOISE,
            "scale": (0.6, numbers()),
            "uncond": (jnp.zeros((2, 1)), anything),
            "batched": (True, flag),
        },
    ),
    Call(
        "projected",
        kd.projected,
        {
            "denoise": DENOISE,
            "scale": (2.0, numbers()),
            "uncond": (jnp.zeros((2, 1)), anything),
            "eta": (0.0, numbers()),
            "norm_threshold": (None, optional(numbers(0))),
            "batched": (True, flag),
        },
    ),
    Call(
        "autoguided",
        kd.autoguided,
        {"denoise": DENOISE, "scale": (2.0, numbers()), "weak": (None, optional(callable))},
    ),
    Call(
        "guidance_embedding",
        kd.guidance_embedding,
        {"w": (jnp.ones(2), numbers()), "dim": (8, count(4))},
        slow=True,
    ),
    Call(
        "inpainted",
        lambda known, noise: kd.inpainted(fv.DENOISE, known, MASK, noise),
        {"known": X, "noise": (fv.SAMPLE, optional(SAMPLES))},
    ),
    Call(
        "inpainted by a mask",
        lambda denoise, mask: kd.inpainted(denoise, fv.SAMPLE, mask),
        {"denoise": DENOISE, "mask": (MASK, numbers(0, IN_FLOAT32, flags=True))},
    ),
    Call(
        "Denoiser()",
        lambda **kw: fv.DENOISE(kw["params"], kw["x"], kw["row"], kw["cond"]),
        {"params": PARAMS, "x": X, "row": ROW, "cond": (None, anything)},
    ),
]

NOISE_CALLS = [
    Call("add_noise", kd.add_noise, {"row": ROW, "x0": X, "eps": X}, slow=True),
    Call(
        "initial_sample",
        kd.initial_sample,
        {"schedule": TABLE, "key": (fv.KEY, _key), "shape": SHAPE},
        slow=True,
    ),
    Call(
        "row_noise",
        kd.row_noise,
        {"key": (fv.KEY, _key), "row": ROW, "shape": SHAPE},
        slow=True,
    ),
    # Entries of steps that are not run may be anything.
    Call("given_noise", kd.given_noise, {"noise": (jnp.ones((5, 2, 4)), numbers(host_nan=True))}),
    Call(
        "brownian_noise",
        kd.brownian_noise,
        {"sigma_min": (1e-3, POSITIVE), "sigma_max": (100.0, POSITIVE), "depth": (10, count())},
    ),
    Call("slerp", kd.slerp, {"first": X, "second": X, "fraction": (0.5, SAMPLES)}, slow=True),
]

RUN_CALLS = [
    Call("init", kd.init, {"schedule": TABLE, "x": START}),
    Call(
        "step",
        kd.step,
        {
            "state": STATE,
            "row": ROW,
            "prediction": PREDICTION,
            "key": KEY,
            "noise": (None, optional(SAMPLES)),
        },
        slow=True,
    ),
    Call(
        "State",
        lambda **kw: [_leaf(*item) for item in kw.items()],
        {"sample": X, "anchor": X},
        slow=True,
    ),
    Call(
        "Prediction",
        lambda **kw: [_half(*item) for item in kw.items()],
        {"denoised": X, "epsilon": X},
        slow=True,
    ),
    Call(
        "Row",
        # An epsilon network has no x0 where alpha is 0, and that is a row of zero terminal SNR.
        lambda **kw: _V_DENOISE(jnp.float32(0.1), fv.SAMPLE, replace(fv.ROW, **kw)),
        {
            "sigma": (fv.ROW.sigma, SAMPLES),
            "timestep": (fv.ROW.timestep, SAMPLES),
            "alpha": (fv.ROW.alpha, optional(SAMPLES)),
            "input_scale": (fv.ROW.input_scale, optional(SAMPLES)),
        },
        slow=True,
    ),
    Call("transition", kd.transition, {"state": STATE, "row": ROW, "prediction": PREDICTION}),
    Call(
        "log_prob",
        kd.log_prob,
        {"state": STATE, "row": ROW, "prediction": PREDICTION, "x_next": X},
    ),
    Call(
        "log_ratio",
        kd.log_ratio,
        {
            "row": ROW,
            "new": ((fv.STATE, fv.PREDICTION), _pair),
            "old": ((fv.STATE, fv.PREDICTION), _pair),
            "x_next": X,
        },
    ),
    Call(
        "sample",
        kd.sample,
        {
            "denoise": DENOISE,
            "params": PARAMS,
            "schedule": TABLE,
            "x": START,
            "key": KEY,
            "cond": (None, anything),
            "noise_fn": FUNCTION,
            "save_fn": FUNCTION,
            "progress": (False, either(flag, an(str))),
            "unroll": (1, count()),
            "remat": ("none", one_of("none", "rows", "segments")),
        },
        slow=True,
    ),
]
