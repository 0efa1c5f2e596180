"""What quality.py measures against direct formulas, and its published figures against its file."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

for package in ("flax", "optax", "safetensors", "matplotlib", "tqdm"):
    pytest.importorskip(package, reason="the examples need the extra 'examples'")

import classifier
import digits
import judges
import kdiff_jax as kd
import quality_report

ROOT = Path(__file__).parents[2]
FILE = ROOT / "benchmarks" / "results" / "quality.json"
MORE = FILE.with_name("quality_5000.json")
SCALES = (1.0, 1.5)  # of guidance


def test_every_sampler_of_the_library_is_one_of_the_digits_and_of_the_figure():
    # A sampler is what is called with levels alone.
    takers = {
        name
        for name in kd.__all__
        if next(iter(getattr(getattr(kd, name), "__annotations__", {}).items()), None)
        == ("levels", "Levels")
    }
    assert set(digits.SAMPLERS) == takers
    assert {line.sampler for line in quality_report.LINES.values()} == takers


@pytest.mark.parametrize("name", digits.SAMPLERS)
def test_calls_of_a_step(name):
    schedule = digits.digits_schedule(name, 3)
    assert schedule.num_rows == (5 if name in digits.TWO_CALLS else 3)
    if name in digits.WITH_ETA:
        weight = digits.digits_schedule(name, 3, eta=0.0).rows.noise_weight
        assert weight is not None
        assert not np.any(np.asarray(weight))


def test_error_of_a_mean_is_that_of_its_parts():
    parts = np.random.default_rng(0).normal(size=(judges.PARTS, 7)).mean(axis=1)
    without = [float(np.delete(parts, i).mean()) for i in range(judges.PARTS)]
    expected = parts.std(ddof=1) / np.sqrt(judges.PARTS)
    np.testing.assert_allclose(judges.error({"without": without}), expected, rtol=1e-12)
    # Common to both, the parts say nothing of a difference.
    other = {"value": 0.0, "without": [one + 5 for one in without]}
    assert judges.error({"without": without}, other) < 1e-12


def test_measures_are_those_of_their_definitions():
    rng = np.random.default_rng(1)
    test, seen = rng.normal(size=(240, 3)), rng.normal(0.5, 0.8, (200, 3))
    classes, labels = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    judge = judges.Judge(lambda images: (seen, classes), test, {})
    found = judge.measure(np.zeros((200, 1)), labels)

    def recall(samples):
        distance = np.linalg.norm(samples[:, None] - samples, axis=2)
        radius = np.sort(distance, axis=1)[:, judges.NEIGHBOUR]  # the 0th is the sample itself
        across = np.linalg.norm(samples[:, None] - test[:: judges.EVERY], axis=2)
        return (across <= radius[:, None]).any(axis=0).mean()

    keep = np.arange(200) // 10 % 10 != 4
    assert 0 < found["recall"]["value"] < 1
    assert found["recall"]["value"] == pytest.approx(recall(seen), abs=1e-5)
    assert found["recall"]["without"][4] == pytest.approx(recall(seen[keep]), abs=1e-5)
    assert found["agreement"]["value"] == np.mean(classes == labels)
    whole = classifier.frechet_distance(classifier.statistics(seen), classifier.statistics(test))
    assert found["frechet"]["value"] == pytest.approx(whole, rel=1e-4)


def by_case(results):
    return {(r["sampler"], r["budget"], r["guidance"]): r for r in results}


def test_published_figures_are_those_of_the_file():
    content = json.loads(FILE.read_text())
    results, real = content["results"], content["real"]
    at = by_case(results)
    assert len(at) == len(results)  # one number of samples, one seed, one grid
    page = (ROOT / "docs" / "quality.md").read_text()
    for scale in SCALES:
        part = quality_report.guided_by(results, scale)
        assert quality_report.table(part, real) in page
        assert quality_report.findings(part) in page
        assert (FILE.parent / quality_report.figure_name(scale)).is_file()
        assert quality_report.figure_name(scale) in page
    assert quality_report.errors_of(results) in page
    readme = (ROOT / "README.md").read_text().split("### Which one")[1].split("\n## ")[0]
    cells = r"^\| (\d+).*? \| `kd\.(\w+)\((.*?)\)` \| (.*?) \| (.*?) \|$"
    rows = re.findall(cells, readme, re.MULTILINE)
    assert len(rows) == readme.count("\n| ") - 1
    for budget, sampler, options, *shown in rows:
        eta = 1.0 if "eta=1.0" in options else None
        lines = quality_report.LINES.items()
        (name,) = (n for n, x in lines if (x.sampler, x.eta) == (sampler, eta))
        for scale, cell in zip(SCALES, shown, strict=True):
            assert cell == " / ".join(quality_report.distances(at[name, int(budget), scale], real))


def test_what_is_said_of_all_judges_is_what_all_judges_say():
    at = by_case(json.loads(FILE.read_text())["results"])
    budgets = {
        scale: sorted({b for n, b, s in at if (n, s) == ("euler", scale)}) for scale in SCALES
    }
    assert budgets == {1.0: [4, 6, 8, 12, 16, 24, 50], 1.5: [4, 8, 12, 24]}
    names = [n for n, b, s in at if (b, s) == (4, 1.0) and n not in ("lcm", "tcd")]
    assert len(names) == 11
    ahead = quality_report.all_agree
    for scale in SCALES:
        for budget in budgets[scale]:
            here = {name: at[name, budget, scale] for name in names}
            assert not any(ahead(here[name], here["unipc"]) for name in names)
            everyone = not any(ahead(here[a], here[b]) for a in names for b in names)
            assert everyone == (scale == 1.0 and budget >= 24)
        for budget in (4, 6) if scale == 1.0 else (4, 8):
            for name in ("heun", "dpm2", "dpm2_ancestral", "dpmpp_2s_ancestral"):
                assert ahead(at["euler", budget, scale], at[name, budget, scale]), name
        for name in names:
            assert ahead(at["lcm", 4, scale], at[name, 4, scale]), name
        for budget in (8, 12):
            with_noise = at["dpmpp_2m_sde", budget, scale]
            assert ahead(with_noise, at["dpmpp_3m_sde", budget, scale])
        for budget in (1, 2, 4, 8):
            pair = at["lcm", budget, scale], at["tcd", budget, scale]
            assert not ahead(*pair)
            assert not ahead(*pair[::-1])


def seen(first, second, measure="frechet"):
    """Whether each judge sees the first lower."""
    return [
        judges.beats(first["judges"][judge], second["judges"][judge], measure)
        for judge in quality_report.JUDGES
    ]


def test_what_is_said_of_each_judge():
    at = by_case(json.loads(FILE.read_text())["results"])
    for budget in (8, 12, 16, 24, 50):
        assert not any(seen(at["unipc", budget, 1.0], at["unipc", 6, 1.0]))
    assert all(seen(at["unipc", 12, 1.5], at["unipc", 8, 1.5]))
    assert not all(seen(at["unipc", 24, 1.5], at["unipc", 12, 1.5]))
    for name in ("euler", "dpmpp_2m", "dpmpp_2m_sde", "unipc"):
        for budget in (4, 8, 12, 24):
            assert all(seen(at[name, budget, 1.5], at[name, budget, 1.0], "recall"))
    both = [True, True, False]  # the classifiers, not the pixels
    assert seen(at["dpmpp_2m_sde", 12, 1.0], at["dpmpp_2m", 12, 1.0]) == both
    for budget in (24, 50):
        assert seen(at["dpmpp_sde", budget, 1.0], at["unipc", budget, 1.0]) == both


def test_what_an_earlier_judge_had_found():
    content = json.loads(FILE.read_text())
    at, page = by_case(content["results"]), (ROOT / "docs" / "quality.md").read_text()

    def values(name, budget, measure="frechet", scale=1.5):
        found = at[name, budget, scale]["judges"]
        return np.array([found[judge][measure]["value"] for judge in quality_report.JUDGES])

    for scale in SCALES:
        assert not any(seen(at["dpm2", 12, scale], at["dpm2", 24, scale]))
        expected = [scale == 1.0, True, True]
        assert seen(at["dpm2", 24, scale], at["dpm2", 12, scale]) == expected
        runs = [b for n, b, s in at if (n, s) == ("dpm2", scale)]
        best = np.min([values("dpm2", budget, scale=scale) for budget in runs], axis=0)
        ratio = values("lcm", 4, scale=scale) / best
        assert " / ".join(f"{one:.1f}" for one in ratio) in page
    for budget, last in ((12, [True, False, True]), (24, [True, True, True])):
        others = np.maximum(values("dpm2", budget), values("lcm", 4))
        np.testing.assert_array_equal(values("euler", budget) > others, last)
    assert all(seen(at["dpm2", 24, 1.5], at["euler", 24, 1.5]))
    assert not any(seen(at["lcm", 4, 1.5], at["euler", 24, 1.5]))

    real = {"judges": content["real"]}
    order = [at["euler", 12, 1.5], at["lcm", 4, 1.5], at["dpm2", 12, 1.5], real]
    for low, high in itertools.pairwise(order):
        for judge in quality_report.JUDGES:
            recalls = [one["judges"][judge]["recall"]["value"] for one in (low, high)]
            assert recalls[0] < recalls[1]
    assert all(seen(order[0], order[1], "recall"))
    assert all(seen(order[1], real, "recall"))
    assert not all(seen(order[1], order[2], "recall"))
    assert not all(seen(order[2], real, "recall"))
    assert not any(seen(at["euler", 24, 1.5], order[1], "recall"))
    for name, budget in (("lcm", 4), ("euler", 12), ("dpm2", 12)):
        shown = " / ".join(f"{100 * one:.0f}" for one in values(name, budget, "recall"))
        title = quality_report.LINES[name].title.split(",")[0]
        assert f"{title} {shown}" in page


def test_more_samples_give_the_same_order():
    small, big = (json.loads(file.read_text()) for file in (FILE, MORE))
    page = (ROOT / "docs" / "quality.md").read_text()
    for content, samples in ((small, 1000), (big, 5000)):
        assert content["made_with"]["samples"] == samples
        assert {r["samples"] for r in content["results"]} == {samples}
    few, many = by_case(small["results"]), by_case(big["results"])
    three, rest = ("dpmpp_2m", "unipc", "dpmpp_2m_sde"), ("euler", "dpmpp_sde")
    assert {(name, b) for name, b, _ in many} == {
        *((name, 8) for name in three + rest),
        *((name, 12) for name in three),
    }
    for one, other in itertools.permutations(many, 2):
        if one[1] == other[1]:
            in_few = quality_report.all_agree(few[one], few[other])
            assert in_few == quality_report.all_agree(many[one], many[other]), (one, other)
            if one[0] in three:
                assert in_few == (other[0] in rest)
    for (name, budget, scale), result in many.items():
        for judge in quality_report.JUDGES:
            larger = quality_report.multiple(result, big["real"], judge)
            assert larger > quality_report.multiple(few[name, budget, scale], small["real"], judge)
        if budget == 12:
            cell = " / ".join(quality_report.distances(result, big["real"]))
            assert f"{quality_report.LINES[name].title} {cell}" in page
