"""The notebooks as they are saved: whole, quiet, of no machine, on names that exist.

They are executed where the documentation is built, by `examples/notebooks/run.py`.
"""

import ast
import hashlib
import importlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATHS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
BOOKS = {path: json.loads(path.read_text(encoding="utf-8")) for path in PATHS}
REPOSITORY = "https://github.com/kdiff-jax/kdiff_jax"
COLAB = REPOSITORY.replace("github.com", "colab.research.google.com/github")
TPU = "For a TPU: *Runtime > Change runtime type*"
MACHINE = re.compile(r"/(?:home|root|tmp|Users|usr|opt|mnt|content)/|[A-Z]:\\\\")
each_book = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def cells(path, kind):
    return [cell for cell in BOOKS[path]["cells"] if cell["cell_type"] == kind]


def code_of(path):
    """The code of each cell, without lines that IPython alone reads, as %pip is."""
    sources = ["".join(cell["source"]) for cell in cells(path, "code")]
    return [re.sub(r"^( *)[%!].*$", r"\1pass", source, flags=re.MULTILINE) for source in sources]


@each_book
def test_it_was_run_from_its_first_cell_to_its_last_and_saved_by_the_script(path):
    book, code = BOOKS[path], cells(path, "code")
    assert (book["nbformat"], book["metadata"]["kernelspec"]["name"]) == (4, "python3")
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    text = "\n\n".join("".join(cell["source"]) for cell in code)
    made_from = hashlib.sha256(text.encode()).hexdigest()[:16]
    advice = f"its code has changed: python examples/notebooks/run.py {path.name}"
    assert book["metadata"]["source"] == made_from, advice
    assert all(cell["metadata"] == {} for cell in book["cells"])  # no times


@each_book
def test_it_shows_figures_and_neither_warnings_nor_errors(path):
    outputs = [output for cell in cells(path, "code") for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [out for out in outputs if out["output_type"] == "error"]
    assert not [out for out in outputs if out.get("name") == "stderr"]
    assert path.stat().st_size <= 300_000


@each_book
def test_it_names_no_path_of_a_machine(path):
    text = re.sub(r'"image/png": "[^"]*"', "", path.read_text(encoding="utf-8"))
    assert not MACHINE.search(text)


@each_book
def test_it_opens_in_colab_on_a_tpu(path):
    first = "".join(BOOKS[path]["cells"][0]["source"])
    assert first.startswith("# ")
    assert f"({COLAB}/blob/main/examples/notebooks/{path.name})" in first
    assert TPU in first
    assert 'if "google.colab" in sys.modules:' in code_of(path)[0]


@each_book
def test_its_names_and_its_links_exist(path):
    tree = ast.parse("\n".join(code_of(path)))
    names = {("kdiff_jax", name) for name in re.findall(r"\bkd\.(\w+)", ast.unparse(tree))}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("kdiff_jax"):
            names |= {(str(node.module), alias.name) for alias in node.names}
    text = "".join(line for cell in cells(path, "markdown") for line in cell["source"])
    names |= {("kdiff_jax", name) for name in re.findall(r"`kd\.(\w+)", text)}
    assert len(names) > 3
    for module, name in sorted(names):
        if not hasattr(importlib.import_module(module), name):
            importlib.import_module(f"{module}.{name}")
    files = re.findall(rf"\]\({REPOSITORY}/blob/main/([^)#]+)", text)
    assert files
    assert not [name for name in files if not (ROOT / name).exists()]
    assert "](.." not in text  # such links lead nowhere in Colab


def test_all_of_them_are_pages():
    assert len(PATHS) >= 2
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert re.search(r":glob:\n(?:.*\n)*?\nnotebooks/\*$", index, flags=re.MULTILINE)
