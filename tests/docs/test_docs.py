"""The README and the pages of docs/: their code runs, their links and names lead somewhere."""

import pkgutil
import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import jax
import pytest
from pages import examples_of, skip_without_its_libraries

import kdiff_jax as kd
import kdiff_jax.adapters
from kdiff_jax._levels.spacing import SigmaGrid, TimestepGrid
from kdiff_jax.adapters import diffusers as kd_diffusers

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
REFERENCE = sorted((ROOT / "docs" / "api").glob("*.md"))
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), *REFERENCE]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
ADAPTERS = [module.name for module in pkgutil.iter_modules(kdiff_jax.adapters.__path__)]
# What 0.1 had and 0.2 has not.
GONE = [
    "dpm2_schedule",
    "dpm2_ancestral_schedule",
    "euler_schedule",
    "lcm_schedule",
    "img2img_schedule",
    "inversion_schedule",
    "schedule.start_at",
    "schedule.deterministic",
    "general=True",
    "anchorless",
    "unit_alpha",
    "alternating",
    "evaluate_traced_once",
]

EXAMPLES = [
    pytest.param(page, example, id=f"{page.stem}-{number}")
    for page, text in TEXTS.items()
    for number, example in enumerate(examples_of(text))
    if page.stem != "networks"  # test_networks.py runs that page, and looks into what it makes
]


@pytest.fixture
def user_defaults():
    # A reader pastes into a plain interpreter, where promotion is not strict.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.usefixtures("user_defaults")
@pytest.mark.parametrize(("page", "example"), EXAMPLES)
def test_example_runs_and_prints_what_it_says(page, example, capsys):
    skip_without_its_libraries(example)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(example, str(page), "exec"), names)
    expected = re.findall(r"^print\(.*\)  # (.*)$", example, flags=re.MULTILINE)
    assert capsys.readouterr().out.splitlines() == expected


def test_every_block_of_python_is_found():
    fences = sum(text.count("```python") for text in TEXTS.values())
    blocks = re.findall(r"^```python$", "\n".join(TEXTS.values()), flags=re.MULTILINE)
    assert len(blocks) == fences >= 20
    assert len(EXAMPLES) <= fences


def test_blocks_that_continue_are_joined_at_their_lines():
    text = (
        "```python\na = 1\n```\ntext\n```python\n# Continues it.\nb = a\n```\n```python\nc\n```\n"
    )
    assert examples_of(text) == ["\na = 1\n\n\n\n# Continues it.\nb = a\n", "\n" * 9 + "c\n"]
    text += "```python\n# After the first block.\nd = a\n```\n"
    after = "\na = 1\n" + "\n" * 10 + "# After the first block.\nd = a\n"
    assert examples_of(text)[2:] == [after]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_and_headings(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in _anchors(target), f"{page.name} links to {link}"


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_are_named_exist(page):
    names = re.findall(r"`((?:kdiff_jax|tests|examples|benchmarks|docs)/[\w/.]+)`", TEXTS[page])
    names += re.findall(r"\bpython ((?:examples|benchmarks)/[\w/.]+\.py)", TEXTS[page])
    missing = [name for name in names if not (ROOT / name).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_names_exist(page):
    text = TEXTS[page]
    assert not [name for name in GONE if name in text]
    names = set(re.findall(r"\bkd\.([a-zA-Z]\w*)", text))
    assert not {name for name in names if not hasattr(kd, name)}
    members = {
        "noise": dir(kd.noise_schedule()),
        "levels": dir(kd.levels(None, sigmas=[1.0])),
        "schedule": dir(kd.dpm2(kd.levels(None, sigmas=[1.0]))),
        "row": list(kd.Row.__dataclass_fields__),
        "state": list(kd.State.__dataclass_fields__),
        "sampler": dir(kd_diffusers.from_config({"_class_name": "LCMScheduler"})),
    }
    for owner, known in members.items():
        used = set(re.findall(rf"(?<![\w./]){owner}\.(\w+)", text)) - {"md", "py"}
        assert not used - set(known), owner


def test_readme_is_short():
    assert TEXTS[README].count("\n") <= 200


def test_two_commands_stand_once():
    lines = TEXTS[README].splitlines()
    commands = [line for line in lines if re.match(r'pip install -e "\.\[\w+\]" && ', line)]
    assert commands == [
        'pip install -e ".[examples]" && python examples/digits.py',
        'pip install -e ".[test]" && pytest',
    ]


def test_all_grids_are_listed():
    text = TEXTS[ROOT / "docs" / "levels.md"]
    names = [*get_args(SigmaGrid), *get_args(TimestepGrid)]
    assert len(names) == 13
    assert not [name for name in names if f'| `"{name}"` |' not in text]


def test_every_public_name_is_in_the_reference():
    reference = "".join(TEXTS[page] for page in REFERENCE)
    entries = re.findall(r"^\.\. auto(?:class|function):: (\w+)$", reference, flags=re.MULTILINE)
    assert sorted(entries) == sorted(kd.__all__)
    # Of an adapter all that its __all__ holds.
    whole = re.findall(
        r"^\.\. automodule:: ([\w.]+)\n   :members:\n   :imported-members:\n", reference, flags=re.M
    )
    assert {f"kdiff_jax.adapters.{name}" for name in ADAPTERS} <= set(whole)


def test_every_page_is_in_the_contents():
    docs = ROOT / "docs"
    listed = re.findall(r"^[\w/]+$", TEXTS[docs / "index.md"] + TEXTS[docs / "api.md"], flags=re.M)
    pages = {str(page.relative_to(docs).with_suffix("")) for page in PAGES if docs in page.parents}
    assert pages - {"index"} <= set(listed)


def test_addresses_of_files_of_the_repository_lead_to_files():
    texts = [*TEXTS.values(), (ROOT / "pyproject.toml").read_text(encoding="utf-8")]
    paths = re.findall(r"kdiff_jax/(?:blob|tree)/main/([\w./-]+)", "\n".join(texts))
    assert paths
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_one_version():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in settings["project"]
    assert settings["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "kdiff_jax.__version__"}
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\d[\w.]*)", changes, flags=re.MULTILINE)[0] == kd.__version__
