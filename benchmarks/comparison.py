"""A run of kdiff_jax as a candidate, and what makes a comparison fair."""

from typing import Any, NamedTuple

import jax
import numpy as np

import kdiff_jax as kd
import networks
import rivals
from kdiff_jax.adapters import diffusers as kd_diffusers
from timing import Candidate, Effort, Result, paired, record

SHAPES = {"64 KB": (1, 4, 64, 64), "1 MB": (4, 4, 128, 128)}
SHAPE = SHAPES["64 KB"]
AGREE = 1e-4  # of the size of the samples: float32 over 49 evaluations, in another order


class Ours(NamedTuple):
    """A run of kdiff_jax, and what the rivals' runs are made of."""

    denoise: Any
    params: Any
    schedule: kd.Schedule
    x: jax.Array
    keys: jax.Array  # one a sample
    key: jax.Array

    def candidate(self, **options: Any) -> Candidate:
        return Candidate(lambda: kd.sample(*self.arguments, **options))

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Those of `kd.sample`: a table without a noise column takes no keys."""
        keys = None if self.schedule.rows.noise_weight is None else self.keys
        return self.denoise, self.params, self.schedule, self.x, keys


def ours(
    kind: str, shape: tuple[int, ...], network: Any = networks.null, params: Any = None
) -> Ours:
    sampler = kd_diffusers.from_config(rivals.CONFIGS[kind])
    schedule = sampler.schedule(num_inference_steps=rivals.STEPS[kind])
    key = jax.random.key(0)
    keys = jax.random.split(key, shape[0])
    x = kd.initial_sample(schedule, keys, shape)
    return Ours(sampler.denoiser(network), params, schedule, x, keys, key)


def must_agree(one: Candidate, other: Candidate) -> None:
    """A comparison of speed means something only where both compute the same sample."""
    for candidate in (one, other):
        candidate.prepare()
    a, b = (np.asarray(candidate.call()) for candidate in (one, other))
    error = float(np.max(np.abs(a - b)) / np.std(a))
    if not error < AGREE:
        raise ValueError(
            f"the two samples differ by {error:.1e} of their size; nothing to compare."
        )


def versus(a: Candidate, b: Candidate, effort: Effort, agree: bool = False) -> Result:
    """How many times as long b takes as a."""
    if agree:
        must_agree(a, b)
    return record(paired({"kdiff_jax": a, "other": b}, effort), "other", "kdiff_jax")
