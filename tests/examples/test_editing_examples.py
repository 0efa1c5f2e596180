"""Inpainting and variations of digits: what is known comes back, small changes stay small."""

import jax.numpy as jnp
import numpy as np
import pytest

for package in ("flax", "optax", "safetensors", "matplotlib", "tqdm"):
    pytest.importorskip(package, reason="the examples need the extra 'examples'")

import guidance
import img2img
import inpaint
import scripts
import variations

import digits


@pytest.mark.parametrize("keep", inpaint.HALVES)
def test_a_half_is_kept(keep):
    mask = inpaint.mask_of(keep)[..., 0]
    assert mask.mean() == 0.5
    corner = {"left": (0, 0), "right": (0, 27), "top": (0, 27), "bottom": (27, 0)}[keep]
    assert mask[corner] == 0
    assert mask[27 - corner[0], 27 - corner[1]] == 1


def test_the_known_half_comes_back_and_the_rest_is_a_digit(tmp_path, monkeypatch):
    """The script with the distilled network, which paints a 4 and a 9 in both ways."""
    output, calls = tmp_path / "out.png", scripts.kept_calls(monkeypatch, inpaint, "inpaint")
    printed = scripts.run(inpaint, "--sampler", "lcm", "--variants", "1", "--output", str(output))
    assert scripts.is_picture(output)
    image, mask = np.asarray(img2img.load_image(img2img.IMAGE)), inpaint.mask_of("left")
    assert [arguments[1] for arguments, _ in calls] == list(inpaint.WAYS)
    for (_, way, *_), painted in calls:
        assert f"LCM, {way}: the known half is unchanged" in printed
        painted = np.asarray(painted)
        assert len(painted) == 2
        assert np.all(np.where(mask == 0, painted == image, True))
        right = painted[:, :, 14:]
        assert np.all(right.max(axis=(1, 2, 3)) > 0.5)  # a stroke
        assert np.all(right.mean(axis=(1, 2, 3)) < -0.3)  # on black


def test_a_small_fraction_and_a_small_strength_change_little(tmp_path, monkeypatch):
    output = tmp_path / "out.png"
    seeds = scripts.kept_calls(monkeypatch, variations, "from_seed")
    renoised = scripts.kept_calls(monkeypatch, variations, "from_image")
    changes = ["--fraction", "0.02", "0.7", "--strength", "0.1", "0.7"]
    few = ["--steps", "3", "--variants", "2", "--guidance", "1"]
    printed = scripts.run(variations, *changes, *few, "--output", str(output))
    assert scripts.is_picture(output)
    assert "from the seed, fraction 0.02: " in printed
    assert "from the image, strength 0.7: " in printed
    (_, first), *turned = seeds
    for made in (turned, renoised):
        little, much = (float(jnp.sqrt(jnp.mean((image - first) ** 2))) for _, image in made)
        assert little < 0.5 * much


def test_guidance_benchmark_counts_the_calls_and_joins_its_curves():
    schedule = digits.digits_schedule("dpm2", 8)
    case = {"steps": 8, "interval": [0.3, 20.0]}

    def cost(kind, scale):
        return guidance.evaluations(case | {"kind": kind, "scale": scale}, schedule)

    inside = sum(0.3 < float(row.sigma) <= 20 for row in schedule)
    assert (cost("plain", 1.0), cost("rising", 2.0), cost("interval", 2.0)) == (15, 30, 15 + inside)
    assert 0 < inside < 15
    points = [("plain", 3.0), ("plain", 1.0), ("interval", 2.0), ("rescaled", 2.0)]
    results = [{"kind": kind, "scale": scale} for kind, scale in points]
    assert [p["scale"] for p in guidance.curve(results, "interval")] == [1.0, 2.0]
    assert [p["scale"] for p in guidance.curve(results, "plain")] == [1.0, 3.0]
