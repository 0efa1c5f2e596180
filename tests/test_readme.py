"""The README's Python runs as it stands, from top to bottom, and its links lead somewhere."""

import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def user_defaults():
    # A reader pastes into a plain interpreter, where promotion is not strict.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.usefixtures("user_defaults")
def test_code_blocks_run_in_order():
    names: dict[str, object] = {}
    assert len(BLOCKS) >= 5
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)
    assert names["x0"].shape == (4, 32, 32, 3)  # type: ignore[attr-defined]


def test_local_links_exist():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert not missing


def test_two_commands_stand_once():
    commands = re.findall(r'^pip install -e "\.\[\w+\]" && .*$', README, flags=re.MULTILINE)
    assert [command.split("&& ")[1] for command in commands] == [
        "python examples/digits.py",
        "pytest",
    ]
