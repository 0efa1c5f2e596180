"""Continuous batching: every request as if alone, one executable, every row run once."""

import heapq
import itertools
from collections import Counter, deque
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
from programs import sub_jaxprs

import kdiff_jax as kd

for package in ("flax", "safetensors", "matplotlib", "tqdm"):
    pytest.importorskip(package, reason="the examples need the extra 'examples'")

import digits
import serve
import unet

NUM_ROWS = 19
SLOTS = 3


def guided(params: Any, x: jax.Array, row: kd.Row, cond: Any) -> kd.Prediction:
    """A small network in place of the digits', with class and scale as there."""
    denoise = kd.guided(kd.denoiser(sp.mixing_model), cond["scale"], jnp.float32(0))
    return denoise(params, x, row, cond["label"])


def make(
    schedule: kd.Schedule, seed: int, label: float = 0.5, scale: float = 2.0, image: Any = None
) -> serve.Request:
    """A request for 8 numbers: from noise, or from a noised image."""
    key = jax.random.key(seed)
    x = kd.initial_sample(schedule, key, (1, 8))[0]
    if image is not None:
        eps = jax.random.normal(jax.random.fold_in(key, 1), (8,))
        x = kd.add_noise(schedule[0], jnp.asarray(image, jnp.float32), eps)
    cond = {"label": jnp.float32(label), "scale": jnp.float32(scale)}
    padded = schedule.pad(NUM_ROWS, serve.COLUMNS)
    return serve.Request(padded, jnp.int32(0), kd.init(padded, x), key, cond)


# Samplers, step counts, starts, seeds, classes and scales: no two alike.
SCHEDULES = [
    sp.SAMPLERS["ancestral"](10),
    sp.SAMPLERS["dpm2"](2),
    sp.SAMPLERS["euler"](7),
    sp.SAMPLERS["dpm2_karras"](6),
    kd.dpm2_ancestral(kd.levels(sp.NOISE, 4).start_at(1), eta=0.5, s_noise=0.9),
    sp.SAMPLERS["euler_ancestral"](1),
    kd.dpm2(kd.levels(sp.NOISE, 10).start_at(6)),
    sp.SAMPLERS["euler"](19),
    sp.SAMPLERS["ancestral"](5),
    sp.SAMPLERS["dpm2_karras"](10),
    sp.SAMPLERS["unipc"](6),
    sp.SAMPLERS["heun"](4),
    sp.SAMPLERS["dpmpp_3m_sde"](9),
    sp.SAMPLERS["sde"](3),
    sp.SAMPLERS["dpmpp_2m"](5),
    sp.SAMPLERS["2s_ancestral"](2),
]
REQUESTS = [
    make(schedule, 10 + i, i / 10, 1 + i / 4, image=np.full(8, 0.1 * i) if i in (4, 6) else None)
    for i, schedule in enumerate(SCHEDULES)
]


def serve_all(requests, slots=SLOTS, denoise=guided, params=sp.MIXING, **options):
    served = dict(serve.serve(denoise, params, deque(requests), slots, **options))
    assert sorted(served) == list(range(len(requests)))
    return [served[i] for i in range(len(requests))]


def alone(request, schedule, denoise=guided, params=sp.MIXING):
    """`kd.sample` of one request, on this schedule."""
    x, key, cond = jax.tree.map(
        lambda leaf: leaf[None], (request.state.sample, request.key, request.cond)
    )
    return np.asarray(kd.sample(denoise, params, schedule, x, key, cond))[0]


@pytest.fixture(scope="module")
def served():
    return serve_all(REQUESTS)


def test_every_request_ends_as_if_alone(served):
    for number, (request, x0) in enumerate(zip(REQUESTS, served, strict=True)):
        # As their samplers gave them; but most are padded, so that these are one program.
        schedule = SCHEDULES[number] if number in (0, 10) else request.schedule
        # Not bitwise: programs of another batch are compiled apart, and round apart.
        assert sp.relative_error(x0, alone(request, schedule)) < 2e-6


def test_neighbours_slots_and_order_change_no_bit(served):
    for request, x0 in zip(REQUESTS, served, strict=True):
        (by_itself,) = serve_all([request])
        np.testing.assert_array_equal(by_itself, x0)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(REQUESTS))
        again = serve_all([REQUESTS[i] for i in order], patience=1 + seed)
        np.testing.assert_array_equal(np.stack(again), np.stack(served)[order])


def test_a_neighbour_that_draws_noise_gives_no_sign_to_a_zero():
    def zero(params: Any, x: jax.Array, row: kd.Row, cond: Any) -> kd.Prediction:
        return kd.Prediction(jnp.full_like(x, -0.0), jnp.full_like(x, -0.0))

    table = [sp.SAMPLERS["lcm"](n).pad(3, serve.LCM_COLUMNS) for n in (1, 3)]
    requests = [replace(make(sp.SAMPLERS["euler"](1), 0), schedule=t) for t in table]
    requests = [replace(r, state=kd.State(r.state.sample)) for r in requests]
    (by_itself,) = serve_all(requests[:1], 2, zero)
    beside = serve_all(requests, 2, zero)[0]
    np.testing.assert_array_equal(np.signbit(beside), np.signbit(by_itself))


def test_requests_join_while_others_run(served):
    waiting, late = deque(REQUESTS[:1]), deque(REQUESTS[1:])
    results = {}
    for number, x0 in serve.serve(guided, sp.MIXING, waiting, SLOTS):
        results[number] = x0
        # The first that ends is the only one; those that come after it overlap in their turn.
        waiting.extend(late.popleft() for _ in range(min(2, len(late))))
    for number, x0 in enumerate(served):
        np.testing.assert_array_equal(results[number], x0)


def test_one_executable_for_all_of_it(served):
    def compiled():
        return serve.COUNTS["compiled tick"], serve.COUNTS["compiled admit"]

    def programs():
        tick: Any = serve.tick
        admit: Any = serve.admit
        return tick._cache_size(), admit._cache_size()

    before = programs()
    traced = compiled()
    other = [make(sp.SAMPLERS["euler_ancestral"](n), n, scale=n) for n in range(3, 12)]
    serve_all(other + REQUESTS[::-1], patience=2)
    assert programs() == before
    assert traced == compiled()
    # A batch of another size is another program, which shows that they are counted.
    serve_all(REQUESTS[:1], slots=SLOTS + 2)
    assert programs() == (before[0] + 1, before[1] + 1)
    assert compiled() == (traced[0] + 1, traced[1] + 1)


def least_evaluations(lengths, slots):
    """First come, first served, no slot idle while a request waits."""
    ends = [0] * slots
    for length in lengths:
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)


def test_every_row_is_evaluated_once_and_in_order():
    seen: dict[float, list[int]] = {}
    calls: Counter[str] = Counter()

    def record(label, index, idle):
        calls["evaluations"] += 1
        for who, at, rests in zip(label, index, idle, strict=True):
            if rests:
                calls["idle"] += 1
            else:
                seen.setdefault(float(who), []).append(int(at))

    def watched(params: Any, x: jax.Array, row: kd.Row, cond: Any) -> kd.Prediction:
        jax.debug.callback(record, cond["label"], row.index, row.idle)
        return guided(params, x, row, cond)

    before = Counter(serve.COUNTS)
    serve_all(REQUESTS, denoise=watched)
    counts = serve.COUNTS - before
    jax.effects_barrier()
    for request, schedule in zip(REQUESTS, SCHEDULES, strict=True):
        assert seen[float(request.cond["label"])] == schedule.rows.index.tolist()
    lengths = [schedule.num_rows for schedule in SCHEDULES]
    assert counts["useful"] == sum(lengths)
    assert counts["evaluations"] == calls["evaluations"] == least_evaluations(lengths, SLOTS)
    assert counts["evaluations"] * SLOTS == sum(lengths) + calls["idle"]


def test_rows_without_noise_in_any_slot_draw_none():
    slots = serve.stacked(REQUESTS[:SLOTS])
    run = jax.make_jaxpr(serve.tick, static_argnums=0)(guided, sp.MIXING, slots, np.int32(1))

    def called(without: str | None) -> set[str]:
        """The functions that the program calls, but for those in the branches of a condition."""
        parts = sub_jaxprs(run.jaxpr, without)
        return {eqn.params.get("name", "") for part in parts for eqn in part.eqns}

    # Random bits themselves are behind a condition on the platform in any case.
    assert "normal" not in called(without="cond")
    assert "normal" in called(without=None)


@pytest.mark.parametrize("fault", ["length", "columns", "batch", "number", "text", "none"])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_request_of_another_kind_gets_its_error_and_the_others_their_samples(
    served, fault, place
):
    good = REQUESTS[0]
    schedule = SCHEDULES[1]
    bad = {
        "length": replace(good, schedule=schedule.pad(NUM_ROWS + 1, serve.COLUMNS)),
        "columns": replace(good, schedule=schedule.pad(NUM_ROWS)),
        "batch": replace(good, state=jax.tree.map(lambda leaf: leaf[None], good.state)),
        "number": replace(good, cond={**good.cond, "scale": 2.0}),
        "text": replace(good, cond={**good.cond, "label": "three"}),
        "none": None,
    }[fault]
    requests: list[Any] = list(REQUESTS[:4])
    requests.insert(place, bad)
    results = serve_all(requests)
    error = results.pop(place)
    assert isinstance(error, ValueError)
    with pytest.raises(ValueError, match=rf"request {place} is .*columns="):
        raise error
    np.testing.assert_array_equal(np.stack(results), np.stack(served[:4]))


def test_a_server_without_requests_ends_and_without_slots_or_patience_is_refused():
    assert list(serve.serve(guided, sp.MIXING, deque(), SLOTS)) == []
    wrong: list[Any] = [None, "three", None]
    assert [type(result) for result in serve_all(wrong)] == 3 * [ValueError]
    with pytest.raises(ValueError, match="patience = 0; expected 1 or more"):
        serve_all(REQUESTS[:1], patience=0)
    with pytest.raises(ValueError, match="num_slots = 0"):
        serve_all(REQUESTS[:1], slots=0)


# --- the networks of the script --------------------------------------------------------------


@pytest.mark.parametrize("name", ["guided", "lcm"])
def test_the_digits_networks_serve_mixed_requests(name):
    kinds = itertools.product(("lcm",), (4, 1, 2, 3))
    weights, columns = digits.LCM_WEIGHTS, serve.LCM_COLUMNS
    if name == "guided":
        kinds = itertools.product(("dpm2_ancestral", "euler"), (3, 2))
        weights, columns = digits.WEIGHTS, serve.COLUMNS
    _, params = unet.load(weights)
    schedules = [digits.digits_schedule(*kind).pad(5, columns) for kind in kinds]
    if name == "guided":
        levels = kd.levels(digits.training_noise(), 3, grid="karras")
        schedules += [build(levels).pad(5, columns) for build in (kd.unipc, kd.dpmpp_sde)]
    requests = [
        serve.make_request(schedule, i, i, 1 + 0.5 * i) for i, schedule in enumerate(schedules)
    ]
    denoise = getattr(serve, name)
    served = serve_all(requests, 2, denoise, params)
    for request, x0 in zip(requests, served, strict=True):
        # On the padded table, so that all of them are one program. An estimate of x0 at the last
        # timestep carries the rounding of the network times sigma / alpha: 157.
        assert sp.relative_error(x0, alone(request, request.schedule, denoise, params)) < 1e-4
