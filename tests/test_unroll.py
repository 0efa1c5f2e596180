"""Rows unrolled into one iteration, a step of DPM2 without an anchor: the same samples."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
from samplers import ELEMENTWISE, SAMPLERS, relative_error
from test_program import sub_jaxprs

import kdiff_jax as kd
from program import copies_in_loops

KEY = jax.random.key(37)
SHAPE = (2, 8)
elementwise = kd.denoiser(sp.elementwise_model)
every_sampler = pytest.mark.parametrize("name", SAMPLERS)


@every_sampler
def test_alternating_is_what_the_table_says(name):
    for schedule in (SAMPLERS[name](1), SAMPLERS[name](5), SAMPLERS[name](5).start_at(2)):
        rows, num_rows = schedule.rows, schedule.num_rows
        landing = np.arange(num_rows) % 2 == 1
        last = np.arange(num_rows) == num_rows - 1
        pattern = (
            num_rows % 2 == 1
            and np.array_equal(rows.anchor_weight, landing)
            and np.array_equal(rows.denoised_weight, ~landing)
            and np.array_equal(rows.advances, landing | last)
            and not np.any(rows.noise_weight[~landing])
        )
        whole = name != "inversion"  # no last row
        assert schedule.alternating == (whole and not schedule.anchorless)
        assert pattern or not schedule.alternating


@pytest.mark.parametrize("name", ["euler", "dpm2", "ancestral"])
def test_unrolled_rows_give_the_same_samples_and_saves_and_trace_once(name):
    def save_fn(state, prediction, row):
        return state, prediction, row

    in_pairs = [(1, 2), (4, 4)] if SAMPLERS[name](1).alternating else []
    for steps, unroll in ((4, 3), *in_pairs):
        traced: list[Any] = []

        def model_fn(params, x, timestep, traced=traced):
            traced.append(timestep)
            return sp.elementwise_model(params, x, timestep)

        schedule = SAMPLERS[name](steps)
        run = kd.denoiser(model_fn), ELEMENTWISE, schedule, 14 * jnp.ones(SHAPE), KEY
        got = jax.tree.leaves(kd.sample(*run, save_fn=save_fn, unroll=unroll))
        assert len(traced) == 1
        expected = jax.tree.leaves(kd.sample(elementwise, *run[1:], save_fn=save_fn))
        for leaf, other in zip(got, expected, strict=True):
            np.testing.assert_allclose(leaf, other, rtol=2e-6, atol=2e-6)


def test_a_stack_of_one_length_is_unrolled_too():
    tables = kd.stack([SAMPLERS[name](4) for name in ("dpm2", "dpm2_karras")])
    assert tables.alternating
    run = elementwise, ELEMENTWISE, tables, kd.initial_sample(tables, KEY, SHAPE)
    assert relative_error(kd.sample(*run, unroll=2), kd.sample(*run)) < 1e-6


@pytest.mark.parametrize("name", ["dpm2", "ancestral"])
def test_two_rows_an_iteration_carry_no_anchor_and_copy_nothing(name):
    shape, schedule = (3, 1031), SAMPLERS[name](4)

    def program(unroll):
        run = functools.partial(kd.sample, elementwise, ELEMENTWISE, unroll=unroll)
        args = schedule, jnp.ones(shape), KEY
        (scan,) = [
            eqn
            for jaxpr in sub_jaxprs(jax.make_jaxpr(run)(*args).jaxpr)
            for eqn in jaxpr.eqns
            if eqn.primitive.name == "scan" and eqn.outvars[0].aval.shape == shape
        ]
        hlo = jax.jit(run).lower(*args).compile().as_text() or ""
        return [out.aval.shape for out in scan.outvars], copies_in_loops(hlo, shape)

    assert program(1) == ([shape] * 2, [])
    assert program(2) == ([shape], [])


@pytest.mark.parametrize("unroll", [1, 2])
def test_gradients_of_unrolled_rows(unroll):
    schedule = SAMPLERS["ancestral"](4)

    def total(x, unroll):
        out = kd.sample(elementwise, ELEMENTWISE, schedule, x, KEY, unroll=unroll)
        return jnp.sum(jnp.sin(out))

    def by_hand(x):
        state = kd.init(schedule, x)
        for row in schedule:
            prediction = elementwise(ELEMENTWISE, state.sample, row)
            state = kd.step(state, row, prediction, key=KEY)
        return jnp.sum(jnp.sin(state.sample))

    x = jnp.linspace(-9, 9, 16).reshape(SHAPE)
    assert relative_error(jax.grad(total)(x, unroll), jax.grad(by_hand)(x)) < 1e-5


def test_a_table_that_reads_both_anchor_and_denoised_is_summed_where_nothing_is_promised():
    # A solver of a caller's own, with weights that no builder gives.
    schedule = SAMPLERS["dpm2"](3).pad(9, general=True)
    rows = schedule.rows
    rows = sp.dataclasses.replace(
        rows, anchor_weight=rows.anchor_weight + 0.25, denoised_weight=rows.denoised_weight + 0.5
    )
    schedule = sp.dataclasses.replace(schedule, rows=rows)
    x = jnp.linspace(-9, 9, 16).reshape(SHAPE)
    expected = sp.run_in_numpy(elementwise, ELEMENTWISE, schedule, x, [np.zeros(SHAPE)] * 5)
    assert relative_error(kd.sample(elementwise, ELEMENTWISE, schedule, x, KEY), expected) < 2e-6
    by_hand = sp.run_by_hand(elementwise, ELEMENTWISE, schedule, x, KEY)[-1].sample
    assert relative_error(by_hand, expected) < 2e-6
