"""Rectified flows and the samplers of their tables, for the tests of flow matching."""

from collections.abc import Callable

import pytest

import kdiff_jax as kd

FLOW, SD3 = kd.flow_schedule(), kd.flow_schedule(shift=3.0)
SAMPLERS: dict[str, Callable[..., kd.Schedule]] = {
    "euler": kd.euler,
    "dpm2": kd.dpm2,
    "ancestral": kd.dpm2_ancestral,
    "euler_ancestral": lambda levels, eta=1.0, **k: kd.euler(levels, eta, **k),
    "heun": kd.heun,
    "2s_ancestral": kd.dpmpp_2s_ancestral,
    "lcm": kd.lcm,
    "dpmpp_2m": kd.dpmpp_2m,
    "dpmpp_3m_sde": lambda levels, eta=1.0, **k: kd.dpmpp_3m(levels, eta, **k),
    "unipc": kd.unipc,
}
every_sampler = pytest.mark.parametrize("name", SAMPLERS)
