"""Random valid calls of the builders: no table with a NaN, or with a level twice.

    python tests/fuzz_levels.py --calls 20000 --seed 0

A call is a training schedule, a grid or a list, a cut and a sampler, all drawn from what the
documentation allows. Its table must be finite, and its levels strictly descending (ascending where
they are turned over) in the table's own dtype; or the call is refused by a ValueError that names an
argument of it. Anything else is printed with the call that makes it again.
"""

import argparse
import collections
import re
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import kdiff_jax as kd

Call = dict[str, Any]
GRIDS = ["karras", "exponential", "polyexponential", "vp", "beta", "kl_optimal", "laplace"]
OF_TIMESTEPS = ["normal", "simple", "sgm_uniform", "ddim_uniform", "beta_timesteps"]
SPACINGS = ["linspace", "leading", "trailing"]
# What a refusal may name: arguments, and the values that a message is about.
NAMED = re.compile(
    r"\b(num_steps|num_train_timesteps|sigma_min|sigma_max|sigmas|timesteps|rho|steps_offset|strength"
    r"|grid|timestep_spacing|eta|s_noise|s_noise_end|betas?|beta_end|shift|shift_terminal|mu|noise"
    r"|original_steps|steps?|s_churn|s_tmin|s_tmax|levels|table)\b"
)


DRAWS: dict[str, Callable[..., kd.Schedule]] = {
    "ancestral": kd.euler,
    "dpm2_ancestral": kd.dpm2_ancestral,
    "dpmpp_2s_ancestral": kd.dpmpp_2s_ancestral,
    "dpmpp_sde": kd.dpmpp_sde,
    "dpmpp_2m_sde": kd.dpmpp_2m,
    "dpmpp_3m_sde": kd.dpmpp_3m,
}
PLAIN = [kd.euler, kd.dpm2, kd.heun, kd.dpmpp_2m, kd.dpmpp_3m, kd.unipc]


def drawn(draw: np.random.Generator) -> Call:
    """A call, every part of it allowed by itself."""
    kind = draw.choice(["beta", "flow", "alone"], p=[0.5, 0.3, 0.2])
    noise = {"beta": _betas, "flow": _flow, "alone": lambda draw: None}[kind](draw)
    distilled = kind == "beta" and draw.random() < 0.15
    return {
        "kind": kind,
        "noise": noise,
        "distilled": distilled,
        "levels": _distilled(draw) if distilled else _levels(draw, kind),
        "cut": draw.choice(["", "start_at", "end_at", "reversed", "churned"], p=[0.6, *[0.1] * 4]),
        "at": int(draw.integers(0, 6)),
        "churn": (log_uniform(draw, 1e-3, 100), log_uniform(draw, 1e-3, 1)),
        "sampler": str(draw.choice(["lcm", "tcd"] if distilled else ["plain", "lcm", *DRAWS])),
        "eta": float(draw.choice([0.0, 0.5, 1.0])),
        "s_noise": float(draw.choice([0.0, 1.0, 1.003])),
    }


def log_uniform(draw: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(draw.uniform(np.log(low), np.log(high))))


def _betas(draw: np.random.Generator) -> dict[str, Any]:
    count = int(
        draw.choice([1, 2, 3, 10, 100, 1000, 4000], p=[0.03, 0.03, 0.04, 0.1, 0.2, 0.5, 0.1])
    )
    given: dict[str, Any] = {"num_train_timesteps": count}
    given["beta_schedule"] = str(draw.choice(["linear", "scaled_linear", "squaredcos_cap_v2"]))
    if draw.random() < 0.4:
        given["beta_start"] = log_uniform(draw, 1e-8, 0.1)
        given["beta_end"] = min(given["beta_start"] * log_uniform(draw, 1, 1e4), 0.999)
    if draw.random() < 0.1:
        given["trained_betas"] = np.sort(draw.uniform(1e-5, 0.03, count))
    given["rescale_zero_terminal_snr"] = bool(draw.random() < 0.2)
    return given


def _flow(draw: np.random.Generator) -> dict[str, Any]:
    given: dict[str, Any] = {"num_train_timesteps": int(draw.choice([1, 2, 100, 1000, 4000]))}
    how = draw.integers(0, 3)
    if how == 0:
        given["shift"] = round(log_uniform(draw, 0.01, 20), 2) or 1.0
    elif how == 1:
        given["mu"] = float(draw.uniform(-4, 4))
    else:
        given["image_seq_len"] = int(draw.integers(1, 20000))
    if draw.random() < 0.2:
        given["shift_terminal"] = float(draw.uniform(0.001, 0.5))
    return given


def _levels(draw: np.random.Generator, kind: str) -> dict[str, Any]:
    count = int(draw.integers(1, 201))
    top = {"beta": 14.0, "flow": 1.0, "alone": 500.0}[kind]
    listed = draw.random()
    if listed < 0.15 or (kind == "alone" and listed < 0.3):
        sigmas = np.sort(np.exp(draw.uniform(np.log(top * 1e-6), np.log(top), count)))[::-1]
        return {"sigmas": [*sigmas.tolist(), *([0.0] if draw.random() < 0.5 else [])]}
    given: dict[str, Any] = {"num_steps": count}
    grids = [g for g in GRIDS if kind != "flow" or g not in ("vp", "laplace")] + [
        "linear_quadratic"
    ]
    choice = draw.random()
    if kind == "alone" or choice < 0.5:
        given["grid"] = str(draw.choice(grids))
        if given["grid"] in ("karras", "polyexponential") and draw.random() < 0.7:
            given["rho"] = log_uniform(draw, 0.05, 20)
        if kind == "alone" or draw.random() < 0.5:
            given["sigma_max"] = log_uniform(draw, top / 100, top)
            if given["grid"] != "linear_quadratic":
                given["sigma_min"] = given["sigma_max"] * log_uniform(draw, 1e-7, 0.999)
    elif choice < 0.75:
        given["grid"] = str(draw.choice(OF_TIMESTEPS))
    if kind != "alone" and given.get("grid") not in OF_TIMESTEPS:
        given["timestep_spacing"] = str(draw.choice(SPACINGS[:: 2 if kind == "flow" else 1]))
        if given["timestep_spacing"] == "leading":
            given["steps_offset"] = int(draw.integers(0, 3))
    if kind == "beta":
        given["round_timesteps"] = bool(draw.random() < 0.2)
    given["discard_penultimate"] = bool(draw.random() < 0.2)
    if draw.random() < 0.2:
        given["strength"] = float(draw.uniform(0.1, 1))
    return given


def _distilled(draw: np.random.Generator) -> dict[str, Any]:
    original = int(draw.integers(1, 101))
    given: dict[str, Any] = {"original_steps": original}
    given["num_steps"] = int(draw.integers(1, original + 1))
    return given | ({"strength": float(draw.uniform(0.3, 1))} if draw.random() < 0.3 else {})


def built(call: Call) -> kd.Schedule:
    """The table of a call."""
    make: dict[str, Callable[..., Any]] = {"beta": kd.noise_schedule, "flow": kd.flow_schedule}
    noise = None if call["noise"] is None else make[call["kind"]](**call["noise"])
    levels = (kd.lcm_levels if call["distilled"] else kd.levels)(noise, **call["levels"])
    cut, at = call["cut"], call["at"]
    if cut == "start_at":
        levels = levels.start_at(min(at, levels.num_steps - 1))
    elif cut == "end_at":
        levels = levels.end_at(min(at + 1, levels.num_steps))
    elif cut == "reversed" and levels.num_steps > 1:
        levels = levels.reversed()
    elif cut == "churned" and not levels.noise.flow:
        s_churn, s_tmin = call["churn"]
        levels = levels.churned(s_churn, s_tmin)
    sampler, drawn_noise = call["sampler"], (call["eta"], call["s_noise"])
    if sampler in DRAWS and cut not in ("reversed", "churned"):
        if sampler == "dpmpp_sde" and levels.noise.flow:
            sampler = "dpmpp_2s_ancestral"
        return DRAWS[sampler](levels, *drawn_noise)
    if call["distilled"] and sampler == "tcd" and cut not in ("reversed", "churned"):
        return kd.tcd(levels, min(call["eta"], 1.0))
    if sampler == "lcm" and cut not in ("reversed", "churned"):
        return kd.lcm(levels, call["s_noise"])
    plain = PLAIN[: 3 if cut == "churned" else len(PLAIN)]  # multistep methods take no churn
    return plain[call["at"] % len(plain)](levels)


def fault_of(schedule: kd.Schedule) -> str:
    """What is wrong with a table, or nothing."""
    table = jax.tree.map(np.asarray, schedule)
    for path, leaf in jax.tree_util.tree_leaves_with_path(table):
        if not np.all(np.isfinite(leaf)):
            return f"{jax.tree_util.keystr(path)} is not finite"
    steps = np.diff(table.sigmas)
    if not (np.all(steps < 0) or np.all(steps > 0)):
        return f"a level repeats or turns back: {table.sigmas[:-1][steps >= 0][:3]}"
    if np.any(table.sigmas[:-1] < np.finfo(table.sigmas.dtype).tiny):
        return "a level before the end is 0 to a device"
    if np.any(table.rows.sigma <= 0):
        return "a row stands at 0"
    return ""


def run(calls: int, seed: int) -> tuple[collections.Counter[str], list[str]]:
    """Counts of what became of the calls, and the faults, each with its call."""
    counts: collections.Counter[str] = collections.Counter()
    faults = []
    for number in range(calls):
        call = drawn(np.random.default_rng([seed, number]))
        try:
            fault = fault_of(built(call))
            counts["built"] += not fault
        except ValueError as error:
            text = str(error)
            plain = not NAMED.search(text) or "broadcast" in text or "ambiguous" in text
            fault = f"a message that names nothing: {text}" if plain else ""
            counts["refused"] += not fault
            counts["refused: " + re.sub(r"[-+\d.e]+", "#", text)[:60]] += 1
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
        if fault:
            counts["faults"] += 1
            faults.append(f"call {number}: {fault}\n    {call}")
    return counts, faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=20_000, help="random calls (default 20000)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other calls (default 0)")
    options = parser.parse_args()
    # A warning of NumPy's is a fault; levels above those of training are allowed here.
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="the noise level")
    start = time.perf_counter()
    counts, faults = run(options.calls, options.seed)
    for name, count in counts.most_common():
        print(f"{count:7d}  {name}")
    print(*faults[:20], sep="\n")
    print(f"{options.calls} calls in {time.perf_counter() - start:.0f} s, {len(faults)} faults")


if __name__ == "__main__":
    main()
