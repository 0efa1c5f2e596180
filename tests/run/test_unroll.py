"""Rows unrolled into one iteration: the same samples, and the network traced once."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
from programs import copies_in_loops, sub_jaxprs
from samplers import ELEMENTWISE, SAMPLERS, relative_error

import kdiff_jax as kd

KEY = jax.random.key(37)
SHAPE = (2, 8)
elementwise = kd.denoiser(sp.elementwise_model)


# Rows that no unroll divides, and fewer than one iteration has.
@pytest.mark.parametrize(
    ("name", "steps", "unroll"),
    [
        ("euler", 4, 3),
        ("dpm2", 4, 3),
        ("dpm2", 1, 2),
        ("ancestral", 4, 3),
        ("unipc", 4, 3),
    ],
)
def test_unrolled_rows_give_the_same_samples_and_saves_and_trace_once(name, steps, unroll):
    def save_fn(state, prediction, row):
        return state, prediction, row

    traced: list[Any] = []

    def model_fn(params, x, timestep):
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
    run = elementwise, ELEMENTWISE, tables, kd.initial_sample(tables, KEY, SHAPE)
    assert relative_error(kd.sample(*run, unroll=2), kd.sample(*run)) < 1e-6


@pytest.mark.parametrize("name", ["dpm2", "ancestral"])
def test_two_rows_an_iteration_carry_what_one_does_and_copy_nothing(name):
    shape, schedule = (3, 1031), SAMPLERS[name](4)
    run = functools.partial(kd.sample, elementwise, ELEMENTWISE, unroll=2)
    args = schedule, jnp.ones(shape), KEY
    (scan,) = [
        eqn
        for jaxpr in sub_jaxprs(jax.make_jaxpr(run)(*args).jaxpr)
        for eqn in jaxpr.eqns
        if eqn.primitive.name == "scan" and eqn.outvars[0].aval.shape == shape
    ]
    assert scan.params["unroll"] == 2
    assert [out.aval.shape for out in scan.outvars] == [shape] * 2
    hlo = jax.jit(run).lower(*args).compile().as_text() or ""
    assert copies_in_loops(hlo, shape) == []


def test_gradients_of_unrolled_rows():
    schedule = SAMPLERS["ancestral"](4)

    def total(x):
        out = kd.sample(elementwise, ELEMENTWISE, schedule, x, KEY, unroll=2)
        return jnp.sum(jnp.sin(out))

    def by_hand(x):
        state = kd.init(schedule, x)
        for row in schedule:
            prediction = elementwise(ELEMENTWISE, state.sample, row)
            state = kd.step(state, row, prediction, key=KEY)
        return jnp.sum(jnp.sin(state.sample))

    x = jnp.linspace(-9, 9, 16).reshape(SHAPE)
    assert relative_error(jax.grad(total)(x), jax.grad(by_hand)(x)) < 1e-5
