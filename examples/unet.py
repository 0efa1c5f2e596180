"""A class-conditional U-Net for 28 x 28 images, about a million parameters, in flax NNX.

    model_fn, params = unet.load("weights/digits.safetensors")
    eps = model_fn(params, x, timestep, cond)    # x [B, 28, 28, 1], timestep [B], cond int32 [B]

`model_fn` is one fixed pure function and `params` a pytree of arrays, so that nothing retraces and
no weight is captured in a closure. `cond` holds class labels; `NO_CLASS` stands for no class (for
guidance). A network that guidance was distilled into receives its scale too: with its params,
`cond` is `{"label": int32 [B], "scale": float32 [B]}`, the scale as in `kd.guided` (1 is none).
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

import kdiff_jax as kd

NUM_CLASSES = 10
NO_CLASS = NUM_CLASSES  # the label that stands for "no class"


def timestep_embedding(timestep: jax.Array, size: int) -> jax.Array:
    """Sines and cosines of the timestep, [B] -> [B, size]; fractional timesteps are welcome."""
    half = size // 2
    frequencies = jnp.exp(-jnp.log(10_000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = timestep.astype(jnp.float32)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def preconditioning(timestep: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Signal and noise level (alpha, sigma) of DDPM's linear schedule, in closed form.

    log(alpha^2) = sum log(1 - beta), with beta linear in t, to second order in beta. It need not be
    exact: it is a part of the network, which is trained with it.
    """
    n = timestep.astype(jnp.float32) + 1.0
    first, slope = 1e-4, (0.02 - 1e-4) / 999.0
    sum_beta = first * n + slope * n * (n - 1.0) / 2.0
    sum_square = (
        first**2 * n
        + first * slope * n * (n - 1.0)
        + slope**2 * n * (n - 1.0) * (2.0 * n - 1.0) / 6.0
    )
    log_signal = -(sum_beta + sum_square / 2.0)
    return jnp.exp(log_signal / 2.0), jnp.sqrt(-jnp.expm1(log_signal))


class Norm(nnx.Module):
    """Group norm as one affine map per sample and channel, so that it fuses with what follows."""

    def __init__(self, channels: int, groups: int = 8):
        self.groups = groups
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: jax.Array, film: jax.Array | None = None) -> jax.Array:
        batch, channels = x.shape[0], x.shape[-1]

        def group_mean(values: jax.Array) -> jax.Array:
            means = values.mean(axis=(1, 2)).reshape(batch, self.groups, -1).mean(-1)
            return jnp.repeat(means, channels // self.groups, axis=-1)

        mean = group_mean(x)
        variance = jnp.maximum(group_mean(x * x) - mean * mean, 0.0)
        scale, bias = self.scale[...][None], self.bias[...][None]
        if film is not None:
            film_scale, film_bias = jnp.split(film, 2, axis=-1)
            scale, bias = scale * (1.0 + film_scale), bias * (1.0 + film_scale) + film_bias
        slope = scale * jax.lax.rsqrt(variance + 1e-5)
        return x * slope[:, None, None] + (bias - mean * slope)[:, None, None]


class ResBlock(nnx.Module):
    """Two 3 x 3 convolutions; timestep and class scale and shift the second norm (FiLM)."""

    def __init__(self, cin: int, cout: int, emb: int, *, rngs: nnx.Rngs):
        self.norm1 = Norm(cin)
        self.conv1 = nnx.Conv(cin, cout, (3, 3), rngs=rngs)
        self.film = nnx.Linear(emb, 2 * cout, kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.norm2 = Norm(cout)
        # Zero: at the start of training every block is the identity.
        self.conv2 = nnx.Conv(cout, cout, (3, 3), kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.skip = nnx.Linear(cin, cout, rngs=rngs) if cin != cout else None

    def __call__(self, x: jax.Array, emb: jax.Array) -> jax.Array:
        h = self.conv1(nnx.silu(self.norm1(x)))
        h = self.conv2(nnx.silu(self.norm2(h, self.film(emb))))
        return h + (x if self.skip is None else self.skip(x))


class Attention(nnx.Module):
    """Self-attention over all pixels."""

    def __init__(self, channels: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.norm = Norm(channels)
        self.qkv = nnx.Linear(channels, 3 * channels, rngs=rngs)
        self.out = nnx.Linear(channels, channels, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, _ = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, height * width, 3, self.heads, -1)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        weights = nnx.softmax(jnp.einsum("bqhc,bkhc->bhqk", q, k) * q.shape[-1] ** -0.5)
        return x + self.out(jnp.einsum("bhqk,bkhc->bqhc", weights, v).reshape(x.shape))


def fold(x: jax.Array) -> jax.Array:
    """2 x 2 pixels into channels: [B, 2H, 2W, C] -> [B, H, W, 4C]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // 2, w // 2, 4 * c)


def unfold(x: jax.Array) -> jax.Array:
    """The inverse of `fold`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, 2 * h, 2 * w, c // 4)


class UNet(nnx.Module):
    """Predicts the noise eps of x = alpha * x0 + sigma * eps from x, the timestep and the class.

    Pixels are folded to 14 x 14 x 4 first; most of the work is done at 7 x 7, where it is cheapest.
    With `guidance` it also receives a guidance scale, which changes nothing in fresh weights.
    """

    def __init__(
        self,
        wide: int = 48,
        deep: int = 104,
        emb: int = 96,
        guidance: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        self.emb_size = emb
        self.time1 = nnx.Linear(emb, emb, rngs=rngs)
        self.time2 = nnx.Linear(emb, emb, rngs=rngs)
        self.label = nnx.Embed(NUM_CLASSES + 1, emb, rngs=rngs)
        self.conv_in = nnx.Conv(4, wide, (3, 3), rngs=rngs)
        self.encode = ResBlock(wide, wide, emb, rngs=rngs)
        self.down = nnx.Linear(4 * wide, deep, rngs=rngs)
        self.deep1 = ResBlock(deep, deep, emb, rngs=rngs)
        self.attention = Attention(deep, 4, rngs=rngs)
        self.deep2 = ResBlock(deep, deep, emb, rngs=rngs)
        self.deep3 = ResBlock(deep, deep, emb, rngs=rngs)
        self.up = nnx.Linear(deep, 4 * wide, rngs=rngs)
        self.decode1 = ResBlock(2 * wide, wide, emb, rngs=rngs)
        self.decode2 = ResBlock(wide, wide, emb, rngs=rngs)
        self.norm_out = Norm(wide)
        self.conv_out = nnx.Conv(wide, 4, (3, 3), kernel_init=nnx.initializers.zeros, rngs=rngs)
        zeros = nnx.initializers.zeros
        of_scale = nnx.Linear(emb, emb, use_bias=False, kernel_init=zeros, rngs=rngs)
        self.guidance = of_scale if guidance else None

    def __call__(self, x: jax.Array, timestep: jax.Array, cond: Any) -> jax.Array:
        time, label = timestep_embedding(timestep, self.emb_size), cond
        if self.guidance is not None:
            label = cond["label"]
            # Added where published LCM networks add it, in their units: w = scale - 1.
            time = time + self.guidance(kd.guidance_embedding(cond["scale"] - 1.0, self.emb_size))
        emb = self.time2(nnx.silu(self.time1(time)))
        emb = nnx.silu(emb + self.label(label))
        h = skip = self.encode(self.conv_in(fold(x)), emb)
        h = self.attention(self.deep1(self.down(fold(h)), emb))
        h = self.deep3(self.deep2(h, emb), emb)
        h = self.decode1(jnp.concatenate([unfold(self.up(h)), skip], axis=-1), emb)
        h = self.decode2(h, emb)
        out = unfold(self.conv_out(nnx.silu(self.norm_out(h))))
        # The layers learn v = alpha * eps - sigma * x0, and this turns it into eps. With eps itself
        # as the layers' output, the estimate of x0, (x - sigma * eps) / alpha, would carry the
        # layers' error times sigma / alpha: 157 at the last timestep.
        alpha, sigma = (level[:, None, None, None] for level in preconditioning(timestep))
        return sigma * x + alpha * out


def _split(guidance: bool) -> tuple[Any, Any]:
    network = nnx.eval_shape(lambda: UNet(guidance=guidance, rngs=nnx.Rngs(0)))
    return nnx.split(network, nnx.Param)


# The structure of the network, without and with guidance, apart from its weights: split off once,
# and no weight is ever computed here.
_STRUCTURES = {guidance: _split(guidance) for guidance in (False, True)}


@jax.jit  # one program instead of one for every shape
def init_params(key: jax.Array) -> Any:
    """Fresh weights, a pytree."""
    return nnx.state(UNet(rngs=nnx.Rngs(key)), nnx.Param)


def with_guidance(params: Any) -> Any:
    """The same weights for a network that receives a guidance scale, which changes nothing yet."""
    tensors = {_name(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(params)}
    leaves, treedef = jax.tree_util.tree_flatten_with_path(_STRUCTURES[True][1])
    values = [tensors.get(_name(keys), jnp.zeros(leaf.shape)) for keys, leaf in leaves]
    return jax.tree_util.tree_unflatten(treedef, values)


@jax.jit
def model_fn(params: Any, x: jax.Array, timestep: jax.Array, cond: Any) -> jax.Array:
    """The network as a pure function: predicted eps, of the shape of x."""
    graphdef, _ = _STRUCTURES["guidance" in params]
    return nnx.merge(graphdef, params)(x, timestep, cond)


def _name(keys: Any) -> str:
    """The name of a weight in the file, such as "deep1.conv1.kernel"."""
    names = (str(getattr(key, "key", getattr(key, "name", key))) for key in keys)
    return ".".join(name for name in names if name not in ("value", ".value"))


def save(path: str | Path, params: Any, dtype: Any = np.float16) -> None:
    """Writes the weights as safetensors; half precision by default, which halves the file."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    save_file({_name(keys): np.asarray(leaf, dtype) for keys, leaf in leaves}, path)


def load(path: str | Path) -> tuple[Any, Any]:
    """(model_fn, params) with the weights of a file written by `save`, in float32.

    The file may hold the network without or with guidance; its params say which, and `model_fn`
    serves both.
    """
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no whole safetensors file: {error}; give a file that `unet.save` wrote."
        ) from None
    _, abstract = _STRUCTURES["guidance.kernel" in tensors]
    leaves, treedef = jax.tree_util.tree_flatten_with_path(abstract)
    expected = {_name(keys): leaf.shape for keys, leaf in leaves}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != expected:
        odd = sorted(name for name, _ in expected.items() ^ found.items())
        raise ValueError(
            f"{path} does not hold the weights of this network: {odd[0]!r} has the shape"
            f" {found.get(odd[0])}, expected {expected.get(odd[0])} (None: no such tensor), and"
            f" {len(set(odd)) - 1} more differ; give a file that `unet.save` wrote."
        )
    values = [jnp.asarray(tensors[_name(keys)], jnp.float32) for keys, _ in leaves]
    return model_fn, jax.tree_util.tree_unflatten(treedef, values)
