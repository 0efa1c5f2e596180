"""Weights in the network's function: named in one warning, and what is none of it is not named."""

import functools
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kdiff_jax as kd

WEIGHTS = np.ones((2**19,), np.float32)  # 2 MB
SMALL = np.ones(9, np.float32)
NESTED = {"layers": [types.SimpleNamespace(kernel=WEIGHTS, bias=SMALL)]}
params = WEIGHTS  # the name of an argument, and of an attribute below


class Network:
    def __init__(self):
        self.dense = types.SimpleNamespace(kernel=jnp.asarray(WEIGHTS))

    def __call__(self, params, x, timestep):
        return x

    apply = __call__

    def stateless_call(self, trainable, non_trainable, *inputs):  # of Keras
        return inputs[0], non_trainable


NETWORK = Network()


def of_global(params, x, timestep):
    return x * WEIGHTS[0]


def of_nested(params, x, timestep):
    def inner():
        return NESTED

    return x * inner()["layers"][0].bias[0]


def of_default(params, x, timestep, weights=WEIGHTS):
    return x * weights[0]


def calls_another(params, x, timestep):
    return of_global(params, x, timestep)


def of_argument(params, x, timestep):
    return x * params.params * SMALL[0]


def of_keras(params, x, timestep):
    return NETWORK.stateless_call(params, [], x)[0]


def of_keras_itself(params, x, timestep):
    return NETWORK(params, x, timestep)


def enclosed():
    weights, network = WEIGHTS, Network()
    return lambda params, x, timestep: network.apply(params, x * weights[0], timestep)


CAPTURES = {
    "WEIGHTS": of_global,
    "NESTED": of_nested,
    "weights": of_default,
    r"network \(2.0 MB\), weights": enclosed(),
    "argument 0 of functools.partial": functools.partial(lambda w, p, x, t: x, WEIGHTS),
    "its object, a Network,": Network().apply,
    "dense": Network(),
    "WEIGHTS ": jax.jit(of_global),
    " WEIGHTS": calls_another,
    "NETWORK": of_keras_itself,
}


@pytest.mark.parametrize("name", CAPTURES)
@pytest.mark.parametrize("make", [kd.denoiser, kd.edm_denoiser])
def test_what_is_captured_is_named_in_one_warning_at_the_line_of_the_caller(make, name):
    with pytest.warns(UserWarning, match=rf"captures .*{name.strip()}.* \(2.0 MB\)") as caught:
        make(CAPTURES[name])
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert "Pass them as params" in str(caught[0].message)


def test_weights_that_are_arguments_and_small_arrays_are_no_reason_to_warn():
    def made_where_it_is_called(x):  # a tracer is no weight
        return kd.denoiser(lambda params, x_, timestep: x_ * x[0]).model_fn(None, x, None)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kd.denoiser(of_argument)
        kd.denoiser(of_keras)
        kd.denoiser(functools.partial(of_argument, timestep=None))
        kd.denoiser(functools.partial(lambda w, p, x, t: x, WEIGHTS[: 2**18]))  # 1 MB
        jax.make_jaxpr(made_where_it_is_called)(jnp.asarray(WEIGHTS))
