"""A seeded sample of the calls with wrong objects; all of them: `python tests/fuzz/fuzz_run.py`."""

import math
import types
from typing import Any

import fuzz_run as fuzz
import numpy as np
import pytest
from fuzz_calls import Call
from fuzz_run import CALLS
from fuzz_values import NOISE, number

import kdiff_jax as kd
from kdiff_jax.adapters import diffusers as kd_diffusers
from kdiff_jax.adapters import k_diffusion as kd_k

COUNT = 2000


@pytest.mark.parametrize("call", CALLS, ids=[call.name for call in CALLS])
def test_the_valid_call_that_is_changed_is_valid(call: Call) -> None:
    assert fuzz.problem_of(call, {}) is None


@pytest.mark.parametrize(
    "module", [kd, kd_diffusers, kd_k, kd.plot], ids=lambda module: module.__name__
)
def test_every_public_name_is_called(module: types.ModuleType) -> None:
    # A class is made by a function, or called as one; its methods count for it.
    called = {call.name.split()[0].split(".")[0].removesuffix("()") for call in CALLS}
    called |= {type(value).__name__ for call in CALLS for value, _ in call.arguments.values()}
    # What has no arguments to be wrong: k-diffusion's samplers that only say which to take.
    names = {name for name in module.__all__ if not name.startswith(ABSENT)}
    assert names - called == set()


def test_wrong_objects_are_refused_by_name() -> None:
    found = fuzz.run(fuzz.calls_of(seed=1, count=COUNT), seconds=30)
    assert not found, "\n".join(f"{problem}  {entry.example}" for problem, entry in found.items())


ABSENT = ("sample_lms", "sample_dpm_fast", "sample_dpm_adaptive")


def _silent(sigma: Any) -> Any:
    return 1.0


def _raw(sigma: Any) -> Any:
    return np.linspace(0, 1, 3) @ np.ones((2, 2))


def _nameless(sigma: Any) -> Any:
    return kd.karras_sigmas(0, 1.0, 2.0)


def _not_finite(sigma: Any) -> Any:
    return np.array([math.nan])


def _ascending(sigma: Any) -> Any:
    return kd.levels(NOISE, 5).reversed()


@pytest.mark.parametrize(
    ("function", "wrong", "problem"),
    [
        (_silent, "no", "accepted, sigma"),
        (_raw, 1.0, "raw message"),
        (_nameless, 1.0, "not named, sigma"),
        (_not_finite, 1.0, "result, not finite"),
        (_ascending, 1.0, "result, levels that do not descend"),
        (lambda sigma: sigma.levels, 1.0, "other exception, AttributeError"),
    ],
)
def test_the_fuzzer_finds_what_it_looks_for(function: Any, wrong: Any, problem: str) -> None:
    found = fuzz.problem_of(
        Call("planted", function, {"sigma": (1.0, number(0))}), {"sigma": wrong}
    )
    assert found is not None
    assert found.startswith(problem)
