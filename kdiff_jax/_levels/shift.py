"""The shift of a rectified flow that follows the size of the image."""

from __future__ import annotations

from typing import Any

from kdiff_jax._arrays import is_traced
from kdiff_jax._checks import check_int, check_number


def dynamic_shift(length: int, low: float, high: float, short: int, long: int) -> float:
    """mu on the line through (short, low) and (long, high), at a number of tokens."""
    length = check_int("image_seq_len", length, 1)
    low, high = check_number("base_shift", low), check_number("max_shift", high)
    short, long = (
        check_int("base_image_seq_len", short, 1),
        check_int("max_image_seq_len", long, 1),
    )
    if short == long:
        raise ValueError(
            f"base_image_seq_len and max_image_seq_len are both {long}; expected two lengths, "
            "through which mu is drawn as a line."
        )
    return low + (length - short) * (high - low) / (long - short)


def check_terminal(shift_terminal: Any) -> Any:
    """None, or the level in (0, 1) that a shifted grid is to end at."""
    if shift_terminal is None:
        return None
    terminal = check_number("shift_terminal", shift_terminal, above=0)
    if not is_traced(terminal) and terminal >= 1:
        raise ValueError(
            f"shift_terminal = {terminal} is no level to end at; expected it in (0, 1)."
        )
    return terminal
