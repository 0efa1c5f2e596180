"""A tqdm bar that the compiled loop tells how far it is."""

import itertools
import threading
from concurrent import futures
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdiff_jax._arrays import is_traced
from kdiff_jax._checks import shown

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
        raise ValueError(f"progress = {shown(progress)}; pass True, False or a description.")
    if progress is False:
        return None
    _tqdm()  # a missing package is reported here, not from inside the program
    with _lock:
        number = next(_numbers)
        _runs[number] = _Run(progress if isinstance(progress, str) else None)
    return np.asarray(number, np.int32)


def watch(number: np.ndarray, run: Any, *arguments: Any, **options: Any) -> Any:
    """Runs the program to its end and closes its bar, also when it fails or is interrupted.

    Inside a caller's transformation there is nothing to wait for: the program closes the bar.
    """
    try:
        program = _compiled(run, arguments, options)
        if program is None:
            return run(*arguments, **options)
    except BaseException:
        _close(number)
        raise
    worker = _Worker(program, arguments)
    try:
        return worker.wait()
    except BaseException:
        worker.stopped = True
        raise
    finally:
        _close(number)


def _compiled(run: Any, arguments: Any, options: Any) -> Any:
    """The program of a jitted function; None inside a transformation, traced values or not.

    It is compiled here and not in the thread that calls it: meshes and the like are of a thread.
    """
    leaves = jax.tree.leaves(arguments)
    # Counted on the device: a constant would be a transfer.
    if is_traced(*leaves, jax.lax.iota(np.int32, 1)):
        return None
    traced = run.trace(*arguments, **options)
    # A traced value that the network closes over is one more input.
    return None if len(traced.jaxpr.in_avals) > len(leaves) else traced.lower().compile()


class _Worker(threading.Thread):
    """A program in a thread of its own, so that the thread that waits for it hears Ctrl-C.

    On one CPU device the call of a program with callbacks returns at its end, and a signal would
    wait for the next callback.
    """

    def __init__(self, program: Any, arguments: Any) -> None:
        super().__init__()
        self.program, self.arguments = program, arguments
        self.future: futures.Future[Any] = futures.Future()
        self.stopped = False

    def run(self) -> None:
        try:
            out = jax.block_until_ready(self.program(*self.arguments))
            jax.effects_barrier()
            self.future.set_result(out)
        except BaseException as error:
            self.future.set_exception(error)

    def wait(self) -> Any:
        self.start()
        # Not `join`, which takes an interrupted thread for one that has ended (Python 3.11); and
        # without a timeout Windows hears no signal.
        while not self.future.done():
            futures.wait([self.future], timeout=0.1)
        return self.future.result()


def _close(number: np.ndarray) -> None:
    with _lock:
        run = _runs.pop(int(number), None)
        if run is not None and run.bar is not None:
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


def marked(mark: jax.Array) -> jax.Array:
    """What the loop carries from row to row for `report_end`: a number no compiler foretells."""
    # The compiler knows the last value of a counter, and would report it before the loop.
    return 5 * mark + 1


def report_end(number: Any, mark: Any) -> None:
    """Inside the program, after its loop, which has marked every row."""
    # A number of the sample in place of the mark costs TPUs a copy of all of it, is an all-reduce
    # where it is sharded, and hangs processes of which only some show a bar.
    jax.debug.callback(_finish, jnp.stack([jnp.asarray(number), mark]))


def _show(report: Any) -> None:
    # The program is called in this thread, so that it ends here; elsewhere it goes on to its end.
    if getattr(threading.current_thread(), "stopped", False):
        raise InterruptedError("the run was interrupted")
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


def _finish(report: Any) -> None:
    with _lock:
        run = _runs.get(int(np.asarray(report)[0]))
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
