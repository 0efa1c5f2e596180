"""What `save_fn` is given, when, how often, and what keeping it costs."""

import collections
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
from programs import compilations, copies_in_loops
from samplers import ELEMENTWISE, MIXING, ONE_OF_EACH, SAMPLERS, relative_error

import kdiff_jax as kd

N, SHAPE = 4, (2, 8)
KEY = jax.random.key(23)
NOT_CALLABLE: Any = 3
mixing = kd.denoiser(sp.mixing_model)
elementwise = kd.denoiser(sp.elementwise_model)
# What is saved, and when, depends on the columns and on whether the last step has two rows.
of_each_kind = pytest.mark.parametrize("name", [*ONE_OF_EACH, "inversion"])


def save_all(state, prediction, row):
    return {"state": state, "prediction": prediction, "row": row}


def start(name, steps=N):
    schedule = SAMPLERS[name](steps)
    return schedule, kd.initial_sample(schedule, KEY, SHAPE)


@of_each_kind
def test_saved_is_what_a_loop_by_hand_sees_at_the_end_of_each_step(name):
    schedule, x = start(name)
    x0, saved = kd.sample(mixing, MIXING, schedule, x, KEY, save_fn=save_all)
    np.testing.assert_array_equal(saved["state"].sample[-1], x0)
    states = sp.run_by_hand(mixing, MIXING, schedule, x, KEY)
    expected = [
        {"state": after, "prediction": mixing(MIXING, before.sample, row), "row": row}
        for before, row, after in zip(states, schedule, states[1:], strict=False)
        if row.advances is None or row.advances
    ]
    assert len(expected) == N
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *expected)
    jax.tree.map(np.testing.assert_array_equal, saved.pop("row"), expected.pop("row"))
    # The same histories are None in both.
    names = [name for name, leaf in vars(saved["state"]).items() if leaf is not None]
    assert names == [n for n, leaf in vars(expected["state"]).items() if leaf is not None]
    for leaf, by_hand in zip(*map(jax.tree.leaves, (saved, expected)), strict=True):
        assert relative_error(leaf, by_hand) < 2e-6


@pytest.mark.parametrize("name", ["euler", "dpm2", "ancestral", "lcm"])
def test_a_padded_run_saves_the_same_and_zeros_past_its_end(name):
    for steps in (1, 3) if name == "lcm" else (3,):
        schedule, x = start(name, steps)
        run = functools.partial(kd.sample, mixing, MIXING, x=x, key=KEY, save_fn=save_all)
        (x0, saved), (x0_padded, padded) = (run(schedule=s) for s in (schedule, schedule.pad(9)))
        np.testing.assert_array_equal(x0_padded, x0)
        for got, expected in zip(jax.tree.leaves(padded), jax.tree.leaves(saved), strict=True):
            assert got.shape[0] == 9
            np.testing.assert_array_equal(got[:steps], expected)
            assert not np.any(got[steps:])


@pytest.mark.parametrize(("name", "row"), [("dpm2", 4), ("lcm", 2), ("unipc", 2)])
def test_the_rest_of_a_run_saves_from_its_own_first_step_on(name, row):
    schedule, x = start(name)
    _, whole = kd.sample(mixing, MIXING, schedule, x, KEY, save_fn=save_all)
    at_two = jax.tree.map(lambda leaf: leaf[1], whole["state"])
    _, rest = kd.sample(mixing, MIXING, schedule[row:], at_two, KEY, save_fn=save_all)
    assert rest["row"].step.tolist() == [2, 3]
    assert relative_error(rest["state"].sample, whole["state"].sample[2:]) < 1e-6


def test_save_fn_is_traced_once_evaluated_once_a_step_and_the_network_once_a_row(caplog):
    count: collections.Counter[str] = collections.Counter()

    def model_fn(params, x, timestep):
        count["network traced"] += 1
        jax.debug.callback(lambda: count.update(network=1))
        return params * x

    def save_fn(state, prediction, row):
        count["save traced"] += 1
        jax.debug.callback(lambda: count.update(save=1))
        return prediction.denoised

    denoise, (schedule, x) = kd.denoiser(model_fn), start("dpm2")

    def run():
        return kd.sample(denoise, np.float32(0.1), schedule, x, save_fn=save_fn)

    jax.block_until_ready(run())
    jax.effects_barrier()
    assert count == {"network traced": 1, "save traced": 1, "network": 2 * N - 1, "save": N}
    assert compilations(caplog, run) == []
    assert count["network traced"] == count["save traced"] == 1


def test_whatever_pytree_comes_back_is_stacked():
    def save_fn(state, prediction, row):
        return row.sigma, {"mean": state.sample.mean(), "none": None}, row.step > 1, 7

    schedule, x = start("ancestral")
    _, (sigma, rest, late, seven) = kd.sample(
        mixing, MIXING, schedule, x, KEY, save_fn=save_fn, unroll=2
    )
    np.testing.assert_array_equal(sigma, [row.sigma for row in schedule if row.advances])
    assert rest["mean"].shape == (N,)
    assert rest["none"] is None
    assert late.tolist() == [False, False, True, True]
    assert seven.tolist() == [7] * N


def test_trajectories_of_a_vmapped_stack_are_those_of_each_run():
    tables = [SAMPLERS["ancestral"](n).pad(9) for n in (2, 4)]
    keys = jax.random.split(KEY, 2)
    x = kd.initial_sample(kd.stack(tables), keys, SHAPE)

    def run(schedule, x, key):
        return kd.sample(mixing, MIXING, schedule, x[None], key[None], save_fn=save_all)

    x0, saved = jax.vmap(run)(kd.stack(tables), x, keys)
    for b, table in enumerate(tables):
        alone, alone_saved = run(table, x[b], keys[b])
        assert relative_error(x0[b], alone) < 1e-6
        assert relative_error(saved["state"].sample[b], alone_saved["state"].sample) < 1e-6


def test_gradients_pass_through_what_was_saved():
    schedule, x = start("dpm2")

    def total(x):
        _, saved = kd.sample(elementwise, ELEMENTWISE, schedule, x, save_fn=save_all)
        return jnp.sum(saved["state"].sample[1])

    def by_hand(x):
        state = kd.init(schedule, x)
        for i in range(4):
            row = schedule[i]
            state = kd.step(state, row, elementwise(ELEMENTWISE, state.sample, row))
        return jnp.sum(state.sample)

    assert relative_error(jax.grad(total)(x), jax.grad(by_hand)(x)) < 1e-5


@pytest.mark.parametrize("name", ["dpm2", "euler"])
@pytest.mark.parametrize("pad", [False, True])
def test_the_buffer_needs_no_scratch_of_its_own_and_is_never_copied(name, pad):
    shape = (3, 1031)
    schedule = SAMPLERS[name](N)
    schedule = schedule.pad(9) if pad else schedule

    def program(**options):
        run = functools.partial(kd.sample, elementwise, ELEMENTWISE, **options)
        return jax.jit(run).lower(schedule, jnp.ones(shape)).compile()

    plain, saving = program(), program(save_fn=lambda state, prediction, row: state.sample)
    one_sample = 4 * shape[0] * shape[1]
    scratch = [p.memory_analysis().temp_size_in_bytes for p in (plain, saving)]
    assert scratch[1] - scratch[0] <= one_sample + 4096
    buffer = (schedule.sigmas.shape[0] - 1, *shape)
    assert copies_in_loops(saving.as_text(), buffer) == []


def test_a_save_fn_that_is_no_function_is_refused():
    schedule, x = start("dpm2")
    with pytest.raises(ValueError, match=r"save_fn = 3 is not callable.*state, prediction, row"):
        kd.sample(mixing, MIXING, schedule, x, save_fn=NOT_CALLABLE)
