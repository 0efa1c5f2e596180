"""A tqdm bar that the compiled loop tells how far it is."""

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdiff_jax._arrays import is_traced

_MOST_REPORTS = 100

_numbers = itertools.count()
_lock = threading.Lock()


@dataclass
class _Run:
    """The bar of a run; a program that a caller compiled reports every run under one number."""

    description: str | None
    bar: Any = None
    finished: bool = False


_runs: dict[int, _Run] = {}


def begin(progress: bool | str) -> np.ndarray | None:
    """The number of a new run, an argument of its program, so that the next run compiles nothing.

    None where there is to be no bar: then the program has no trace of one.
    """
    if not isinstance(progress, (bool, str)):
        raise ValueError(f"progress = {progress!r}; pass True, False or a description.")
    if progress is False:
        return None
    _tqdm()  # a missing package is reported here, not from inside the program
    with _lock:
        number = next(_numbers)
        _runs[number] = _Run(progress if isinstance(progress, str) else None)
    return np.asarray(number, np.int32)


def watch(number: np.ndarray, run: Callable[[], Any]) -> Any:
    """Runs it to its end and closes its bar, also when it fails.

    Inside a caller's transformation there is nothing to wait for: the program closes the bar.
    """
    try:
        out = run()
        if is_traced(*jax.tree.leaves(out)):
            return out
        jax.block_until_ready(out)
        jax.effects_barrier()
    except BaseException:
        _close(number)
        raise
    _close(number)
    return out


def _close(number: np.ndarray) -> None:
    with _lock:
        run = _runs.pop(int(number))
        if run.bar is not None:
            run.bar.close()


def report(number: Any, done: Any, total: Any, unroll: int) -> None:
    """Inside the program, before a row: `done` rows of `total` are behind it."""
    # Rows unrolled into one iteration may run their reports in any order: one of them is enough.
    most = _MOST_REPORTS * unroll
    every = (total + most - 1) // most * unroll
    # Rows beyond the whole iterations come after the loop, where the compiler knows the counter
    # and would report it before the loop has begun.
    in_loop = (done == 0) | (done < total - total % unroll)

    def tell() -> None:
        # One array: each argument of a callback costs as much as the callback.
        jax.debug.callback(_show, jnp.stack([jnp.asarray(n) for n in (number, done, total)]))

    jax.lax.cond(in_loop & (done % every == 0), tell, lambda: None)


def report_end(number: Any, x: jax.Array) -> None:
    """Inside the program, after its loop, whose result is x."""
    # One number of x, so that this cannot run before x is there: the compiler knows the last value
    # of a counter, and would report it at once.
    one = jax.lax.slice(x, (0,) * x.ndim, [min(1, size) for size in x.shape])
    jax.debug.callback(_finish, number, one)


def _show(report: Any) -> None:
    number, done, total = np.asarray(report).tolist()
    with _lock:
        run = _runs.get(number)
        # A slow device may still report from a run whose end another has reported.
        if run is None or (run.finished and done):
            return
        if run.bar is not None and done == 0 and run.bar.n:
            run.bar.close()  # the run before broke off
            run.bar = None
        if run.bar is None:
            run.bar = _tqdm()(total=total, desc=run.description, unit="eval")
            run.finished = False
        # Reports are unordered, each device of a shard_map makes its own, and so does each element
        # of a vmap over tables of several lengths: the furthest counts.
        run.bar.total = max(run.bar.total, total)
        run.bar.update(max(done - run.bar.n, 0))


def _finish(number: Any, one: Any) -> None:
    del one
    with _lock:
        run = _runs.get(int(number))
        if run is not None and run.bar is not None:
            run.bar.update(run.bar.total - run.bar.n)
            run.bar.close()
            run.bar, run.finished = None, True


def _tqdm() -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        raise ImportError(
            "progress needs tqdm, which is not installed; pip install tqdm, or leave it out."
        ) from None
    return tqdm
