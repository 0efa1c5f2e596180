"""Inpainting: the known part to the bit, at the right level in every row, around exact denoisers.

Data is a correlated Gaussian N(MEAN, COVARIANCE), whose denoiser is linear: the posterior mean.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
import scipy.integrate
from programs import compilations
from samplers import MIXING, NOISE, SAMPLERS, relative_error

import kdiff_jax as kd
from kdiff_jax._table.schedule import NEUTRAL

MEAN = np.array([0.5, -1.0, 0.2, 0.0])
COVARIANCE = 0.8 ** np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
MASK = np.array([0.0, 1.0, 1.0, 0.0])
every_sampler = pytest.mark.parametrize("name", SAMPLERS)
# What ends above 0 ends in noise, and unipc ends in a mixture of estimates.
TO_DATA = [name for name, build in SAMPLERS.items() if build(2)[-1].denoised_weight == 1]
COLUMNS = tuple(NEUTRAL)
every_sampler_to_data = pytest.mark.parametrize("name", TO_DATA)
both_ways = pytest.mark.parametrize("renoised", [False, True], ids=["projected", "renoised"])


EIGENVALUES, EIGENVECTORS = np.linalg.eigh(COVARIANCE)


def exact_denoise(params, x, row, cond=None):
    """E[X0 | x] for x = alpha X0 + sigma Z, in the basis where the covariance is diagonal."""
    mean, values, basis = (
        jnp.asarray(part, x.dtype) for part in (MEAN[None], EIGENVALUES[None], EIGENVECTORS)
    )
    alpha, sigma = row.alpha.astype(x.dtype), row.sigma.astype(x.dtype)
    gain = alpha * values / (alpha**2 * values + sigma**2)
    denoised = mean + gain * ((x - alpha * mean) @ basis) @ basis.T
    return kd.Prediction(denoised, (x - alpha * denoised) / sigma)


def case(name, batch=3, steps=4):
    """(schedule, x at its first level, known, noise): known and x belong together."""
    rng = np.random.default_rng(3)
    schedule = SAMPLERS[name](steps)
    known, eps = rng.normal(size=(2, batch, 4))
    dtype = schedule.sigmas.dtype
    known, eps = jnp.asarray(known, dtype), jnp.asarray(eps, dtype)
    return schedule, kd.add_noise(schedule[0], known, eps), known, eps


@both_ways
@every_sampler_to_data
def test_the_result_holds_what_is_known_to_the_bit(name, renoised):
    schedule, x, known, eps = case(name)
    denoise = kd.inpainted(exact_denoise, known, MASK, eps[::-1] if renoised else None)
    padded = schedule.pad(12, COLUMNS)
    rest = schedule[int(np.searchsorted(schedule.rows.step, 2)) :].pad(12, COLUMNS)
    state = kd.init(padded, x)
    # Padded, all samplers share a program; without, three of them, and all of them by hand below.
    plain = [(schedule, x)] if name in ("euler", "dpm2_churn", "lcm") else []
    for table, begin in (*plain, (padded, x), (rest, state)):
        x0 = kd.sample(denoise, None, table, begin, jax.random.key(0))
        np.testing.assert_array_equal(x0[:, MASK == 0], known[:, MASK == 0])
        assert np.all(x0[:, MASK == 1] != known[:, MASK == 1])
    by_hand = sp.run_by_hand(denoise, None, schedule, x, jax.random.key(0))[-1].sample
    np.testing.assert_array_equal(by_hand[:, MASK == 0], known[:, MASK == 0])


def what_the_network_sees(schedule, x, known, noise):
    """The x of every row that reaches the inner denoiser, [R, B, ...]."""
    seen = []

    def watched(params, x, row, cond=None):
        seen.append(x)
        return exact_denoise(params, x, row, cond)

    denoise = kd.inpainted(watched, known, MASK, noise)
    sp.run_by_hand(denoise, None, schedule, x, jax.random.key(0))
    return np.stack(seen)[..., MASK == 0].astype(np.float64)


@every_sampler
def test_the_known_part_is_renoised_to_the_level_of_the_row_also_at_half_steps(name):
    schedule, x, known, eps = case(name)
    noise = eps[::-1]  # another than that of x
    seen = what_the_network_sees(schedule, x, known, noise)
    for row, got in zip(schedule, seen, strict=True):
        expected = float(row.alpha) * np.asarray(known) + float(row.sigma) * np.asarray(noise)
        assert relative_error(got, expected[:, MASK == 0]) < 1e-6


@pytest.mark.parametrize("name", ["euler", "dpm2", "dpm2_karras"])
def test_projected_without_noise_the_known_part_keeps_the_noise_that_it_began_with(name):
    schedule, x, known, eps = case(name)
    seen = what_the_network_sees(schedule, x, known, None)
    for row, got in zip(schedule, seen, strict=True):
        expected = np.asarray(known) + float(row.sigma) * np.asarray(eps)
        # One rounding of a step from x, which shrinks with x from row to row.
        bound = 4e-7 * np.max(np.abs(np.asarray(x))) * float(row.sigma / schedule[0].sigma) + 2e-6
        assert np.max(np.abs(got - expected[:, MASK == 0])) < bound


@pytest.mark.parametrize("name", ["euler_ancestral", "ancestral", "lcm"])
def test_projected_with_fresh_noise_the_known_part_is_at_the_level_of_every_row(name):
    schedule, x, known, _ = case(name, batch=20_000)
    seen = what_the_network_sees(schedule, x, known, None)
    known = np.asarray(known, np.float64)[:, MASK == 0]
    for row, got in zip(schedule, seen, strict=True):
        z = (got - float(row.alpha) * known) / float(row.sigma)
        # The noise of an ancestral half-step is that of sigma_down and of the midpoint: 1 too.
        assert abs(np.mean(z)) < 3.5 / np.sqrt(z.size)
        assert abs(np.var(z) - 1) < 3.5 * np.sqrt(2 / z.size)


# --- the painted part ------------------------------------------------------------------------


def exact_painting(x, known, noise, first, last):
    """The probability-flow ODE of the painted part, the known one moving as known + sigma noise."""
    paint = MASK == 1
    start = np.asarray(x, np.float64)

    def at(sigma, painted):
        whole = known + sigma * noise
        whole[:, paint] = painted
        gain = np.linalg.solve(COVARIANCE + sigma**2 * np.eye(4), COVARIANCE)
        return whole, MEAN + (whole - MEAN) @ gain

    def slope(log_sigma, painted):
        whole, denoised = at(np.exp(log_sigma), painted.reshape(len(known), -1))
        return (whole - denoised)[:, paint].ravel()  # dx / d log sigma

    span = np.log([first, last])
    options = {"method": "DOP853", "rtol": 1e-12, "atol": 1e-12}
    solved = scipy.integrate.solve_ivp(slope, span, start[:, paint].ravel(), **options)
    painted = solved.y[:, -1].reshape(len(known), -1)
    return at(last, painted)[1][:, paint]


@both_ways
def test_the_painted_part_converges_in_second_order_to_the_exact_one(renoised):
    errors = []
    with sp.x64():
        for steps in (20, 40, 80):
            _, _, known, eps = case("dpm2")
            levels = kd.levels(NOISE, steps, grid="karras", sigma_max=20.0, sigma_min=0.1)
            schedule = kd.dpm2(levels)
            x = kd.add_noise(schedule[0], known, eps)
            noise = eps[::-1] if renoised else eps
            denoise = kd.inpainted(exact_denoise, known, MASK, noise if renoised else None)
            got = kd.sample(denoise, None, schedule, x)
            assert got.dtype == jnp.float64
            ends = float(schedule.sigmas[0]), float(schedule.sigmas[-2])
            expected = exact_painting(x, np.asarray(known), np.asarray(noise), *ends)
            errors.append(relative_error(got[:, MASK == 1], expected))
    orders = [np.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert errors[-1] < 1e-3
    assert all(1.9 < order < 2.3 for order in orders), (orders, errors)


@both_ways
def test_where_nothing_is_known_nothing_changes(renoised):
    schedule, x, known, eps = case("ancestral")
    noise = eps if renoised else None
    key = jax.random.key(1)
    plain = kd.sample(exact_denoise, None, schedule, x, key)
    free = kd.inpainted(exact_denoise, known, np.ones(4), noise)
    assert relative_error(kd.sample(free, None, schedule, x, key), plain) < 1e-6
    for row in schedule:
        prediction, own = free(None, x, row), exact_denoise(None, x, row)
        np.testing.assert_array_equal(prediction.denoised, own.denoised)
        np.testing.assert_array_equal(prediction.epsilon, own.epsilon)


# --- what every denoiser keeps, and refusals -------------------------------------------------


@both_ways
@pytest.mark.parametrize("name", ["ancestral", "lcm"])
def test_x_is_alpha_denoised_plus_sigma_epsilon_also_where_the_mask_is_soft(name, renoised):
    schedule, x, known, eps = case(name)
    mask = np.array([0.0, 0.3, 0.8, 1.0])
    denoise = kd.inpainted(exact_denoise, known, mask, eps[::-1] if renoised else None)
    for row in schedule:
        prediction = denoise(None, x, row)
        parts = row.alpha * prediction.denoised, row.sigma * prediction.epsilon
        size = max(float(jnp.max(jnp.abs(part))) for part in (*parts, x))
        assert float(jnp.max(jnp.abs(parts[0] + parts[1] - x))) < 1e-6 * size
        own = exact_denoise(None, x, row).denoised
        if not renoised:
            expected = mask * np.asarray(own) + (1 - mask) * np.asarray(known)
            assert relative_error(prediction.denoised, expected) < 1e-6


def test_inpainting_goes_around_guidance_and_has_gradients(caplog):
    mixing = kd.denoiser(sp.mixing_model)
    schedule = SAMPLERS["dpm2"](4)
    x, cond = kd.initial_sample(schedule, jax.random.key(0), (4, 8)), jnp.ones(4)
    guided = kd.guided(mixing, 2.0, jnp.float32(0))
    mask = (np.arange(8) < 5).astype(np.float32)

    def run(known, mask):
        denoise = kd.inpainted(guided, known, mask, x / schedule.init_noise_sigma)
        return kd.sample(denoise, MIXING, schedule, x, cond=cond)

    known = jnp.linspace(-1, 1, 8)
    x0 = run(known, mask)
    np.testing.assert_array_equal(x0[:, 5:], np.broadcast_to(known[5:], (4, 3)))
    gradient = jax.grad(lambda known: jnp.sum(run(known, mask)[:, :5]))(known)
    assert np.all(np.isfinite(gradient))
    assert np.all(gradient[5:] != 0)
    np.testing.assert_array_equal(gradient[:5], 0)
    other = np.asarray(2 * known), 1 - mask
    assert compilations(caplog, lambda: run(*other)) == []
    for inside in (kd.inpainted(mixing, jnp.ones((4, 8)), mask), kd.inpainted(mixing, x, mask, x)):
        with pytest.raises(ValueError, match=r"known has shape \(4, 8\).*wrap kd.inpainted around"):
            kd.guided(inside, 2.0, jnp.float32(0))(MIXING, x, schedule[0], cond)


@pytest.mark.parametrize("mask", [[0.0, 1.1], [-0.1, 1.0], [np.nan, 1.0]])
def test_refuses_a_mask_outside_its_range(mask):
    with pytest.raises(ValueError, match="1 where to paint"):
        kd.inpainted(exact_denoise, 0.0, np.array(mask))


def test_refuses_a_mask_of_pixels_without_channels():
    schedule, x = SAMPLERS["dpm2"](2), jnp.ones((3, 6, 6, 1))
    denoise = kd.inpainted(exact_denoise, 0.0, np.ones((3, 6, 6)))
    with pytest.raises(ValueError, match=r"mask has shape \(3, 6, 6\).*\[B, H, W, 1\]"):
        denoise(None, x, schedule[0])


@both_ways
def test_what_is_painted_over_may_be_anything_and_changes_no_bit(renoised):
    schedule, x, known, eps = case("dpm2")
    noise = eps[::-1] if renoised else None
    plain = kd.inpainted(exact_denoise, known, MASK, noise)
    wild = jnp.where(MASK[None] == 1, np.nan, known)
    wild_noise = jnp.where(MASK[None] == 1, np.inf, eps[::-1]) if renoised else None
    other = kd.inpainted(exact_denoise, wild, MASK, wild_noise)
    expected, got = (kd.sample(denoise, None, schedule, x) for denoise in (plain, other))
    np.testing.assert_array_equal(got, expected)

    def total(mask):
        denoise = kd.inpainted(exact_denoise, wild, mask, wild_noise)
        return sum(jnp.sum(half) for half in jax.tree.leaves(denoise(None, x, schedule[1])))

    assert np.all(np.isfinite(jax.grad(total)(jnp.asarray(MASK, jnp.float32))))
