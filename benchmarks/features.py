"""What the library does beside one run: padded tables, saving, serving, other devices."""

import functools
import logging
from collections import deque
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import kdiff_jax as kd
import networks
import serve
import unet
from comparison import SHAPE, SHAPES, ours
from timing import QUICK, Candidate, Effort, NotMeasured, Result, paired, record, timed

SLOTS = 16
STEPS = (5, 10, 20, 30)
GRIDS: tuple[Literal["karras", "exponential"] | None, ...] = (None, "karras", "exponential")
LATENTS = (8, 64, 64, networks.LATENTS)  # those of Stable Diffusion, as a batch of eight


def padded(effort: Effort) -> dict[str, Result]:
    """Recompiles over N = 1..100 on `schedule.pad(199)`, and its time against the exact scan."""
    mine = ours("dpm2", SHAPE)
    noise = kd.noise_schedule("scaled_linear")
    longest = mine.schedule.pad(199)

    def run(schedule: kd.Schedule) -> Any:
        return kd.sample(mine.denoise, mine.params, schedule, mine.x)

    def candidate(schedule: kd.Schedule) -> Candidate:
        return Candidate(lambda: run(schedule))

    exact, through = (np.asarray(run(table)) for table in (mine.schedule, longest))
    if not np.array_equal(exact, through):
        raise ValueError("the padded run is not the exact run; nothing to compare.")
    compiled: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: compiled.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("jax")
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            for n in range(1, 101):
                grid = GRIDS[n % 3]
                levels = kd.levels(noise, n, grid=grid).start_at(n // 4)
                jax.block_until_ready(run(kd.dpm2(levels).pad(199)))
    finally:
        logger.removeHandler(handler)
    recompiled = [message for message in compiled if message.startswith("Compiling")]
    runs = {"kdiff_jax": candidate(longest), "other": candidate(mine.schedule)}
    return {
        "recompiles": {"value": float(len(recompiled))},
        "padded": record(paired(runs, effort), "kdiff_jax", "other"),
    }


def keep_sample(state: kd.State, prediction: kd.Prediction, row: kd.Row) -> jax.Array:
    return state.sample


def saving(effort: Effort) -> dict[str, Result]:
    """`kd.sample(..., save_fn=)` that keeps every step's sample, against none."""
    found = {}
    for size, shape in SHAPES.items():
        mine = ours("dpm2", shape)
        runs = {"kdiff_jax": mine.candidate(save_fn=keep_sample), "other": mine.candidate()}
        found[f"saving {size}"] = record(paired(runs, effort), "kdiff_jax", "other")
    return found


def _serving(ways: tuple[str, ...], total: int) -> dict[str, np.ndarray]:
    """Seconds of equal parts of short and long requests to the digits network, in random order."""
    _, params = unet.load(serve.digits.WEIGHTS)
    requests = serve.make_requests(total, ("dpm2", "dpm2_ancestral"), STEPS, (1.0,), seed=0)
    # Not zeros: what the bare network makes of those fades into denormal numbers, twice as slow.
    x = jax.random.normal(jax.random.key(0), (SLOTS, *requests[0].state.sample.shape))
    labels = jnp.zeros(SLOTS, jnp.int32)

    def call(way: str, requests: list[serve.Request]) -> Any:
        if way == "bare network":
            count = np.int32(serve.COUNTS["evaluations"])  # as many as continuous batching took
            return serve.bare_network(params, x, labels, count)
        if way == "continuous":
            return list(serve.serve(serve.plain, params, deque(requests), SLOTS))
        size = 1 if way == "one at a time" else SLOTS
        return list(serve.in_batches(serve.plain, params, serve.batches_of(requests, size)))

    seconds = {}
    for way in ways:
        jax.block_until_ready(call(way, requests[:SLOTS]))  # compiles: not counted
        serve.COUNTS.update(evaluations=-serve.COUNTS["evaluations"] * (way == "continuous"))
        run = Candidate(functools.partial(call, way, requests))
        seconds["kdiff_jax" if way == "continuous" else way] = np.array([timed(run)])
    return seconds


def serving(effort: Effort) -> dict[str, Result]:
    """examples/serve.py: mixed requests against the bare network, and against static batches."""
    total = 256 if effort.rounds > QUICK.rounds else 32
    seconds = _serving(("continuous", "static batches", "bare network"), total)
    return {
        # As many evaluations, as many requests: the ratio of times is that of rates.
        "serving evaluations": record(seconds, "bare network", "kdiff_jax"),
        "serving requests": record(seconds, "static batches", "kdiff_jax"),
    }


def loop_against_bare(size: networks.Size, shape: tuple[int, ...], effort: Effort) -> Result:
    """A run against its evaluations alone: a loop that feeds the network its own output."""
    params = networks.unet_params(jax.random.key(2), size.channels)
    mine = ours("dpm2", shape, networks.unet, params)

    @jax.jit
    def bare(params: Any, x: jax.Array, timesteps: jax.Array) -> jax.Array:
        def body(x: jax.Array, timestep: jax.Array) -> tuple[jax.Array, None]:
            return networks.unet(params, x, jnp.broadcast_to(timestep, x.shape[:1])), None

        return jax.lax.scan(body, x, timesteps)[0]

    timesteps = mine.schedule.rows.timestep
    loop = Candidate(lambda: bare(params, mine.x, timesteps))
    return record(
        paired({"kdiff_jax": mine.candidate(), "other": loop}, effort), "kdiff_jax", "other"
    )


def on_gpu(effort: Effort) -> dict[str, Result]:
    """The loop against the bare network, and serving against one request at a time."""
    if jax.default_backend() == "cpu":
        raise NotMeasured("no GPU here")
    seconds = _serving(("continuous", "one at a time"), 64)
    return {
        "gpu loop": loop_against_bare(networks.MEDIUM, LATENTS, effort),
        "gpu serving": record(seconds, "one at a time", "kdiff_jax"),
    }
