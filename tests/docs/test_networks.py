"""The recipes of docs/networks.md, read from there: the library's own call by hand, one program
for other weights, levels and conditions, and no weight in it as a constant."""

import functools
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pages import examples_of, skip_without_its_libraries
from programs import compilations, sub_jaxprs
from samplers import relative_error

pytest.importorskip("flax", reason="most recipes on the page are of its networks")

import kdiff_jax as kd

PAGE = Path(__file__).parents[2] / "docs" / "networks.md"
TEXT = PAGE.read_text(encoding="utf-8")
ENDS = [block.end() for block in re.finditer(r"^```python\n.*?^```", TEXT, re.M | re.S)]


def of_torch(n, x, timestep, cond):
    import torch

    with torch.no_grad():
        return n.network(*(torch.tensor(np.asarray(value)) for value in (x, timestep))).numpy()


def of_sdxl(n, x, timestep, cond):
    def out(cond):
        return n.network.apply(n.params, x, timestep, cond["text"], cond["added"])

    uncond = jax.tree.map(lambda value, of: jnp.broadcast_to(value, of.shape), n.uncond, cond)
    return out(uncond) + 7.5 * (out(cond) - out(uncond))


def of_keras(n, x, timestep, cond):
    return np.asarray(n.network({"latent": x, "timestep": timestep[:, None], **cond}))


def of_controlnet(n, x, timestep, cond):
    residuals = n.controlnet.apply(n.params["controlnet"], x, timestep, cond["image"])
    scaled = [jax.vmap(jnp.multiply)(cond["scale"], residual) for residual in residuals]
    return n.unet.apply(n.params["unet"], x, timestep, scaled)


def of_apply(n, x, timestep, cond):
    return n.network.apply(n.params, x, timestep)


# In the order of the page: its network called as its library has it.
NETWORKS = {
    "linen": of_apply,
    "nnx": lambda n, x, timestep, cond: n.network(x, timestep),
    "nnx-split": lambda n, x, timestep, cond: n.network(x, timestep),
    "equinox": lambda n, x, timestep, cond: jnp.stack(
        [n.network(*one) for one in zip(x, timestep, strict=True)]
    ),
    "haiku": of_apply,
    "torchax": of_torch,
    "keras": of_keras,
    "flow": lambda n, x, timestep, cond: n.network.apply(n.params, x, timestep / 1000),
    "sdxl": of_sdxl,
    "controlnet": of_controlnet,
    "t2i-adapter": lambda n, x, timestep, cond: n.unet.apply(
        n.params, x, timestep, n.cond["residuals"]
    ),
}
RECIPES = list(zip(NETWORKS.values(), ENDS[1:], strict=True))


def constants_in(closed):
    """Every array that a program holds as a constant, in it and in the programs inside."""
    seen = [closed.consts]
    for jaxpr in sub_jaxprs(closed.jaxpr):
        for eqn in jaxpr.eqns:
            inner = jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns"))
            seen += [value.consts for value in inner if hasattr(value, "consts")]
            seen.append([v.val for v in eqn.invars if hasattr(v, "val")])
    return [value for values in seen for value in values if np.ndim(value)]


def held_by(denoise, n, params):
    """Whether the program of a run holds arrays as large as the weights, as its constants."""
    program = jax.make_jaxpr(lambda *args: kd.sample(*args))
    closed = program(denoise, params, n.schedule, n.x, None, n.cond)
    weights = [np.size(leaf) for leaf in jax.tree.leaves(params) if np.ndim(leaf) > 1]
    return [np.shape(c) for c in constants_in(closed) if np.size(c) >= min(weights)]


def other(tree, factor=1.25):
    """The same pytree with other numbers in it."""
    return jax.tree.map(
        lambda leaf: leaf * factor if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree
    )


def by_hand(n, network):
    if network not in (of_torch, of_keras):  # NumPy's arrays go into these, and come out
        compiled = jax.jit(functools.partial(network, n))
        network = lambda n, *inputs: compiled(*inputs)  # noqa: E731
    state = kd.init(n.schedule, n.x)
    for row in n.schedule:
        x = state.sample
        timestep = jnp.full(len(x), row.timestep)
        out = jnp.asarray(network(n, row.input_scale * x, timestep, n.cond))
        if n.schedule.flow:
            prediction = kd.Prediction(x - row.sigma * out, x + row.alpha * out)
        else:
            prediction = kd.Prediction((x - row.sigma * out) / row.alpha, out)
        state = kd.step(state, row, prediction)
    return state.sample


@pytest.mark.parametrize(("network", "end"), RECIPES, ids=NETWORKS)
def test_recipe(network, end, caplog):
    example = examples_of(TEXT[:end])[-1]
    skip_without_its_libraries(example)
    names = {"cond": None}
    # A reader pastes into a plain interpreter, where promotion is not strict.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        programs = compilations(caplog, lambda: exec(compile(example, str(PAGE), "exec"), names))
        n = SimpleNamespace(**names)
        runs = [program for program in programs if re.match(r"Compiling (jit\()?run\b", program)]
        assert len(runs) == example.count("kd.sample(")
        calls = [
            [other(tree, factor) for tree in (n.denoise, n.params, n.schedule)]
            + [n.x, None, other(n.cond, factor)]
            for factor in (1.01, 1.02)
        ]
        results: list[jax.Array] = []
        again = compilations(caplog, lambda: results.extend(kd.sample(*call) for call in calls))
        assert again == []
        assert not np.allclose(results[0], results[1], atol=1e-3)
        assert relative_error(n.x0, by_hand(n, network)) < 5e-6
        assert held_by(n.denoise, n, n.params) == []
        # The same network with its weights captured is found out.
        inner = getattr(n.denoise, "denoise", n.denoise)
        captured = kd.denoiser(
            lambda params, *args: inner.model_fn(n.params, *args), inner.prediction_type
        )
        assert held_by(captured, n, n.params)


def test_every_recipe_of_the_table_is_on_the_page():
    rows = re.findall(r"^\| .*\]\(#([\w-]+)\).* \|$", TEXT, re.M)
    assert len(rows) == 9
