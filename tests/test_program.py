"""What the compiled program is: traced once, compiled once, without what the sampler lacks."""

import collections
import functools
import logging
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
from samplers import NOISE, SAMPLERS, STOCHASTIC

import kdiff_jax as kd
from kdiff_jax._step import _step
from program import copies_in_loops

KEY = jax.random.key(5)
SHAPE = (2, 6)
PARAMS = np.float32(0.1)


def key_of(schedule, key=KEY):
    return None if schedule.deterministic else key


def start(name, steps=4, shape=SHAPE):
    schedule = SAMPLERS[name](steps)
    return schedule, kd.initial_sample(schedule, KEY, shape)


# --- traces, evaluations, compilations -------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_network_is_traced_once_and_evaluated_once_a_row(name):
    count: collections.Counter[str] = collections.Counter()

    def model_fn(params, x, timestep):
        count["traced"] += 1
        jax.debug.callback(lambda: count.update(evaluated=1))
        return params * x

    n = 4
    schedule, x = start(name, n)
    kd.sample(kd.denoiser(model_fn), PARAMS, schedule, x, key_of(schedule)).block_until_ready()
    jax.effects_barrier()
    assert count["traced"] == 1
    one_row_a_step = name in ("euler", "euler_ancestral", "lcm")
    closing = name != "inversion"  # has no closing step of one row
    expected = n if one_row_a_step else 2 * n - closing
    assert count["evaluated"] == schedule.num_rows == expected


def model_of_the_recompilation_tests(params, x, timestep, cond):
    return params * x + cond[:, None]


def compilations(caplog, run):
    """The names of the programs that JAX says it compiles while `run` runs."""
    caplog.clear()
    with caplog.at_level(logging.WARNING), jax.log_compiles():
        jax.block_until_ready(run())
    return [r.getMessage() for r in caplog.records if r.getMessage().startswith("Compiling")]


def sample_with(
    schedule, key=KEY, params=PARAMS, scale=2.0, clip=1.0, timestep_scaling=10.0, uncond=0.0
):
    guided = kd.guided(kd.denoiser(model_of_the_recompilation_tests), scale, np.float32(uncond))
    denoise = kd.consistency(kd.clipped(guided, clip), timestep_scaling)
    x = jnp.ones((2, 7))
    return kd.sample(denoise, params, schedule, x, key, np.ones(2, np.float32))


def test_nothing_recompiles_for_other_numbers(caplog):
    ancestral = functools.partial(kd.dpm2_ancestral_schedule, NOISE, 3)
    other_noise = kd.noise_schedule("linear", beta_start=1e-4, beta_end=0.02)
    other_key = jax.random.key(1)
    # The first run is compiled, which also shows that compilations are seen.
    first = compilations(caplog, lambda: sample_with(ancestral()))
    assert sum("_sample" in name for name in first) == 1
    for run in (
        lambda: sample_with(ancestral()),
        lambda: sample_with(ancestral(eta=0.0)),
        lambda: sample_with(ancestral(eta=[0.1, 0.2, 0.3], s_noise=1.003)),
        lambda: sample_with(ancestral(timestep_spacing="trailing")),
        lambda: sample_with(ancestral(grid="karras", rho=5, sigma_min=0.1, sigma_max=40)),
        lambda: sample_with(kd.dpm2_ancestral_schedule(NOISE, timesteps=[900, 500.5, 3])),
        lambda: sample_with(kd.dpm2_ancestral_schedule(other_noise, sigmas=[8, 2, 0.1])),
        lambda: sample_with(ancestral(), key=other_key),
        lambda: sample_with(ancestral(), params=np.float32(0.7)),
        lambda: sample_with(ancestral(), scale=7.5, uncond=0.3),
        lambda: sample_with(ancestral(), clip=2.0, timestep_scaling=3.0),
    ):
        assert compilations(caplog, run) == []


def test_stepping_by_hand_compiles_one_step_for_every_row_sampler_and_length():
    def run(name, steps):
        schedule = SAMPLERS[name](steps)
        denoise = kd.denoiser(sp.elementwise_model)
        # A shape of its own, so that its program is new here whatever ran before.
        x = kd.initial_sample(schedule, KEY, (3, 11))
        sp.run_by_hand(denoise, sp.ELEMENTWISE, schedule, x, KEY)

    step: Any = _step
    before = step._cache_size()
    run("ancestral", 4)
    assert step._cache_size() == before + 1
    for name, steps in (("ancestral", 4), ("ancestral", 7), ("dpm2_karras", 9), ("lcm", 3)):
        run(name, steps)
    assert step._cache_size() == before + 1


# --- what the program leaves out -------------------------------------------------------------


def sub_jaxprs(jaxpr, without=None):
    """A program and every program inside it, but for those in the operation `without`."""
    yield jaxpr
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == without:
            continue
        for value in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from sub_jaxprs(inner, without)


def equations(name, model_fn=sp.elementwise_model, params=sp.ELEMENTWISE, without=None):
    schedule, x = start(name)
    run = functools.partial(kd.sample, kd.denoiser(model_fn), params)
    program = jax.make_jaxpr(run)(schedule, x, key_of(schedule))
    return [eqn for jaxpr in sub_jaxprs(program.jaxpr, without) for eqn in jaxpr.eqns]


def hlo_of(function, *args):
    return jax.jit(function).lower(*args).compile().as_text()


def hlo_of_sample(name, shape):
    schedule, x = start(name, shape=shape)
    denoise = kd.denoiser(sp.elementwise_model)
    return hlo_of(kd.sample, denoise, sp.ELEMENTWISE, schedule, x, key_of(schedule))


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_deterministic_program_has_no_random_bits(name):
    names = {eqn.primitive.name for eqn in equations(name)}
    random = {n for n in names if n.startswith(("random_", "threefry", "rng_"))}
    assert bool(random) == ("random_bits" in names) == (name in STOCHASTIC)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_random_bits_are_drawn_in_noise_rows_only(name):
    # Under a condition: on CPU they are most of the cost, and half the rows have weight 0.
    assert "random_bits" not in {eqn.primitive.name for eqn in equations(name, without="cond")}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_loop_carries_an_anchor_only_where_rows_read_it(name):
    (scan,) = [eqn for eqn in equations(name) if eqn.primitive.name == "scan"]
    reads_it = bool(jnp.any(SAMPLERS[name](4).rows.anchor_weight != 0))
    carried = [out.aval.shape for out in scan.outvars]
    assert carried == [SHAPE] * (2 if reads_it else 1)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_network_appears_once_in_the_program(name):
    def model_fn(params, x, timestep):
        return jnp.sinh(params * x)  # an operation that no sampler has

    names = [eqn.primitive.name for eqn in equations(name, model_fn, PARAMS)]
    assert names.count("sinh") == 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_copy_of_the_sample_in_the_compiled_loop(name):
    shape = (3, 1031)
    assert copies_in_loops(hlo_of_sample(name, shape), shape) == []


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


# --- gradients -------------------------------------------------------------------------------

THETA: dict[str, Any] = {
    "z": 0.4,
    "gain": 0.7,
    "shift": 0.3,
    "sigma_max": 9.0,
    "sigma_min": 0.05,
    "rho": 6.0,
}
GRIDS: dict[str, Any] = {
    "euler": kd.euler_schedule,
    "dpm2": kd.dpm2_schedule,
    "ancestral": kd.dpm2_ancestral_schedule,
}


def loss(theta, name):
    grid = {"grid": "karras", **{k: theta[k] for k in ("sigma_max", "sigma_min", "rho")}}
    extra = {"eta": theta["eta"], "s_noise": theta["s_noise"]} if name == "ancestral" else {}
    schedule = GRIDS[name](NOISE, 4, **grid, **extra)
    x = schedule.init_noise_sigma * (theta["z"] + jnp.linspace(-1, 1, 6).reshape(2, 3))
    params = {"gain": theta["gain"], "shift": theta["shift"]}
    out = kd.sample(kd.denoiser(sp.elementwise_model), params, schedule, x, key_of(schedule))
    return jnp.sum(jnp.sin(out))


@pytest.mark.parametrize("name", GRIDS)
def test_gradients_match_finite_differences(name):
    with sp.x64():
        theta = THETA | ({"eta": 0.6, "s_noise": 1.1} if name == "ancestral" else {})
        theta = {k: jnp.asarray(v, jnp.float64) for k, v in theta.items()}
        value = jax.jit(functools.partial(loss, name=name))
        gradient = jax.jit(jax.grad(functools.partial(loss, name=name)))(theta)
        for k, at in theta.items():
            h = 1e-3 * at
            ends = [float(value(theta | {k: at + d})) for d in (h, -h)]
            expected = (ends[0] - ends[1]) / (2 * float(h))
            # Timesteps reach the network in float32 and change slope at every training level.
            assert float(gradient[k]) == pytest.approx(expected, rel=2e-3), k


def test_gradients_are_finite_at_the_edges():
    @jax.jit
    @jax.grad
    def gradient(theta):
        return loss(THETA | theta, "ancestral")

    for eta, s_noise in ((0.0, 1.0), (1.0, 0.0)):
        slopes = gradient({"eta": jnp.float32(eta), "s_noise": jnp.float32(s_noise)})
        assert all(np.isfinite(slope) for slope in slopes.values())


def test_gradient_for_the_initial_sample_of_every_sampler_is_finite():
    for name in ("dpm2", "ancestral", "lcm"):
        schedule, x = start(name)

        def total(x, params, schedule=schedule):
            run = kd.denoiser(sp.elementwise_model), params, schedule, x, key_of(schedule)
            return jnp.sum(kd.sample(*run))

        for leaf in jax.tree.leaves(jax.jit(jax.grad(total, (0, 1)))(x, sp.ELEMENTWISE)):
            assert np.all(np.isfinite(leaf))
            assert np.all(np.asarray(leaf) != 0)


# --- imports ---------------------------------------------------------------------------------


def test_importing_the_package_loads_no_framework():
    heavy = ["flax", "optax", "chex", "torch", "diffusers", "matplotlib", "safetensors", "tqdm"]
    code = f"import sys, kdiff_jax; print([m for m in {heavy} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
