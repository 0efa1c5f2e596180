"""How the two halves of guidance meet the network: one after the other, interleaved, two calls.

    python benchmarks/layouts.py            time on one CPU device, programs on eight
    python benchmarks/layouts.py --tpu      the TPU compiler's cycles (pip install libtpu)

For a batch of B conditions and their unconditional twins:

* concatenated: [2B], first the conditional half;
* interleaved: [B, 2] as [2B], each sample beside its twin;
* two calls of [B].

Figures are of one row of Euler: a digits U-Net, a DiT (four blocks, width 128, patches of 2) and an
MLP. Time is the median of --repeats runs, taken in turn.
"""

import math
import os
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"], os.environ["TPU_WORKER_HOSTNAMES"] = "1", "localhost"
os.environ["TPU_ACCELERATOR_TYPE"] = "v5litepod-4"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import commands

import kdiff_jax as kd

ROWS = 10
SCALE = 3.0
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
NETWORKS = ("MLP", "DiT", "digits U-Net")
LAYOUTS = ("concatenated", "interleaved", "two calls")


def guided(layout: str, denoise: Any) -> Any:
    """Guidance written out, with uncond the last label."""

    def twice(leaf: Any, other: Any) -> Any:
        if layout == "concatenated":
            return jnp.concatenate([leaf, other])
        return jnp.stack([leaf, other], axis=1).reshape(2 * leaf.shape[0], *leaf.shape[1:])

    def halves(both: Any) -> Any:
        if layout == "concatenated":
            return jnp.split(both, 2)
        both = both.reshape(both.shape[0] // 2, 2, *both.shape[1:])
        return both[:, 0], both[:, 1]

    call = jax.jit(denoise)  # traced once

    def mixed(params: Any, x: Any, row: Any, cond: Any) -> Any:
        uncond = jnp.full_like(cond, 10)
        if layout == "two calls":
            one, other = call(params, x, row, cond), call(params, x, row, uncond)
        else:
            both = call(params, twice(x, x), row, twice(cond, uncond))
            one, other = (
                kd.Prediction(d, e)
                for d, e in zip(halves(both.denoised), halves(both.epsilon), strict=True)
            )
        return jax.tree.map(lambda c, u: u + SCALE * (c - u), one, other)

    return mixed


def dit(width: int, depth: int) -> tuple[Any, Any]:
    """A transformer over patches of 2 x 2, its condition added to every token."""
    numbers = np.random.default_rng(0)

    def weight(*shape: int) -> Any:
        return jnp.asarray(numbers.normal(0, shape[0] ** -0.5, shape), jnp.float32)

    names = {"qkv": (width, 3 * width), "out": (width, width)}
    names |= {"up": (width, 4 * width), "down": (4 * width, width)}
    params = {
        "in": weight(16, width),
        "label": weight(11, width),
        "last": weight(width, 16),
        "blocks": [{name: weight(*shape) for name, shape in names.items()} for _ in range(depth)],
    }

    def norm(h: Any) -> Any:
        return h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + 1e-6)

    def model_fn(params: Any, x: Any, timestep: Any, cond: Any) -> Any:
        b, side, _, channels = x.shape
        h = x.reshape(b, side // 2, 2, side // 2, 2, channels).swapaxes(2, 3)
        h = h.reshape(b, (side // 2) ** 2, 4 * channels) @ params["in"]
        h = h + params["label"][cond][:, None] + jnp.sin(timestep)[:, None, None]
        for block in params["blocks"]:
            q, k, v = jnp.split((norm(h) @ block["qkv"]).reshape(*h.shape[:2], 4, -1), 3, axis=-1)
            attended = jax.nn.dot_product_attention(q, k, v).reshape(h.shape)
            h = h + attended @ block["out"]
            h = h + jax.nn.gelu(norm(h) @ block["up"]) @ block["down"]
        h = (norm(h) @ params["last"]).reshape(b, side // 2, side // 2, 2, 2, channels)
        return h.swapaxes(2, 3).reshape(x.shape)

    return model_fn, params


def mlp(size: int, width: int) -> tuple[Any, Any]:
    numbers = np.random.default_rng(0)
    shapes = {"in": (size, width), "label": (11, width), "out": (width, size)}
    params = {
        name: jnp.asarray(numbers.normal(0, shape[0] ** -0.5, shape), jnp.float32)
        for name, shape in shapes.items()
    }

    def model_fn(params: Any, x: Any, timestep: Any, cond: Any) -> Any:
        hidden = x.reshape(x.shape[0], -1) @ params["in"] + params["label"][cond]
        hidden = jax.nn.gelu(hidden + jnp.sin(timestep)[:, None])
        return (hidden @ params["out"]).reshape(x.shape)

    return model_fn, params


def networks() -> dict[str, tuple[Any, Any, tuple[int, ...]]]:
    """name -> the network, its parameters, the shape of the batch."""
    found = {
        "MLP": (*mlp(256, 1024), (16, 256)),
        "DiT": (*dit(128, 4), (16, 32, 32, 4)),
    }
    try:
        import unet

        # Random weights: what is measured does not depend on them.
        found["digits U-Net"] = (
            unet.model_fn,
            unet.init_params(jax.random.key(0)),
            (16, 28, 28, 1),
        )
    except ImportError as missing:
        print(f"no digits U-Net: {missing}")
    return found


def lowered(layout: str, network: Any, put: Any) -> tuple[Any, Any]:
    """A run of ten rows, and its arguments as `put(array, of_the_batch)` gives them."""
    model_fn, params, shape = network
    schedule = kd.euler(kd.levels(kd.noise_schedule("scaled_linear"), ROWS))
    denoise = guided(layout, kd.denoiser(model_fn))

    def run(params: Any, schedule: Any, x: Any, cond: Any) -> Any:
        return kd.sample(denoise, params, schedule, x, cond=cond)

    x = np.random.default_rng(0).normal(0, 10, shape).astype(np.float32)
    cond = np.arange(shape[0], dtype=np.int32) % 10
    copies = (jax.tree.map(lambda leaf: put(leaf, False), tree) for tree in (params, schedule))
    arguments = *copies, put(x, True), put(cond, True)
    return jax.jit(run).lower(*arguments), arguments


def on_a_mesh(devices: Any) -> Any:
    mesh = Mesh(np.array(devices), ("batch",))
    batched, copied = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("batch",), ()))

    def put(leaf: Any, of_the_batch: bool) -> Any:
        sharding = batched if of_the_batch else copied
        return jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf), sharding=sharding)

    return put


def counted(hlo: str) -> int:
    return sum(len(re.findall(rf" {name}(?:-start)?\(", hlo)) for name in COLLECTIVES)


def loop_cycles(hlo: str) -> int:
    """The compiler's estimate for one pass of the loop: all operations that it reaches."""
    found = dict(re.findall(r"^(?:ENTRY )?%?([\w.-]+) \(.*?\{\n(.*?)^\}", hlo, re.M | re.S))
    todo, seen, total = re.findall(r"body=%?([\w.-]+)", hlo), set(), 0
    while todo:
        name = todo.pop()
        if name in seen or name not in found:
            continue
        seen.add(name)
        for line in found[name].split("\n"):
            total += sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', line)))
            if " fusion(" not in line:
                todo += re.findall(r"(?:to_apply|body|calls)=%?([\w.-]+)", line)
    return total


def on_cpu(name: str, network: Any, repeats: int) -> None:
    size = math.prod(network[2]) * 4
    programs: dict[str, Any] = {}
    times: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
    for layout in LAYOUTS:
        low, arguments = lowered(layout, network, lambda leaf, _: jnp.asarray(leaf))
        programs[layout] = low.compile(), arguments
    for _ in range(repeats + 1):
        for layout, (program, arguments) in programs.items():
            began = time.perf_counter()
            program(*arguments).block_until_ready()
            times[layout].append(time.perf_counter() - began)
    for layout in LAYOUTS:
        program = lowered(layout, network, on_a_mesh(jax.devices()[:8]))[0].compile()
        scratch = program.memory_analysis().temp_size_in_bytes / (size / 8)
        row = 1e3 * statistics.median(times[layout][1:]) / ROWS
        found = counted(program.as_text())
        tqdm.write(f"| {name} | {layout} | {row:.2f} | {found} | {scratch:.1f} |")


def on_tpu(name: str, network: Any) -> None:
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    size = math.prod(network[2]) * 4
    for layout in LAYOUTS:
        program = lowered(layout, network, on_a_mesh(topology.devices))[0].compile()
        hlo = program.as_text()
        scratch = program.memory_analysis().temp_size_in_bytes / (size / 4)
        cycles = loop_cycles(hlo)
        tqdm.write(f"| {name} | {layout} | {cycles} | {counted(hlo)} | {scratch:.1f} |")


def main(arguments: list[str] | None = None) -> None:
    parser = commands.parser(__doc__)
    add = parser.add_argument
    add("--tpu", action="store_true", help="the TPU compiler's estimates; nothing runs")
    add("--repeats", type=commands.count, default=9, help="timed runs, of which the median counts")
    add("--only", choices=NETWORKS, help="one network; default: all")
    options = parser.parse_args(arguments)
    print(f"JAX {jax.__version__}")
    unit = "cycles a row" if options.tpu else "ms a row"
    print(f"| network | layout | {unit} | collectives | scratch, in shares of the batch |")
    print("|---|---|---|---|---|")
    chosen = {name: one for name, one in networks().items() if options.only in (None, name)}
    with tqdm(chosen.items(), unit="network") as bar:
        for name, network in bar:
            bar.set_description(name)
            on_tpu(name, network) if options.tpu else on_cpu(name, network, options.repeats)


if __name__ == "__main__":
    main()
