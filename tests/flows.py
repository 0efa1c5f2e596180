"""Rectified flows and the builders of their tables, for the tests of flow matching."""

from collections.abc import Callable

import pytest

import kdiff_jax as kd

FLOW, SD3 = kd.flow_schedule(), kd.flow_schedule(shift=3.0)
BUILDERS: dict[str, Callable[..., kd.Schedule]] = {
    "euler": kd.euler_schedule,
    "dpm2": kd.dpm2_schedule,
    "ancestral": kd.dpm2_ancestral_schedule,
    "euler_ancestral": lambda noise, n=None, eta=1.0, **k: kd.euler_schedule(
        noise, n, eta=eta, **k
    ),
    "lcm": kd.lcm_schedule,
}
every_builder = pytest.mark.parametrize("name", BUILDERS)
