"""The speed benchmark's own logic: turns, verdicts, missing rivals. Never its seconds."""

import functools
import json
from typing import Any

import numpy as np
import pytest

import figures
import speed
from timing import Candidate, Effort, paired, record


def test_candidates_take_turns_and_the_second_run_of_a_turn_is_timed():
    order: list[str] = []
    runs = {name: Candidate(functools.partial(order.append, name)) for name in "ab"}
    seconds = paired(runs, Effort(seconds=0.0, rounds=4, first_calls=1))
    assert "".join(order) == "aabb" + 4 * "aabb"
    assert [len(values) for values in seconds.values()] == [4, 4]


def test_what_prepares_a_run_is_called_before_each():
    count = []
    run = Candidate(lambda: count.append("run"), lambda: count.append("ready"))
    paired({"a": run}, Effort(seconds=0.0, rounds=3, first_calls=1))
    assert count == ["ready", "run"] * (2 + 2 * 3)


def test_a_figure_is_the_median_of_ratios_within_a_round():
    # The machine is ten times slower in the second round; the ratio does not see it.
    seconds = {"kdiff_jax": np.array([1.0, 10.0, 2.0]), "other": np.array([3.0, 30.0, 6.0])}
    assert record(seconds, "other", "kdiff_jax")["value"] == pytest.approx(3.0)


def case(*values, others=0.0):
    repetitions = [{"bare network": {"value": v, "us": {}}} for v in values]
    return {"repetitions": repetitions, "others": [others] * len(values), "sources": "0"}


def test_verdicts():
    found = figures.summarise("bare network", case(1.0, 1.5, 1.01))
    assert (found["value"], found["low"], found["high"]) == (1.01, 1.0, 1.5)
    assert found["verdict"] == "met"
    assert figures.summarise("bare network", case(1.03))["verdict"] == "missed"
    assert figures.summarise("bare network", case(1.0, others=0.5))["disturbed"] == 1
    assert figures.FIGURES["diffusers dpm2 64 KB"].met(20.0)
    assert not figures.FIGURES["diffusers dpm2 64 KB"].met(19.9)


def test_a_missing_rival_leaves_its_rows_and_says_why():
    content: dict[str, Any] = {"machine": None, "modes": {}}
    results = {"dewml": {"not_measured": "dew cannot be imported here", "others": 0.0}}
    machine = {"processor": "p", "cores": 1, "python": "3", "versions": {}}
    speed.add(content, "one", {"machine": machine, "sources": "0", "results": results})
    assert "not measured: dew cannot be imported here" in figures.markdown(content)


def test_figures_of_two_machines_do_not_meet_in_one_file():
    content = {"machine": {"cores": 1}, "modes": {"one": {"copyto": case(1.0)}}}
    with pytest.raises(ValueError, match="do not belong"):
        speed.add(content, "one", {"machine": {"cores": 2}, "sources": "0", "results": {}})


def test_every_figure_has_a_case():
    source = (speed.FOLDER / "cases.py").read_text()
    for spec in figures.FIGURES.values():
        assert f'"{spec.case}": ' in source


def test_what_is_measured_again_leaves_the_other_mode_alone(tmp_path):
    path = tmp_path / "speed.json"
    cases = {"copyto": case(1.0), "table": case(2.0)}
    path.write_text(json.dumps({"machine": None, "modes": {"one": cases, "default": cases}}))
    kept = speed.restore(path, ["copyto"], ["default"])["modes"]
    assert set(kept["one"]) == {"copyto", "table"}
    assert set(kept["default"]) == {"table"}
