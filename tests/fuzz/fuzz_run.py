"""Public functions called with wrong objects: `python tests/fuzz/fuzz_run.py --calls 24000`.

Every call must end in one of two ways: a result that is finite, whose levels descend, from
arguments that the function may accept; or a ValueError, TypeError, ImportError or
NotImplementedError that this package raises itself, not NumPy or JAX below it, and that names the
argument. Only samples may hold a NaN: they lie on a device, where looking at them costs a transfer.
"""

import argparse
import collections
import dataclasses
import random
import re
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import fuzz_values as fv
import jax
import jax.numpy as jnp
import numpy as np
from fuzz_adapters import ADAPTER_CALLS
from fuzz_calls import GRID_CALLS, LEVEL_CALLS, Call
from fuzz_denoise import NOISE_CALLS, RUN_CALLS, WRAPPER_CALLS
from fuzz_plot import PLOT_CALLS
from fuzz_samplers import TABLE_CALLS

import kdiff_jax as kd

PACKAGE = str(Path(str(kd.__file__)).parent)
CORE_CALLS = [*LEVEL_CALLS, *GRID_CALLS, *TABLE_CALLS, *WRAPPER_CALLS, *NOISE_CALLS, *RUN_CALLS]
CALLS = [*CORE_CALLS, *ADAPTER_CALLS, *PLOT_CALLS]
ALLOWED = (ValueError, TypeError, ImportError, NotImplementedError)


# What else a message may call an argument: by what it stands for, or what is made of it.
ALIASES = {
    "x": "the sample",
    "x0": "the sample",
    "i": "a schedule is indexed",
    "extra_args": "unexpected keyword argument",
    "config": "_class_name",
    "other": "two values of",
    "beta_start": "the betas",
    "num_train_timesteps": "whole timesteps|1 timestep",
    "noise": "rectified flow",
    "num_inference_steps": "num_steps",
    "original_inference_steps": "original_steps",
    "new": "state|prediction",
    "old": "state|prediction",
    "params": "model_fn returned",
}


def problem_of(call: Call, wrong: dict[str, Any]) -> str | None:
    """What is wrong with how a call with these wrong arguments ends; None: nothing."""
    arguments = {name: value for name, (value, _) in call.arguments.items()} | wrong
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warnings.simplefilter("ignore", UserWarning)
        try:
            result = _called(call, arguments)
        except ALLOWED as error:
            return _problem_of_error(wrong, error)
        except IndexError as error:  # the protocol of sequences, by which loops end
            return None if call.name == "Schedule[i]" else f"other exception, {error}"
        except Exception as error:
            own = _is_of_the_caller(wrong, error)
            return None if own else f"other exception, {type(error).__name__}: {_first_line(error)}"
    for name, value in wrong.items():
        if not call.arguments[name][1](value):
            return f"accepted, {name}"
    if any(_is_nan_within(value) for value in wrong.values()):
        return None
    ascends = any(isinstance(value, kd.Levels) and value.ascends for value in wrong.values())
    return problem_of_result(result, ascends)


def _is_nan_within(value: Any) -> bool:
    """Whether what was accepted holds a NaN or an infinity, as its result then does."""
    kinds = (np.ndarray, np.generic, jax.Array, float)
    parts = value if isinstance(value, (list, tuple)) else [value]
    leaves = [np.asarray(v) for v in parts if isinstance(v, kinds) and _real(v)]
    with np.errstate(over="ignore"):
        return any(not np.all(np.isfinite(leaf.astype(np.float32))) for leaf in leaves)


def _real(value: Any) -> bool:
    return jnp.issubdtype(getattr(value, "dtype", np.float64), jnp.floating)


def _called(call: Call, arguments: dict[str, Any]) -> Any:
    if any(part in call.name for part in ("start_at", "end_at", "[i]", "rows_at", "==")):
        return call.function(*arguments.values())
    return call.function(**arguments)


def _problem_of_error(wrong: dict[str, Any], error: Exception) -> str | None:
    frames = list(traceback.extract_tb(error.__traceback__))
    text = str(error)
    if not frames[-1].filename.startswith(PACKAGE) or type(error).__module__ != "builtins":
        if _is_of_the_caller(wrong, error):
            return None
        where = next((f for f in reversed(frames) if f.filename.startswith(PACKAGE)), frames[-1])
        place = f"{Path(where.filename).name}:{where.lineno}"
        return f"raw message, {place} {type(error).__name__}: {_first_line(error)}"
    names = "|".join(f"{re.escape(name)}|{ALIASES.get(name, name)}" for name in wrong)
    if not re.search(rf"\b({names})\b", text):
        return f"not named, {'/'.join(wrong)}: {_first_line(error)}"
    if len(text) > 2000:
        return f"long message, {len(text)} characters"
    return None


def _is_of_the_caller(wrong: dict[str, Any], error: Exception) -> bool:
    """Whether a function of the caller raised, over what it was given: that is its own affair."""
    frames = list(traceback.extract_tb(error.__traceback__))
    inside = [i for i, f in enumerate(frames) if f.filename.startswith(PACKAGE)]
    own = any(f.filename == fv.__file__ for f in frames[(inside or [0])[-1] :])
    return own and bool({"params", "noise_fn", "save_fn"} & set(wrong))


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:150]


def problem_of_result(result: Any, ascends: bool = False) -> str | None:
    """A non-finite number or levels that do not descend in what a call returned."""
    if isinstance(result, kd.NoiseSchedule):
        result = result.alphas_cumprod
    if isinstance(result, kd.Schedule) and result.rows.idle is not None:
        return problem_of_result(result.rows, ascends)
    table = isinstance(result, (kd.Schedule, kd.Levels)) and not ascends
    if table and not _descends(np.asarray(result.sigmas)):
        return "result, levels that do not descend"
    for leaf in jax.tree.leaves(result):
        kind = getattr(getattr(leaf, "dtype", None), "kind", "")
        if not isinstance(leaf, (np.ndarray, np.generic, jax.Array)):
            continue
        numbers = np.asarray(leaf) if kind in ("f", "c") else None
        if kind == "V":  # bfloat16
            numbers = np.asarray(leaf, np.float64)
        if numbers is not None and not np.all(np.isfinite(numbers)):
            return "result, not finite"
    return None


def _descends(sigmas: np.ndarray) -> bool:
    rounded = sigmas.astype(np.float32)
    return bool(np.all(np.diff(rounded, axis=-1) < 0)) or sigmas.ndim > 1


def calls_of(seed: int, count: int) -> list[tuple[Call, dict[str, Any]]]:
    """Calls with one or two wrong arguments; those that compile are drawn a quarter as often."""
    draw = random.Random(seed)
    weights = [(0.25 if call.slow else 1.0) * len(call.arguments) for call in CALLS]
    chosen = []
    for call in draw.choices(CALLS, weights, k=count):
        names = draw.sample(list(call.arguments), min(len(call.arguments), draw.choice((1, 1, 2))))
        chosen.append((call, {name: draw.choice(fv.WRONG) for name in names}))
    return chosen


def each_call() -> list[tuple[Call, dict[str, Any]]]:
    """Every wrong object in the place of every argument, one at a time."""
    return [(c, {name: wrong}) for c in CALLS for name in c.arguments for wrong in fv.WRONG]


@dataclasses.dataclass
class Found:
    """A problem, where it was found first, and how often."""

    example: str
    count: int = 0


def run(calls: list[tuple[Call, dict[str, Any]]], seconds: float = 1e9) -> dict[str, Found]:
    """The problems of these calls, within a time."""
    found: dict[str, Found] = {}
    end = time.perf_counter() + seconds
    for call, wrong in calls:
        if time.perf_counter() > end:
            break
        problem = problem_of(call, wrong)
        if problem is not None:
            shown = {name: _shown(value) for name, value in wrong.items()}
            entry = found.setdefault(f"{call.name}: {problem}", Found(f"{call.name}({shown})"))
            entry.count += 1
    return found


def _shown(value: Any) -> str:
    try:
        return repr(value)[:60]
    except Exception:
        return f"<{type(value).__name__}>"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--calls", type=int, default=24_000, help="how many calls are drawn")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--only", default="", help="only functions whose name has this in it")
    parser.add_argument("--each", action="store_true", help="each wrong object in each place")
    options = parser.parse_args()
    drawn = each_call() if options.each else calls_of(options.seed, options.calls)
    calls = [c for c in drawn if options.only in c[0].name]
    found = run(calls)
    kinds: collections.Counter[str] = collections.Counter()
    for problem, entry in sorted(found.items(), key=lambda item: -item[1].count):
        print(f"{entry.count:5d}  {problem}\n       {entry.example}")
        kinds[problem.split(": ")[1].split(",")[0]] += entry.count
    print(f"{len(calls)} calls, {sum(kinds.values())} problems: {dict(kinds)}")


if __name__ == "__main__":
    main()
