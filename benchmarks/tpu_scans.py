"""The samplers as one would write them by hand for one network: what kdiff_jax is held against.

Each is a function of (model, x, keys, table), where model is `eps = model(x_scaled, timestep)` and
the table holds the few numbers that the formula needs. Where a sampler can be written in several
ways all are given, and the comparison takes the best: two calls in an iteration and a third for the
closing step, or one call and a `where`; random bits in every iteration, or under a condition.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kdiff_jax as kd

Model = Callable[[jax.Array, jax.Array], jax.Array]
Table = dict[str, Any]
Scan = Callable[[Model, jax.Array, Any, Table], jax.Array]


def _noise(keys: jax.Array, index: jax.Array, x: jax.Array) -> jax.Array:
    def of_one(key: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(key, index), x.shape[1:])

    return jax.vmap(of_one)(keys)


def _eps(model: Model, x: jax.Array, sigma: jax.Array, timestep: jax.Array) -> jax.Array:
    scaled = x * jax.lax.rsqrt(sigma * sigma + 1)
    return model(scaled, jnp.full(x.shape[:1], timestep)).astype(x.dtype)


def euler(model: Model, x: jax.Array, keys: Any, table: Table) -> jax.Array:
    def body(x: jax.Array, row: Table) -> tuple[jax.Array, None]:
        eps = _eps(model, x, row["sigma"], row["timestep"])
        return x + (row["target"] - row["sigma"]) * eps, None

    return jax.lax.scan(body, x, table["rows"])[0]


def lcm(model: Model, x: jax.Array, keys: Any, table: Table, conditional: bool) -> jax.Array:
    def body(x: jax.Array, row: Table) -> tuple[jax.Array, None]:
        eps = model(x, jnp.full(x.shape[:1], row["timestep"])).astype(x.dtype)
        x = row["signal"] * (x - row["sigma"] * eps) / row["alpha"]

        def noisy(x: jax.Array) -> jax.Array:
            return x + row["noise"] * _noise(keys, row["index"], x)

        return jax.lax.cond(row["noise"] > 0, noisy, lambda x: x, x) if conditional else noisy(
            x
        ), None

    return jax.lax.scan(body, x, table["rows"])[0]


def dpm2_in_pairs(model: Model, x: jax.Array, keys: Any, table: Table) -> jax.Array:
    """Both samplers: with keys every step but the closing one adds noise."""

    def body(x: jax.Array, row: Table) -> tuple[jax.Array, None]:
        sigma, middle = row["sigma"], row["middle"]
        half = x + (middle - sigma) * _eps(model, x, sigma, row["timestep"])
        eps = _eps(model, half, middle, row["middle_timestep"])
        x = x + (row["down"] - sigma) * eps
        return x if keys is None else x + row["up"] * _noise(keys, row["index"], x), None

    x, _ = jax.lax.scan(body, x, table["steps"])
    return euler(model, x, None, {"rows": table["closing"]})


def dpm2_by_rows(model: Model, x: jax.Array, keys: Any, table: Table) -> jax.Array:
    def body(carry: tuple[jax.Array, jax.Array], row: Table) -> tuple[Any, None]:
        x, start = carry
        eps = _eps(model, x, row["sigma"], row["timestep"])
        start = jnp.where(row["begins"], x, start)
        x = start + row["length"] * eps
        if keys is not None:

            def noisy(x: jax.Array) -> jax.Array:
                return x + row["up"] * _noise(keys, row["index"], x)

            x = jax.lax.cond(row["up"] > 0, noisy, lambda x: x, x)
        return (x, start), None

    return jax.lax.scan(body, (x, x), table["rows"])[0][0]


SCANS: dict[str, dict[str, Scan]] = {
    "euler": {"one call": euler},
    "dpm2": {"pairs": dpm2_in_pairs, "rows": dpm2_by_rows},
    "ancestral": {"pairs": dpm2_in_pairs, "rows": dpm2_by_rows},
    "lcm": {
        "conditional": functools.partial(lcm, conditional=True),
        "always": functools.partial(lcm, conditional=False),
    },
}


def table_of(sampler: str, schedule: kd.Schedule) -> Table:
    """The numbers of a schedule as these scans want them, on the host."""
    rows: Any = jax.tree.map(np.asarray, schedule.rows)
    if sampler == "lcm":
        names = {"signal": rows.denoised_weight, "noise": rows.noise_weight, "alpha": rows.alpha}
        common = {"sigma": rows.sigma, "timestep": rows.timestep, "index": rows.index}
        return {"rows": names | common}
    if sampler == "euler":
        return {"rows": _closing(rows, np.append(rows.sigma[1:], np.float32(0)))}
    first, second = slice(0, -1, 2), slice(1, None, 2)
    last = jax.tree.map(lambda leaf: leaf[-1:], rows)
    begins = np.arange(len(rows.sigma)) % 2 == 0
    # From x = D + sigma eps, weights of D, epsilon and the anchor: what eps alone is multiplied by.
    length = rows.epsilon_weight - np.where(begins, rows.sigma, 0)
    by_row = {"sigma": rows.sigma, "timestep": rows.timestep, "length": length, "begins": begins}
    steps = {
        "sigma": rows.sigma[first],
        "middle": rows.sigma[second],
        "timestep": rows.timestep[first],
        "middle_timestep": rows.timestep[second],
        "down": rows.sigma[first] + length[second],
    }
    if rows.noise_weight is not None:
        by_row |= {"up": rows.noise_weight, "index": rows.index}
        steps |= {"up": rows.noise_weight[second], "index": rows.index[second]}
    return {"rows": by_row, "steps": steps, "closing": _closing(last, np.zeros(1, np.float32))}


def _closing(rows: Any, target: np.ndarray) -> Table:
    return {"sigma": rows.sigma, "timestep": rows.timestep, "target": target}
