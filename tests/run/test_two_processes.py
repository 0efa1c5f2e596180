"""Two processes joined by jax.distributed, of which one shows the bar of their common run."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys

import jax
import jax.numpy as jnp
import numpy as np

import kdiff_jax as kd

process, port = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(f"localhost:{port}", 2, process, initialization_timeout=60)
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
batched = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
x = jax.make_array_from_callback((2, 4), batched, lambda at: np.ones((2, 4), np.float32)[at])
denoise = kd.denoiser(lambda params, x, timestep: 0.1 * x)
schedule = kd.euler(kd.levels(None, sigmas=[3.0, 2.0, 1.0]))
x = kd.sample(denoise, None, schedule, x, progress=process == 0)
print("samples", float(x.addressable_shards[0].data[0, 0]))
"""


def test_one_of_two_processes_may_show_the_bar():
    pytest.importorskip("tqdm")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    one_device = {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(process), port],
            env=os.environ | one_device | {"PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in (0, 1)
    ]
    try:
        (out, bar), (other, no_bar) = (process.communicate(timeout=120) for process in processes)
    finally:
        for process in processes:
            process.kill()
    assert out.startswith("samples "), bar
    assert other == out, no_bar
    assert "100%" in bar
    assert "%|" not in no_bar
