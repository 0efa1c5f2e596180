"""The networks of the benchmarks: one that costs nothing, U-Nets and a transformer in plain JAX.

    params = unet_params(jax.random.key(0), SMALL.channels)
    eps = unet(params, x, timestep)    # x [B, H, W, 4], timestep [B]

Plain functions, so that every library is handed the same one. In bfloat16, give them bfloat16
weights and samples.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

LATENTS = 4  # channels of a sample


class Size(NamedTuple):
    """A U-Net and the samples it is run on."""

    channels: tuple[int, ...]
    shape: tuple[int, int, int, int]


SMALL = Size((16, 32), (1, 32, 32, LATENTS))
MEDIUM = Size((32, 64, 128), (1, 64, 64, LATENTS))


def null(params: Any, x: Any, timestep: Any) -> Any:
    """A network that costs nothing: what is measured is the sampler. Takes torch's tensors too."""
    return 0.1 * x


def unet_params(key: jax.Array, channels: tuple[int, ...]) -> dict[str, jax.Array]:
    """Random weights, scaled so that every layer keeps the size of what it is given."""
    params: dict[str, jax.Array] = {}

    def conv(name: str, size: int, cin: int, cout: int) -> None:
        fan_in = size * size * cin
        noise = jax.random.normal(jax.random.fold_in(key, len(params)), (size, size, cin, cout))
        params[name] = noise / fan_in**0.5

    def block(name: str, cin: int, cout: int) -> None:
        conv(name + ".in", 3, cin, cout)
        conv(name + ".time", 1, channels[0], cout)
        conv(name + ".out", 3, cout, cout)
        conv(name + ".skip", 1, cin, cout)

    conv("first", 3, LATENTS, channels[0])
    cin = channels[0]
    for level, cout in enumerate(channels):
        block(f"down{level}", cin, cout)
        cin = cout
    for level, cout in reversed(list(enumerate(channels))):
        block(f"up{level}", cin + cout, cout)
        cin = cout
    conv("last", 3, cin, LATENTS)
    return params


def unet(params: dict[str, jax.Array], x: jax.Array, timestep: jax.Array) -> jax.Array:
    """[B, H, W, 4] -> the same, of unit size: it can be fed its own output for ever."""

    def conv(name: str, x: jax.Array) -> jax.Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        kernel = params[name]
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    def norm(x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=(1, 2, 3), keepdims=True) + 1e-6)

    def block(name: str, x: jax.Array) -> jax.Array:
        h = conv(name + ".in", jax.nn.silu(norm(x))) + conv(name + ".time", emb)
        return conv(name + ".out", jax.nn.silu(norm(h))) + conv(name + ".skip", x)

    half = params["first"].shape[-1] // 2
    frequencies = jnp.exp(-9.2 * jnp.arange(half, dtype=jnp.float32) / half)
    angles = timestep[:, None, None, None] * frequencies.reshape(1, 1, 1, half)
    emb = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1).astype(x.dtype)
    levels = sum(name.endswith(".in") for name in params) // 2
    h = conv("first", x)
    skips = []
    for level in range(levels):
        h = block(f"down{level}", h)
        skips.append(h)
        if level < levels - 1:
            b, height, width, c = h.shape
            h = h.reshape(b, height // 2, 2, width // 2, 2, c).mean((2, 4))
    for level in reversed(range(levels)):
        if level < levels - 1:
            h = h.repeat(2, axis=1).repeat(2, axis=2)
        h = block(f"up{level}", jnp.concatenate([h, skips[level]], axis=-1))
    return norm(conv("last", jax.nn.silu(h)))


PATCH, HEADS = 2, 6


def dit_params(key: jax.Array, width: int = 384, depth: int = 6) -> dict[str, jax.Array]:
    """Random weights of a diffusion transformer of the size S, with half of its layers."""
    sizes = {"patch": (PATCH * PATCH * LATENTS, width), "time": (width, width)}
    for layer in range(depth):
        sizes |= {
            f"{layer}.shift": (width, 6 * width),
            f"{layer}.qkv": (width, 3 * width),
            f"{layer}.out": (width, width),
            f"{layer}.up": (width, 4 * width),
            f"{layer}.down": (4 * width, width),
        }
    sizes["last"] = width, PATCH * PATCH * LATENTS
    keys = jax.random.split(key, len(sizes))
    return {
        name: jax.random.normal(k, size) / size[0] ** 0.5
        for k, (name, size) in zip(keys, sizes.items(), strict=True)
    }


def dit(params: dict[str, jax.Array], x: jax.Array, timestep: jax.Array) -> jax.Array:
    """[B, H, W, 4] -> the same: patches as tokens, attention, and adaLN for the timestep.

    Source: Peebles and Xie 2022 (arXiv:2212.09748), without classes and positions.
    """
    b, height, width, c = x.shape
    rows, columns, size = height // PATCH, width // PATCH, params["time"].shape[0]
    frequencies = jnp.exp(-9.2 * jnp.arange(size // 2, dtype=jnp.float32) / (size // 2))
    angles = timestep[:, None] * frequencies[None]
    emb = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1).astype(x.dtype)
    emb = jax.nn.silu(emb @ params["time"])[:, None]

    def norm(h: jax.Array) -> jax.Array:
        h = h - jnp.mean(h, axis=-1, keepdims=True)
        return h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + 1e-6)

    def attention(h: jax.Array, layer: int) -> jax.Array:
        qkv = (h @ params[f"{layer}.qkv"]).reshape(b, -1, 3, HEADS, size // HEADS)
        values = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        return values.reshape(h.shape) @ params[f"{layer}.out"]

    h = x.reshape(b, rows, PATCH, columns, PATCH, c).transpose(0, 1, 3, 2, 4, 5)
    h = h.reshape(b, rows * columns, -1) @ params["patch"]
    for layer in range(sum(name.endswith(".qkv") for name in params)):
        a, b1, c1, d, b2, c2 = jnp.split(emb @ params[f"{layer}.shift"], 6, axis=-1)
        h = h + a * attention(norm(h) * (1 + b1) + c1, layer)
        up = jax.nn.gelu((norm(h) * (1 + b2) + c2) @ params[f"{layer}.up"])
        h = h + d * (up @ params[f"{layer}.down"])
    h = (norm(h) @ params["last"]).reshape(b, rows, columns, PATCH, PATCH, c)
    return h.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape)
