"""How the package is built: imports run one way, few packages, short functions and files."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "kdiff_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
# Top to bottom, as in section 8 of the design: a file imports from what stands above it.
ORDER = ["_arrays", "_checks", "_levels", "_table", "_denoise", "_noise", "_run", "plot"]
ORDER += ["adapters"]


def name_of(path):
    """kdiff_jax/_run/step.py is ("_run", "step")."""
    return path.relative_to(PACKAGE).with_suffix("").parts


def imports_of(path):
    """What of the package a file imports, wherever in the file: parts of names, as `name_of`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by the full name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            root, *parts = name.split(".")
            if root == "kdiff_jax":
                yield tuple(parts)


def module_of(parts):
    """The file that an imported name lives in, as `name_of`; () for the package itself."""
    known = {name_of(path) for path in FILES}
    for end in range(len(parts), 0, -1):
        for name in (parts[:end], (*parts[:end], "__init__")):
            if name in known:
                return name
    return ()


def test_every_part_of_the_package_has_its_place():
    assert {name_of(path)[0] for path in FILES} == {"__init__", *ORDER}


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(name_of(path)))
def test_imports_run_one_way(path):
    here = name_of(path)
    if here == ("__init__",):
        return  # the public face, which imports all of them
    for parts in imports_of(path):
        there = module_of(parts)
        if here[0] == "adapters" and there == ():
            continue  # the adapters stand on the public face
        assert there, f"{here} imports {parts}: take it from where it is made"
        assert ORDER.index(there[0]) <= ORDER.index(here[0]), f"{here} imports {there}"


def test_no_file_imports_itself_through_others():
    graph = {name_of(path): {module_of(parts) for parts in imports_of(path)} for path in FILES}

    def reached(name, seen):
        for other in graph.get(name, ()):
            if other not in seen:
                seen.add(other)
                reached(other, seen)
        return seen

    circular = [name for name in graph if name != ("__init__",) and name in reached(name, set())]
    assert circular == []
    # The graph is that of the package: it is not empty, and runs through all of it.
    assert {("_arrays",), ("_table", "row")} < reached(("_run", "sample"), set())


def test_importing_the_package_loads_jax_numpy_and_scipy_only():
    code = """
import sys, jax, jax.numpy, numpy, scipy.special
before = set(sys.modules)
import kdiff_jax
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(new - set(sys.stdlib_module_names)))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = ran.stdout.strip()
    assert set(ast.literal_eval(loaded)) <= {"kdiff_jax", "jax", "numpy", "scipy"}
    assert "kdiff_jax" in loaded


def functions_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def test_every_pytree_of_the_package_is_frozen():
    classes = [
        {ast.unparse(decorator) for decorator in node.decorator_list}
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    pytrees = [names for names in classes if "jax.tree_util.register_dataclass" in names]
    assert len(pytrees) > 20
    assert all(any("frozen=True" in name for name in names) for names in pytrees)


def lines_of(function):
    """The lines of a function with its decorators, without its docstring."""
    first = min([function.lineno, *(node.lineno for node in function.decorator_list)])
    count = function.end_lineno - first + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        count -= docstring.end_lineno - docstring.lineno + 1
    return count


def test_no_function_is_longer_than_60_lines_and_no_file_than_350():
    long = [
        f"{path.name}: {function.name}, {lines_of(function)} lines"
        for path in FILES
        for function in functions_of(path)
        if lines_of(function) > 60
    ]
    long += [path.name for path in FILES if len(path.read_text().splitlines()) > 350]
    assert long == []
    counted = [lines_of(function) for path in FILES for function in functions_of(path)]
    assert len(counted) > 300
    assert max(counted) > 30


def test_samplers_are_at_most_40_lines_without_docstrings():
    for name in ("euler", "dpm2", "lcm"):
        path = PACKAGE / "_table" / f"{name}.py"
        tree = ast.parse(path.read_text())
        public = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name[0] != "_"]
        assert public
        code = sum(lines_of(node) for node in tree.body if isinstance(node, ast.FunctionDef))
        assert code <= 40 * len(public), f"{name}: {code} lines for {len(public)} samplers"
