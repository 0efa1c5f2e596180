"""What the command lines of the scripts share: help with defaults, values checked when parsed.

    parser = commands.parser(__doc__)
    parser.add_argument("--steps", type=commands.count, default=12, help="outer steps N")
    parser.add_argument("--output", type=commands.picture, default="out.png", help="the figure")
    with commands.refused(parser):  # what a builder of a schedule refuses
        schedule = kd.dpm2(kd.levels(noise, parser.parse_args().steps))

A default that is a string is parsed as if it had been given, so that a default output is tried too.
"""

import argparse
import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Each default behind its text; none where it is None or a flag that is off."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        if default is None or default is False or default is argparse.SUPPRESS:
            return text
        each = default if isinstance(default, (list, tuple)) else [default]
        shown = " ".join(str(one) for one in each).replace("%", "%%")
        return f"{text} (default: {shown})"


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser that says what the module says of itself."""
    return argparse.ArgumentParser(description=doc, formatter_class=_Formatter)


def _type(name: str, convert: Callable[[str], Any], good: Callable[[Any], bool]) -> Any:
    """The `type` of an option: argparse reports what it refuses and ends with status 2."""

    def parse(text: str) -> Any:
        try:
            value = convert(text)
        except ValueError:
            value = None
        if value is None or not good(value):
            raise argparse.ArgumentTypeError(f"{text!r}; expected {name}")
        return value

    return parse


count = _type("a whole number of at least 1", int, lambda n: n >= 1)
index = _type("a whole number of at least 0", int, lambda n: n >= 0)
seed = _type("a whole number from 0 to 2^32 - 1", int, lambda n: 0 <= n < 2**32)
digit = _type("a digit, 0 to 9", int, lambda n: 0 <= n <= 9)
number = _type("a finite number", float, math.isfinite)
positive = _type("a finite number above 0", float, lambda x: 0 < x < math.inf)
fraction = _type("a number above 0 and at most 1", float, lambda x: 0 < x <= 1)
file = _type("a file that is there", Path, Path.is_file)


def output(text: str) -> Path:
    """A file that can be written, tried now and not after minutes of work; its folder is made."""
    path = Path(text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        with path.open("ab"):
            pass
        if new:
            path.unlink()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written: {error.strerror}") from None
    return path


def picture(text: str) -> Path:
    """An output of a kind that matplotlib draws."""
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = sorted(FigureCanvasBase.get_supported_filetypes())
    if Path(text).suffix[1:] not in kinds:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a name in .{', .'.join(kinds)}")
    return output(text)


def folder(text: str) -> Path:
    """A folder to write into, made if it is not there."""
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written: {error.strerror}") from None
    return path


@contextlib.contextmanager
def refused(parser: argparse.ArgumentParser) -> Iterator[None]:
    """What a value leads to further on, refused as argparse refuses a value: before any work."""
    try:
        yield
    except (ValueError, OSError) as error:
        parser.error(str(error))
