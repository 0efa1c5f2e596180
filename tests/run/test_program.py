"""What the compiled program is: traced once, compiled once, without what the sampler lacks."""

import collections
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
from programs import compilations, copies_in_loops, hlo_of, sub_jaxprs
from samplers import COLUMNS, NOISE, ONE_OF_EACH, SAMPLERS, STOCHASTIC

import kdiff_jax as kd
from kdiff_jax._run.step import _step

KEY = jax.random.key(5)
SHAPE = (2, 6)
PARAMS = np.float32(0.1)
every_sampler = pytest.mark.parametrize("name", SAMPLERS)

HISTORIES = ("anchor", "denoised_1", "denoised_2")
# Which of them each column reads; D_2 is D_1 of the row before, so it needs both.
READ_BY = {
    "anchor_weight": {"anchor"},
    "denoised_weight_1": {"denoised_1"},
    "denoised_weight_2": {"denoised_1", "denoised_2"},
}


def start(name, steps=4, shape=SHAPE):
    schedule = SAMPLERS[name](steps)
    return schedule, kd.initial_sample(schedule, KEY, shape)


def key_of(schedule, key=KEY):
    return key if sp.draws(schedule) else None


# --- traces, evaluations, compilations -------------------------------------------------------


@every_sampler
def test_the_network_is_traced_once_and_evaluated_once_a_row(name):
    count: collections.Counter[str] = collections.Counter()

    def model_fn(params, x, timestep):
        count["traced"] += 1
        jax.debug.callback(lambda: count.update(evaluated=1))
        return params * x

    n = 4
    schedule, x = start(name, n)
    one_row_a_step = name.startswith(("euler", "lcm", "tcd", "dpmpp_2m", "dpmpp_3m", "unipc"))
    closing = name not in ("inversion", "dpm2_ends_above_0")  # these end above 0
    assert schedule.num_rows == (n if one_row_a_step else 2 * n - closing)
    if name in ONE_OF_EACH:  # the programs of the others are theirs
        denoise = kd.denoiser(model_fn)
        kd.sample(denoise, PARAMS, schedule, x, key_of(schedule)).block_until_ready()
        jax.effects_barrier()
        assert count == {"traced": 1, "evaluated": schedule.num_rows}


def model_of_the_recompilation_tests(params, x, timestep, cond):
    return params * x + cond[:, None]


def sample_with(
    schedule, key=KEY, params=PARAMS, scale=2.0, clip=1.0, timestep_scaling=10.0, uncond=0.0
):
    guided = kd.guided(kd.denoiser(model_of_the_recompilation_tests), scale, np.float32(uncond))
    denoise = kd.consistency(kd.clipped(guided, clip), timestep_scaling)
    x = jnp.ones((2, 7))
    return kd.sample(denoise, params, schedule, x, key, np.ones(2, np.float32))


@pytest.mark.filterwarnings("ignore:denoise has kd.consistency")
def test_nothing_recompiles_for_other_numbers(caplog):
    def ancestral(noise=NOISE, eta=1.0, s_noise=1.0, **options):
        count = () if {"timesteps", "sigmas"} & set(options) else (3,)
        return kd.dpm2_ancestral(kd.levels(noise, *count, **options), eta=eta, s_noise=s_noise)

    other_noise = kd.noise_schedule("linear", beta_start=1e-4, beta_end=0.02)
    other_key = jax.random.key(1)
    # The first run is compiled, which also shows that compilations are seen.
    first = compilations(caplog, lambda: sample_with(ancestral()))
    assert sum("run" in name for name in first) == 1
    for run in (
        lambda: sample_with(ancestral()),
        lambda: sample_with(ancestral(eta=0.0)),
        lambda: sample_with(ancestral(eta=[0.1, 0.2, 0.3], s_noise=1.003)),
        lambda: sample_with(ancestral(timestep_spacing="trailing")),
        lambda: sample_with(ancestral(grid="karras", rho=5, sigma_min=0.1, sigma_max=40)),
        lambda: sample_with(ancestral(timesteps=[900, 500.5, 3])),
        lambda: sample_with(ancestral(other_noise, sigmas=[8, 2, 0.1])),
        # The same columns, filled by churn; the rest of a longer run, cut from its levels.
        lambda: sample_with(kd.dpm2(kd.levels(NOISE, 3).churned(0.5))),
        lambda: sample_with(kd.dpm2_ancestral(kd.levels(NOISE, 5).start_at(2))),
        lambda: sample_with(ancestral(), key=other_key),
        lambda: sample_with(ancestral(), params=np.float32(0.7)),
        lambda: sample_with(ancestral(), scale=7.5, uncond=0.3),
        lambda: sample_with(ancestral(), clip=2.0, timestep_scaling=3.0),
    ):
        assert compilations(caplog, run) == []


def test_what_decides_about_refusals_only_makes_no_other_program(caplog):
    # flow, zero_terminal_snr and continues are static facts of a schedule, and of no program.
    denoise = kd.denoiser(sp.elementwise_model, "sample")
    schedule = SAMPLERS["euler"](5)
    state = kd.init(schedule, jnp.ones((2, 9)))
    assert compilations(caplog, lambda: kd.sample(denoise, sp.ELEMENTWISE, schedule, state))
    zero = kd.noise_schedule("scaled_linear", rescale_zero_terminal_snr=True)
    for other in (SAMPLERS["euler"](7)[2:], kd.euler(kd.levels(zero, 5))):
        assert (
            compilations(caplog, lambda s=other: kd.sample(denoise, sp.ELEMENTWISE, s, state)) == []
        )


def test_stepping_by_hand_compiles_one_step_for_every_row_and_length_of_the_same_columns():
    def run(name, steps):
        schedule = SAMPLERS[name](steps)
        denoise = kd.denoiser(sp.elementwise_model)
        # A shape of its own, so that its program is new here whatever ran before.
        x = jnp.ones((3, 11))
        sp.run_by_hand(denoise, sp.ELEMENTWISE, schedule, x, KEY)

    step: Any = _step
    before = step._cache_size()
    run("ancestral", 4)
    assert step._cache_size() == before + 1
    for name, steps in (("ancestral", 4), ("ancestral", 7), ("dpm2_churn", 9)):
        assert COLUMNS[name] == COLUMNS["ancestral"]
        run(name, steps)
    assert step._cache_size() == before + 1


# --- what the program leaves out -------------------------------------------------------------


@functools.cache
def program_of(name, model_fn=sp.elementwise_model):
    schedule, x = start(name)
    params = sp.ELEMENTWISE if model_fn is sp.elementwise_model else PARAMS
    run = functools.partial(kd.sample, kd.denoiser(model_fn), params)
    return jax.make_jaxpr(run)(schedule, x, key_of(schedule)).jaxpr


def equations(name, without=None, **options):
    program = program_of(name, **options)
    return [eqn for jaxpr in sub_jaxprs(program, without) for eqn in jaxpr.eqns]


@every_sampler
def test_a_deterministic_program_has_no_random_bits(name):
    names = {eqn.primitive.name for eqn in equations(name)}
    random = {n for n in names if n.startswith(("random_", "threefry", "rng_"))}
    assert bool(random) == ("erf_inv" in names) == (name in STOCHASTIC)  # of normal numbers
    assert (SAMPLERS[name](4).rows.noise_weight is None) == (not random)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_random_bits_are_drawn_in_noise_rows_only(name):
    # Under a condition: on CPU they are most of the cost, and half the rows have weight 0.
    eqns = equations(name, without="cond")
    names = {eqn.primitive.name for eqn in eqns} | {eqn.params.get("name") for eqn in eqns}
    assert not names & {"random_bits", "normal", "shift_left", "erf_inv"}


@every_sampler
def test_the_loop_carries_exactly_the_histories_that_the_columns_read(name):
    reads = set().union(*(READ_BY.get(column, set()) for column in COLUMNS[name]))
    schedule, x = start(name)
    state = kd.init(schedule, x)
    assert {n for n in HISTORIES if getattr(state, n) is not None} == reads
    (scan,) = [eqn for eqn in equations(name) if eqn.primitive.name == "scan"]
    carried = [out.aval.shape for out in scan.outvars]
    # D_1 and D_2 are in a ring, of one more than are read, and the number of the row finds them.
    estimates = len(reads - {"anchor"})
    ring = [(1 + estimates, *SHAPE)] if estimates else []
    assert carried == [()] * len(ring) + [SHAPE] * (1 + len(reads) - estimates) + ring
    # JAX 0.12 has no such parameter any more.
    assert scan.params.get("num_carry", len(carried)) == len(carried)


def test_the_samplers_read_what_the_table_of_the_design_says():
    for name in SAMPLERS:
        two_rows = name.startswith(("dpm2", "ancestral", "heun", "2s", "sde", "inversion"))
        expected = {"anchor_weight"} if two_rows else set()
        if name.startswith(("dpmpp_2m", "dpmpp_3m", "unipc")):
            expected = {"denoised_weight_1", "denoised_weight_2"}
            expected -= {"denoised_weight_2"} if name.startswith("dpmpp_2m") else set()
        assert set(COLUMNS[name]) & set(READ_BY) == expected, name
        assert ("advances" in COLUMNS[name]) == two_rows, name
        assert ("epsilon_weight" in COLUMNS[name]) == (name != "lcm"), name
        assert ("alpha" in COLUMNS[name]) == (name in ("lcm", "tcd")), name
        assert ("input_scale" in COLUMNS[name]) == (name not in ("lcm", "tcd")), name
        assert "idle" not in COLUMNS[name], name


def only_sinh(params, x, timestep):
    return jnp.sinh(params * x)  # an operation that no sampler has


@every_sampler
def test_the_network_appears_once_in_the_program(name):
    names = [eqn.primitive.name for eqn in equations(name, model_fn=only_sinh)]
    assert names.count("sinh") == 1


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_no_copy_of_the_sample_in_the_compiled_loop(name):
    shape = (3, 1031)
    schedule, denoise = SAMPLERS[name](4), kd.denoiser(sp.elementwise_model)
    run = denoise, sp.ELEMENTWISE, schedule, jnp.ones(shape), key_of(schedule)
    hlo = hlo_of(kd.sample, *run)
    assert copies_in_loops(hlo, shape) == []


def test_a_loop_that_does_copy_is_seen():
    # Carrying (x, the x before) makes XLA copy: what the anchor avoids.
    def loop(x, factors):
        def body(carry, factor):
            x, before = carry
            return (factor * x + before, x), None

        return jax.lax.scan(body, (x, x), factors)[0]

    shape = (3, 1031)
    hlo = hlo_of(loop, jnp.ones(shape), jnp.ones(5))
    assert copies_in_loops(hlo, shape) != []
