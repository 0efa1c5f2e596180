"""Guidance: each kind against its formula in float64, one call or two, one trace of the network."""

import collections
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
from programs import compilations
from samplers import MIXING, NOISE, SAMPLERS, relative_error

import kdiff_jax as kd

TYPES = ("epsilon", "v_prediction", "sample")
COND, UNCOND = np.array([0.5, -1, 2, 0], np.float32), np.array([0.25, 1, 0, -0.5], np.float32)
SCALES = np.array([0, 1, 2.5, 7], np.float32)


def contrast_model(params, x, timestep, cond):
    """The condition changes the contrast of the output too, or rescaling would do nothing."""
    cond = jnp.asarray(cond, x.dtype)
    return sp.mixing_model(params, x, timestep, cond) * (1.5 + jnp.sin(cond))[:, None]


mixing = kd.denoiser(contrast_model, "v_prediction")


def start(name="ancestral", steps=4, batch=4):
    schedule = SAMPLERS[name](steps)
    return schedule, kd.initial_sample(schedule, jax.random.key(5), (batch, 8))


def float64(prediction):
    halves = prediction.denoised, prediction.epsilon
    return tuple(np.asarray(half, np.float64) for half in halves)


def truth(denoise, x, row, scale, phi=0.0, rescale_of="v_prediction"):
    """Lin et al. 2023, section 3.4, on the named output of the network; then back to D and eps."""
    with_cond, without = (
        float64(denoise(MIXING, x, row, COND)),
        float64(denoise(MIXING, x, row, UNCOND)),
    )
    alpha, sigma = (np.asarray(v, np.float64).reshape(-1, 1) for v in (row.alpha, row.sigma))
    norm = np.hypot(alpha, sigma)
    x = np.asarray(x, np.float64)

    def output(halves):
        denoised, epsilon = halves
        return {
            "epsilon": epsilon,
            "sample": denoised,
            "v_prediction": (alpha * epsilon - sigma * denoised) / norm,
            "flow_prediction": epsilon - denoised,
        }[rescale_of]

    scale = np.reshape(scale, (-1, 1)).astype(np.float64)
    positive, negative = output(with_cond), output(without)
    guided = negative + scale * (positive - negative)
    std = [q.std(axis=1, keepdims=True) for q in (positive, guided)]
    out = phi * (guided * std[0] / std[1]) + (1 - phi) * guided
    denoised = {
        "epsilon": lambda: (x - sigma * out) / alpha,
        "sample": lambda: out,
        # x = alpha D + sigma eps and v = (alpha eps - sigma D) / norm, solved for D
        "v_prediction": lambda: (alpha * x / norm - sigma * out) / norm,
        "flow_prediction": lambda: (x - sigma * out) / (alpha + sigma),
    }[rescale_of]()
    return denoised, (x - alpha * denoised) / sigma


def assert_predicts(prediction, expected, tolerance=2e-6):
    halves = prediction.denoised, prediction.epsilon
    for got, want in zip(halves, expected, strict=True):
        assert relative_error(got, want) < tolerance


# --- one call or two -------------------------------------------------------------------------


@pytest.mark.parametrize("batched", [True, False], ids=["doubled batch", "two calls"])
@pytest.mark.parametrize("name", ["ancestral", "lcm"])
def test_guidance_is_its_formula_in_one_call_and_in_two(name, batched):
    schedule, x = start(name)
    for row in (schedule[1], schedule[-1]):
        for scale in (np.float32(3), SCALES):
            guided = kd.guided(mixing, scale, UNCOND, batched=batched)
            assert_predicts(guided(MIXING, x, row, COND), truth(mixing, x, row, scale))


@pytest.mark.parametrize("interval", [None, (0.3, 5.0)], ids=["everywhere", "interval"])
@pytest.mark.parametrize("batched", [True, False], ids=["doubled batch", "two calls"])
def test_the_network_is_traced_once_and_evaluated_where_it_is_needed(batched, interval):
    count: collections.Counter[str] = collections.Counter()

    def model_fn(params, x, timestep, cond):
        count["traced"] += 1
        jax.debug.callback(lambda: count.update(evaluated=x.shape[0]))
        return params * x * cond[:, None]

    schedule, x = start("dpm2_karras", 6)
    denoise = kd.guided(
        kd.denoiser(model_fn), 2.0, jnp.float32(0), batched=batched, interval=interval
    )
    kd.sample(denoise, jnp.float32(0.1), schedule, x, cond=COND).block_until_ready()
    jax.effects_barrier()
    levels = np.asarray(schedule.rows.sigma)
    inside = np.sum((levels > 0.3) & (levels <= 5)) if interval else 11
    assert 0 < inside <= 11
    assert count["traced"] == 1
    assert count["evaluated"] == 4 * (22 if batched else 11 + inside)


def test_two_calls_and_one_batch_agree_under_every_transform():
    bounds: dict[str, Any] = {"interval": (0.5, 20.0), "rescale": 0.7}

    def run(scale, batched, **options):
        denoise = kd.guided(mixing, scale, UNCOND, **bounds, batched=batched)
        return kd.sample(denoise, MIXING, schedule, x, cond=COND, **options).sum()

    with sp.x64():
        schedule, x = start("dpm2_karras", 5)
        scales = jnp.array([1.0, 2 - 1e-6, 2.0, 2 + 1e-6, 5.0])
        of_two_calls, of_one = (
            jax.jit(jax.vmap(jax.value_and_grad(lambda scale, way=way: run(scale, way))))(scales)
            for way in (False, True)
        )
        for one, two in zip(of_one, of_two_calls, strict=True):
            assert relative_error(one, two) < 1e-12
        values, slopes = of_two_calls
        by_differences = (values[3] - values[1]) / 2e-6
        assert float(slopes[2]) == pytest.approx(float(by_differences), rel=1e-6)
        assert abs(float(slopes[2])) > 1e-3
        each = jnp.stack([run(scale, False) for scale in scales])
        assert relative_error(values, each) < 1e-12
        other = run(scales[2], False, remat="rows", unroll=2)
        assert relative_error(other, each[2]) < 1e-12


# --- a scale for every step, and for every sample of it --------------------------------------


@pytest.mark.parametrize("one_a_sample", [False, True], ids=["[N]", "[N, B]"])
def test_a_scale_per_step_follows_the_steps_and_survives_slicing_padding_and_stacks(one_a_sample):
    shape = (4, 4) if one_a_sample else (4,)
    scales = np.random.default_rng(1).uniform(1, 5, shape).astype(np.float32)
    denoise = kd.guided(mixing, scales, UNCOND, per_step=True)
    schedule, x = start("dpm2")
    for row in schedule:
        assert_predicts(denoise(MIXING, x, row, COND), truth(mixing, x, row, scales[row.step]))
    first = kd.dpm2(kd.levels(NOISE, 4).start_at(2))[0]
    assert_predicts(denoise(MIXING, x, first, COND), truth(mixing, x, first, scales[2]))

    plain = kd.sample(denoise, MIXING, schedule, x, cond=COND)
    padded = kd.sample(denoise, MIXING, schedule.pad(11), x, cond=COND)
    np.testing.assert_array_equal(plain, padded)
    rows = kd.stack([schedule] * 4).rows_at(jnp.array([0, 6, 3, 2]))
    each = scales[[0, 3, 1, 1]]
    expected = truth(mixing, x, rows, np.diagonal(each) if one_a_sample else each)
    assert_predicts(denoise(MIXING, x, rows, COND), expected)


def test_a_step_past_the_scales_is_not_a_number():
    schedule, x = start("dpm2")
    denoise = kd.guided(mixing, np.ones(3, np.float32), UNCOND, per_step=True)
    assert np.all(np.isfinite(denoise(MIXING, x, schedule[5], COND).denoised))
    assert np.all(np.isnan(denoise(MIXING, x, schedule[6], COND).denoised))


# --- an interval of noise levels -------------------------------------------------------------


@pytest.mark.parametrize("batched", [True, False], ids=["doubled batch", "two calls"])
@pytest.mark.parametrize("name", ["dpm2_karras", "lcm"])
def test_outside_the_interval_the_prediction_is_the_conditional_one_to_the_bit(name, batched):
    def conditional_only(x, row):
        return mixing(MIXING, x, row, COND)

    def in_a_doubled_batch(x, row):  # whose matrix product may round another way
        both = mixing(MIXING, jnp.concatenate([x, x]), row, jnp.concatenate([COND, COND]))
        return jax.tree.map(lambda half: half[: x.shape[0]], both)

    schedule, x = start(name)
    levels = np.array([float(row.sigma / row.alpha) for row in schedule])
    low, high = levels[-1], levels[1]  # the lower end is outside, the upper one inside
    bounded = kd.guided(mixing, SCALES, UNCOND, interval=(low, high), batched=batched)
    everywhere = kd.guided(mixing, SCALES, UNCOND)
    conditional = kd.guided(mixing, 1.0, UNCOND, interval=(0, 1e-9))
    seen = set()
    for row, level in zip(schedule, levels, strict=True):
        inside = low < level <= high
        prediction = bounded(MIXING, x, row, COND)
        other = (everywhere if inside else conditional)(MIXING, x, row, COND)
        assert_predicts(prediction, float64(other), 1e-6)
        if not inside:
            # Two calls come compiled, and a compiler fuses.
            same = (in_a_doubled_batch if batched else jax.jit(conditional_only))(x, row)
            np.testing.assert_array_equal(prediction.denoised, same.denoised)
            np.testing.assert_array_equal(prediction.epsilon, same.epsilon)
        seen.add(inside)
    assert seen == {True, False}


def test_every_sample_has_its_own_interval_and_its_own_row():
    schedule, x = start("dpm2_karras", 6)
    rows = schedule.rows_at(jnp.array([0, 4, 8, 10]))
    low, high = np.asarray(rows.sigma) * [0.5, 2, 0.5, 0.9], np.asarray(rows.sigma) * [2, 3, 0.9, 1]
    for batched in (True, False):
        denoise = kd.guided(mixing, 3.0, UNCOND, interval=(low, high), batched=batched)
        expected = truth(mixing, x, rows, [3, 1, 1, 3])
        assert_predicts(denoise(MIXING, x, rows, COND), expected)


def test_without_any_signal_the_noise_level_is_infinite():
    noise = kd.noise_schedule("scaled_linear", rescale_zero_terminal_snr=True)
    row = kd.lcm(kd.lcm_levels(noise, 4))[0]
    assert row.alpha == 0
    x = jnp.ones((4, 8))
    for high, scale in ((np.inf, 3.0), (1e6, 1.0)):
        prediction = kd.guided(mixing, 3.0, UNCOND, interval=(0.1, high))(MIXING, x, row, COND)
        expected = kd.guided(mixing, scale, UNCOND)(MIXING, x, row, COND)
        assert_predicts(prediction, float64(expected), 1e-6)


# --- rescaled --------------------------------------------------------------------------------


@pytest.mark.parametrize("batched", [True, False], ids=["doubled batch", "two calls"])
@pytest.mark.parametrize("name", ["ancestral", "lcm"])
@pytest.mark.parametrize("rescale_of", [*TYPES, "flow_prediction"])
def test_rescaling_is_its_formula_and_keeps_x(rescale_of, name, batched):
    schedule, x = start(name)
    phi = np.array([0, 0.3, 0.7, 1], np.float32)
    for row in (schedule[1], schedule[-1]):
        options = {"rescale": phi, "rescale_of": rescale_of, "batched": batched}
        prediction = kd.guided(mixing, SCALES, UNCOND, **options)(MIXING, x, row, COND)
        expected = truth(mixing, x, row, SCALES, phi.reshape(-1, 1), rescale_of)
        # epsilon of the truth is (x - D) / sigma, which cancels where sigma is small.
        tolerance = 2e-6 + 3e-7 * float(jnp.max(jnp.abs(x))) / float(row.sigma)
        assert_predicts(prediction, expected, tolerance)
        parts = row.alpha * prediction.denoised, row.sigma * prediction.epsilon
        size = max(float(jnp.max(jnp.abs(part))) for part in parts)
        assert float(jnp.max(jnp.abs(parts[0] + parts[1] - x))) < 1e-6 * size


@pytest.mark.parametrize("prediction_type", TYPES)
def test_what_is_rescaled_by_default_is_what_the_network_predicts(prediction_type):
    schedule, x = start("lcm")
    denoise = kd.clipped(kd.denoiser(contrast_model, prediction_type), 50.0)
    prediction = kd.guided(denoise, 4.0, UNCOND, rescale=1.0)(MIXING, x, schedule[1], COND)
    named = kd.guided(denoise, 4.0, UNCOND, rescale=1.0, rescale_of=prediction_type)
    np.testing.assert_array_equal(prediction.denoised, named(MIXING, x, schedule[1], COND).denoised)
    assert_predicts(prediction, truth(denoise, x, schedule[1], 4.0, 1.0, prediction_type), 1e-5)
    plain = kd.guided(denoise, 4.0, UNCOND)(MIXING, x, schedule[1], COND)
    assert relative_error(prediction.denoised, plain.denoised) > 0.01


def test_rescaling_a_constant_image_changes_nothing_and_has_a_gradient():
    def flat(params, x, row, cond=None):
        denoised = jnp.ones_like(x) * params * cond.reshape(-1, 1)
        return kd.Prediction(denoised, (x - row.alpha * denoised) / row.sigma)

    schedule, x = start("dpm2")

    def value(scale):
        denoise = kd.guided(flat, scale, UNCOND, rescale=1.0, rescale_of="sample")
        return denoise(jnp.float32(2), x, schedule[0], COND).denoised

    expected = 2 * (UNCOND + 3 * (COND - UNCOND)).reshape(-1, 1) * np.ones((1, 8))
    np.testing.assert_allclose(value(jnp.float32(3)), expected, rtol=1e-6)
    slope = jax.jit(jax.jacobian(value))(jnp.float32(3))
    np.testing.assert_allclose(slope[:, 0], 2 * (COND - UNCOND), rtol=1e-6)


NO_SIGNAL: dict[str, Any] = {
    "flow": (kd.dpm2(kd.levels(kd.flow_schedule(), 3)), "flow_prediction", "epsilon"),
    "lcm": (
        kd.lcm(kd.lcm_levels(kd.noise_schedule(rescale_zero_terminal_snr=True), 3)),
        "v_prediction",
        "epsilon",
    ),
}


@pytest.mark.parametrize("name", NO_SIGNAL)
def test_rescaling_epsilon_changes_nothing_where_there_is_no_signal(name):
    """x is sigma epsilon there, whatever the network says, so no contrast of epsilon is another."""
    schedule, prediction_type, rescale_of = NO_SIGNAL[name]
    row, x = schedule[0], jax.random.normal(jax.random.key(1), (4, 8))
    assert row.alpha == 0
    denoise = kd.denoiser(contrast_model, prediction_type)

    def predict(scale, **options):
        guided = kd.guided(denoise, scale, UNCOND, **options)
        return guided(MIXING, x, row, COND)

    plain = predict(3.0)
    rescaled = predict(3.0, rescale=0.7, rescale_of=rescale_of)
    for got, expected in zip(jax.tree.leaves(rescaled), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(got, expected)

    def loss(numbers):
        guided = kd.guided(denoise, numbers[0], UNCOND, rescale=numbers[1], rescale_of=rescale_of)
        prediction = guided(MIXING, x, row, COND)
        return jnp.sum(prediction.denoised**2 + prediction.epsilon**2)

    value, slope = jax.jit(jax.value_and_grad(loss))(jnp.array([3.0, 0.7]))
    assert np.all(np.isfinite([value, *slope]))


@pytest.mark.parametrize("name", ["dpm2", "lcm"])
def test_second_derivatives_through_a_rescaled_constant_image_are_finite(name):
    """Its contrast is rounding, whose variance to the power of -3 is beyond float32."""

    def constant_model(params, x, timestep, cond):
        return params * x * cond[:, None]

    row = SAMPLERS[name](2)[1]

    def loss(numbers, image):
        guided = kd.guided(kd.denoiser(constant_model), numbers[0], 0.5, rescale=numbers[1])
        return jnp.mean(guided(np.float32(0.1), image, row, COND).denoised ** 2)

    hessian = jax.jit(jax.hessian(loss))
    for contrast in (0, 1e-7, 1e-6, 1e-3):
        image = 1.1 + contrast * jax.random.normal(jax.random.key(0), (4, 8))
        assert np.all(np.isfinite(hessian(jnp.array([3.0, 0.7]), image)))


# --- all of it together ----------------------------------------------------------------------


def test_everything_composes_in_one_program(caplog):
    schedule, x = start("dpm2_karras", 5)
    row = schedule[4]
    scales = np.linspace(1, 4, 5, dtype=np.float32)
    level = float(row.sigma)
    negative = COND[::-1].copy()
    options: dict[str, Any] = {"per_step": True, "interval": (level / 2, level * 2), "rescale": 0.7}
    guided = kd.guided(kd.thresholded(mixing, 0.9, 2.0), scales, negative, **options)
    denoise = kd.clipped(guided, 0.4)
    out = kd.sample(denoise, MIXING, schedule, x, cond=COND)
    assert np.all(np.abs(out) <= 0.4 * (1 + 1e-6))
    prediction = denoise(MIXING, x, row, COND).denoised
    expected = guided(MIXING, x, row, COND).denoised
    np.testing.assert_array_equal(prediction, np.clip(expected, -0.4, 0.4))
    # Another scale, interval, share and negative condition: the same program.
    other: dict[str, Any] = {"per_step": True, "interval": (0.1, 7.0), "rescale": 0.1}
    again = kd.guided(kd.thresholded(mixing, 0.8, 1.9), 2 * scales, 3 * negative, **other)
    changed = []

    def run_again():
        denoise = kd.clipped(again, 0.3)
        changed.append(kd.sample(denoise, MIXING, schedule, x, cond=COND))
        return changed[0]

    assert compilations(caplog, run_again) == []
    assert relative_error(changed[0], out) > 0


def test_what_has_no_option_is_not_in_the_program():
    schedule, x = start("dpm2")
    row = schedule[0]

    def program(**options):
        denoise = kd.guided(mixing, 2.0, UNCOND, **options)
        return str(jax.make_jaxpr(lambda x: denoise(MIXING, x, row, COND))(x))

    assert "cond[" in program(batched=False, interval=(0, 9))
    assert "cond[" not in program(batched=False)
    assert "select_n" in program(interval=(0, 9))
    assert "select_n" not in program()
    assert "sqrt" in program(rescale=0.5)
    assert "sqrt" not in program()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": np.ones((2, 2))}, "per_step=False"),
        ({"scale": 2.0, "per_step": True}, r"\[N\] or \[N, B\]"),
        ({"scale": [1.0, np.nan], "per_step": True}, "finite"),
        ({"interval": 3.0}, "two noise levels"),
        ({"interval": (5.0, 0.3)}, "low < high"),
        ({"interval": (-1.0, 0.3)}, "low < high"),
        ({"interval": (0.0, np.nan)}, "low < high"),
        ({"rescale": 1.5}, r"\[0, 1\]"),
        ({"rescale": -0.1}, "at least 0"),
        ({"rescale": 0.5, "rescale_of": "noise"}, "rescale_of = 'noise' is not known"),
        ({"rescale_of": "epsilon"}, "rescale was not given"),
        ({"rescale": 0.5, "denoise": sp.identity_denoise}, "give rescale_of"),
    ],
)
def test_refusals(options, message):
    arguments = {"denoise": mixing, "scale": 2.0, "uncond": UNCOND} | options
    with pytest.raises(ValueError, match=message):
        kd.guided(**arguments)
