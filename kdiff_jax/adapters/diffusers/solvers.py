"""The tables of DPM-Solver and UniPC as diffusers runs them: which order each step has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

import kdiff_jax as kd
from kdiff_jax._arrays import common_namespace
from kdiff_jax.adapters.diffusers.levels import Config, skips_last

# Below it `lower_order_final` of DPM-Solver lowers the order of the last steps.
FEW_STEPS = 15


def multistep(levels: kd.Levels, config: Config) -> kd.Schedule:
    """DPMSolverMultistepScheduler: each step of the order that it has there.

    Orders rise from 1 in the first steps. Where the run ends above 0, the last step may be of first
    order; with `lower_order_final` and few steps it is, and the one before it at most of second.
    """
    eta = 1.0 if config["algorithm_type"] == "sde-dpmsolver++" else None
    solver, most = config["solver_type"], config["solver_order"]
    second = kd.dpmpp_2m(levels, eta, solver=solver)
    third = kd.dpmpp_3m(levels, eta, solver=solver) if most == 3 else second
    steps = levels.num_steps + skips_last(config)
    lower = config["lower_order_final"] and steps < FEW_STEPS
    left = steps - np.arange(levels.num_steps)
    order = np.full(levels.num_steps, most)
    order = np.where((left == 2) & lower, np.minimum(order, 2), order)
    ends_low = not levels.closes and (config["euler_at_final"] or lower)
    order = np.where((left == 1) & ends_low, 1, order)
    if np.all(order == most) and most > 1:
        return third
    of_2, of_3 = _weights(second), _weights(third)
    d, d_1 = of_2["denoised_weight"], of_2["denoised_weight_1"]
    of_1 = {"denoised_weight": d + d_1, "denoised_weight_1": 0 * d, "denoised_weight_2": 0 * d}
    by_order = {1: of_1, 2: of_2, 3: of_3}
    xp = common_namespace(d)[0]
    # A closing row weighs D alone, in every order.
    order = np.append(order, most)[: third.rows.index.shape[-1]]
    mixed = {
        name: xp.select([order == n for n in (1, 2, 3)], [by_order[n][name] for n in (1, 2, 3)])
        for name in of_1
    }
    return _with_columns(third, mixed)


def unipc(levels: kd.Levels, config: Config) -> kd.Schedule:
    """UniPCMultistepScheduler: the corrector left out after some steps, a last step of order 1.

    `disable_corrector` counts the steps whose result is not corrected. Where the run ends above 0,
    `lower_order_final` lowers the last step, of any run.
    """
    disabled = set(config["disable_corrector"])
    corrected = kd.unipc(levels)
    count = corrected.rows.index.shape[-1]
    kept = np.array([float(i - 1 not in disabled) for i in range(count)])
    lower = np.zeros(count)
    lower[-1] = not levels.closes and config["lower_order_final"]
    if np.all(kept[1:]) and not np.any(lower):
        return corrected
    full, plain = _weights(corrected), _weights(kd.unipc(levels, corrector=False))
    # A step of second order adds p * (D - D_1), and -p is the weight of D_1 without corrector.
    p = -plain["denoised_weight_1"] * lower
    change = {"denoised_weight": -p, "denoised_weight_1": p, "denoised_weight_2": 0}
    mixed = {name: plain[name] + kept * (full[name] - plain[name]) + change[name] for name in full}
    return _with_columns(corrected, mixed)


def singlestep(levels: kd.Levels, config: Config) -> kd.Schedule:
    """DPMSolverSinglestepScheduler of order 2: every second level is the midpoint of a step.

    From s0 over s to s1, with `K = a(s1) (1 - exp(-h))`, and r = h_0 / h, where in log(alpha / s)
    the midpoint lies (`kd.dpmpp_2s_ancestral` with eta = 0 has a midpoint at r = 1/2 of its own):

        at s0   x_s    = a(s) * D + s * epsilon
        at s    x_next = s1 / s0 * x + K * D_1 + psi / r * (D - D_1)

    psi is K / 2 for "midpoint", `a(s1) phi_2(h)` for "heun". A level that is left over, and the
    last of a run that ends at 0, have a step of order 1.

    Source: Lu et al. 2022 (arXiv:2211.01095), Algorithm 1.
    """
    base = kd.euler(levels)
    steps = levels.num_steps
    pairs = steps // 2
    if config["solver_order"] == 1:
        pairs = 0
    elif steps % 2 == 0 and (config["lower_order_final"] or levels.closes):
        pairs -= 1
    if not pairs:
        return base
    xp, sigmas, alpha = common_namespace(levels.sigmas, levels.noise.alpha_at(levels.sigmas))
    (s0, s, s1), (a0, a, a1) = (
        [v[: 2 * pairs : 2], v[1 : 2 * pairs : 2], v[2 : 2 * pairs + 1 : 2]]
        for v in (sigmas, alpha)
    )
    # From alpha = 0, on a flow, the step is infinitely long, and the midpoint at its end: r = 1.
    finite = a0 > 0
    below = xp.where(finite, a0, a)
    h_0, h = xp.log(a * s0 / (below * s)), xp.log(a1 * s0 / (below * s1))
    k = a1 - a0 * s1 / s0
    psi = k / 2 if config["solver_type"] == "midpoint" else xp.where(finite, a1 - k / h, a1)
    slope = psi * xp.where(finite, h / xp.where(finite, h_0, 1), 1)
    weights = {
        "anchor_weight": s1 / s0,
        "denoised_weight": slope,
        "denoised_weight_1": k - slope,
        "epsilon_weight": xp.zeros(pairs),
    }
    lands = np.arange(base.rows.index.shape[-1]) < 2 * pairs
    lands &= np.arange(len(lands)) % 2 == 1

    def column(name: str) -> Any:
        own = getattr(base.rows, name)
        own = np.zeros(len(lands)) if own is None else common_namespace(own)[1]
        in_turn = xp.repeat(weights[name], 2)
        filled = xp.concatenate([in_turn, xp.zeros(len(lands) - 2 * pairs)])
        return xp.where(lands, filled, own)

    starts = np.append(lands[1:], False)  # these rows do not move the anchor
    rows = replace(base.rows, advances=jnp.asarray(~starts))
    return _with_columns(replace(base, rows=rows), {name: column(name) for name in weights})


def _weights(schedule: kd.Schedule) -> dict[str, Any]:
    """The weights of estimates, in float64 on the host; zeros where there are none."""
    rows = schedule.rows
    names = ("denoised_weight", "denoised_weight_1", "denoised_weight_2")
    columns = {name: getattr(rows, name) for name in names}
    zeros = np.zeros(rows.index.shape)
    return {
        name: zeros if column is None else common_namespace(column)[1]
        for name, column in columns.items()
    }


def _with_columns(schedule: kd.Schedule, columns: Mapping[str, Any]) -> kd.Schedule:
    """The table with these columns, rounded to its float; one of zeros is left out."""
    dtype = schedule.sigmas.dtype

    def rounded(values: Any) -> Any:
        host = isinstance(values, np.ndarray)
        return None if host and not np.any(values) else jnp.asarray(values, dtype)

    rows = {name: rounded(values) for name, values in columns.items()}
    return replace(schedule, rows=replace(schedule.rows, **rows))
