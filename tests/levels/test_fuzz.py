"""A seeded sample of the random valid calls of `fuzz_levels.py`."""

import fuzz_levels
import pytest


@pytest.mark.filterwarnings("ignore:the noise level .* is far above")
def test_valid_calls_make_sound_tables_or_are_refused_by_name() -> None:
    counts, faults = fuzz_levels.run(500, seed=20)
    assert faults == []
    assert counts["built"] + counts["refused"] == 500
    assert counts["built"] > 400
