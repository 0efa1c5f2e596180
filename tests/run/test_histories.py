"""D_1 and D_2: a table filled by hand from a published method has its order; what they hold."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import samplers as sp

import kdiff_jax as kd

HIGH, LOW, DATA = 10.0, 0.05, 0.7
ROWS = 80


def gaussian(params, x, row, cond=None):
    """The exact denoiser of Gaussian data of standard deviation DATA."""
    norm = row.sigma**2 + DATA**2
    return kd.Prediction(DATA**2 / norm * x, row.sigma / norm * x)


def exact(x, sigma):
    """Where the probability-flow ODE takes a sample x of the level HIGH."""
    return x * np.sqrt((sigma**2 + DATA**2) / (HIGH**2 + DATA**2))


def filled(sigmas, **columns):
    """Euler's table between these levels, with some columns in place of its own."""
    levels = kd.levels(None, sigmas=[*sigmas, sigmas[-1] / 2]).end_at(len(sigmas) - 1)
    schedule = kd.euler(levels)
    columns = {
        name: jnp.asarray(np.broadcast_to(v, len(sigmas) - 1)) for name, v in columns.items()
    }
    return dataclasses.replace(schedule, rows=dataclasses.replace(schedule.rows, **columns))


def three_estimates(steps):
    """The third-order exponential multistep method on levels of equal h in log sigma.

    D is a parabola through the last three estimates, and the step its exact integral, with
    phi_2 = (exp(-h) - 1 + h) / h and phi_3 = phi_2 / h - 1 / 2:

    x_next = D + s1 * epsilon + phi_2 * (3 D - 4 D_1 + D_2) / 2 - phi_3 * (D - 2 D_1 + D_2)

    Source: the exponential Adams methods of Hochbruck and Ostermann 2010, Exponential integrators.
    """
    sigmas = np.geomspace(HIGH, LOW, steps + 1)
    h = np.log(HIGH / LOW) / steps
    phi_2 = (np.exp(-h) - 1 + h) / h
    phi_3 = phi_2 / h - 1 / 2
    return filled(
        sigmas,
        denoised_weight=1 + 1.5 * phi_2 - phi_3,
        denoised_weight_1=-2 * phi_2 + 2 * phi_3,
        denoised_weight_2=phi_2 / 2 - phi_3,
    )


def errors(build, state_of):
    found = []
    for steps in (10, 20, 40, 80):
        schedule = build(steps)
        x = jnp.asarray([[HIGH, -3.0]])
        # Padded, so that one program runs every length.
        got = kd.sample(gaussian, None, schedule.pad(ROWS), state_of(schedule, x))
        found.append(sp.relative_error(got, exact(x, LOW)))
    return np.array(found)


def test_a_table_of_three_estimates_is_of_order_3():
    def state_of(schedule, x):
        # What the network would have predicted at the two levels before the first.
        ratio = schedule.sigmas[0] / schedule.sigmas[1]
        before = [schedule.sigmas[0] * ratio**k for k in (1, 2)]
        d_1, d_2 = (exact(x, sigma) * DATA**2 / (sigma**2 + DATA**2) for sigma in before)
        return kd.State(x, denoised_1=d_1, denoised_2=d_2)

    with sp.x64():
        found = errors(three_estimates, state_of)
    order = np.log2(found[:-1] / found[1:])
    assert np.all(order > 2.8), order
    assert found[-1] < 1e-4


def test_the_state_holds_the_last_two_estimates_and_an_idle_row_keeps_all_of_it():
    schedule = sp.SAMPLERS["unipc"](4)
    denoise = kd.denoiser(sp.elementwise_model)
    state = kd.init(schedule, jnp.linspace(-3, 3, 8).reshape(2, 4))
    assert not np.any(state.denoised_1)
    assert not np.any(state.denoised_2)
    predicted: list[jax.Array] = []
    for row in schedule:
        prediction = denoise(sp.ELEMENTWISE, state.sample, row)
        predicted = [prediction.denoised, *predicted]
        state = kd.step(state, row, prediction)
        for got, expected in zip((state.denoised_1, state.denoised_2), predicted, strict=False):
            np.testing.assert_array_equal(got, expected)
    last = schedule.rows_at(np.array([3, 4]))
    np.testing.assert_array_equal(last.idle, [False, True])
    after = kd.step(state, last, kd.Prediction(prediction.denoised + 1, prediction.epsilon))
    assert after.anchor is None
    for got, before in zip(*map(jax.tree.leaves, (after, state)), strict=True):
        np.testing.assert_array_equal(got[1], before[1])
        assert not np.array_equal(got[0], before[0])
