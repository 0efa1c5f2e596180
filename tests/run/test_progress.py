"""The bar: its total, its end, how often it is updated, and that it is nowhere when it is off."""

import functools
import os
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
from programs import compilations, hlo_of
from samplers import ELEMENTWISE, NOISE, SAMPLERS

import kdiff_jax as kd
from kdiff_jax._run import progress as progress_bars

KEY = jax.random.key(29)
SHAPE = (2, 8)
elementwise = kd.denoiser(sp.elementwise_model)
sample = functools.partial(kd.sample, elementwise, ELEMENTWISE)


# JAX 0.6 drops callbacks from a loop that is differentiated in reverse: no bar, and no other harm.
GRADIENTS_CALL_BACK = jax.__version_info__ >= (0, 7)


class Bar:
    """In place of tqdm: the numbers it was brought to."""

    def __init__(self, total, desc, unit):
        self.total, self.desc, self.unit = total, desc, unit
        self.n, self.closed, self.shown = 0, 0, []

    def update(self, by):
        assert by >= 0
        assert not self.closed
        self.n += by
        self.shown.append(self.n)

    def close(self):
        self.closed += 1


@pytest.fixture
def bars(monkeypatch):
    made = []

    def make(**options):
        made.append(Bar(**options))
        return made[-1]

    monkeypatch.setattr(progress_bars, "_tqdm", lambda: make)
    yield made
    jax.effects_barrier()


def assert_complete(bar, total):
    assert (bar.total, bar.n, bar.closed) == (total, total, 1)


@pytest.mark.parametrize("name", ["euler", "dpm2", "ancestral", "lcm"])
@pytest.mark.parametrize("pad", [False, True])
def test_a_run_shows_one_bar_with_every_row_and_closes_it(name, pad, bars):
    schedule = SAMPLERS[name](4)
    padded = schedule.pad(9) if pad else schedule
    sample(padded, jnp.ones(SHAPE), KEY, progress=True)
    (bar,) = bars
    assert_complete(bar, schedule.num_rows)
    assert bar.shown[: schedule.num_rows] == list(range(schedule.num_rows))


def test_a_stack_shows_the_rows_of_the_longest_and_a_description(bars):
    tables = kd.stack([SAMPLERS["ancestral"](2), SAMPLERS["euler"](4)])
    sample(tables, jnp.ones(SHAPE), KEY, progress="digits")
    (bar,) = bars
    assert bar.desc == "digits"
    assert_complete(bar, 4)


@pytest.mark.parametrize(
    "options", [{"unroll": 2}, {"unroll": 3}, {"remat": "rows"}, {"remat": "segments"}]
)
def test_every_way_to_run_the_loop_shows_it(options, bars):
    run = SAMPLERS["dpm2"](5), jnp.ones(SHAPE)
    got = sample(*run, progress=True, **options)
    np.testing.assert_allclose(got, sample(*run), rtol=1e-5)
    assert len(bars) == 1
    assert_complete(bars[0], 9)


def test_a_run_of_one_row_inside_a_program_of_the_caller(bars):
    run = jax.jit(lambda x: sample(SAMPLERS["dpm2"](1), x, progress=True))
    for number in (1, 2):
        jax.block_until_ready(run(jnp.ones(SHAPE)))
        jax.effects_barrier()
        assert len(bars) == number
        assert_complete(bars[-1], 1)


def test_a_long_run_reports_about_a_hundred_times(bars):
    sample(kd.euler(kd.levels(NOISE, 250)), jnp.ones(SHAPE), progress=True)
    (bar,) = bars
    assert_complete(bar, 250)
    assert bar.shown == [*range(0, 250, 3), 250]
    sample(kd.euler(kd.levels(NOISE, 250)).pad(400), jnp.ones(SHAPE), progress=True)
    assert bars[1].shown == bar.shown


def test_the_end_is_reported_after_the_last_evaluation(bars):
    seen = []

    def model_fn(params, x, timestep):
        def slow(x):
            seen.append([bar for bar in bars if bar.closed])
            return x

        return jax.pure_callback(slow, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    kd.sample(kd.denoiser(model_fn), None, SAMPLERS["dpm2"](3), jnp.ones(SHAPE), progress=True)
    assert seen == [[]] * 5
    assert_complete(bars[0], 5)


def test_runs_after_each_other_have_bars_of_their_own_and_one_program(bars, caplog):
    schedule = SAMPLERS["dpm2"](3)
    sample(schedule, jnp.ones(SHAPE), progress=True)
    run = functools.partial(sample, schedule, jnp.ones(SHAPE))
    for options in ({"progress": True}, {"progress": "another"}):
        assert compilations(caplog, functools.partial(run, **options)) == []
    assert len(bars) == 3
    for bar in bars:
        assert_complete(bar, 5)


def test_under_jit_vmap_and_grad_of_the_caller(bars):
    schedule = SAMPLERS["dpm2"](3)

    def run(x):
        return jnp.sum(sample(schedule, x, progress=True))

    def batched_tables(x):
        tables = kd.stack([SAMPLERS["dpm2"](n) for n in (2, 4)])
        return jax.vmap(lambda table, x: sample(table, x, progress=True))(tables, jnp.stack([x, x]))

    jitted = jax.jit(run)
    calls: list[Any] = [jitted, jitted, jax.vmap(run)]
    if GRADIENTS_CALL_BACK:
        calls += [jax.grad(run), jax.jit(jax.value_and_grad(run))]
    x = jnp.ones(SHAPE)
    for number, call in enumerate(calls, 1):
        jax.block_until_ready(call(jnp.stack([x, x]) if number == 3 else x))
        jax.effects_barrier()
        assert len(bars) == number
        assert_complete(bars[-1], 5)
    jax.block_until_ready(jax.jit(batched_tables)(x))
    jax.effects_barrier()
    assert len(bars) == len(calls) + 1
    assert_complete(bars[-1], 7)


def test_where_the_network_closes_over_a_traced_value(bars):
    def run(gain):
        denoise = kd.denoiser(lambda params, x, timestep: gain * x)
        return jnp.sum(
            kd.sample(denoise, None, SAMPLERS["euler"](3), jnp.ones(SHAPE), progress=True)
        )

    jax.block_until_ready(jax.vmap(run)(jnp.ones(2)))
    jax.effects_barrier()
    (bar,) = bars
    assert_complete(bar, 3)


@pytest.mark.parametrize("remat", ["none", "rows", "segments"])
def test_the_backward_pass_reports_nothing(remat, bars):
    def run(x):
        return jnp.sum(sample(SAMPLERS["dpm2"](5), x, progress=True, remat=remat))

    jax.block_until_ready(jax.jit(jax.grad(run))(jnp.ones(SHAPE)))
    jax.effects_barrier()
    if GRADIENTS_CALL_BACK:
        (bar,) = bars
        assert_complete(bar, 9)
        assert len(bar.shown) <= 9 + 1
    else:
        assert bars == []


@pytest.mark.parametrize("pad", [False, True])
def test_a_batch_over_several_devices_shows_one_bar(pad, bars):
    schedule = SAMPLERS["ancestral"](3)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    x = jax.device_put(jnp.ones((8, 4)), sharding)
    sample(schedule.pad(9) if pad else schedule, x, KEY, progress=True)
    (bar,) = bars
    assert_complete(bar, 5)


@pytest.mark.parametrize("name", ["dpm2", "lcm"])
def test_a_bar_makes_no_device_wait_for_another(name):
    pytest.importorskip("tqdm", reason="the bar is tqdm's, which the core does not need")
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
    x = jax.device_put(
        jnp.ones((8, 4)), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    )
    program = hlo_of(functools.partial(sample, progress=True), SAMPLERS[name](3), x, KEY)
    assert "callback" in program
    for collective in ("all-reduce", "all-gather", "all-to-all", "collective", "reduce-scatter"):
        assert collective not in program


_INTERRUPTED = """
import os, signal, time
import jax, jax.numpy as jnp
import kdiff_jax as kd

# A process that a shell started in its background ignores Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
schedule = kd.euler(kd.levels(kd.noise_schedule(), 60))
pause, began = [2.0], []

def model_fn(params, x, timestep):
    def slow(x):
        if pause and not began:
            began.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(sum(pause))
        return x
    return jax.pure_callback(slow, jax.ShapeDtypeStruct(x.shape, x.dtype), 0.1 * x)

def run(**options):
    return kd.sample(kd.denoiser(model_fn), None, schedule, jnp.ones((2, 8)), **options)

try:
    run(progress=True)
except KeyboardInterrupt:
    print("interrupted after", time.monotonic() - began[0])
pause.clear()
print("the same", bool(jnp.all(run(progress=True) == run())))
"""


def test_ctrl_c_returns_at_once_and_the_next_run_is_whole():
    pytest.importorskip("tqdm", reason="the bar is tqdm's, which the core does not need")
    began = time.monotonic()
    command, env = [sys.executable, "-c", _INTERRUPTED], {**os.environ, "XLA_FLAGS": ""}
    child = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)
    assert "the same True" in child.stdout, child.stderr
    assert float(child.stdout.split("interrupted after ")[1].split()[0]) < 1
    # 60 rows of 2 s: what goes on after an interrupt on one CPU device ends at its next report.
    assert time.monotonic() - began < 60


def test_a_run_that_fails_closes_its_bar_and_the_next_begins_anew(bars):
    fails = [True]

    def check(timestep):
        if fails and timestep[0] < 500:
            raise RuntimeError("the network broke")
        return timestep

    def model_fn(params, x, timestep):
        seen = jax.pure_callback(check, jax.ShapeDtypeStruct(timestep.shape, jnp.float32), timestep)
        return x * seen[:, None]

    denoise, schedule = kd.denoiser(model_fn), SAMPLERS["euler"](4)

    def run(x):
        return kd.sample(denoise, None, schedule, x, progress=True)

    inside_jit = jax.jit(run)
    x = jnp.ones(SHAPE)
    with pytest.raises(Exception, match="the network broke"):
        run(x)
    assert (bars[0].n, bars[0].closed) == (2, 1)
    with pytest.raises(Exception, match="the network broke"):
        jax.block_until_ready(inside_jit(x))
    fails.clear()
    run(x)
    jax.block_until_ready(inside_jit(x))
    jax.effects_barrier()
    # The caller's own program cannot close a bar that broke off; its next run does.
    assert [(bar.n, bar.closed) for bar in bars] == [(2, 1), (2, 1), (4, 1), (4, 1)]


def test_off_leaves_no_trace_in_the_program():
    pytest.importorskip("tqdm", reason="the bar is tqdm's, which the core does not need")
    schedule, x = SAMPLERS["dpm2"](3), jnp.ones(SHAPE)

    def program(**options):
        return jax.jit(functools.partial(sample, **options)).lower(schedule, x).as_text()

    assert "callback" not in program()
    assert program(progress=False) == program()
    assert "callback" in program(progress=True)


def test_tqdm_itself_draws_it(capsys):
    pytest.importorskip("tqdm", reason="the bar is tqdm's, which the core does not need")
    sample(SAMPLERS["dpm2"](5), jnp.ones(SHAPE), progress="five steps")
    shown = capsys.readouterr().err
    assert "five steps: 100%" in shown
    assert "9/9" in shown


def test_without_tqdm_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match=r"progress needs tqdm.*pip install tqdm"):
        sample(SAMPLERS["dpm2"](3), jnp.ones(SHAPE), progress=True)


@pytest.mark.parametrize("progress", [1, None, 0.5])
def test_progress_is_true_false_or_a_description(progress):
    with pytest.raises(ValueError, match=r"progress = .*pass True, False or a description"):
        sample(SAMPLERS["dpm2"](3), jnp.ones(SHAPE), progress=progress)
