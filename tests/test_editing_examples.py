"""Inpainting and variations of digits: what is known comes back, small changes stay small."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

for package in ("flax", "optax", "safetensors", "matplotlib", "tqdm"):
    pytest.importorskip(package, reason="the examples need the extra 'examples'")

import guidance
import img2img
import inpaint
import variations

import digits


@pytest.mark.parametrize("keep", inpaint.HALVES)
def test_a_half_is_kept(keep):
    mask = inpaint.mask_of(keep)[..., 0]
    assert mask.mean() == 0.5
    corner = {"left": (0, 0), "right": (0, 27), "top": (0, 27), "bottom": (27, 0)}[keep]
    assert mask[corner] == 0
    assert mask[27 - corner[0], 27 - corner[1]] == 1


@pytest.mark.parametrize("way", inpaint.WAYS)
def test_the_known_half_comes_back_and_the_rest_is_a_digit(way):
    image, mask = img2img.load_image(img2img.IMAGE), inpaint.mask_of("left")
    labels = jnp.array([4, 9], jnp.int32)
    painted = np.asarray(inpaint.inpaint("lcm", way, image, mask, labels, 2.0, 0))
    assert np.all(np.where(mask == 0, painted == np.asarray(image), True))
    right = painted[:, :, 14:]
    assert np.all(right.max(axis=(1, 2, 3)) > 0.5)  # a stroke
    assert np.all(right.mean(axis=(1, 2, 3)) < -0.3)  # on black


def test_a_small_fraction_and_a_small_strength_change_little():
    schedule, key = digits.digits_schedule("dpm2", 3), jax.random.key(0)
    image = variations.from_seed(schedule, key, 0.0, 1, 3, 1.0)[0]

    def away(made):
        return float(jnp.sqrt(jnp.mean((made - image[None]) ** 2)))

    far = [away(variations.from_seed(schedule, key, f, 2, 3, 1.0)) for f in (0.02, 0.7)]
    assert far[0] < 0.5 * far[1]
    far = [away(variations.from_image(image, key, s, 3, 2, 3, 1.0)) for s in (0.1, 0.7)]
    assert far[0] < 0.5 * far[1]


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        (inpaint, ["--sampler", "lcm"], "LCM, renoised: the known half is unchanged"),
        (variations, ["--steps", "3", "--fraction", "0.3", "--strength", "0.5"], "strength 0.5: "),
    ],
    ids=["inpaint", "variations"],
)
def test_scripts_write_their_figures(script, arguments, said, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out.png"
    monkeypatch.setattr(sys, "argv", ["x", "--variants", "2", *arguments, "--output", str(output)])
    script.main()
    assert output.read_bytes().startswith(b"\x89PNG")
    assert said in capsys.readouterr().out


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
