"""The example of Brownian noise, at its smallest size."""

import pytest

for package in ("flax", "safetensors", "matplotlib", "tqdm"):
    pytest.importorskip(package, reason="the examples need the extra 'examples'")

import brownian as example


def test_the_example_draws_its_figure(tmp_path, monkeypatch, capsys):
    path = tmp_path / "brownian.png"
    arguments = ["--steps", "2", "3", "--batch", "2", "--output", str(path)]
    monkeypatch.setattr("sys.argv", ["brownian.py", *arguments])
    example.main()
    assert path.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr()
    assert "16/16" in printed.err  # the bar: 3 and 5 evaluations, with either noise
    independent, on_a_path = printed.out.splitlines()[:2]
    assert independent.startswith("independent noise  2 to 3: ")
    assert on_a_path.startswith("one Brownian path  2 to 3: ")
