"""The public names of the adapters: their documentation and how their values print."""

import importlib
import inspect
import pkgutil
import re

import jax.numpy as jnp
import numpy as np
import pytest

import kdiff_jax as kd
import kdiff_jax.adapters
from kdiff_jax.adapters import diffusers as kd_diffusers
from kdiff_jax.adapters import k_diffusion as K

MODULES = [
    importlib.import_module(f"kdiff_jax.adapters.{module.name}")
    for module in pkgutil.iter_modules(kdiff_jax.adapters.__path__)
]
NAMES = {f"{module.__name__}.{name}": module for module in MODULES for name in module.__all__}


@pytest.mark.parametrize("path", NAMES, ids=lambda path: path.removeprefix("kdiff_jax.adapters."))
def test_every_name_has_its_line_an_example_and_a_signature_that_can_be_read(path):
    name = path.rpartition(".")[2]
    value = getattr(NAMES[path], name)
    text = inspect.getdoc(value) or ""
    first, *rest = text.split("\n")
    assert first[-1:] in (".", ":")
    assert not rest or rest[0] == ""
    # One example may serve all classes that extend the one that has it.
    texts = (
        [inspect.getdoc(base) or "" for base in value.mro()] if inspect.isclass(value) else [text]
    )
    assert any(re.search(r"^Example:\n(?:  .*\n|\n)*?  >>> ", text, re.M) for text in texts)
    own = [v for k, v in vars(value).items() if k[0] != "_"] if inspect.isclass(value) else []
    for function in filter(inspect.isfunction, [value, *own]):
        for parameter in inspect.signature(function).parameters.values():
            if parameter.name == "self":
                continue
            # As the source writes it: expanded, ArrayLike alone is ten types and more.
            assert isinstance(parameter.annotation, str), f"{function}: {parameter}"
            assert parameter.annotation.count("|") <= 3, f"{function}: {parameter}"


def values():
    def model(x, *args):
        return x

    abar = kd.noise_schedule("scaled_linear").alphas_cumprod
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    yield kd_diffusers.from_config(flow)
    config = {
        "_class_name": "LCMScheduler",
        "trained_betas": np.linspace(1e-4, 0.02, 1000).tolist(),
    }
    lcm = kd_diffusers.from_config(config)
    yield from (lcm, lcm.denoiser(model), lcm.noise, lcm.levels(4), lcm.schedule(4))
    for quantize in (False, True):
        yield K.DiscreteEpsDDPMDenoiser(model, abar, quantize)
        yield K.DiscreteVDDPMDenoiser(model, abar, quantize)
    yield K.VDenoiser(model)
    yield K.BrownianTreeNoiseSampler(jnp.zeros((64, 8)), 0.03, 14.6, seed=list(range(64)))


def test_values_print_in_at_most_five_lines():
    for value in values():
        text = repr(value)
        assert text.count("\n") < 5, text
        assert len(text) <= 400, text
