"""Stopping at any row and going on from the saved State: the run is that of one go, bitwise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
from samplers import MIXING, ONE_OF_EACH, SAMPLERS, relative_error, run_by_hand

import kdiff_jax as kd

N, SHAPE = 4, (4, 8)  # as in test_properties.py, whose whole runs are these
KEY = jax.random.key(11)
mixing = kd.denoiser(sp.mixing_model, "v_prediction")
every_sampler = pytest.mark.parametrize("name", SAMPLERS)


def start(name, steps=N):
    schedule = SAMPLERS[name](steps)
    return schedule, kd.initial_sample(schedule, KEY, SHAPE)


def sampled(schedule, x):
    return kd.sample(mixing, MIXING, schedule, x, KEY)


@jax.jit
def states_of(schedule, x):
    """The State after every row, from a scan over a loop body of a caller's own."""

    def body(state, row):
        prediction = mixing(MIXING, state.sample, row)
        after = kd.step(state, row, prediction, key=KEY)
        return after, after

    return jax.lax.scan(body, kd.init(schedule, x), schedule.rows)[1]


def state_after(states, rows):
    return jax.tree.map(lambda leaf: leaf[rows - 1], states)


def assert_same(name, got, expected):
    """Bitwise; where JAX 0.12 rounds D_1 and D_2 of a caller's own loop another way, nearly so."""
    if jax.__version_info__ >= (0, 12) and SAMPLERS[name](N).rows.denoised_weight_1 is not None:
        assert relative_error(got, expected) < 1e-6
    else:
        np.testing.assert_array_equal(got, expected)


@every_sampler
def test_resumed_at_any_row_equals_uninterrupted_bitwise(name):
    schedule, x = start(name)
    whole, states = sampled(schedule, x), states_of(schedule, x)
    assert_same(name, states.sample[-1], whole)
    padded = schedule.pad(9)
    for a in range(1, schedule.num_rows):
        rest, state = schedule[a:], state_after(states, a)
        assert rest.num_rows == schedule.num_rows - a
        # A program for each length and set of columns, so that two lengths stand for all.
        if name in ONE_OF_EACH and rest.num_rows <= 2:
            resumed = sampled(rest, state)
            if rest.num_rows > 1:
                assert_same(name, resumed, whole)
            # A loop of a single row is unrolled by the compiler, which may round it another way.
            assert relative_error(resumed, whole) < 1e-6
        # One program, whatever is left of the run, down to its last row.
        assert_same(name, sampled(padded[a:], state), sampled(padded, x))
    np.testing.assert_array_equal(sampled(padded, x), whole)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_first_rows_alone_end_in_the_state_that_the_rest_begins_with(name):
    # The State of a scan over the first rows only, and not one among the States of all rows.
    schedule, x = start(name)
    whole = sampled(schedule, x)
    middle = schedule.num_rows - 2
    states = states_of(schedule[:middle], x)
    resumed = sampled(schedule[middle:], state_after(states, middle))
    if middle > 1:
        assert_same(name, resumed, whole)
    assert relative_error(resumed, whole) < 1e-6


@pytest.mark.parametrize("name", ["euler", "ancestral", "lcm", "dpmpp_2m", "unipc"])
def test_a_state_that_save_fn_returned_resumes_bitwise(name):
    schedule, x = start(name)

    whole, saved = kd.sample(mixing, MIXING, schedule, x, KEY, save_fn=returned_state)
    np.testing.assert_array_equal(whole, sampled(schedule, x))
    ends = np.flatnonzero(np.append(np.diff(schedule.rows.step), 1)) + 1
    for step, a in enumerate(ends[:-1], 1):
        state = state_after(saved, step)
        resumed, rest = kd.sample(mixing, MIXING, schedule[a:], state, KEY, save_fn=returned_state)
        if schedule.num_rows - a > 1:
            np.testing.assert_array_equal(resumed, whole)
            for got, expected in zip(*map(jax.tree.leaves, (rest, saved)), strict=True):
                np.testing.assert_array_equal(got, expected[step:])
        assert relative_error(resumed, whole) < 1e-6


def returned_state(state, prediction, row):
    return state


@every_sampler
def test_resumed_by_hand_is_bitwise_what_went_on_by_hand(name):
    schedule, x = start(name)
    states = run_by_hand(mixing, MIXING, schedule, x, KEY)
    for a in (1, 2, schedule.num_rows - 1):
        rest = schedule[a:]
        # The same compiled step on the same numbers, so bitwise.
        resumed = run_by_hand(mixing, MIXING, rest, states[a], KEY)[-1]
        jax.tree.map(np.testing.assert_array_equal, resumed, states[-1])
    # By hand the network and the step are programs of their own, which round otherwise.
    scanned = sampled(schedule[2:], states[2])
    assert relative_error(scanned, states[-1].sample) < 1e-6


@pytest.mark.parametrize("name", sp.STOCHASTIC)
def test_the_rest_draws_the_noise_of_the_whole_run_bitwise(name):
    schedule, x = start(name)
    for k in range(2, schedule.num_rows):
        z = kd.row_noise(KEY, schedule[k], SHAPE)
        rest = sp.keep_noise_of(schedule, k)[1:]
        state = kd.init(schedule, x)
        np.testing.assert_array_equal(kd.sample(sp.identity_denoise, None, rest, state, KEY), z)


def test_a_stack_is_resumed_by_its_tables():
    names = ("dpm2_karras", "ancestral", "unipc", "euler")
    tables = [SAMPLERS[name](3) for name in names]
    stack = kd.stack(tables)
    x = kd.initial_sample(stack, KEY, SHAPE)
    state = kd.init(stack, x)
    for i in range(2):
        rows = stack.rows_at(np.full(4, i))
        state = kd.step(state, rows, mixing(MIXING, state.sample, rows), key=KEY)
    columns = {name for table in tables for name in sp.columns_of(table)}
    rest = kd.stack([table.pad(5, columns)[2:] for table in tables])
    assert rest.continues
    resumed = sampled(rest, state)
    assert relative_error(resumed, sampled(stack, x)) < 1e-6
    with pytest.raises(ValueError, match=r"slice that reads anchor and denoised_1 and denoised_2"):
        sampled(rest, x)


# --- what is refused -------------------------------------------------------------------------


@every_sampler
def test_a_raw_sample_is_refused_where_the_rows_left_out_are_read(name):
    schedule, x = start(name)
    reads = [
        n for n, leaf in vars(kd.init(schedule, x)).items() if leaf is not None and n != "sample"
    ]
    rest = schedule[1:]
    assert rest.continues == bool(reads)
    if not reads:
        assert relative_error(sampled(rest, x), sampled(rest, kd.State(x))) == 0
        return
    for call in (kd.init, sampled):
        with pytest.raises(ValueError, match=f"slice that reads {' and '.join(reads)} of.*State"):
            call(rest, x)
    # A slice of a slice, and a slice that begins with its schedule.
    assert rest[:2].continues
    assert rest[1:].continues
    assert not schedule[:2].continues
    assert schedule[:].continues is schedule[0:].continues is False


STATES = {
    "euler": "no history",
    "dpm2": "anchor",
    "unipc": "denoised_1 and denoised_2",
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_of_other_columns_is_refused(name):
    schedule, x = start(name)
    state = kd.init(schedule, x)
    assert (state.anchor is None, state.denoised_1 is None, state.denoised_2 is None) == (
        name != "dpm2",
        name != "unipc",
        name != "unipc",
    )
    for other in STATES:
        table, _ = start(other)
        if other == name:
            assert kd.init(table, state) is state
            continue
        message = f"the State holds {STATES[name]} and the rows read "
        row = table[1]
        prediction = mixing(MIXING, x, row)
        for call in (
            functools.partial(kd.init, table, state),
            functools.partial(sampled, table, state),
            functools.partial(sampled, table[1:], state),
            functools.partial(kd.step, state, row, prediction),
            lambda row=row, prediction=prediction: jax.jit(kd.step)(state, row, prediction),
        ):
            with pytest.raises(ValueError, match=message):
                call()


def test_a_state_of_one_history_is_refused_where_rows_read_two():
    schedule, x = start("unipc")
    zeros = jnp.zeros_like(x)
    with pytest.raises(ValueError, match="holds denoised_1 and the rows read denoised_1 and denoi"):
        sampled(schedule[1:], kd.State(x, denoised_1=zeros))


@pytest.mark.parametrize("part", [slice(3, 3), slice(4, 2), slice(0, 4, 2), slice(None, None, -1)])
def test_a_slice_that_is_no_run_is_refused(part):
    schedule, _ = start("dpm2")
    with pytest.raises(ValueError, match="are no run; take one row or more"):
        schedule[part]


def test_a_slice_keeps_its_place_in_the_whole_run():
    schedule, _ = start("dpm2", 3)
    rest = schedule[3:]
    assert (rest.num_rows, rest.num_steps, len(rest)) == (2, 2, 2)
    assert rest.rows.index.tolist() == [3, 4]
    assert rest.rows.step.tolist() == [1, 2]
    np.testing.assert_array_equal(rest.sigmas, schedule.sigmas[1:])
    # Where a sample at its first row stands: sqrt(alpha^2 + sigma^2).
    row = schedule[3]
    expected = np.hypot(float(row.alpha), float(row.sigma))
    assert float(rest.init_noise_sigma) == pytest.approx(expected, rel=1e-6)


def test_a_state_saved_in_half_precision_goes_on_in_float32():
    schedule, x = start("ancestral")
    state = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), kd.init(schedule, x))
    again = kd.init(schedule, state)
    assert {leaf.dtype for leaf in jax.tree.leaves(again)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_array_equal(again.sample, state.sample.astype(jnp.float32))
