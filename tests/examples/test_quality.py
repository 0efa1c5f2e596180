"""What quality.py measures against direct formulas, and its published figures against its file."""

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


def test_published_figures_are_those_of_the_file():
    content = json.loads(FILE.read_text())
    page = (ROOT / "docs" / "quality.md").read_text()
    assert quality_report.table(content["results"], content["real"]) in page
    assert quality_report.findings(content["results"]) in page
    readme = (ROOT / "README.md").read_text().split("### Which one")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+).*? \| `kd\.(\w+)\((.*?)\)`.* \| (.*?) \|$", readme, re.MULTILINE)
    assert len(rows) == readme.count("\n| ") - 1
    for budget, sampler, options, cell in rows:
        eta = 1.0 if "eta=1.0" in options else None
        names = [n for n, x in quality_report.LINES.items() if (x.sampler, x.eta) == (sampler, eta)]
        (result,) = (
            r for r in content["results"] if r["sampler"] in names and r["budget"] == int(budget)
        )
        assert cell == " / ".join(quality_report.distances(result, content["real"]))


def test_what_the_readme_says_of_few_calls_is_what_all_judges_say():
    results = json.loads(FILE.read_text())["results"]
    at = {(r["sampler"], r["budget"]): r for r in results}
    for budget in (4, 6):
        rest = {name for name, calls in at if calls == budget} - {"lcm", "tcd", "unipc", "dpmpp_2m"}
        for name in rest:
            assert quality_report.all_agree(at["unipc", budget], at[name, budget]), name
        for name in ("heun", "dpm2", "dpm2_ancestral", "dpmpp_2s_ancestral"):
            assert quality_report.all_agree(at["euler", budget], at[name, budget]), name
    for budget in (8, 12):
        assert quality_report.all_agree(at["dpmpp_2m_sde", budget], at["dpmpp_3m_sde", budget])
    sampled = [r for r in results if not quality_report.distilled(r) and r["budget"] == 24]
    assert len(sampled) == 11
    assert not any(quality_report.all_agree(a, b) for a in sampled for b in sampled)
    with_noise, without = at["dpmpp_2m_sde", 12], at["dpmpp_2m", 12]
    assert not quality_report.all_agree(with_noise, without)
    assert not quality_report.all_agree(without, with_noise)
