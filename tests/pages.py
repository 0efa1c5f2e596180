"""The examples of the pages: which blocks of Python run together, and what they need."""

import ast
import importlib.util
import re

import pytest

# A block whose first line begins so goes on where the block before it on its page ended, or where
# the first one of its page did; every other block runs alone.
CONTINUES = "# Continues "
AFTER_THE_FIRST = "# After the first block"
# Not in the extra "test": an example that imports one of them is skipped where it is absent.
OPTIONAL = {"equinox", "haiku", "torch", "torchax", "keras", "keras_hub"}


def examples_of(text: str) -> list[str]:
    """The examples of a page: blocks of Python, each joined with those that continue it.

    Blank lines keep every line at its number in the page.
    """
    examples: list[str] = []
    first = ""
    for block in re.finditer(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        lines_before = text[: block.start(1)].count("\n")
        continues = block[1].startswith(CONTINUES)
        start = examples.pop() if continues and examples else ""
        if block[1].startswith(AFTER_THE_FIRST):
            start = first
        blank = "\n" * (lines_before - start.count("\n"))
        examples.append(start + blank + block[1])
        first = first or examples[0]
    return examples


def skip_without_its_libraries(example: str) -> None:
    """Skips the test of an example that imports a library which is not installed."""
    named: list[str] = []
    for node in ast.walk(ast.parse(example)):
        if isinstance(node, ast.Import):
            named += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            named.append(str(node.module))
    for root in {name.partition(".")[0] for name in named} & OPTIONAL:
        if importlib.util.find_spec(root) is None:
            pytest.skip(f"{root} comes with the extra 'networks'")
