"""The example of inversion: the digit returns, its noise is Gaussian, another class is another."""

import numpy as np
import pytest

for package in ("flax", "optax", "safetensors", "matplotlib", "tqdm"):
    pytest.importorskip(package, reason="the examples need the extra 'examples'")

import img2img
import invert
import scripts


def test_the_digit_returns_and_another_class_does_not(tmp_path, monkeypatch, capsys):
    output, image = tmp_path / "invert.png", np.asarray(img2img.load_image(img2img.IMAGE))
    ups, downs = (scripts.kept_calls(monkeypatch, invert, name) for name in ("invert", "back"))
    # The table of errors by a run of the same size, whose programs are there already.
    monkeypatch.setattr(invert, "COUNTS", {"dpm2": (12,)})
    printed = scripts.run(invert, "--steps", "13", "--skip", "1", "--output", str(output))
    assert scripts.is_picture(output)
    assert "with its lowest noise: noise of deviation" in printed
    assert "DPM2, 12 steps, 45 evaluations" in printed
    assert "3/3" in capsys.readouterr().err  # the bar

    (_, flat), ((_, up, *_), noise), _ = ups
    down = downs[0][0][1]
    # 784 numbers: the deviation of unit noise is known to within 3 %.
    assert np.std(flat / down.init_noise_sigma) < 0.6
    assert abs(np.std(noise) / float(down.init_noise_sigma) - 1) < 0.1
    assert up.num_steps == down.num_steps - 1 == 11
    _, _, (_, same), (_, others), (_, again) = downs
    assert invert.rms(np.asarray(same) - image) < 0.05
    assert invert.rms(np.asarray(others)[1] - image) > 0.3
    assert invert.rms(np.asarray(again) - image) < 0.05
