"""The compiled program of a run that draws noise: one loop, and no array of noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers import SAMPLERS, STOCHASTIC
from test_threefry import loops

import kdiff_jax as kd
from kdiff_jax._noise.threefry import random_bits


def null_program(name, shape, unroll=1):
    schedule = SAMPLERS[name](4)
    keys = jax.random.split(jax.random.key(0), shape[0])
    denoise = kd.denoiser(lambda params, x, timestep: params * x)
    run = functools.partial(kd.sample, denoise, unroll=unroll)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.jit(run).lower(np.float32(0.1), schedule, x, keys).compile()


# One of each set of columns: the programs of the others are the same.
OTHERS = {"ancestral_half_eta": "ancestral", "dpm2_churn": "ancestral"}
ALIKE = [name for name in STOCHASTIC if name not in OTHERS]


def test_the_programs_of_tables_with_the_same_columns_are_the_same():
    for pair in OTHERS.items():
        assert len({str(jax.tree.structure(SAMPLERS[name](4))) for name in pair}) == 1


def test_a_barrier_keeps_the_third_hash_of_a_key_apart():
    # JAX 0.12 takes minutes to compile three in one loop.
    keys, item = jax.random.split(jax.random.key(0), 2), jnp.arange(2)
    for items, barriers in ((2, 0), (3, 1)):
        program = jax.make_jaxpr(random_bits, static_argnums=2)(keys, (item,) * items, (4,))
        assert str(program).count("optimization_barrier") == barriers


@pytest.mark.parametrize(("name", "unroll"), [*((name, 1) for name in ALIKE), ("ancestral", 2)])
def test_a_run_has_one_loop_its_own_and_the_noise_is_added_where_it_is_made(name, unroll):
    shape = (2, 4, 64, 64)
    program = null_program(name, shape, unroll)
    assert loops(program.as_text()) == 1
    scratch = program.memory_analysis().temp_size_in_bytes
    # In samples: the bits of each row, and the anchor after it, or the ring of estimates; no normal
    # numbers.
    rows = SAMPLERS[name](4).rows
    anchors = 0 if rows.anchor_weight is None else 1
    estimates = sum(w is not None for w in (rows.denoised_weight_1, rows.denoised_weight_2))
    ring = 1 + estimates if estimates else 0
    assert scratch / (4 * np.prod(shape)) < unroll * (1 + anchors) + ring + 0.1
