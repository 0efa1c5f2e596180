"""The example of inversion: the digit returns, its noise is Gaussian, another class is another."""

import sys

import jax
import numpy as np
import pytest

for package in ("flax", "optax", "safetensors", "matplotlib", "tqdm"):
    pytest.importorskip(package, reason="the examples need the extra 'examples'")

import img2img
import invert

import digits
import unet


def test_the_digit_returns_and_another_class_does_not():
    params, image = unet.load(digits.WEIGHTS)[1], img2img.load_image(img2img.IMAGE)
    schedule = digits.digits_schedule("dpm2", 12)
    flat = invert.invert(params, schedule, image, 4) / schedule.init_noise_sigma
    noise = invert.invert(params, schedule, image, 4, jax.random.key(0))
    # 784 numbers: the deviation of unit noise is known to within 3 %.
    assert np.std(flat) < 0.6
    assert abs(np.std(noise) / float(schedule.init_noise_sigma) - 1) < 0.1
    same, other = (np.asarray(x) for x in invert.back(params, schedule, noise, [4, 1]))
    assert invert.rms(same - image) < 0.05
    assert invert.rms(other - image) > 0.3


def test_script_writes_its_figure(tmp_path, monkeypatch, capsys):
    output = tmp_path / "invert.png"
    monkeypatch.setattr(invert, "COUNTS", {"dpm2": (3,)})
    arguments = ["--steps", "4", "--skip", "1", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["invert.py", *arguments])
    invert.main()
    assert output.read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "with its lowest noise: noise of deviation" in said
    assert "DPM2, 3 steps, 9 evaluations" in said
