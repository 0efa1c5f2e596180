"""Runs of maxdiffusion's own loops, recorded, against `kd.sample` and a loop of the adapter."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recorded_maxdiffusion as recorded
from clients import flax_runs as runs
from samplers import relative_error

from kdiff_jax.adapters import flax as kd_flax

MADE_BY, RUNS = recorded.load()


def name_of(run: dict[str, Any]) -> str:
    return f"{run['loop']}-{run['scheduler']}-{run['calls']}"


def by_the_adapter(run: dict[str, Any]) -> jax.Array:
    """The latents of a plain loop over the timesteps of a run."""
    scheduler = getattr(kd_flax, run["scheduler"]).from_config(run["config"])
    cond = jax.tree.map(lambda *two: np.concatenate(two), run["uncond"], run["cond"])

    @jax.jit
    def call(sample: jax.Array, state: Any, t: jax.Array) -> Any:
        inputs = scheduler.scale_model_input(state, jnp.concatenate([sample] * 2), t)
        out = recorded.network(recorded.WEIGHT, inputs, jnp.broadcast_to(t, len(inputs)), cond)
        low, high = jnp.split(out, 2)
        return scheduler.step(state, low + run["scale"] * (high - low), t, sample).to_tuple()

    sample = jnp.asarray(run["initial"])
    state = scheduler.set_timesteps(scheduler.create_state(), run["calls"], sample.shape)
    for t in run["timesteps"]:
        sample, state = call(sample, state, t)
    return sample


@pytest.mark.parametrize("run", [run for run in RUNS if run["loop"] != "wan scan"], ids=name_of)
def test_the_latents_of_maxdiffusion_are_those_of_kd_sample(run: dict[str, Any]) -> None:
    case: runs.Case = run["scheduler"], run["config"], run["calls"]
    expected = runs.reference(
        case,
        recorded.network,
        recorded.WEIGHT,
        jnp.asarray(run["initial"]),
        run["cond"],
        run["uncond"],
        run["scale"],
    )
    runs.check("recorded", case, run["latents"], expected)


# With noise in it, and one that the test above leaves out; test_flax.py has the other samplers.
@pytest.mark.parametrize("run", [RUNS[1], RUNS[-1]], ids=name_of)
def test_a_loop_of_the_adapter_makes_the_latents_of_maxdiffusion(run: dict[str, Any]) -> None:
    assert relative_error(by_the_adapter(run), run["latents"]) <= 1e-5


@pytest.mark.parametrize("run", RUNS, ids=name_of)
def test_maxdiffusion_told_the_network_the_timesteps_of_the_adapter(run: dict[str, Any]) -> None:
    scheduler = getattr(kd_flax, run["scheduler"]).from_config(run["config"])
    state = scheduler.set_timesteps(scheduler.create_state(), run["calls"])
    assert np.array_equal(state.timesteps, run["timesteps"])


def test_the_recording_is_of_the_versions_that_the_client_tests_install() -> None:
    script = (recorded.RECORDED.parents[1] / "clients" / "install_flax.sh").read_text("utf-8")
    assert f"checkout --quiet {MADE_BY['maxdiffusion']}" in script
    assert f"jax=={MADE_BY['jax']}" in script
