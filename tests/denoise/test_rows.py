"""Each denoiser against its formula in NumPy: rows scalar, [B] and [B, F], rows without columns."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers import NOISE, relative_error

import kdiff_jax as kd

B, F = 3, 4
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(B, F, 5)), jnp.float32)
KNOWN = np.linspace(-1, 1, 5, dtype=np.float32)
MASK = np.array([0, 0.4, 1, 0.7, 0], np.float32)
COND, UNCOND = np.array([0.5, -1, 2], np.float32), np.array([0.25, 1, 0], np.float32)
SCALES = np.array([1.5, 3, 0.5], np.float32)
# One for each of three outer steps, and one for each sample in each of them.
STEP_SCALES = np.array([1.0, 2.5, 4.0], np.float32)
BOTH_SCALES = np.arange(3 * B, dtype=np.float32).reshape(3, B) / 2
# One limit that is met by rows and one that is not, and all shares of the parallel part.
ETAS, LIMITS = np.array([0, 1, 0.4], np.float32), np.array([2, 50, 0.5], np.float32)
PARAMS, WEAK = np.float32(0.8), np.float32(0.3)
SHAPES = {"scalar": (), "[B]": (B,), "[B, F]": (B, F)}
Halves = tuple[np.ndarray, np.ndarray]
TruthFn = Callable[[np.ndarray, dict[str, np.ndarray]], np.ndarray]


def network(xp, params, x, time, cond):
    """Number by number, in either namespace; the condition changes the contrast too."""
    time = time.reshape(time.shape + (1,) * (x.ndim - time.ndim)) / 1000
    cond = cond.reshape(-1, 1, 1)
    return (1 + cond / 4) * params * x / (1 + x * x) + xp.sin(3 * time) + cond


def model_fn(params, x, timestep, cond=None):
    assert timestep.dtype == jnp.float32
    assert timestep.shape in ((B,), (2 * B,), X.shape[:2], (2 * B, F))
    cond = jnp.zeros(x.shape[:1]) if cond is None else cond
    return network(jnp, params, x, timestep, cond)


def row_of(shape: tuple[int, ...], flow: bool = False) -> kd.Row:
    """A row of random levels with leaves of a shape, in no table's units but a flow's."""
    rng = np.random.default_rng(1)

    def leaf(low, high):
        return jnp.asarray(rng.uniform(low, high, shape), jnp.float32)

    sigma = leaf(0.3, 0.8) if flow else leaf(0.5, 3)
    alpha = 1 - sigma if flow else leaf(0.4, 1)
    return dataclasses.replace(
        kd.euler(kd.levels(NOISE, 3))[0],
        step=jnp.asarray(rng.integers(0, 3, shape), jnp.int32),
        timestep=leaf(0, 999),
        sigma=sigma,
        alpha=alpha,
        input_scale=1 / jnp.sqrt(alpha**2 + sigma**2),
    )


def in_float64(row: kd.Row) -> dict[str, np.ndarray]:
    """The leaves that a denoiser reads, of x's rank; the outer step as it is."""

    def leaf(value):
        value = np.asarray(value, np.float64)
        return value.reshape(value.shape + (1,) * (X.ndim - value.ndim)) if value.ndim else value

    names = ("timestep", "sigma", "alpha", "input_scale")
    values = {name: leaf(getattr(row, name)) for name in names}
    return values | {"step": np.asarray(row.step)}


# --- the formulas, each an estimate of x0 ----------------------------------------------------


def output(x, row, time=None, cond=0 * COND):
    time = np.broadcast_to(row["timestep"] if time is None else time, (*x.shape[:2], 1))
    return network(np, np.float64(PARAMS), row["input_scale"] * x, time, np.float64(cond))


def of_epsilon(x, row, **given):
    return (x - row["sigma"] * output(x, row, **given)) / row["alpha"]


def of_v(x, row):
    a, s = (row["input_scale"] * row[name] for name in ("alpha", "sigma"))
    return a * row["input_scale"] * x - s * output(x, row)


def of_edm(x, row):
    level, data = row["sigma"] / row["alpha"], 0.7
    n = np.hypot(level, data)
    flat = x / row["alpha"]
    time = np.log(level) / 4
    out = output(flat / n, row | {"input_scale": 1.0}, np.float32(time))
    return data**2 / n**2 * flat + level * data / n * out


def of_consistency(x, row):
    t = row["timestep"] * 1e-3
    c_skip, c_out = 0.25 / (t**2 + 0.25), t / np.hypot(t, 0.5)
    return c_out * of_epsilon(x, row) + c_skip * row["input_scale"] * x


def of_threshold(x, row):
    denoised = of_epsilon(x, row)
    limit = np.quantile(np.abs(denoised).reshape(B, -1), 0.9, axis=1)
    limit = np.clip(limit, 1, 1.5).reshape(B, 1, 1)
    return np.clip(denoised, -limit, limit) / limit


def mixed(x, row, scale):
    cond, uncond = (of_epsilon(x, row, cond=c) for c in (COND, UNCOND))
    return uncond + scale * (cond - uncond)


def of_guidance(x, row):
    return mixed(x, row, SCALES.reshape(B, 1, 1))


def of_guidance_per_step(x, row):
    scale = STEP_SCALES[row["step"]].astype(np.float64)
    return mixed(x, row, scale.reshape(scale.shape + (1,) * (x.ndim - scale.ndim)))


def of_guidance_per_step_and_sample(x, row):
    step = row["step"].reshape(*row["step"].shape, *(1,) * (x.ndim - row["step"].ndim))
    at = np.broadcast_to(step, (B, F, 1)), np.arange(B).reshape(B, 1, 1)
    return mixed(x, row, BOTH_SCALES[at].astype(np.float64))


def of_interval(x, row):
    level = row["sigma"] / row["alpha"]
    inside = (level > 1.0) & (level <= 3.0)
    return np.where(inside, mixed(x, row, 3.0), of_epsilon(x, row, cond=COND))


def of_rescaled(x, row):
    """Lin et al. 2023, section 3.4, of the network's own epsilon; one deviation a sample."""
    cond, uncond = (output(x, row, cond=c) for c in (COND, UNCOND))
    guided = uncond + 3.0 * (cond - uncond)
    over = {"axis": (1, 2), "keepdims": True}
    epsilon = 0.7 * guided * cond.std(**over) / guided.std(**over) + 0.3 * guided
    return (x - row["sigma"] * epsilon) / row["alpha"]


def of_projection(x, row):
    """Sadat et al. 2024, algorithm 1 without momentum; eta and threshold of each sample."""
    cond, uncond = (of_epsilon(x, row, cond=c).reshape(B, -1) for c in (COND, UNCOND))
    update = cond - uncond
    norm = np.linalg.norm(update, axis=1, keepdims=True)
    update = update * np.minimum(1, LIMITS.reshape(B, 1) / norm)
    unit = cond / np.linalg.norm(cond, axis=1, keepdims=True)
    parallel = np.sum(update * unit, axis=1, keepdims=True) * unit
    update = (update - parallel) + ETAS.reshape(B, 1) * parallel
    return (cond + (SCALES.reshape(B, 1) - 1) * update).reshape(x.shape)


def of_autoguidance(x, row):
    out = np.broadcast_to(row["timestep"], (*x.shape[:2], 1))
    strong, weak = (
        (x - row["sigma"] * network(np, np.float64(p), row["input_scale"] * x, out, 0.0 * COND))
        / row["alpha"]
        for p in (PARAMS, WEAK)
    )
    return weak + SCALES.reshape(B, 1, 1) * (strong - weak)


def of_inpainting(x, row):
    noised = row["alpha"] * KNOWN + row["sigma"] * KNOWN[::-1]
    return MASK * of_epsilon(MASK * x + (1 - MASK) * noised, row) + (1 - MASK) * KNOWN


base = kd.denoiser(model_fn)
guided: dict[str, Any] = {"uncond": UNCOND}
CASES: dict[str, tuple[Any, TruthFn]] = {
    "epsilon": (base, of_epsilon),
    "v_prediction": (kd.denoiser(model_fn, "v_prediction"), of_v),
    "sample": (kd.denoiser(model_fn, "sample"), output),
    "flow_prediction": (
        kd.denoiser(model_fn, "flow_prediction"),
        lambda x, row: x - row["sigma"] * output(x, row),
    ),
    "continuous": (
        kd.continuous(base, lambda level: 100 * level),
        lambda x, row: of_epsilon(x, row, time=100 * row["sigma"] / row["alpha"]),
    ),
    "edm": (kd.edm_denoiser(model_fn, 0.7), of_edm),
    "consistency": (kd.consistency(base, timestep_scaling=1e-3), of_consistency),
    "clipped": (
        kd.clipped(base, jnp.array([0.5, 0.6, 0.7])),
        lambda x, row: np.clip(
            of_epsilon(x, row), *(s * np.array([0.5, 0.6, 0.7]).reshape(B, 1, 1) for s in (-1, 1))
        ),
    ),
    "thresholded": (kd.thresholded(base, 0.9, 1.5), of_threshold),
    "guided": (kd.guided(base, SCALES, **guided), of_guidance),
    "guided, two calls": (kd.guided(base, SCALES, **guided, batched=False), of_guidance),
    "guided per step": (
        kd.guided(base, STEP_SCALES, **guided, per_step=True),
        of_guidance_per_step,
    ),
    "guided per step and sample, two calls": (
        kd.guided(base, BOTH_SCALES, **guided, per_step=True, batched=False),
        of_guidance_per_step_and_sample,
    ),
    "guided in an interval": (kd.guided(base, 3.0, **guided, interval=(1, 3)), of_interval),
    "guided in an interval, two calls": (
        kd.guided(base, 3.0, **guided, interval=(1, 3), batched=False),
        of_interval,
    ),
    "rescaled": (kd.guided(base, 3.0, **guided, rescale=0.7), of_rescaled),
    "projected": (
        kd.projected(base, SCALES, UNCOND, eta=ETAS, norm_threshold=LIMITS),
        of_projection,
    ),
    "projected, two calls": (
        kd.projected(base, SCALES, UNCOND, eta=ETAS, norm_threshold=LIMITS, batched=False),
        of_projection,
    ),
    "autoguided, two calls": (kd.autoguided(base, SCALES), of_autoguidance),
    "inpainted": (kd.inpainted(base, KNOWN, MASK, KNOWN[::-1]), of_inpainting),
}
every_denoiser = pytest.mark.parametrize("name", CASES)


def predicted(name, row):
    denoise = CASES[name][0]
    cond = COND if hasattr(denoise, "uncond") else None
    return denoise((PARAMS, WEAK) if "autoguided" in name else PARAMS, X, row, cond)


@pytest.mark.parametrize("leaves", SHAPES)
@every_denoiser
def test_a_prediction_is_its_formula_at_rows_of_every_shape(name, leaves):
    row = row_of(SHAPES[leaves], flow=name == "flow_prediction")
    prediction = predicted(name, row)
    x, numbers = np.asarray(X, np.float64), in_float64(row)
    denoised = CASES[name][1](x, numbers)
    epsilon = (x - numbers["alpha"] * denoised) / numbers["sigma"]
    assert prediction.denoised.dtype == prediction.epsilon.dtype == jnp.float32
    assert relative_error(prediction.denoised, denoised) < 2e-6
    assert relative_error(prediction.epsilon, epsilon) < 4e-6


@every_denoiser
def test_a_column_that_is_none_means_one(name):
    row = row_of((B, F))
    for columns in (("alpha",), ("input_scale",), ("alpha", "input_scale")):
        ones = dataclasses.replace(row, **dict.fromkeys(columns, jnp.ones((B, F))))
        nothing: dict[str, Any] = dict.fromkeys(columns)
        without = dataclasses.replace(row, **nothing)
        got, expected, other = (
            np.stack(jax.tree.leaves(predicted(name, r))) for r in (without, ones, row)
        )
        # Two calls come compiled, and a compiler fuses.
        limit = 2e-7 if "two calls" in name else 0
        assert relative_error(got, expected) <= limit
        # EDM has a scale of its own; elsewhere the column matters.
        assert np.any(got != other) or (name, columns) == ("edm", ("input_scale",))


def test_leaves_of_different_shapes_meet_in_one_row():
    """A level for each sample and an alpha for each frame, and the other way round."""
    whole, each = row_of((B,)), row_of((B, F))
    for row in (
        dataclasses.replace(whole, alpha=each.alpha),
        dataclasses.replace(each, alpha=whole.alpha),
    ):
        for name in ("epsilon", "continuous", "edm"):
            expected = CASES[name][1](np.asarray(X, np.float64), in_float64(row))
            assert relative_error(predicted(name, row).denoised, expected) < 2e-6


def test_timesteps_of_another_number_than_the_frames_are_refused():
    row = dataclasses.replace(row_of(()), timestep=jnp.zeros((B, F + 1)))
    with pytest.raises(ValueError, match=r"timesteps of shape \(3, 5\).*\(3, 4, 5\).*\[B, F\]"):
        base(PARAMS, X, row)
    sigmas = dataclasses.replace(row_of(()), sigma=jnp.ones((B, F + 1)))
    with pytest.raises(ValueError, match=r"values of shape \(3, 5\) met a sample of shape"):
        base(PARAMS, X, sigmas)
