"""Pictures for the fuzzer: a valid call, and what it may accept."""

import fuzz_values as fv
import jax.numpy as jnp
from fuzz_calls import Argument, Call
from fuzz_values import an, count, numbers, optional
from matplotlib.figure import Figure

import kdiff_jax as kd

# Any axes serve; none of the wrong objects is one.
AX: Argument = (None, lambda value: value is None)
IMAGES: Argument = (jnp.zeros((3, 2, 4, 4, 1)), lambda value: False)

PLOT_CALLS = [
    Call(
        "levels drawn",
        kd.plot.levels,
        {"grids": ({"a": fv.LEVELS}, lambda value: False), "ax": AX},
        slow=True,
    ),
    Call(
        "levels drawn by name",
        lambda levels: kd.plot.levels({"levels": levels}, ax=Figure().subplots()),
        {"levels": (fv.LEVELS, an(kd.Levels))},
        slow=True,
    ),
    Call(
        "trajectory",
        kd.plot.trajectory,
        {
            "samples": IMAGES,
            "denoised": IMAGES,
            "sigmas": (None, optional(numbers())),
            "sample": (0, count(0)),
            "count": (8, count()),
            "ax": AX,
        },
        slow=True,
    ),
    Call("table", kd.plot.table, {"schedule": (fv.SCHEDULE, an(kd.Schedule)), "ax": AX}, slow=True),
]
