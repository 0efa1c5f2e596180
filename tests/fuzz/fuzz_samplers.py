"""Samplers and their tables for the fuzzer: a valid call, and what it may accept."""

from collections.abc import Callable
from typing import Any

import fuzz_values as fv
import jax.numpy as jnp
from fuzz_calls import Argument, Call
from fuzz_values import an, anything, count, either, flag, number, numbers, one_of, optional

import kdiff_jax as kd

RUN: Argument = (fv.LEVELS, an(kd.Levels))
ETA: Argument = (1.0, numbers(0))
ETA_OR_NONE: Argument = (None, optional(numbers(0)))
SOME_ETA: Argument = (1.0, optional(numbers(0)))
S_NOISE: Argument = (1.0, numbers(0))
SOLVER: Argument = ("midpoint", one_of("midpoint", "heun"))


def _tables(value: Any) -> bool:
    several = isinstance(value, (list, tuple)) and bool(value)
    return several and all(isinstance(table, kd.Schedule) for table in value)


def _sampler(function: Callable[..., Any], **arguments: Argument) -> Call:
    return Call(function.__name__, function, {"levels": RUN, **arguments})


TABLE_CALLS = [
    _sampler(kd.euler, eta=ETA_OR_NONE, s_noise=S_NOISE),
    Call(
        "euler ancestral",
        kd.euler,
        {"levels": RUN, "eta": (1.0, ETA_OR_NONE[1]), "s_noise": S_NOISE},
    ),
    _sampler(kd.dpm2),
    _sampler(kd.dpm2_ancestral, eta=ETA, s_noise=S_NOISE),
    _sampler(kd.heun),
    _sampler(kd.dpmpp_2s_ancestral, eta=ETA, s_noise=S_NOISE),
    _sampler(kd.dpmpp_sde, eta=ETA, s_noise=S_NOISE),
    _sampler(kd.dpmpp_2m, eta=ETA_OR_NONE, s_noise=S_NOISE, solver=SOLVER),
    _sampler(
        kd.dpmpp_3m,
        eta=ETA_OR_NONE,
        s_noise=S_NOISE,
        published=(True, flag),
        solver=SOLVER,
        lower_order_final=(False, flag),
    ),
    _sampler(kd.unipc, corrector=(True, flag)),
    _sampler(kd.lcm, s_noise=S_NOISE, s_noise_end=(None, optional(numbers(0)))),
    _sampler(kd.tcd, gamma=(0.3, number(0, 1))),
    Call("stack", kd.stack, {"schedules": ([fv.SCHEDULE, fv.NOISY], _tables)}, slow=True),
    Call(
        "Schedule.pad",
        fv.NOISY.pad,
        {"num_rows": (7, count()), "columns": (None, optional(an(list, tuple, set)))},
        slow=True,
    ),
    Call("Schedule.rows_at", fv.NOISY.rows_at, {"i": (jnp.asarray([0, 1]), numbers(0))}, slow=True),
    Call("Schedule[i]", fv.NOISY.__getitem__, {"i": (1, either(count(-10), an(slice)))}, slow=True),
    Call("Schedule.from_json", kd.Schedule.from_json, {"text": (fv.NOISY.to_json(), an())}),
    *(
        Call(f"{type(value).__name__} ==", value.__eq__, {"other": (1, anything)})
        for value in (fv.LEVELS, fv.SCHEDULE, fv.NOISE, fv.ROW)
    ),
]
