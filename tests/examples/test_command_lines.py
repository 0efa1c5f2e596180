"""Every script's command line: explained, checked before any work, and without side effects."""

import argparse
import os
import runpy
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

for package in ("flax", "optax", "safetensors", "matplotlib", "tqdm"):
    pytest.importorskip(package, reason="the examples need the extra 'examples'")

import commands
import img2img
import matplotlib
import scripts
import training

import digits
import kdiff_jax as kd
import mnist
import serve
import unet

ROOT = Path(__file__).parents[2]
SCRIPTS = {
    path.stem: path
    for folder in ("examples", "benchmarks")
    for path in sorted((ROOT / folder).glob("*.py"))
    if path.name != "commands.py" and "commands.parser(__doc__)" in path.read_text()
}


class ParserFound(Exception):
    pass


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Runs a script as a program, up to its first sample."""

    def sampled(*_, **__):
        raise AssertionError("sampled before all options were checked")

    def go(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        # Some set flags of XLA.
        with mock.patch.dict(os.environ):
            runpy.run_path(str(SCRIPTS[name]), run_name="__main__")

    monkeypatch.setattr(kd, "sample", sampled)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    return go


def test_all_scripts_with_options_are_found():
    assert len(SCRIPTS) == 21
    for folder in ("examples", "benchmarks"):
        for path in (ROOT / folder).glob("*.py"):
            assert path.name == "commands.py" or "ArgumentParser(" not in path.read_text()


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_option_is_explained_with_its_default_and_no_backend_is_set(name, start, monkeypatch):
    def found(parser, *_):
        raise ParserFound(parser)

    def used(*_, **__):
        raise AssertionError("a script sets matplotlib's backend")

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", found)
    monkeypatch.setattr(matplotlib, "use", used)
    with pytest.raises(ParserFound) as caught:
        start(name)
    parser = caught.value.args[0]
    text = " ".join(parser.format_help().split())
    assert f"{name}.py" in text
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    assert all(action.help for action in shown), [a.dest for a in shown if not a.help]
    with_default = [a for a in shown if a.default not in (None, argparse.SUPPRESS)]
    with_default = [a for a in with_default if a.default is not False]
    assert text.count("(default: ") == len(with_default)


# Every line ended in a traceback, or in a figure that could not be written, or ran.
BAD = [
    ("digits", "--guidance 5", "trained on scales from 1 to 3"),
    ("digits", "--guidance nan", "argument --guidance: 'nan'; expected a finite number"),
    ("digits", "--steps 0", "argument --steps: '0'; expected a whole number of at least 1"),
    ("digits", "--steps 100000", "1000"),
    ("digits", "--seed -1", "argument --seed"),
    ("digits", "--sampler euler heun --eta 1", "eta = 1, and heun has none"),
    ("digits", "--sampler euler --eta -1", "eta"),
    ("digits", "--class 10", "argument --class: '10'; expected a digit"),
    ("digits", "--output file/digits.png", "file/digits.png' cannot be written"),
    ("digits", "--output .", "argument --output"),
    ("digits", "--output digits.txt", ".png"),
    ("brownian", "--steps 10", "two N or more"),
    ("brownian", "--batch many", "argument --batch"),
    ("invert", "--image none.png", "argument --image: 'none.png'; expected a file"),
    ("invert", "--image file", "file cannot be read as a picture"),
    ("invert", "--skip 19", "two steps must remain"),
    ("img2img", "--strength 2", "argument --strength"),
    ("img2img", "--guidance 5", "trained on scales"),
    ("inpaint", "--guidance 5", "trained on scales"),
    ("variations", "--fraction 0.1", "as many fractions as strengths"),
    ("learn_grid", "--learning-rate inf", "argument --learning-rate"),
    ("optimise_noise", "--want 12", "argument --want"),
    ("reward", "--per-class 1", "must be 2 or more"),
    ("resume", "--every 0", "argument --every"),
    ("resume", "--resume file", "file was not written by this script"),
    ("resume", "--file file/run.npz", "cannot be written"),
    ("serve", "--sampler lcm --guidance 5", "trained on scales"),
    ("serve", "--slots 0", "argument --slots"),
    ("multi_host", "--samples 3", "a multiple of --processes 2"),
    ("train_digits", "--data . --out file/w", "file/w' cannot be written"),
    ("train_digits", "--data .", "holds neither train-images"),
    ("train_digits", "--data . --checkpoint file", "'file' cannot be written"),
    ("distill_lcm", "--data . --guidance 3 1", "LOW <= HIGH"),
    ("distill_lcm", "--data . --teacher file", "file is no whole safetensors file"),
    ("quality", "--data .", "holds neither train-images"),
    ("quality", "--data . --samples 500", "at least 1000"),
    ("guidance", "--data . --samples 5", "at least 100"),
    ("speed", "--repetitions 0", "argument --repetitions"),
    ("speed", "--core 99999", "--core 99999: expected one of"),
    ("first_call", "numpy", "argument library"),
    ("layouts", "--only none", "argument --only"),
    ("meshes", "--only none", "no case has such a name"),
    ("tpu_compile", "--out file/x.json", "cannot be written"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), BAD)
def test_bad_values_are_errors_of_the_parser_before_any_work(
    name, arguments, message, start, capsys
):
    with pytest.raises(SystemExit) as ended:
        start(name, *arguments.split())
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_an_output_is_tried_and_not_left_behind(tmp_path):
    path = tmp_path / "new" / "picture.png"
    assert commands.picture(str(path)) == path
    assert not path.exists()
    path.write_text("kept")
    commands.output(str(path))
    assert path.read_text() == "kept"
    assert commands.folder(str(tmp_path / "other")) == tmp_path / "other"
    assert list((tmp_path / "other").iterdir()) == []


# --- files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "changed", "text"])
def test_a_broken_gzip_file_is_named(tmp_path, damage):
    scripts.fake_mnist(tmp_path, 4)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    middle = len(whole) // 2
    changed = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
    path.write_bytes({"cut": whole[:middle], "changed": changed, "text": b"no archive"}[damage])
    with pytest.raises(ValueError, match=f"{path.name} is no whole gzip file"):
        mnist.load(tmp_path)


def test_labels_out_of_range_are_refused(tmp_path):
    scripts.fake_mnist(tmp_path, 4)
    scripts._write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.array([1, 10, 3, 4], np.uint8))
    with pytest.raises(ValueError, match="labels up to 10; expected digits, 0 to 9"):
        mnist.load(tmp_path)
    with pytest.raises(ValueError, match="label = 10; expected a class, 0 to 9"):
        serve.make_request(digits.digits_schedule("dpm2", 2), 0, 10, 1.0)


def test_broken_weights_checkpoints_and_pictures_are_named(tmp_path):
    path = tmp_path / "state.safetensors"
    path.write_bytes(digits.WEIGHTS.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"{path.name} is no whole safetensors file"):
        unet.load(path)
    with pytest.raises(ValueError, match=f"{path.name} is no whole safetensors file.*delete"):
        training.restore_checkpoint(tmp_path, None, {})
    picture = tmp_path / "picture.png"
    picture.write_bytes(img2img.IMAGE.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{picture.name} cannot be read as a picture"):
        img2img.load_image(picture)
