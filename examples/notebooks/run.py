"""Runs the notebooks of this folder, each in a kernel of its own, and saves what they show.

    pip install -e ".[docs]"
    python examples/notebooks/run.py                       # all of them
    python examples/notebooks/run.py your_network.ipynb    # one

An error in a cell, or anything on stderr, as a warning is, ends it and saves nothing. Building the
documentation runs them in the same way, into pages.
"""

import argparse
import base64
import hashlib
import io
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parent
SECONDS = 60  # a cell may take
AT_ONCE = 2  # imports and tracing keep one core busy each


def run(path: Path, out: Path) -> None:
    """Runs the notebook at `path` in its folder and writes it, with its outputs, to `out`."""
    began = time.monotonic()
    book = nbformat.read(path, as_version=4)
    client = NotebookClient(
        book,
        timeout=SECONDS,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    for cell in book.cells:
        for output in cell.get("outputs", ()):
            if output.get("name") == "stderr":
                raise RuntimeError(f"{path.name} warns:\n{output.text}\nin the cell\n{cell.source}")
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])
    # Nothing of the machine, so that running it again changes what it shows and no more.
    book.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python", "pygments_lexer": "ipython3"},  # which knows %pip
        "source": digest(book.cells),
    }
    nbformat.validate(book)
    out.parent.mkdir(exist_ok=True)
    out.write_text(nbformat.writes(book) + "\n", encoding="utf-8", newline="\n")
    print(f"{path.name}: {time.monotonic() - began:.0f} s")


def smaller(png: str) -> str:
    """A figure with 128 colours, in about a third of the bytes: notebooks are kept in git."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(128)
    image.save(file := io.BytesIO(), "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def digest(cells: Sequence[Any]) -> str:
    """What the saved outputs were made from: a hash of the code."""
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return hashlib.sha256("\n\n".join(code).encode()).hexdigest()[:16]


def run_all(paths: Sequence[Path] = (), out: Path = FOLDER) -> None:
    """Runs these notebooks, or all of the folder, into the folder `out`."""
    paths = paths or sorted(FOLDER.glob("*.ipynb"))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda path: run(path, out / path.name), paths))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*", help="their file names; all by default")
    run_all([FOLDER / name for name in parser.parse_args().notebooks])
