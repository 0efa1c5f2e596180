"""The bar in a Jupyter kernel ends at 100 %, in the cell of the call and not in the next one."""

import importlib.util
from pathlib import Path

import pytest

for package in ("nbclient", "ipykernel", "tqdm"):
    pytest.importorskip(package, reason="a real kernel needs the extra 'docs'")

import nbformat
from nbclient import NotebookClient

WITH_WIDGETS = pytest.mark.skipif(
    importlib.util.find_spec("ipywidgets") is None, reason="ipywidgets draws this kind of bar"
)
SETUP = """
import sys, time, warnings
if not {widgets}:
    sys.modules["ipywidgets"] = None
    warnings.simplefilter("ignore")  # tqdm's, that it is not there
import jax, jax.numpy as jnp
import kdiff_jax as kd

def model_fn(params, x, timestep):
    def slow(x):
        time.sleep(0.03)
        return x
    return jax.pure_callback(slow, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

run = None, kd.dpm2(kd.levels(kd.noise_schedule(), 5)), jnp.ones((2, 8))
denoise = kd.denoiser(model_fn)
"""
CALLS = [f"a = kd.sample(denoise, *run, progress={name!r})" for name in ("first", "second")]


@pytest.mark.parametrize("widgets", [False, pytest.param(True, marks=WITH_WIDGETS)])
def test_every_bar_ends_in_the_cell_of_its_call(widgets):
    sources = [SETUP.format(widgets=widgets), *CALLS, "time.sleep(0.5)\nprint('after')"]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in sources])
    root = {"metadata": {"path": str(Path(__file__).parents[2])}}
    NotebookClient(book, timeout=60, kernel_name="python3", resources=root).execute()
    setup, first, second, after = (cell.outputs for cell in book.cells)
    assert setup == []
    assert [output.text for output in after] == ["after\n"]
    for outputs, name in ((first, "first"), (second, "second")):
        if widgets:
            (shown,) = outputs
            saved = book.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"]
            box = shown.data["application/vnd.jupyter.widget-view+json"]["model_id"]
            parts = [key.removeprefix("IPY_MODEL_") for key in saved[box]["state"]["children"]]
            left, bar, _ = (saved[part]["state"] for part in parts)
            assert (bar["value"], bar["max"], bar["bar_style"]) == (9, 9, "success")
            assert left["value"].startswith(name)
        else:
            text = "".join(output.text for output in outputs).splitlines()[-1]
            assert text.startswith(f"{name}: 100%")
            assert " 9/9 " in text
