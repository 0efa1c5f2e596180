"""Rows with leaves of [B, F]: a level for each frame, token or action of a sample."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
from samplers import DETERMINISTIC, ELEMENTWISE, NOISE, SAMPLERS, relative_error

import kdiff_jax as kd
from kdiff_jax._table.schedule import NEUTRAL

B, F, SHAPE = 2, 3, (2, 3, 8)
N = 3
KEY = jax.random.key(19)
KEYS = jax.random.split(KEY, B)
STEP_DOMAIN = 0x73746570  # "step": which of a key's noise is that of the rows


def frame_by_frame(params, x, timestep):
    """Each number from that number and its own timestep alone, for timesteps of any prefix."""
    time = (timestep / 1000).astype(x.dtype)
    time = time.reshape(time.shape + (1,) * (x.ndim - time.ndim))
    return params["gain"] * x / (1 + x * x) + params["shift"] * time


framewise = kd.denoiser(frame_by_frame)
# Six tables of different lengths, one a frame.
NAMES = [
    ["dpm2", "inversion", "euler"],
    ["dpm2_karras", "dpm2_sigmas_alone", "unipc"],
]


def frames_of(tables):
    """B stacks of F tables as one: leaves [B, F, R]."""
    return kd.stack([kd.stack(row) for row in tables])


def noise_of(keys, index, shape):
    """The noise of frame f, by jax.random: the key folded with the domain, the index, then f."""

    def of_frame(key, index, f):
        for number in (STEP_DOMAIN, index, f):
            key = jax.random.fold_in(key, number)
        return jax.random.normal(key, shape[2:], jnp.float32)

    each = [[of_frame(keys[b], index[b, f], f) for f in range(shape[1])] for b in range(shape[0])]
    return np.array(each)


def steps(denoise, stack, state, index_of, **noise):
    """By hand: every frame at the row that `index_of` says for each pass."""
    for i in index_of:
        rows = stack.rows_at(i)
        prediction = denoise(ELEMENTWISE, state.sample, rows)
        state = kd.step(state, rows, prediction, **noise)
    return state


# --- what the network receives, and the noise ------------------------------------------------


def test_the_network_receives_a_timestep_for_each_frame():
    seen = []

    def model_fn(params, x, timestep):
        seen.append((timestep.shape, timestep.dtype))
        return jnp.broadcast_to(timestep[..., None] / 1000, x.shape)

    schedule = SAMPLERS["dpm2"](N)
    denoise = kd.denoiser(model_fn, "sample")
    places = jnp.arange(B * F).reshape(B, F) % schedule.num_rows
    row = schedule.rows_at(places)
    x = jnp.ones(SHAPE)
    predicted = denoise(None, x, row).denoised
    np.testing.assert_array_equal(row.timestep, schedule.rows.timestep[places])
    assert relative_error(predicted[..., 0], row.timestep / 1000) < 1e-6
    tables = frames_of([[schedule] * F] * B)
    kd.sample(denoise, None, tables, x)
    assert seen == [((B, F), jnp.dtype("float32"))] * 2
    one_level = dataclasses.replace(schedule[0], timestep=row.timestep)
    with pytest.raises(ValueError, match=r"timesteps of shape \(2, 3\) met a sample of .*\(2, 4\)"):
        denoise(None, jnp.ones((2, 4)), one_level)


def test_noise_of_a_frame_is_its_key_folded_with_the_index_then_the_frame():
    schedule = SAMPLERS["ancestral"](N)
    index = np.array([[1, 3, 1], [3, 3, 0]])
    row = schedule.rows_at(index)
    z = kd.row_noise(KEYS, row, SHAPE)
    expected = noise_of(KEYS, index, SHAPE)
    np.testing.assert_array_max_ulp(np.asarray(z), expected, 3)
    # A frame's noise is that of the key's fold, whoever its neighbours are and however many.
    wider = kd.row_noise(KEYS, schedule.rows_at(np.array([[1, 0, 0, 0], [0, 3, 0, 0]])), (B, 4, 8))
    np.testing.assert_array_equal(wider[0, 0], z[0, 0])
    np.testing.assert_array_equal(wider[1, 1], z[1, 1])
    # Equal rows of different frames draw different noise, and no frame has that of [B] rows.
    whole = kd.row_noise(KEYS, schedule.rows_at(np.array([1, 3])), SHAPE)
    assert len({z.tobytes() for z in np.asarray(jnp.concatenate([z, whole])).reshape(-1, 8)}) == 12


# --- equal frames ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
def test_equal_frames_are_the_run_of_one_row_a_sample_but_for_the_noise(name):
    # The noise is handed in, so that nothing else differs: z[row.step] of every frame's own step.
    schedule = SAMPLERS[name](N)
    if name not in ("dpm2_churn", "lcm"):  # the others in one program, with every column
        schedule = schedule.pad(6, tuple(NEUTRAL))
    x = kd.initial_sample(schedule, KEY, SHAPE)
    frames, samples = frames_of([[schedule] * F] * B), kd.stack([schedule] * B)
    noise_fn = kd.given_noise(jax.random.normal(KEY, (N, 2, *SHAPE)))  # one a draw
    run = functools.partial(kd.sample, framewise, ELEMENTWISE, x=x, noise_fn=noise_fn)
    whole = run(schedule=schedule)
    assert relative_error(run(schedule=samples), whole) < 1e-6
    assert relative_error(run(schedule=frames), whole) < 1e-6
    if name in DETERMINISTIC:
        each = [np.full((B, F), i) for i in range(schedule.num_rows)]
        by_hand = steps(framewise, schedule, kd.init(schedule, x), each)
        assert relative_error(by_hand.sample, whole) < 1e-6


# --- frames at rows of their own -------------------------------------------------------------


def test_frames_with_tables_of_their_own_equal_runs_of_their_own():
    tables = [[SAMPLERS[name](2 + f) for f, name in enumerate(row)] for row in NAMES]
    stack = frames_of([[table.pad(9, columns_of_all(tables)) for table in row] for row in tables])
    assert stack.rows.sigma.shape == (B, F, 9)
    x = kd.initial_sample(stack, KEYS, SHAPE)
    together = kd.sample(framewise, ELEMENTWISE, stack, x)
    state = kd.init(stack, x)
    end = steps(framewise, stack, state, [np.full((B, F), i) for i in range(stack.num_rows)])
    for b, row in enumerate(tables):
        for f, table in enumerate(row):
            alone = kd.sample(framewise, ELEMENTWISE, table.pad(9), x[b : b + 1, f])[0]
            assert relative_error(together[b, f], alone) < 1e-6
            assert relative_error(end.sample[b, f], alone) < 1e-6


def columns_of_all(tables):
    return {name for row in tables for table in row for name in sp.columns_of(table)}


def test_frames_that_begin_one_after_the_other_equal_runs_of_their_own():
    # A rolling window: a frame begins its run two passes after the one before, by rows_at alone.
    schedule = SAMPLERS["dpm2"](N)
    x = kd.initial_sample(schedule, KEYS, SHAPE)
    state, late = kd.init(schedule, x), 2 * np.arange(F)
    for i in range(schedule.num_rows + late[-1]):
        rows = schedule.rows_at(np.broadcast_to(np.maximum(i - late, 0), (B, F)))
        after = kd.step(state, rows, framewise(ELEMENTWISE, state.sample, rows))
        begun = (i >= late)[None, :, None]
        state = jax.tree.map(lambda new, old, begun=begun: jnp.where(begun, new, old), after, state)
    whole = kd.sample(framewise, ELEMENTWISE, schedule, x)
    assert relative_error(state.sample, whole) < 1e-6


def test_frames_with_noise_are_the_line_of_the_design_with_the_noise_of_each_frame():
    tables = [
        [kd.dpm2_ancestral(kd.levels(NOISE, N), eta=eta) for eta in (1.0, 0.5, 0.0)],
        [kd.euler(kd.levels(NOISE, n), eta=1.0) for n in (5, 3, 4)],
    ]
    stack = frames_of([[t.pad(5, columns_of_all(tables)) for t in row] for row in tables])
    x = kd.initial_sample(stack, KEYS, SHAPE)
    index = np.asarray(stack.rows.index)
    noise = [noise_of(KEYS, index[:, :, i], SHAPE) for i in range(5)]
    got = kd.sample(framewise, ELEMENTWISE, stack, x, KEYS)
    state = kd.init(stack, x)
    end = steps(framewise, stack, state, [np.full((B, F), i) for i in range(5)], key=KEYS)
    for b, row in enumerate(tables):
        for f, table in enumerate(row):
            own = [z[b : b + 1, f] for z in noise[: table.num_rows]]
            expected = sp.run_in_numpy(framewise, ELEMENTWISE, table, x[b : b + 1, f], own)[0]
            assert relative_error(got[b, f], expected) < 2e-6
            assert relative_error(end.sample[b, f], expected) < 2e-6


# --- what is refused -------------------------------------------------------------------------


def test_rows_of_another_shape_than_the_sample_are_refused():
    schedule = SAMPLERS["euler"](N)
    row = schedule.rows_at(np.zeros((B, F), np.int32))
    x = jnp.ones((B, 4, 8))
    with pytest.raises(ValueError, match=r"values of shape \(2, 3\) met a sample of .*\(2, 4, 8\)"):
        kd.step(kd.State(x), row, kd.Prediction(x, x))
    stack = frames_of([[schedule] * F] * B)
    with pytest.raises(ValueError, match=r"stack of \[2, 3\] tables"):
        kd.sample(framewise, ELEMENTWISE, stack, x)
    with pytest.raises(ValueError, match=r"index of shape \(2, 3\) met a sample of shape \(2, 4"):
        kd.row_noise(KEY, row, x.shape)
