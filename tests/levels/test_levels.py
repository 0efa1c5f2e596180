"""Levels as a value: cut, ended early, turned over, churned; and what it is."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
from samplers import ELEMENTWISE, NOISE

import kdiff_jax as kd

FLOW = kd.flow_schedule(shift=3.0)
N = 6
KINDS: dict[str, kd.Levels] = {
    "beta schedule": kd.levels(NOISE, N, timestep_spacing="leading"),
    "flow": kd.levels(FLOW, N),
    "alone": kd.levels(None, N, grid="karras", sigma_min=0.03, sigma_max=14.6),
    "churned": kd.levels(NOISE, N).churned(2.0, s_tmax=10.0, s_noise=0.9),
    "lcm": kd.lcm_levels(NOISE, N),
    "zero SNR": kd.levels(kd.noise_schedule(rescale_zero_terminal_snr=True), N),
}
every_kind = pytest.mark.parametrize("levels", KINDS.values(), ids=KINDS)


def assert_same(found: Any, expected: Any) -> None:
    assert str(jax.tree.structure(found)) == str(jax.tree.structure(expected))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def alpha_of(levels: kd.Levels, sigma: Any) -> float:
    return 1 - float(sigma) if levels.noise.flow else 1.0


# --- cut -------------------------------------------------------------------------------------


@every_kind
def test_start_at_keeps_every_number_of_the_rest(levels: kd.Levels) -> None:
    assert levels.start_at(0) is levels
    for step in range(1, N):
        rest = levels.start_at(step)
        assert (rest.num_steps, rest.first_step, rest.closes) == (N - step, step, True)
        np.testing.assert_array_equal(rest.sigmas, levels.sigmas[step:])
        np.testing.assert_array_equal(rest.timesteps, levels.timesteps[step:])
        start = rest.sigmas[0]
        expected = math.hypot(alpha_of(levels, start), start)
        assert rest.init_noise_sigma == pytest.approx(expected, rel=1e-15)
        if levels.raised is not None and levels.added is not None:
            np.testing.assert_array_equal(rest.raised, levels.raised[step:])
            np.testing.assert_array_equal(rest.added, levels.added[step:])
    assert_same(levels.start_at(2).start_at(3), levels.start_at(5))


@every_kind
def test_end_at_keeps_every_number_up_to_a_level_above_0(levels: kd.Levels) -> None:
    assert levels.end_at(N) is levels
    for step in range(1, N):
        first = levels.end_at(step)
        assert (first.num_steps, first.first_step, first.closes) == (step, 0, False)
        np.testing.assert_array_equal(first.sigmas, levels.sigmas[: step + 1])
        np.testing.assert_array_equal(first.timesteps, levels.timesteps[:step])
        assert first.sigmas[-1] > 0
        assert first.init_noise_sigma == levels.init_noise_sigma
        if levels.raised is not None and levels.added is not None:
            np.testing.assert_array_equal(first.raised, levels.raised[:step])
            np.testing.assert_array_equal(first.added, levels.added[: step + 1])
    assert_same(levels.end_at(5).end_at(2), levels.end_at(2))
    assert_same(levels.start_at(1).end_at(3), levels.end_at(4).start_at(1))


SAMPLERS: dict[str, tuple[Any, kd.Levels]] = {
    "euler": (kd.euler, KINDS["beta schedule"]),
    "euler with eta": (lambda levels: kd.euler(levels, eta=0.7), KINDS["alone"]),
    "euler, churned": (kd.euler, KINDS["churned"]),
    "dpm2": (kd.dpm2, KINDS["zero SNR"]),
    "dpm2, churned": (kd.dpm2, KINDS["churned"]),
    "ancestral": (kd.dpm2_ancestral, KINDS["beta schedule"]),
    "ancestral on a flow": (kd.dpm2_ancestral, KINDS["flow"]),
    "lcm": (kd.lcm, KINDS["lcm"]),
    "lcm on a flow": (kd.lcm, KINDS["flow"]),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_both_ends_of_a_run_are_together_the_whole_table(name: str) -> None:
    sampler, levels = SAMPLERS[name]
    whole = sampler(levels)
    for step in range(1, N):
        first, rest = sampler(levels.end_at(step)), sampler(levels.start_at(step))
        per_step = first.num_rows // step
        assert first.num_rows + rest.num_rows == whole.num_rows
        both = jax.tree.map(lambda *ends: np.concatenate(ends), first.rows, rest.rows)
        assert_same(both, whole.rows)
        # So the rows count on as in the whole run, and each end is a slice of its table.
        assert rest[0].index == per_step * step
        assert rest[0].step == step
        np.testing.assert_array_equal(first.sigmas, whole.sigmas[: step + 1])
        np.testing.assert_array_equal(rest.sigmas, whole.sigmas[step:])
        assert_same(first.rows, whole[: per_step * step].rows)
        assert_same(rest.rows, whole[per_step * step :].rows)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_end_run_after_the_other_is_bitwise_the_whole_run(name: str) -> None:
    sampler, levels = SAMPLERS[name]
    columns = ("epsilon_weight", "noise_weight", "anchor_weight", "alpha", "input_scale")
    kind: Any = "flow_prediction" if levels.noise.flow else "v_prediction"
    denoise, key = kd.denoiser(sp.elementwise_model, kind), jax.random.key(5)

    def run(part: kd.Levels, x: jax.Array) -> jax.Array:
        return kd.sample(denoise, ELEMENTWISE, sampler(part).pad(12, columns), x, key)

    x = kd.initial_sample(sampler(levels), key, (2, 8))
    halfway = run(levels.end_at(4), x)
    np.testing.assert_array_equal(run(levels.start_at(4), halfway), run(levels, x))


def test_a_multistep_table_that_ends_early_is_a_slice_and_one_that_starts_late_is_not() -> None:
    levels = KINDS["beta schedule"]
    whole = kd.unipc(levels)
    assert_same(kd.unipc(levels.end_at(4)).rows, whole[:4].rows)
    late = kd.unipc(levels.start_at(4))
    # Its first step is of first order: nothing came before it.
    assert whole[4].denoised_weight_1 != 0
    assert late[0].step == 4
    with pytest.raises(ValueError, match="pass the State that was saved"):
        kd.init(whole[4:], jnp.ones((1, 2)))
    assert kd.init(late, jnp.ones((1, 2))).denoised_1 is not None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda levels: levels.start_at(6), "step = 6 is past the end of a run of 6 steps.*5"),
        (lambda levels: levels.start_at(-1), "step = -1 is too small"),
        (lambda levels: levels.start_at(1.0), "step = 1.0 is not an integer"),
        (lambda levels: levels.start_at(True), "step = True is not an integer"),
        (lambda levels: levels.start_at(4).start_at(2), "step = 2 is past .* run of 2 steps"),
        (lambda levels: levels.end_at(7), "step = 7 is past the end of a run of 6 steps.*6"),
        (lambda levels: levels.end_at(0), "step = 0 is too small"),
        (lambda levels: levels.end_at(2.5), "step = 2.5 is not an integer"),
    ],
)
def test_cuts_that_leave_nothing_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(KINDS["flow"])


# --- turned over -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["beta schedule", "flow", "alone", "zero SNR"])
def test_reversed_climbs_from_the_lowest_level_above_0(kind: str) -> None:
    levels = KINDS[kind]
    up = levels.reversed()
    np.testing.assert_array_equal(up.sigmas, levels.sigmas[-2::-1])
    # A step's timestep is that of the level it leaves, which is the lower one here.
    np.testing.assert_array_equal(up.timesteps, levels.timesteps[:0:-1])
    assert (up.num_steps, up.first_step, up.closes, up.ascends) == (N - 1, 0, False, True)
    assert not levels.ascends
    lowest = up.sigmas[0]
    expected = math.hypot(alpha_of(levels, lowest), lowest)
    assert up.init_noise_sigma == pytest.approx(expected, rel=1e-15)
    for sampler, per_step in ((kd.dpm2, 2), (kd.euler, 1)):
        rows = sampler(up).rows
        np.testing.assert_array_equal(rows.index, np.arange(per_step * (N - 1)))
        np.testing.assert_array_equal(rows.step, np.repeat(np.arange(N - 1), per_step))


@pytest.mark.parametrize("kind", ["flow", "alone"])
def test_a_run_that_ends_above_0_turns_over_with_all_its_levels(kind: str) -> None:
    levels = KINDS[kind]
    first = levels.end_at(4)
    up = first.reversed()
    np.testing.assert_array_equal(up.sigmas, levels.sigmas[4::-1])
    np.testing.assert_allclose(up.timesteps, levels.timesteps[4:0:-1], rtol=1e-15)
    twice = up.reversed()
    np.testing.assert_array_equal(twice.sigmas, first.sigmas)
    np.testing.assert_allclose(twice.timesteps, first.timesteps, rtol=1e-15)
    assert not twice.ascends


def test_only_a_run_that_begins_without_a_signal_refuses_networks_that_need_one() -> None:
    levels = KINDS["zero SNR"]
    up = levels.reversed()
    assert levels.zero_terminal_snr
    assert not up.zero_terminal_snr
    assert up.reversed().zero_terminal_snr
    assert not KINDS["flow"].reversed().reversed().zero_terminal_snr


def test_churn_counts_the_steps_of_the_levels_that_it_meets() -> None:
    levels = KINDS["alone"]
    before = levels.churned(0.6).start_at(2)
    after = levels.start_at(2).churned(0.6)
    sigmas = np.asarray(levels.sigmas)[2:-1]
    np.testing.assert_allclose(before.starts, sigmas * (1 + 0.6 / 6), rtol=1e-15)
    np.testing.assert_allclose(after.starts, sigmas * (1 + 0.6 / 4), rtol=1e-15)


# --- the value -------------------------------------------------------------------------------


@every_kind
def test_levels_are_frozen_float64_on_the_host_and_a_pytree(levels: kd.Levels) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        levels.sigmas = levels.sigmas  # type: ignore[misc]
    for leaf in jax.tree.leaves(levels):
        assert not isinstance(leaf, jax.Array)
        assert np.asarray(leaf).dtype == np.float64
    again = jax.tree.map(lambda leaf: leaf, levels)
    assert_same(again, levels)
    assert (again.closes, again.first_step) == (levels.closes, levels.first_step)


def test_levels_are_an_argument_of_jit() -> None:
    @jax.jit
    def rows(levels: kd.Levels) -> kd.Row:
        return kd.dpm2(levels.start_at(2)).rows

    for kind in ("beta schedule", "churned"):
        found, expected = rows(KINDS[kind]), kd.dpm2(KINDS[kind].start_at(2)).rows
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert a.dtype == b.dtype
            # float32 holds log sigma, of which a timestep is 0.004 at the least, to 3e-7.
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


def test_every_method_takes_levels_of_a_traced_sigma_max() -> None:
    def parts(sigma_max: Any) -> dict[str, kd.Levels]:
        levels = kd.levels(NOISE, 5, grid="karras", sigma_max=sigma_max)
        below = kd.levels(NOISE, 3, grid="karras", sigma_max=sigma_max, strength=0.58)
        return {
            "start_at": levels.start_at(2),
            "end_at": levels.end_at(3),
            "reversed": levels.reversed(),
            "reversed end": levels.end_at(3).reversed(),
            "churned": levels.churned(1.0).start_at(1),
            "start_at_strength": levels.start_at_strength(0.5),
            "below a strength": below,
        }

    with sp.x64():
        found, expected = jax.jit(parts)(9.0), parts(9.0)
        for name, levels in expected.items():
            assert found[name].num_steps == levels.num_steps
            for a, b in zip(jax.tree.leaves(found[name]), jax.tree.leaves(levels), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-9, err_msg=name)


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (kd.levels(NOISE, 25, grid="karras"), "Levels(25 steps, sigma 14.61 .. 0.02917 .. 0)"),
        (kd.levels(NOISE, 1), "Levels(1 step, sigma 14.61 .. 0)"),
        (kd.levels(FLOW, 4), "Levels(4 steps, sigma 1 .. 0.008929 .. 0)"),
        (kd.levels(FLOW, 4).end_at(2), "Levels(2 steps, sigma 1 .. 0.6022)"),
        (kd.levels(FLOW, sigmas=[1, 0.5]).reversed(), "Levels(1 step, sigma 0.5 .. 1)"),
        (
            kd.levels(None, sigmas=[8, 2, 0.5]).churned(1.0),
            "Levels(3 steps, sigma 8 .. 0.5 .. 0, churned)",
        ),
    ],
    ids=str,
)
def test_a_repr_is_one_short_line(levels: kd.Levels, expected: str) -> None:
    assert repr(levels) == expected


def test_a_repr_of_traced_levels_needs_no_numbers() -> None:
    found = []
    jax.jit(lambda s: found.append(repr(kd.levels(FLOW, 3, grid="karras", sigma_max=s))))(1.0)
    assert found == ["Levels(3 steps, traced)"]


def test_a_repr_of_what_a_transformation_makes_of_levels() -> None:
    levels = KINDS["flow"]
    assert repr(jax.tree.map(jnp.asarray, levels)) == repr(levels)
    both = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), levels)
    assert repr(both) == "Levels([2] of 6 steps)"
    assert repr(jax.tree.map(lambda leaf: None, levels)) == "Levels(...)"
    assert repr(jax.eval_shape(lambda levels: levels, levels)) == "Levels(6 steps, traced)"
