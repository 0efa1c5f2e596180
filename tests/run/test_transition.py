"""Rows as Gaussian transitions: densities against float64, ratios, gradients, refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
from scipy import integrate, stats

import kdiff_jax as kd

KEY = jax.random.key(3)
PARAMS = {"gain": jnp.float32(0.7), "shift": jnp.float32(0.3)}
OTHER = {"gain": jnp.float32(0.71), "shift": jnp.float32(0.29)}
DENOISE = kd.denoiser(sp.elementwise_model)


def steps_of(schedule, shape=(3, 5)):
    """(row, state before it, prediction, sample after it) of a run by hand."""
    states = sp.run_by_hand(DENOISE, PARAMS, schedule, 3 * jax.random.normal(KEY, shape), KEY)
    for row, state, after in zip(schedule, states[:-1], states[1:], strict=True):
        yield row, state, DENOISE(PARAMS, state.sample, row), after.sample


def mean_in_float64(state, row, prediction):
    """The line of the design, written again."""
    terms = {
        "anchor_weight": state.anchor,
        "denoised_weight": prediction.denoised,
        "epsilon_weight": prediction.epsilon,
        "denoised_weight_1": state.denoised_1,
        "denoised_weight_2": state.denoised_2,
    }
    present = {name: getattr(row, name) for name in terms if getattr(row, name) is not None}
    return sum(float(w) * np.asarray(terms[name], np.float64) for name, w in present.items())


@pytest.mark.parametrize("name", sp.ONE_OF_EACH)
def test_every_row_has_the_density_of_its_gaussian(name):
    for row, state, prediction, x_next in steps_of(sp.SAMPLERS[name](3)):
        mean, scale = kd.transition(state, row, prediction)
        expected = mean_in_float64(state, row, prediction)
        np.testing.assert_allclose(mean, expected, rtol=2e-6, atol=2e-6)
        got = kd.log_prob(state, row, prediction, x_next)
        if row.noise_weight is None or float(row.noise_weight) == 0:
            assert float(scale) == 0
            np.testing.assert_array_equal(got, np.zeros(3))
            np.testing.assert_allclose(x_next, expected, rtol=2e-6, atol=2e-6)
        else:
            assert float(scale) == float(row.noise_weight)
            # From the mean as it is rounded: its last digit is not the density's.
            density = stats.norm.logpdf(
                np.asarray(x_next, np.float64), np.asarray(mean, np.float64), float(scale)
            )
            np.testing.assert_allclose(got, density.sum(1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in sp.ONE_OF_EACH if name in sp.STOCHASTIC])
def test_the_ratio_is_the_difference_of_two_densities(name):
    for row, state, old, x_next in steps_of(sp.SAMPLERS[name](3)):
        changed = jax.tree.map(lambda leaf: leaf * jnp.float32(1.01), state)
        new = DENOISE(OTHER, state.sample, row)
        got = kd.log_ratio(row, (changed, new), (state, old), x_next)
        np.testing.assert_array_equal(kd.log_ratio(row, (state, old), (state, old), x_next), 0.0)
        if float(row.noise_weight) == 0:
            np.testing.assert_array_equal(got, np.zeros(3))
            continue
        means = [mean_in_float64(*case) for case in ((changed, row, new), (state, row, old))]
        x64, scale = np.asarray(x_next, np.float64), float(row.noise_weight)
        expected = [stats.norm.logpdf(x64, mean, scale).sum(1) for mean in means]
        np.testing.assert_allclose(got, expected[0] - expected[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["ancestral", "dpmpp_2m_sde"])
def test_the_ratio_of_a_million_numbers_errs_by_a_billionth_each(name):
    """A trainer clips at 1e-6 and less a number; two log-densities differ by more than that.

    Both runs see the samples that one of them drew; midpoints and D_1 are of each one's own.
    """
    schedule, size = sp.SAMPLERS[name](6), 1_000_000
    state = other = kd.init(schedule, kd.initial_sample(schedule, KEY, (1, size)))
    for row in schedule[:-1]:
        old = DENOISE(PARAMS, state.sample, row)
        new = DENOISE({**PARAMS, "gain": 0.7001}, other.sample, row)
        after, moved = kd.step(state, row, old, key=KEY), kd.step(other, row, new, key=KEY)
        scale = float(kd.transition(state, row, old)[1])
        if scale > 0:
            got = float(kd.log_ratio(row, (other, new), (state, old), after.sample)[0])
            mean = mean_in_float64(state, row, old)
            shift = mean_in_float64(other, row, new) - mean
            z = np.asarray(after.sample, np.float64) - mean
            expected = np.sum(shift * (z - shift / 2)) / scale**2
            assert abs(expected) > 2e-3  # more than what it may err by
            assert abs(got - expected) < 1e-9 * size
            moved = dataclasses.replace(moved, sample=after.sample, anchor=after.anchor)
        state, other = after, moved


def test_the_density_of_an_ancestral_step_integrates_to_one():
    """Both rows of DPM2's step in one dimension; only the landing row has a density."""
    schedule = sp.SAMPLERS["ancestral"](3)
    midpoint, landing, x = schedule[0], schedule[1], jnp.full((1, 1), 5.0)
    state = kd.init(schedule, x)
    state = kd.step(state, midpoint, DENOISE(PARAMS, x, midpoint))
    prediction = DENOISE(PARAMS, state.sample, landing)
    mean, scale = (float(v.reshape(())) for v in kd.transition(state, landing, prediction))
    grid = jnp.linspace(mean - 9 * scale, mean + 9 * scale, 2001)[:, None, None]
    density = jax.vmap(lambda x_next: jnp.exp(kd.log_prob(state, landing, prediction, x_next)))
    masses = np.asarray(density(grid), np.float64)[:, 0]
    np.testing.assert_allclose(integrate.trapezoid(masses, grid[:, 0, 0]), 1.0, rtol=1e-5)
    np.testing.assert_allclose(
        integrate.trapezoid(masses * np.asarray(grid[:, 0, 0], np.float64), grid[:, 0, 0]),
        mean,
        rtol=1e-5,
    )


def test_gradients_are_those_of_the_mean_and_0_where_nothing_is_drawn():
    _, (drawn, state, _, x_next), *_, (closing, at_end, _, end) = steps_of(
        sp.SAMPLERS["ancestral"](3)
    )

    def of(params, row, state, x_next):
        return kd.log_prob(state, row, DENOISE(params, state.sample, row), x_next).sum()

    gradient = jax.grad(of)(PARAMS, drawn, state, x_next)
    step = 1e-2
    for name in PARAMS:
        moved = [{**PARAMS, name: PARAMS[name] + h} for h in (step, -step)]
        up, down = (of(params, drawn, state, x_next) for params in moved)
        np.testing.assert_allclose(gradient[name], (up - down) / (2 * step), rtol=5e-3)
        assert float(gradient[name]) != 0
    silent = jax.grad(of)(PARAMS, closing, at_end, end)
    assert all(float(leaf) == 0 for leaf in silent.values())


def test_samples_at_rows_of_their_own_and_past_the_end():
    # Ends above 0, so that the row that idle samples stand at draws noise.
    schedule = kd.euler(kd.levels(sp.NOISE, 4).end_at(3), eta=1.0)
    places = jnp.asarray([0, 1, 5])
    rows = schedule.rows_at(places)
    x = jax.random.normal(KEY, (3, 4))
    state, prediction = kd.init(schedule, x), DENOISE(PARAMS, x, rows)
    after = kd.step(state, rows, prediction, key=KEY).sample
    got = kd.log_prob(state, rows, prediction, after)
    for i in range(2):
        one = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], (state, prediction))
        alone = kd.log_prob(one[0], schedule[i], one[1], after[i : i + 1])
        np.testing.assert_array_equal(got[i], alone[0])
    assert float(got[2]) == 0


def test_another_shape_or_state_is_refused():
    schedule = sp.SAMPLERS["ancestral"](2)
    x = jnp.ones((2, 3))
    state, row = kd.init(schedule, x), schedule[0]
    prediction = DENOISE(PARAMS, x, row)
    for call in (
        lambda: kd.log_prob(state, row, prediction, jnp.ones((2, 4))),
        lambda: kd.log_ratio(row, (state, prediction), (state, prediction), jnp.ones(3)),
    ):
        with pytest.raises(ValueError, match=r"x_next has shape .* give the sample after the row"):
            call()
    with pytest.raises(ValueError, match="pass the State of a run with the same columns"):
        kd.transition(dataclasses.replace(state, anchor=None), row, prediction)
