"""Image to image: both meanings of a strength, and what a weak and a strong one do to a digit."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest

for package in ("flax", "optax", "safetensors", "matplotlib", "tqdm"):
    pytest.importorskip(package, reason="the examples need the extra 'examples'")

import img2img
import matplotlib.pyplot as plt


def test_image_is_a_digit_in_the_range_of_the_network(tmp_path):
    image = np.asarray(img2img.load_image(img2img.IMAGE))
    assert image.shape == (28, 28, 1)
    assert (image.min(), image.max()) == (-1, 1)
    assert np.all(image[:2] == -1)
    plt.imsave(tmp_path / "colour.png", np.repeat((image + 1) / 2, 3, axis=-1))
    np.testing.assert_allclose(img2img.load_image(tmp_path / "colour.png"), image, atol=1 / 127)
    plt.imsave(tmp_path / "wide.png", np.zeros((28, 30, 3)))
    with pytest.raises(ValueError, match=r"\(28, 30\).*28 x 28"):
        img2img.load_image(tmp_path / "wide.png")


def test_runs_begin_at_the_same_share_of_the_timesteps():
    for strength in (0.3, 0.5, 0.8):
        for sampler in ("dpm2", "lcm"):
            schedule = img2img.edit_schedule(sampler, strength, 4)
            assert abs(float(schedule[0].timestep) - 1000 * strength) < 55  # a step of DPM2's 20
        assert img2img.edit_schedule("lcm", strength, 4).num_steps == 4
        assert img2img.edit_schedule("dpm2", strength, 4).num_steps == 20 * strength


@pytest.mark.parametrize("sampler", ["dpm2", "lcm"])
def test_weak_edits_stay_near_the_image_and_strong_ones_do_not(sampler):
    image = img2img.load_image(img2img.IMAGE)

    def distance(strength: float) -> float:
        schedule = img2img.edit_schedule(sampler, strength, 4)
        _, edited = img2img.edit(sampler, schedule, image, 9, 2.0, 0)
        assert bool(jnp.all(jnp.isfinite(edited)))
        return float(jnp.sqrt(jnp.mean((edited[0] - image) ** 2)))

    weak, strong = distance(0.1), distance(0.8)
    assert weak < 0.3 < strong


def test_script_writes_its_figure(tmp_path, monkeypatch, capsys):
    output = tmp_path / "img2img.png"
    arguments = ["--strength", "0.3", "--variants", "1", "--steps", "2", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["img2img.py", *arguments])
    img2img.main()
    assert output.read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "DPM2, strength 0.3: 22 evaluations" in said
    assert "LCM, strength 0.3: 2 evaluations, from t = 299" in said
