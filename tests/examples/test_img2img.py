"""Image to image: both meanings of a strength, and what a weak and a strong one do to a digit."""

import jax.numpy as jnp
import numpy as np
import pytest

for package in ("flax", "optax", "safetensors", "matplotlib", "tqdm"):
    pytest.importorskip(package, reason="the examples need the extra 'examples'")

import img2img
import matplotlib.pyplot as plt
import scripts


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


def test_weak_edits_stay_near_the_image_and_strong_ones_do_not(tmp_path, monkeypatch):
    output, calls = tmp_path / "img2img.png", scripts.kept_calls(monkeypatch, img2img, "edit")
    fixed = ["--variants", "1", "--steps", "4", "--output", str(output)]
    printed = scripts.run(img2img, "--strength", "0.1", "0.8", *fixed)
    assert scripts.is_picture(output)
    assert "DPM2, strength 0.1: 6 evaluations, from t = " in printed
    assert "DPM2, strength 0.8: 62 evaluations, from t = 789" in printed
    assert "LCM, strength 0.8: 4 evaluations, from t = 799" in printed
    image = img2img.load_image(img2img.IMAGE)

    def distance(edited):
        assert bool(jnp.all(jnp.isfinite(edited)))
        return float(jnp.sqrt(jnp.mean((edited[0] - image) ** 2)))

    assert [arguments[0] for arguments, _ in calls] == ["dpm2", "dpm2", "lcm", "lcm"]
    edits = [edited for _, (_, edited) in calls]
    for weak, strong in (edits[:2], edits[2:]):
        assert distance(weak) < 0.3 < distance(strong)
