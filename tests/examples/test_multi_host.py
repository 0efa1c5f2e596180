"""Processes joined by jax.distributed: the samples of one process, bit for bit."""

import time

import jax
import multi_host
import numpy as np
import pytest
import scripts

import kdiff_jax as kd


@pytest.mark.slow
def test_two_processes_give_the_samples_of_one(tmp_path, capfd):
    arguments = ["--processes", "2", "--samples", "32", "--steps", "4", "--seed", "3"]
    printed = scripts.run(multi_host, *arguments, "--output", str(tmp_path))
    assert "32 samples, at most " in printed
    printed_by_them = capfd.readouterr().out
    # Each process wrote the half that lay on its one device.
    files = {path.name: np.load(path) for path in tmp_path.iterdir()}
    assert {name: half.shape for name, half in files.items()} == {
        "samples_000000.npy": (16, 2),
        "samples_000016.npy": (16, 2),
    }
    for process in (0, 1):
        assert f"process {process}: collectives in the program: []" in printed_by_them
    got = multi_host.read_all(tmp_path)
    for devices in (1, 2):
        alone = multi_host.sample_batch(32, 4, 3, jax.devices()[:devices])
        np.testing.assert_array_equal(got, alone)
    # One plain call on one device: one key means that every sample's is folded from its number.
    schedule = kd.dpm2_ancestral(kd.levels(kd.noise_schedule(), 4, grid="karras"))
    key = jax.random.key(3)
    x = kd.initial_sample(schedule, key, (32, 2))
    plain = kd.sample(multi_host.denoise, multi_host.data_points(), schedule, x, key)
    np.testing.assert_allclose(got, plain, atol=1e-4)
    # What the samples are is known: points of the data set, and not one and the same.
    off = np.linalg.norm(got[:, None] - multi_host.data_points()[None], axis=-1)
    assert off.min(axis=1).max() < 1e-3
    assert len(set(off.argmin(axis=1))) > 4


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="9 samples over 8 devices"):
        multi_host.sample_batch(9, 2, 0)


def test_a_process_that_fails_ends_the_others(tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.write_text("import sys, time\nsys.exit(3) if sys.argv[4] == '1' else time.sleep(60)")
    monkeypatch.setattr(multi_host, "__file__", str(script))
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"ended with \[None, 3\]"):
        multi_host.start_processes(2, [], 120)
    assert time.monotonic() - began < 30
