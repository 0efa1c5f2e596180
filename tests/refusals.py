"""Tables of calls that are refused: what the message must show, and which refusals they reach."""

import ast
import importlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

import kdiff_jax as kd

# What is called, and a pattern that its message must match: the name of what is wrong, the value
# that was received, and where it is not plain from these, what was expected.
Refusal = tuple[Callable[[], Any], str]

# A message says what to do: what to pass, or what holds.
ADVICE = (
    r"\b(pass|give|take|choose|expected|leave|lower|raise|drop|swap|sort|round|use|stack|pad"
    r"|build|keep|return|slice|cut|churn|reverse|invert|must|needs|cast|wrap|make|name|step|call)\b"
)


def every(refused: list[Refusal]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("call", "message"), refused, ids=[text for _, text in refused])


def check(call: Callable[[], Any], message: str) -> None:
    """The call is refused by name, with what was received and with what to do."""
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)) as refusal:
        call()
    text = str(refusal.value)
    assert re.search(ADVICE, text), f"no advice in {text!r}"
    assert text.endswith((".", "]", ")")), text


def unreached(modules: Iterable[str], refused: Iterable[Refusal]) -> set[str]:
    """The `raise ValueError` of these modules that no call reaches, as "file:line"."""
    root = Path(str(kd.__file__)).parent
    raised = {}
    for module in modules:
        path = Path(str(importlib.import_module(f"kdiff_jax.{module}").__file__))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and "ValueError" in ast.dump(node):
                lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                raised[f"{path.relative_to(root)}:{node.lineno}"] = {(str(path), n) for n in lines}
    reached = {place for call, _ in refused for place in _places(call)}
    return {name for name, lines in raised.items() if not lines & reached}


def _places(call: Callable[[], Any]) -> list[tuple[str, int]]:
    try:
        call()
    except ValueError as error:
        places, trace = [], error.__traceback__
        while trace is not None:
            places.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
            trace = trace.tb_next
        return places
    return []
