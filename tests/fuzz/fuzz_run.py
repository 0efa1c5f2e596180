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
from fuzz_calls import CORE_CALLS, Call

import kdiff_jax as kd

PACKAGE = str(Path(str(kd.__file__)).parent)
CALLS = [*CORE_CALLS, *ADAPTER_CALLS]
ALLOWED = (ValueError, TypeError, ImportError, NotImplementedError)


def problem_of(call: Call, wrong: dict[str, Any]) -> str | None:
    """What is wrong with how a call with these wrong arguments ends; None: nothing."""
    arguments = {name: value for name, (value, _) in call.arguments.items()} | wrong
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warnings.simplefilter("ignore", UserWarning)
        try:
            result = _called(call, arguments)
        except ALLOWED as error:
            return _problem_of_error(call, wrong, error)
        except Exception as error:
            return f"other exception, {type(error).__name__}: {_first_line(error)}"
    for name, value in wrong.items():
        if not call.arguments[name][1](value):
            return f"accepted, {name}"
    if any(problem_of_result(jnp.asarray(v)) for v in wrong.values() if _is_numeric(v)):
        return None  # a NaN in a sample
    return problem_of_result(result)


def _is_numeric(value: Any) -> bool:
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    return isinstance(value, (np.ndarray, jax.Array)) and kind in ("f", "c") and value.size > 0


def _called(call: Call, arguments: dict[str, Any]) -> Any:
    if any(part in call.name for part in ("start_at", "end_at", "[i]", "rows_at", "==")):
        return call.function(*arguments.values())
    return call.function(**arguments)


def _problem_of_error(call: Call, wrong: dict[str, Any], error: Exception) -> str | None:
    frames = list(traceback.extract_tb(error.__traceback__))
    text = str(error)
    if not frames[-1].filename.startswith(PACKAGE) or type(error).__module__ != "builtins":
        where = next((f for f in reversed(frames) if f.filename.startswith(PACKAGE)), frames[-1])
        place = f"{Path(where.filename).name}:{where.lineno}"
        return f"raw message, {place} {type(error).__name__}: {_first_line(error)}"
    named = any(re.search(rf"\b{re.escape(name)}\b", text) for name in wrong)
    if not named:
        return f"not named, {'/'.join(wrong)}: {_first_line(error)}"
    if len(text) > 2000:
        return f"long message, {len(text)} characters"
    return None


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:150]


def problem_of_result(result: Any) -> str | None:
    """A non-finite number or levels that do not descend in what a call returned."""
    if isinstance(result, kd.NoiseSchedule):
        result = result.alphas_cumprod
    if isinstance(result, kd.Schedule) and result.rows.idle is not None:
        return problem_of_result(result.rows)
    if isinstance(result, (kd.Schedule, kd.Levels)) and not _descends(np.asarray(result.sigmas)):
        return "result, levels that do not descend"
    for leaf in jax.tree.leaves(result):
        kind = getattr(getattr(leaf, "dtype", None), "kind", "")
        if not isinstance(leaf, (np.ndarray, np.generic, jax.Array)):
            continue
        if kind in ("f", "c", "V") and not np.all(np.isfinite(np.asarray(leaf, np.float64))):
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
    options = parser.parse_args()
    calls = [c for c in calls_of(options.seed, options.calls) if options.only in c[0].name]
    found = run(calls)
    kinds: collections.Counter[str] = collections.Counter()
    for problem, entry in sorted(found.items(), key=lambda item: -item[1].count):
        print(f"{entry.count:5d}  {problem}\n       {entry.example}")
        kinds[problem.split(": ")[1].split(",")[0]] += entry.count
    print(f"{len(calls)} calls, {sum(kinds.values())} problems: {dict(kinds)}")


if __name__ == "__main__":
    main()
