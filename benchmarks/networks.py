"""The networks of the speed benchmark: one that costs nothing, and U-Nets in plain JAX.

    params = unet_params(jax.random.key(0), SMALL.channels)
    eps = unet(params, x, timestep)    # x [B, H, W, 4], timestep [B]

Plain functions, so that every library is handed the same one.
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
    emb = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
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
