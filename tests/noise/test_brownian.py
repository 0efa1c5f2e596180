"""Brownian noise: increments of one path, in law and with each other; and runs that converge."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
import scipy.stats
from mixtures import DATA, MIXTURE, SHAPE, assert_distributed_as, draw, exact_denoise
from samplers import NOISE, SAMPLERS
from test_noise import assert_uncorrelated

import kdiff_jax as kd

KEY = jax.random.key(41)
LOW, HIGH = 0.02, 20.0
SIZE = 4_000  # where the size does not matter: one executable
brownian = kd.brownian_noise(LOW, HIGH)


def row_between(left, reached):
    """A row, leaves scalar or [B], whose step goes from one level to the other."""
    row = SAMPLERS["ancestral"](2)[1]
    left, reached = (jnp.asarray(level, jnp.float32) for level in (left, reached))
    return dataclasses.replace(row, sigma_left=left, sigma_reached=reached)


@functools.partial(jax.jit, static_argnames="shape")
def increment(noise_fn, key, row, shape):
    return noise_fn(key, row, shape)


def increments(noise_fn, levels, size, key=KEY):
    """z between neighbouring levels: [levels - 1, size], one sample."""
    return np.stack(
        [
            np.asarray(increment(noise_fn, key, row_between(*ends), (1, size)))[0]
            for ends in itertools.pairwise(levels)
        ]
    ).astype(np.float64)


# --- the path --------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 3, 14])
def test_any_two_increments_have_the_correlation_of_their_common_part(depth):
    # Cov(W(b) - W(a), W(d) - W(c)) is the length that [a, b] and [c, d] share. It holds whatever
    # the depth where the ends lie in different last pieces.
    generator, size = np.random.default_rng(3), 40_000
    if depth == 14:
        places = np.sort(generator.uniform(0, 1, (12, 2)), axis=1)
    else:
        last = np.arange(2**depth)
        places = np.array(
            [
                (generator.uniform(a, a + 1), generator.uniform(b, b + 1))
                for a, b in itertools.combinations(last, 2)
            ][:12]
        )
        places /= 2**depth
    sigmas = HIGH * (LOW / HIGH) ** places
    noise_fn = kd.brownian_noise(LOW, HIGH, depth=depth)
    z = np.concatenate([increments(noise_fn, ends, size) for ends in sigmas])
    start, stop = places.T
    common = np.minimum(stop[:, None], stop) - np.maximum(start[:, None], start)
    expected = np.maximum(common, 0) / np.sqrt(np.outer(stop - start, stop - start))
    if depth < 14:  # ends of different increments in one last piece move together
        piece = np.floor(places * 2**depth)
        apart = ~np.any(piece[:, None, :, None] == piece[None, :, None, :], axis=(2, 3))
    else:
        apart = np.ones_like(expected, bool)
    apart |= np.eye(len(z), dtype=bool)
    error = np.sqrt((1 + expected**2) / size)
    assert np.all((np.abs(z @ z.T / size - expected) < 5 * error) | ~apart)
    assert np.all(np.abs(np.mean(z, axis=1)) < 5 / np.sqrt(size))
    for values in z:
        assert scipy.stats.kstest(values, "norm").pvalue > 1e-4


def test_neighbouring_steps_of_a_fine_grid_are_unit_and_independent():
    # 1,000 steps: the finest a training schedule has. One in nine is looked at, with its follower.
    sigmas = kd.levels(NOISE, 1000).sigmas[:-1]
    for k in range(0, 998, 111):
        z = increments(kd.brownian_noise(), sigmas[k : k + 3], SIZE)
        covariance = z @ z.T / SIZE
        assert np.all(
            np.abs(covariance - np.eye(2)) < 5 * np.sqrt(np.array([[2, 1], [1, 2]]) / SIZE)
        )


@pytest.mark.parametrize("name", ["lcm", "linear_quadratic", "one piece", "stack"])
def test_the_noise_of_the_shortest_steps_is_unit_noise(name):
    lcm = kd.lcm(kd.lcm_levels(NOISE, 50)).sigmas[:-1]
    flow = kd.levels(kd.flow_schedule(), 200, grid="linear_quadratic").sigmas[:-1]
    noise_fn = kd.brownian_noise()
    if name in ("lcm", "linear_quadratic"):
        sigmas = np.asarray(lcm if name == "lcm" else flow)
        shortest = int(np.argmin(-np.diff(np.log(sigmas))))
        k = min(shortest, len(sigmas) - 3)
        z = increments(noise_fn, sigmas[k : k + 3], SIZE)
        assert abs(np.mean(z[0] * z[1])) < 5 / np.sqrt(SIZE)
    else:
        # Ends within one last piece, a fifth of all: one draw makes both of a step.
        noise_fn = kd.brownian_noise(LOW, HIGH, depth=1)
        ends = np.array([[19.0, 18.0, 0.03], [18.0, 5.0, 0.021]])
        if name == "stack":
            row, keys = row_between(*ends), jax.random.split(KEY, 3)
            z = np.asarray(increment(noise_fn, keys, row, (3, SIZE)))
        else:
            z = np.concatenate([increments(noise_fn, pair, SIZE) for pair in ends.T])
    assert np.all(np.abs(np.mean(z**2, axis=1) - 1) < 5 * np.sqrt(2 / SIZE))


def test_the_default_path_holds_every_training_schedule():
    cosine = kd.noise_schedule("squaredcos_cap_v2")
    no_signal = kd.noise_schedule("squaredcos_cap_v2", rescale_zero_terminal_snr=True)
    low_shift = kd.levels(kd.flow_schedule(0.25), 1000)
    for levels in (kd.levels(cosine, 1000), kd.levels(no_signal, 1000), low_shift):
        ends = np.asarray(levels.sigmas)[[0, -2]]
        assert np.all(np.isfinite(increments(kd.brownian_noise(), ends, SIZE)))


def test_an_increment_is_the_sum_of_its_parts():
    levels = HIGH * (LOW / HIGH) ** np.array([0, 0.01, 0.2, 0.5, 0.50001, 0.7, 1])
    parts = increments(brownian, levels, SIZE)
    lengths = -np.diff(np.log(np.float32(levels).astype(np.float64)))[:, None]
    whole = increments(brownian, levels[[0, -1]], SIZE)[0]
    total = np.sum(np.sqrt(lengths) * parts, axis=0) / np.sqrt(np.sum(lengths))
    np.testing.assert_allclose(total, whole, atol=2e-5)
    back = increments(brownian, levels[[-1, 0]], SIZE)[0]
    np.testing.assert_allclose(back, -whole, atol=2e-5)


def test_a_grid_and_its_refinement_see_the_same_path():
    fine = np.geomspace(10, 0.05, 41)
    z = {}
    for name, sigmas in (("coarse", fine[::2]), ("fine", fine)):
        schedule = kd.dpm2_ancestral(kd.levels(NOISE, sigmas=sigmas))
        landings = [
            schedule[int(i)] for i in np.flatnonzero(np.asarray(schedule.rows.noise_weight))
        ]
        z[name] = np.stack(
            [np.asarray(increment(brownian, KEY, r, (1, SIZE)))[0] for r in landings]
        )
    assert z["coarse"].shape[0] == 20
    pairs = z["fine"].reshape(20, 2, SIZE).sum(axis=1) / np.sqrt(2)
    np.testing.assert_allclose(pairs, z["coarse"], atol=1e-3)


def test_a_sample_has_its_own_path_whatever_its_neighbours_and_their_rows():
    keys = jax.random.split(KEY, 3)
    left, reached = np.array([9.0, 3.0, 0.5]), np.array([2.0, 1.0, 0.1])
    together = increment(brownian, keys, row_between(left, reached), (3, 7))
    for b in range(3):
        row = row_between(left[b], reached[b])
        alone = increment(brownian, keys[b : b + 1], row, (1, 7))
        np.testing.assert_allclose(together[b : b + 1], alone, rtol=1e-5, atol=1e-5)
    by_one_key = increment(brownian, KEY, row_between(9.0, 2.0), (3, 20_000))
    assert_uncorrelated(np.asarray(by_one_key))


def test_it_is_independent_of_the_initial_sample_and_of_other_noise_of_the_same_key():
    size = 50_000
    row = row_between(HIGH, LOW)  # of the whole path, the line whose name is 0
    vectors = [
        np.asarray(kd.initial_sample(SAMPLERS["lcm"](4), KEY[None], (1, size))),
        np.asarray(kd.row_noise(KEY[None], row, (1, size))),
        np.asarray(kd.row_noise(KEY[None], SAMPLERS["lcm"](4)[0], (1, size))),
        np.asarray(jax.random.normal(KEY, (1, size))),
        np.asarray(increment(brownian, KEY[None], row, (1, size))),
        # Independent parts of the path in their turn.
        increments(brownian, HIGH * (LOW / HIGH) ** np.array([0, 0.3, 1]), size, KEY[None]),
    ]
    together = np.concatenate(vectors)
    # What belongs to one path is known to correlate: the whole (4) with its parts (5 and 6).
    assert_uncorrelated(together[:5])
    assert_uncorrelated(np.delete(together, 4, axis=0))


def test_levels_outside_the_path_give_nan_and_the_closing_step_does_not():
    def z(left, reached):
        return np.asarray(increment(brownian, KEY, row_between(left, reached), (2, 3)))

    assert np.all(np.isfinite(z(HIGH, LOW)))
    for ends in ((HIGH, 0.0), (LOW, 0.0), (0.0, 0.0), (1.0, 1.0)):
        assert np.all(np.isfinite(z(*ends))), ends
    for ends in ((1.001 * HIGH, 1.0), (1.0, 0.999 * LOW)):
        assert np.all(np.isnan(z(*ends))), ends


def test_under_x64_it_is_the_same_path():
    row = row_between(9.0, 2.0)
    expected = np.asarray(brownian(KEY, row, (2, 3)))
    with sp.x64():
        wide = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, jnp.float64) if leaf.dtype == jnp.float32 else leaf, row
        )
        got = kd.brownian_noise(LOW, HIGH)(KEY, wide, (2, 3))
        assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_gradients_take_it_as_a_constant():
    def z(left):
        return jnp.sum(brownian(KEY, row_between(left, 1.0), (2, 3)))

    assert float(jax.grad(z)(jnp.float32(3.0))) == 0

    def total(sigma_max):
        levels = kd.levels(NOISE, 3, grid="karras", sigma_max=sigma_max, sigma_min=0.1)
        schedule = kd.dpm2_ancestral(levels)
        denoise = kd.denoiser(sp.elementwise_model)
        x = jnp.ones((2, 3))
        run = denoise, sp.ELEMENTWISE, schedule, x, KEY
        return jnp.sum(kd.sample(*run, noise_fn=brownian, remat="rows"))

    slope = float(jax.jit(jax.grad(total))(jnp.float32(9.0)))
    assert np.isfinite(slope)
    assert slope != 0


def test_what_is_no_path_is_refused():
    for low, high in ((0.0, 1.0), (-1.0, 1.0), (0.1, np.inf)):
        with pytest.raises(ValueError, match="pass a finite number above 0"):
            kd.brownian_noise(low, high)
    with pytest.raises(ValueError, match=r"sigma_min = 2\.0 is not below sigma_max = 1\.0"):
        kd.brownian_noise(2.0, 1.0)
    for depth in (0, 1.5, 21):
        with pytest.raises(ValueError, match="depth = "):
            kd.brownian_noise(depth=depth)  # type: ignore[arg-type]


# --- runs that converge ----------------------------------------------------------------------

COLUMNS = ("epsilon_weight", "noise_weight", "anchor_weight", "input_scale")
BUILDERS = {
    "euler": functools.partial(kd.euler, eta=1.0),
    "dpm2": kd.dpm2_ancestral,
}


def distances(build, noise_fn, counts, size=1000):
    """Root mean square of the difference between the samples of N and of the next N."""
    runs = []
    for n in counts:
        schedule = build(kd.levels(NOISE, n, grid="karras", sigma_min=0.03, sigma_max=14.0))
        # One executable for every N, and for both samplers.
        schedule = schedule.pad(2 * counts[-1] - 1, COLUMNS)
        x = kd.initial_sample(schedule, KEY, (2, size))
        data = MIXTURE.astype(np.float32)
        runs.append(np.asarray(kd.sample(exact_denoise, data, schedule, x, KEY, noise_fn=noise_fn)))
    return np.array([np.sqrt(np.mean((a - b) ** 2)) for a, b in itertools.pairwise(runs)])


@pytest.mark.parametrize("name", BUILDERS)
def test_samples_converge_on_one_path_and_do_not_on_independent_noise(name):
    counts = [20, 40, 80, 160]
    on_a_path = distances(BUILDERS[name], kd.brownian_noise(0.02, 15.0, depth=11), counts)
    assert np.all(on_a_path[:-1] / on_a_path[1:] > 1.4), on_a_path
    assert on_a_path[0] / on_a_path[-1] > 2.5
    independent = distances(BUILDERS[name], None, counts)
    assert np.all(independent > 0.9 * independent[0]), independent
    assert np.all(independent > 4 * on_a_path)


@pytest.mark.parametrize("name", DATA)
def test_on_a_path_the_samples_are_distributed_as_the_data(name):
    data, generator = DATA[name], np.random.default_rng(2)
    schedule = kd.dpm2_ancestral(kd.levels(NOISE, 100, grid="karras", sigma_min=0.02))
    x = draw(data, generator, SHAPE)
    start = jnp.asarray(x + float(schedule.sigmas[0]) * generator.normal(size=SHAPE), jnp.float32)
    noise_fn = kd.brownian_noise(0.02, 15.0, depth=11)
    x0 = kd.sample(exact_denoise, data.astype(np.float32), schedule, start, KEY, noise_fn=noise_fn)
    assert_distributed_as(data, x0)
