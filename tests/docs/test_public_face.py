"""What a user sees of the package: the names, their documentation, and how values print."""

import ast
import inspect
import pydoc
import re
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kdiff_jax as kd

FUNCTIONS = {name: getattr(kd, name) for name in kd.__all__ if name[0].islower()}
CLASSES = {name: getattr(kd, name) for name in kd.__all__ if name[0].isupper()}
every_function = pytest.mark.parametrize("name", FUNCTIONS)


# --- names -----------------------------------------------------------------------------------


def test_all_names_everything_that_is_public_once_in_reading_order():
    public = {
        name
        for name, value in vars(kd).items()
        if name[0] != "_" and not isinstance(value, types.ModuleType)
    }
    assert set(kd.__all__) == public
    tree = ast.parse(Path(kd.__file__).read_text())
    imported = [
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert kd.__all__ == imported
    assert len(set(imported)) == len(imported)
    # noise, levels, tables, denoisers, noise of a run, the run.
    places = [kd.__all__.index(n) for n in ("levels", "dpm2", "denoiser", "row_noise", "sample")]
    assert places == sorted(places)


def test_names_are_functions_and_classes_and_have_their_names():
    assert all(inspect.isfunction(value) for value in FUNCTIONS.values())
    assert all(inspect.isclass(value) for value in CLASSES.values())
    assert all(value.__name__ == name for name, value in (FUNCTIONS | CLASSES).items())


# --- documentation ---------------------------------------------------------------------------


def section(text, name):
    """What stands in a section of a docstring, without its indent."""
    found = re.search(rf"^{name}:\n((?:  .*\n|\n)*)", text + "\n", re.M)
    return "" if found is None else found[1]


@every_function
def test_every_function_has_its_arguments_its_result_and_an_example(name):
    function = FUNCTIONS[name]
    text = inspect.getdoc(function)
    assert text
    first, *rest = text.split("\n")
    assert first[-1] in ".:", "one line that says what it is"
    assert len(first) <= 100
    assert not rest or rest[0] == ""
    assert f"kd.{name}(" in section(text, "Example")
    # A grid may name the one whose arguments and result it shares.
    if shared := re.search(r"^(?:Args|Returns).*as for `(\w+)`", text, re.M):
        assert shared[1] in FUNCTIONS
        text += f"\n{inspect.getdoc(FUNCTIONS[shared[1]])}"
    documented = section(text, "Args")
    for parameter in inspect.signature(function).parameters:
        assert re.search(rf"^  (?:\w+, )*{parameter}(?:, \w+)*:", documented, re.M), parameter
    assert section(text, "Returns")


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_says_what_it_is_and_what_it_holds(name):
    text = inspect.getdoc(CLASSES[name]) or ""
    assert text.split("\n")[0][-1] in ".:"
    assert ">>> " in section(text, "Example")
    if "Attributes:" not in text:
        assert "made by `kd." in text.lower()
        return
    held = section(text, "Attributes")
    for field in CLASSES[name].__dataclass_fields__:
        assert re.search(rf"^  (?:\w+, )*{field}(?:, \w+)*:", held, re.M), field


def test_help_shows_the_public_names_with_signatures_that_can_be_read():
    shown = pydoc.plain(pydoc.render_doc(kd))
    for name, function in FUNCTIONS.items():
        assert f"    {name}(" in shown
        for parameter in inspect.signature(function).parameters.values():
            annotation = str(parameter.annotation)
            # ArrayLike and the like are names here; expanded they are ten types and more.
            assert annotation.count("|") <= 2, f"{name}: {annotation}"
            assert len(annotation) <= 70, f"{name}: {annotation}"
    assert "numpy.number" not in shown
    for name in CLASSES:
        assert f"class {name}(" in shown


# --- how values print ------------------------------------------------------------------------

NOISE, FLOW = kd.noise_schedule("scaled_linear"), kd.flow_schedule(shift=3.0)
LEVELS = kd.levels(NOISE, 25, grid="karras")
BATCH = jnp.ones((64, 3, 64))


def model_fn(params, x, timestep, cond=None):
    return x


def schedules():
    table = kd.dpm2(LEVELS)
    yield from (table, table.pad(199), table[7:], kd.stack([table] * 64))
    yield kd.stack([kd.stack([table] * 3)] * 64)
    yield from (kd.dpm2_ancestral(kd.levels(FLOW, 25)), kd.lcm(kd.lcm_levels(NOISE, 4)))
    yield kd.unipc(kd.levels(NOISE, 1000))


def values():
    yield from (NOISE, FLOW, kd.noise_schedule("linear", 100))
    yield kd.Prediction(BATCH, BATCH)
    yield from (LEVELS, LEVELS.start_at(3), LEVELS.end_at(3), LEVELS.reversed())
    yield from (LEVELS.churned(0.5), kd.levels(FLOW, 200), kd.levels(None, sigmas=[3.0, 2.0]))
    for table in schedules():
        yield from (table, table.rows)
    yield from (kd.State(BATCH), kd.State(BATCH, BATCH), kd.State(BATCH, None, BATCH, BATCH))
    table = kd.dpm2(LEVELS)
    yield from (table[3], table.rows_at(np.arange(64)), table.rows_at(np.zeros((64, 3), int)))
    base = kd.denoiser(model_fn, "v_prediction", jnp.bfloat16)
    guided = kd.guided(base, jnp.ones(64), {"uncond": BATCH}, rescale=0.7, interval=(1.0, 5.0))
    yield from (base, guided, kd.guided(base, 7.5, None), kd.continuous(base, "angle"))
    yield from (kd.edm_denoiser(model_fn), kd.clipped(guided, 2.0), kd.thresholded(base))
    yield from (kd.consistency(kd.clipped(guided)), kd.inpainted(base, BATCH, BATCH, BATCH))
    yield from (kd.cfg_plus_plus(base, jnp.ones(64), BATCH), kd.autoguided(base, 2.0))
    yield kd.projected(guided, 7.5, 0, norm_threshold=jnp.ones(64), batched=False)
    yield kd.inpainted(kd.consistency(guided), 0.5, BATCH[:, :, :1])
    yield from (kd.given_noise(BATCH), kd.brownian_noise(0.03, 14.6), kd.clipped_noise(2.5))


def test_values_print_in_at_most_two_lines():
    for value in values():
        text = repr(value)
        assert text.count("\n") <= 1, text
        assert len(text) <= 200, text
        assert text.startswith(type(value).__name__), text
    assert repr(kd.dpm2(LEVELS)) == "Schedule(25 steps, 49 rows, sigma 14.61 .. 0.02917)"
    assert repr(LEVELS) == "Levels(25 steps, sigma 14.61 .. 0.02917 .. 0)"
    assert repr(kd.State(BATCH)) == "State(sample: float32[64, 3, 64])"


def test_values_print_while_they_are_traced_and_as_trees_of_other_leaves():
    printed: list[str] = []

    @jax.jit
    def run(table, levels, state):
        printed.extend(repr(value) for value in (table, table.rows, table[0], levels, state))
        return table.sigmas

    for table in schedules():
        if table.rows.index.ndim == 1:
            run(table, LEVELS, kd.State(BATCH, BATCH))
        for name in (None, "a name", object()):
            tree = jax.tree.map(lambda leaf, name=name: name, (table, table.rows, LEVELS))
            printed.extend(map(repr, tree))
    assert len(printed) > 50
    assert all(text.count("\n") <= 1 and len(text) <= 300 for text in printed)
