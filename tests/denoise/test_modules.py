"""Modules of flax NNX as params: as the arrays that they hold, in every kind of call."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("flax", reason="its modules are params")
from flax import nnx

import kdiff_jax as kd

SCHEDULE = kd.dpm2(kd.levels(kd.noise_schedule("scaled_linear"), 3))
X = jax.random.normal(jax.random.key(0), (2, 4))
DEPTH = 3


class Block(nnx.Module):
    def __init__(self, rngs, dropout=0.0, norm=False):
        self.linear = nnx.Linear(4, 4, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs) if dropout else None
        self.norm = nnx.BatchNorm(4, rngs=rngs) if norm else None

    def __call__(self, x):
        x = jnp.tanh(self.linear(x))
        x = x if self.dropout is None else self.dropout(x)
        return x if self.norm is None else self.norm(x)


class Scanned(nnx.Module):
    """Blocks under nnx.scan, as in the transformers of maxdiffusion."""

    def __init__(self, rngs, **options):
        @nnx.split_rngs(splits=DEPTH)
        @nnx.vmap(in_axes=0, out_axes=0)
        def blocks(rngs):
            return Block(rngs, **options)

        self.blocks = blocks(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def through(x, block):
            return block(x)

        return through(x, self.blocks)


class Compiled(nnx.Module):
    def __init__(self, rngs):
        self.block = Block(rngs)

    def __call__(self, x):
        return nnx.jit(lambda block, x: block(x))(self.block, x)


def model_fn(module, x, timestep):
    return module(x)


DENOISE = kd.denoiser(model_fn)


def of_arrays(arrays, x, timestep):
    """The same blocks, in plain JAX."""
    for i in range(DEPTH):
        x = jnp.tanh(x @ arrays["kernel"][i] + arrays["bias"][i][None])
    return x


@pytest.mark.parametrize("options", [{}, {"dropout": 0.5}], ids=["plain", "dropout"])
def test_a_module_that_scans_inside_is_params_as_its_arrays_are(options):
    module = Scanned(nnx.Rngs(0), **options)
    module.eval()
    linear = module.blocks.linear
    arrays = {"kernel": linear.kernel[...], "bias": linear.bias[...]}
    expected = kd.sample(kd.denoiser(of_arrays), arrays, SCHEDULE, X)
    with_noise = jax.jit(lambda module, x: kd.sample(DENOISE, module, SCHEDULE, x))
    for sampled in (
        kd.sample(DENOISE, module, SCHEDULE, X),
        with_noise(module, X),
        kd.sample(kd.guided(kd.denoiser(lambda m, x, t, c: m(x)), 2.0, 0.0), module, SCHEDULE, X,
                  cond=jnp.ones(2)),
    ):  # fmt: skip
        np.testing.assert_allclose(sampled, expected, rtol=2e-5)
    grads = jax.grad(lambda module: kd.sample(DENOISE, module, SCHEDULE, X).sum())
    if not options:  # a key of dropout has no gradient
        assert np.any(np.asarray(jax.tree.leaves(grads(module))[0]) != 0)


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {"norm": True}], ids=["dropout", "norm"])
@pytest.mark.parametrize("kind", [Scanned, Block])
def test_a_module_in_train_mode_is_told_to_eval(kind, options):
    module = kind(nnx.Rngs(0), **options)
    before = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(module, nnx.BatchStat))]
    for call in (
        lambda: kd.sample(DENOISE, module, SCHEDULE, X),
        lambda: DENOISE(module, X, SCHEDULE[0]),
    ):
        with pytest.raises(ValueError, match=r"wrote into its params at .*\.eval\(\)"):
            call()
    after = jax.tree.leaves(nnx.state(module, nnx.BatchStat))
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))
    module.eval()
    assert np.all(np.isfinite(kd.sample(DENOISE, module, SCHEDULE, X)))


def test_a_module_that_compiles_itself_goes_in_split():
    module = Compiled(nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"nnx\.jit or nnx\.remat .* copy=True"):
        kd.sample(DENOISE, module, SCHEDULE, X)
    graphdef, params = nnx.split(module)

    def merged(params, x, timestep):
        return nnx.merge(graphdef, params, copy=True)(x)

    by_itself = DENOISE(module, X, SCHEDULE[0])  # by hand it holds what it held
    expected = kd.denoiser(merged)(params, X, SCHEDULE[0])
    np.testing.assert_allclose(by_itself.denoised, expected.denoised, rtol=1e-6)
    assert np.all(np.isfinite(kd.sample(kd.denoiser(merged), params, SCHEDULE, X)))


def test_numbers_that_an_object_holds_are_its_own():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Scale:
        value: float

    def writes(scale, x, timestep):
        scale.value *= 2
        return x

    with pytest.raises(ValueError, match="wrote into its params at"):
        kd.denoiser(writes)(Scale(0.5), X, SCHEDULE[0])


def test_dicts_that_a_network_writes_into_stay_the_callers():
    def casts(params, x, timestep):
        params["scale"] = params["scale"].astype(x.dtype)
        return params["scale"] * x

    params = {"scale": jnp.bfloat16(0.5)}
    x0 = kd.sample(kd.denoiser(casts), params, SCHEDULE, X)
    assert params["scale"].dtype == jnp.bfloat16
    plain = kd.sample(kd.denoiser(lambda p, x, t: p * x), jnp.float32(0.5), SCHEDULE, X)
    np.testing.assert_array_equal(x0, plain)
