"""Continuous batching: mixed requests for one network share one batch and one executable.

    python examples/serve.py                       # DPM2 and ancestral, 5 to 30 steps, 16 slots
    python examples/serve.py --sampler euler heun dpmpp_2m unipc dpmpp_sde --steps 4 25
    python examples/serve.py --sampler lcm         # 1 to 8 steps of the distilled network

A static batch waits for its longest request: 30 steps of DPM2 are 59 evaluations of the network,
and a request of 5 steps, done after 9, keeps its place for the other 50. Here the batch is S slots.
Each holds a request: its table, the row it is at, its sample, its key. `tick` moves every slot on
by a row of its own table, and `admit` puts a waiting request in the place of one that is done. To
them tables padded to the same rows and columns are just numbers, so neither compiles again,
whatever samplers of the network the requests name: Euler, DPM2, Heun, DPM++ 2S, SDE, 2M and 3M,
UniPC. A request's sample is the same bits in every slot, with any neighbours, whenever it joins.
From the lengths of the tables the host knows when a slot comes free: it stays a chunk of rows ahead
of the device, never waited for.
"""

import argparse
import functools
import itertools
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import commands
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import digits
import kdiff_jax as kd
import unet

COUNTS: Counter[str] = Counter()
# What an executable can run: the columns of all samplers of its network. Those of one family alone
# make smaller slots: "anchor_weight" is a sample more in each, the estimates are two.
COLUMNS: tuple[str, ...] = (
    "epsilon_weight",
    "noise_weight",
    "anchor_weight",
    "denoised_weight_1",
    "denoised_weight_2",
    "input_scale",
)
LCM_COLUMNS: tuple[str, ...] = ("epsilon_weight", "noise_weight", "alpha")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Request:
    """A request and how far it is; with an axis S in front of every leaf, the slots.

    Attributes:
      schedule: its run, from any sampler and levels, then `pad(num_rows, columns=COLUMNS)`.
      position: int32, the next row; at the end of its run and past it a slot idles.
      state: `kd.init(schedule, x)`, where x is noise, or for image to image a noised image.
      key: of the noise of its steps.
      cond: the condition of the network, here {"label": int32, "scale": float32}.
    """

    schedule: kd.Schedule
    position: jax.Array
    state: kd.State
    key: jax.Array
    cond: Any


@functools.partial(jax.jit, static_argnames="denoise")
def tick(denoise: Any, params: Any, slots: Request, num_rows: Any) -> Request:
    """Moves all slots on by num_rows rows, each of them one evaluation of the network."""
    COUNTS["compiled tick"] += 1  # Python comes here while it is traced only: once a program
    shape = slots.state.sample.shape

    def one_row(_: Any, now: tuple[jax.Array, kd.State]) -> tuple[jax.Array, kd.State]:
        position, state = now
        row = slots.schedule.rows_at(position)
        prediction = denoise(params, state.sample, row, slots.cond)
        draws = jnp.asarray(row.noise_weight != 0).reshape(-1, *(1,) * (len(shape) - 1))
        noise = jax.lax.cond(  # random bits are dear on CPU, and many rows need none
            jnp.any(draws),
            # Masked: 0 times the noise has a sign, which a neighbour must not give to a 0.
            lambda: jnp.where(draws, kd.row_noise(slots.key, row, shape), 0.0),
            lambda: jnp.zeros(shape, jnp.float32),
        )
        return position + 1, kd.step(state, row, prediction, noise=noise)

    position, state = jax.lax.fori_loop(0, num_rows, one_row, (slots.position, slots.state))
    return replace(slots, position=position, state=state)


@jax.jit
def admit(slots: Request, slot: Any, request: Request) -> Request:
    """Puts a request into a slot."""
    COUNTS["compiled admit"] += 1
    return jax.tree.map(lambda old, new: old.at[slot].set(new), slots, request)


def stacked(requests: list[Request]) -> Request:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *requests)


def kind_of(request: Any) -> Any:
    """What a program is compiled for: structure, shapes and dtypes; None of what is no request."""
    leaves, structure = jax.tree.flatten(request)
    if not isinstance(request, Request):
        return None
    try:
        return structure, tuple(jax.typeof(leaf) for leaf in leaves)
    except TypeError:  # a leaf that is no array
        return None


def serve(
    denoise: Any, params: Any, waiting: deque[Request], num_slots: int, *, patience: int = 8
) -> Iterator[tuple[int, np.ndarray | ValueError]]:
    """Runs all requests that wait, and those appended to `waiting` meanwhile, first come first.

    Args:
      denoise: a function `denoise(params, x, row, cond)`; one and the same, or `tick` compiles.
      params: the network's weights.
      waiting: requests whose arrays agree in shape and dtype. Those of another kind than most that
        wait at the start are refused: each gets its error, and the others run on.
      num_slots: S, the batch that the network sees.
      patience: rows that a new request may have to wait although a slot is free; at least 1.

    Yields:
      (number, sample) of each request as it ends, or (number, ValueError) of one that was refused;
      numbers go by the order of the queue.
    """
    if num_slots < 1 or patience < 1:
        raise ValueError(f"num_slots = {num_slots}, patience = {patience}; expected 1 or more.")
    kinds = Counter(filter(None, map(kind_of, waiting))).most_common(1)
    if not kinds:
        yield from ((i, refusal(i, None, "no request")) for i in range(len(waiting)))
        return
    kind = kinds[0][0]
    first = next(request for request in waiting if kind_of(request) == kind)
    slots = stacked([first] * num_slots)
    end = jnp.full(num_slots, len(first.schedule), jnp.int32)
    slots = replace(slots, position=end)  # they idle
    free = deque(range(num_slots))
    running: dict[int, tuple[int, int]] = {}  # slot -> (number, the evaluation it ends at)
    number, now = -1, 0
    before = None
    while waiting or running or before is not None:
        while free and waiting:
            request, number = waiting.popleft(), number + 1
            if (got := kind_of(request)) != kind:
                yield number, refusal(number, got, kind)
                continue
            slot = free.popleft()
            slots = admit(slots, np.int32(slot), request)
            running[slot] = number, now + len(request.schedule)
        chunk = None
        if running:
            # Until the next slot comes free: no slot idles while a request waits.
            num_rows = min(end for _, end in running.values()) - now
            num_rows = min(num_rows, patience) if free else num_rows
            slots = tick(denoise, params, slots, np.int32(num_rows))
            COUNTS.update(evaluations=num_rows, useful=num_rows * len(running))
            now += num_rows
            ended = {slot: number for slot, (number, end) in running.items() if end == now}
            running = {slot: entry for slot, entry in running.items() if slot not in ended}
            free.extend(ended)
            chunk = slots.state.sample, ended
        # Read one chunk late: by now the device has the next, and never waits for the host.
        if before is not None:
            samples = np.asarray(before[0])
            yield from ((number, samples[slot]) for slot, number in before[1].items())
        before = chunk


def refusal(number: int, got: Any, kind: Any) -> ValueError:
    return ValueError(
        f"request {number} is {got or 'not made of arrays'}, the slots hold {kind}; pad all "
        "schedules by the same pad(num_rows, columns=...), and give state and cond without batch "
        "axis."
    )


def plain(params: Any, x: jax.Array, row: kd.Row, cond: Any) -> kd.Prediction:
    """The digits network without guidance."""
    return kd.denoiser(unet.model_fn)(params, x, row, cond["label"])


def guided(params: Any, x: jax.Array, row: kd.Row, cond: Any) -> kd.Prediction:
    """The digits network with guidance, a scale for each request.

    It doubles the batch for all of them. Requests of scale 1, where they are many, deserve a server
    of their own, with `plain`: to choose anew at every row makes rounding depend on the neighbours.
    """
    denoise = kd.guided(kd.denoiser(unet.model_fn), cond["scale"], jnp.int32(unet.NO_CLASS))
    return denoise(params, x, row, cond["label"])


def lcm(params: Any, x: jax.Array, row: kd.Row, cond: Any) -> kd.Prediction:
    """The distilled network, which receives the scale: no doubled batch."""
    return digits.lcm_denoiser()(params, x, row, cond)


def tcd(params: Any, x: jax.Array, row: kd.Row, cond: Any) -> kd.Prediction:
    """The same network as trajectory consistency takes it."""
    return kd.denoiser(unet.model_fn)(params, x, row, cond)


DISTILLED: dict[str, Callable[..., kd.Prediction]] = {"lcm": lcm, "tcd": tcd}


def make_request(schedule: kd.Schedule, seed: int, label: int, scale: float) -> Request:
    """A digit from pure noise."""
    if label not in range(unet.NUM_CLASSES):
        raise ValueError(f"label = {label}; expected a class, 0 to {unet.NUM_CLASSES - 1}.")
    key = jax.random.key(seed)
    state = kd.init(schedule, kd.initial_sample(schedule, key, (1, 28, 28, 1))[0])
    cond = {"label": jnp.int32(label), "scale": jnp.float32(scale)}
    return Request(schedule, jnp.int32(0), state, key, cond)


def make_requests(
    total: int, samplers: Sequence[str], steps: Sequence[int], scales: Sequence[float], seed: int
) -> list[Request]:
    """Equal parts of all samplers and step counts, in random order, in tables of one shape."""
    runs = [digits.digits_schedule(sampler, n) for n in steps for sampler in samplers]
    columns = LCM_COLUMNS if samplers[0] in DISTILLED else COLUMNS
    runs = [run.pad(max(map(len, runs)), columns) for run in runs]
    order = np.random.default_rng(seed).permutation(total) % len(runs)
    scale, seeds = itertools.cycle(scales), itertools.count(seed)
    return [make_request(runs[k], next(seeds), k % 10, next(scale)) for k in order]


def batches_of(requests: list[Request], size: int) -> list[Request]:
    """Static batches; the last is filled up, so that it needs no program of its own."""
    filled = [(requests[i : i + size] * size)[:size] for i in range(0, len(requests), size)]
    return [stacked(batch) for batch in filled]


def in_batches(denoise: Any, params: Any, batches: list[Request]) -> Iterator[Any]:
    """(number, sample) of requests in static batches, each until its longest request ends."""
    for i, b in enumerate(batches):
        x0 = kd.sample(denoise, params, b.schedule, b.state.sample, b.key, b.cond)
        yield from enumerate(np.asarray(x0), i * x0.shape[0])


@jax.jit
def bare_network(params: Any, x: jax.Array, cond: Any, count: Any) -> jax.Array:
    """The network alone, count times, each from the one before and at another timestep."""

    def body(i: jax.Array, out: jax.Array) -> jax.Array:
        timestep = jnp.full(x.shape[0], i, jnp.float32)  # a constant one is embedded only once
        return unet.model_fn(params, x + 0.1 * out, timestep, cond)

    return jax.lax.fori_loop(0, count, body, x)


def arguments() -> argparse.Namespace:
    parser = commands.parser(__doc__)
    add, samplers = parser.add_argument, ["dpm2", "dpm2_ancestral"]
    add("--sampler", nargs="+", choices=digits.SAMPLERS, default=samplers, help="in equal parts")
    add(
        "--steps",
        type=commands.count,
        nargs="+",
        help="outer steps N of the requests; default: 5 10 20 30, of LCM 1 to 8",
    )
    add("--requests", type=commands.count, default=64, help="how many wait")
    add("--slots", type=commands.count, default=16, help="the batch that the network sees")
    add("--seed", type=commands.seed, default=0, help="of the requests and their order")
    add("--repeats", type=commands.count, default=3, help="timed runs, of which the median counts")
    scales = [1.5, 2.0, 3.0]
    add("--guidance", type=commands.number, nargs="+", default=scales, help="in turn; 1 is none")
    args = parser.parse_args()
    distilled = DISTILLED.keys() & set(args.sampler)
    if distilled and len(args.sampler) > 1:
        parser.error(f"--sampler: {' and '.join(distilled)} alone, with a network of its own")
    args.steps = args.steps or ([*range(1, 9)] if distilled else [5, 10, 20, 30])
    with commands.refused(parser):
        for sampler in args.sampler:
            for steps in args.steps:
                digits.digits_schedule(sampler, steps)
            for scale in args.guidance:
                digits.denoiser_and_cond(sampler, jnp.zeros(1, jnp.int32), scale)
    return args


def main() -> None:
    args = arguments()
    total, size, distilled = args.requests, args.slots, DISTILLED.get(args.sampler[0])
    denoise = distilled or (plain if set(args.guidance) == {1.0} else guided)
    _, params = unet.load(digits.LCM_WEIGHTS if distilled else digits.WEIGHTS)
    requests = make_requests(total, args.sampler, args.steps, args.guidance, args.seed)
    lengths = [len(request.schedule) for request in requests]
    batches, singles = batches_of(requests, size), batches_of(requests, 1)
    # Not zeros: what the network makes of those fades into denormal numbers, twice as slow.
    x = jax.random.normal(jax.random.key(0), (size * (2 if denoise is guided else 1), 28, 28, 1))
    label, scale = jnp.zeros(len(x), jnp.int32), jnp.ones(len(x))
    cond = {"label": label, "scale": scale} if distilled else label

    ways: dict[str, Callable[[], Any]] = {
        "one at a time": lambda: in_batches(denoise, params, singles),
        "static batches": lambda: in_batches(denoise, params, batches),
        "continuous": lambda: serve(denoise, params, deque(requests), size),
        "bare network": lambda: np.asarray(bare_network(params, x, cond, np.int32(100)))[:0],
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    results: dict[str, dict[int, Any]] = {way: {} for way in ways}
    bar = tqdm(total=3 * total * (args.repeats + 1), unit="request")
    for repeat, way in itertools.product(range(args.repeats + 1), ways):
        bar.set_description(f"{way}, {f'run {repeat}' if repeat else 'compiling'}")
        start = time.perf_counter()
        for number, sample in ways[way]():
            results[way][number] = sample
            bar.update(number < total)
        seconds[way].append(time.perf_counter() - start)
    bar.close()

    rows, static = sum(lengths), sum(max(lengths[i : i + size]) for i in range(0, total, size))
    ours = COUNTS["evaluations"] // (args.repeats + 1)
    rates = [1 / statistics.median(times[1:]) for times in seconds.values()]
    print(f"{total} requests of {rows} rows, {size} slots; medians of {args.repeats} runs")
    print(f"{'':14}{'requests/s':>12}{'evaluations/s':>15}{'useful':>9}")
    for way, rate, count in zip(ways, rates, [rows, static * size, ours * size], strict=False):
        print(f"{way:14}{total * rate:12.2f}{count * rate:15.0f}{rows / count:9.0%}")
    print(f"{'bare network':26}{100 * size * rates[3]:15.0f}")
    print(f"continuous: {ours * rates[2] / rates[3] / 100:.3f} of the bare network's evaluations/s")
    print(f"requests/s: {rates[2] / rates[0]:.2f} x one at a time, {rates[2] / rates[1]:.2f} x")
    print(f"static; by counting {static / ours:.2f} x, {static * size / rows:.2f} x without drain")
    alone, served = results["one at a time"], results["continuous"]
    error = max(np.abs(served[i] - alone[i]).max() for i in range(total))
    print(f"largest difference to a request alone: {error:.1e}; {dict(COUNTS)}")


if __name__ == "__main__":
    main()
