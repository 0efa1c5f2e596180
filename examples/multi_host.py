r"""Many hosts, one run: every process samples its own share of a batch, and none waits for another.

    python examples/multi_host.py --processes 2       # starts two processes on this machine
    python examples/multi_host.py --pod               # on every host of a TPU pod

The pattern, in `sample_batch`:

* one mesh over the devices of all processes, the batch axis sharded over it, weights on each;
* what makes a sample its own is its GLOBAL number: its key is folded from it, and its initial noise
  and the noise of its steps come from that key. No process needs to know of another's samples, and
  the same samples come from any number of processes;
* every process runs the same jit-compiled program, which holds no collective;
* every process writes what lies on its own devices.

The "network" is the exact denoiser of a data set of eight points, so that nothing is to be loaded;
yours goes in its place, as `kd.denoiser(model_fn)`.
"""

import argparse
import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import commands
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import kdiff_jax as kd

COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-", "reduce-scatter")


def data_points() -> np.ndarray:
    """The data set, [8, 2]: what the samples must end at."""
    angle = np.arange(8) * np.pi / 4
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1).astype(np.float32)


def denoise(points: jax.Array, x: jax.Array, row: kd.Row, cond: Any = None) -> kd.Prediction:
    """The exact denoiser of a set of points: their mean, weighted by how likely each became x."""
    # On these levels alpha is 1: x = x0 + sigma * eps.
    distance = jnp.sum((x[:, None, :] - points[None]) ** 2, axis=-1)
    weight = jax.nn.softmax(-distance / (2 * row.sigma**2), axis=-1)
    denoised = jnp.sum(weight[:, :, None] * points[None], axis=1)
    return kd.Prediction(denoised, (x - denoised) / row.sigma)


@jax.jit
def run(points: jax.Array, schedule: kd.Schedule, key: jax.Array, numbers: jax.Array) -> jax.Array:
    """The samples of these numbers, from noise to data; sharded as the numbers are."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
    x = kd.initial_sample(schedule, keys, (len(numbers), 2))
    return kd.sample(denoise, points, schedule, x, keys)


def sample_batch(
    num_samples: int, steps: int, seed: int, devices: Sequence[Any] | None = None
) -> jax.Array:
    """[B, 2] samples over the devices of all processes; every process calls this alike."""
    devices = jax.devices() if devices is None else devices
    if num_samples < 1 or num_samples % len(devices):
        raise ValueError(
            f"{num_samples} samples over {len(devices)} devices; give a multiple of that number."
        )
    mesh = Mesh(np.array(devices), ("batch",))
    everywhere = NamedSharding(mesh, PartitionSpec())

    def put(array: Any, sharding: NamedSharding) -> jax.Array:
        # Each process hands over only what its own devices hold. jax.device_put would first ask the
        # other processes whether they have the same array.
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda where: array[where])

    schedule = kd.dpm2_ancestral(kd.levels(kd.noise_schedule(), steps, grid="karras"))
    schedule = jax.tree.map(lambda leaf: put(leaf, everywhere), schedule)
    key = jax.random.wrap_key_data(put(jax.random.key_data(jax.random.key(seed)), everywhere))
    numbers = put(
        np.arange(num_samples, dtype=np.int32), NamedSharding(mesh, PartitionSpec("batch"))
    )
    program = run.lower(put(data_points(), everywhere), schedule, key, numbers).compile()
    collectives = [name for name in COLLECTIVES if name in str(program.as_text())]
    print(f"process {jax.process_index()}: collectives in the program: {collectives}", flush=True)
    return program(put(data_points(), everywhere), schedule, key, numbers)


def write_own_share(samples: jax.Array, folder: Path) -> None:
    """One file for each device of this process, named by the number of its first sample."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in samples.addressable_shards:
        first = shard.index[0].start or 0
        np.save(folder / f"samples_{first:06d}.npy", np.asarray(shard.data))


def read_all(folder: Path) -> np.ndarray:
    """The whole batch in the order of its numbers, when all processes have written."""
    return np.concatenate([np.load(path) for path in sorted(folder.glob("samples_*.npy"))])


def start_processes(count: int, arguments: list[str], timeout: float) -> None:
    """This script as `count` processes of this machine; none of them outlives the call."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    # One CPU device each, whatever this process was started with.
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, __file__, *arguments, "--coordinator", f"localhost:{port}"]
    children: list[subprocess.Popen[bytes]] = []
    try:
        for i in range(count):
            place = ["--process", str(i), "--processes", str(count)]
            children.append(subprocess.Popen([*command, *place], env=env))
        deadline = time.monotonic() + timeout
        codes: list[int | None] = [None] * count
        # Where one fails the others would wait for it.
        while None in codes and not any(codes):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no result after {timeout:g} s; give more with --timeout.")
            time.sleep(0.05)
            codes = [child.poll() for child in children]
        if any(codes):
            raise RuntimeError(f"the processes ended with {codes}; see what they wrote above.")
    finally:
        for child in children:
            child.kill()
            child.wait()


def main() -> None:
    parser = commands.parser(__doc__)
    add, count = parser.add_argument, commands.count
    add("--processes", type=count, default=2, help="to start on this machine")
    add("--pod", action="store_true", help="one of the hosts of a pod or cluster")
    add("--samples", type=count, default=64, help="of all processes together")
    add("--steps", type=count, default=10, help="outer steps N of ancestral DPM2")
    add("--seed", type=commands.seed, default=0, help="of all noise")
    add(
        "--output",
        type=commands.folder,
        help="folder for the samples, shared by all hosts; default: ./samples on a pod, else none",
    )
    add("--timeout", type=commands.positive, default=120.0, help="seconds, on this machine")
    add("--coordinator", help=argparse.SUPPRESS)
    add("--process", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.pod and args.samples % args.processes:
        parser.error(f"--samples {args.samples}: a multiple of --processes {args.processes}")

    if args.pod or args.process is not None:
        if args.pod:
            jax.distributed.initialize()  # finds the other hosts by itself
        else:
            jax.distributed.initialize(
                args.coordinator, args.processes, args.process, initialization_timeout=60
            )
        own = sample_batch(args.samples, args.steps, args.seed)
        folder = args.output or Path("samples")
        write_own_share(own, folder)
        if args.pod:
            print(f"process {jax.process_index()}: wrote its share to {folder}", flush=True)
        jax.distributed.shutdown()  # waits for the others, so that none ends under their feet
        return

    with tempfile.TemporaryDirectory() as temporary:
        folder = args.output or Path(temporary)
        for old in folder.glob("samples_*.npy"):
            old.unlink()
        numbers = {"samples": args.samples, "steps": args.steps, "seed": args.seed}
        arguments = [text for name, value in numbers.items() for text in (f"--{name}", str(value))]
        start_processes(args.processes, [*arguments, "--output", str(folder)], args.timeout)
        samples = read_all(folder)
    if args.output:
        print(f"wrote {folder}")
    off = np.linalg.norm(samples[:, None] - data_points(), axis=-1).min(axis=1).max()
    checksum = hashlib.sha256(samples.tobytes()).hexdigest()[:16]
    print(f"{len(samples)} samples, at most {off:.1e} off a point of the data, sha256 {checksum}")


if __name__ == "__main__":
    main()
