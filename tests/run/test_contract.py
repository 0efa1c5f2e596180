"""One request contract: the same bits in every slot, with any neighbours, whenever it joins."""

import functools
from collections import deque
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp

import kdiff_jax as kd
import networks
from kdiff_jax._table.schedule import NEUTRAL

COLUMNS = {name for columns in sp.COLUMNS.values() for name in columns} & set(NEUTRAL)
SIZE, SLOTS, SHAPE = 9, 4, (8, 8, networks.LATENTS)
TABLES = [build(2 + i % 3).pad(SIZE, COLUMNS) for i, build in enumerate(sp.SAMPLERS.values())]
KEYS = jax.random.split(jax.random.key(5), len(TABLES))


def weights(init: Any, *options: Any) -> Any:
    """Random weights from NumPy, which compiles nothing."""
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), *options))
    generator = np.random.default_rng(0)

    def leaf(like: Any) -> np.ndarray:
        values = generator.normal(0, np.prod(like.shape[:-1]) ** -0.5, like.shape)
        return values.astype(np.float32)

    return jax.tree.map(leaf, shapes)


DIT = weights(networks.dit_params, 24, 1)
UNET = weights(networks.unet_params, (8,))


def dit(params: Any, x: jax.Array, timestep: jax.Array) -> jax.Array:
    with jax.numpy_dtype_promotion("standard"):  # JAX's own attention in bfloat16 needs it
        return networks.dit(params, x, timestep)


def neighbourly(params: Any, x: jax.Array, timestep: jax.Array) -> jax.Array:
    """A network that looks at the other samples, which no server can serve."""
    return params * (x - x.mean(0, keepdims=True))


@functools.cache
def requests() -> list[Any]:
    """Table, position, state and key of a run by each sampler, without batch axis."""
    x = [kd.initial_sample(t, k[None], (1, *SHAPE))[0] for t, k in zip(TABLES, KEYS, strict=True)]
    return [(t, jnp.int32(0), kd.init(t, x), k) for t, x, k in zip(TABLES, x, KEYS, strict=True)]


@functools.partial(jax.jit, static_argnums=0)
def tick(denoise: Any, params: Any, slots: Any) -> Any:
    tables, position, state, keys = slots
    row = tables.rows_at(position)
    prediction = denoise(params, state.sample, row)
    return tables, position + 1, kd.step(state, row, prediction, key=keys), keys


@jax.jit
def admit(slots: Any, slot: Any, request: Any) -> Any:
    return jax.tree.map(lambda old, new: old.at[slot].set(new), slots, request)


def idle_slots() -> Any:
    """Every slot past its end; what idles there is no number, which nobody may see."""
    slots = jax.tree.map(lambda leaf: jnp.stack([leaf] * SLOTS), requests()[0])
    nowhere = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), slots[2])
    return slots[0], jnp.full(SLOTS, SIZE, jnp.int32), nowhere, slots[3]


def served(step: Any, order: Any, slot: int | None = None, late: int = 0) -> dict[int, np.ndarray]:
    """The bits of requests in a running batch; at most one joins in `late` rows, or in one slot."""
    waiting, slots, now = deque(int(i) for i in order), idle_slots(), -1
    running: dict[int, int] = {}
    found: dict[int, np.ndarray] = {}
    while waiting or running:
        now += 1
        for s in range(SLOTS) if slot is None else [slot]:
            if s not in running and waiting and (not late or now % late == 0):
                running[s] = i = waiting.popleft()
                slots = admit(slots, s, requests()[i])
        slots = step(slots)
        position, sample = np.asarray(slots[1]), np.asarray(slots[2].sample)
        for s, i in list(running.items()):
            if position[s] == TABLES[i].num_rows:
                found[running.pop(s)] = sample[s].view(np.uint32)
    return found


def differing(model_fn: Any, params: Any, dtype: Any, count: int) -> list[int]:
    """The requests whose bits are not those they have alone, beside idle slots."""
    params = jax.tree.map(lambda p: jnp.asarray(p, dtype), params)
    step = functools.partial(tick, kd.denoiser(model_fn, dtype=dtype), params)
    alone = served(step, range(count), slot=0)
    generator = np.random.default_rng(0)
    others = [served(step, range(count)), served(step, generator.permutation(count), late=2)]
    others.append(served(step, generator.permutation(count)[:SLOTS], slot=SLOTS - 1))
    return sorted(
        {i for run in others for i, bits in run.items() if not np.array_equal(bits, alone[i])}
    )


@pytest.mark.parametrize(
    ("model_fn", "params", "dtype"),
    [(dit, DIT, jnp.float32), (dit, DIT, jnp.bfloat16), (networks.unet, UNET, jnp.float32)],
)
def test_a_request_is_the_same_bits_in_every_slot_and_company(model_fn, params, dtype):
    assert differing(model_fn, params, dtype, len(TABLES)) == []


def test_a_network_that_looks_at_its_neighbours_is_noticed():
    assert differing(neighbourly, np.float32(0.1), jnp.float32, SLOTS) == [*range(SLOTS)]
