"""One protocol: every kind of noise levels has the same properties, and none is a special case."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samplers import NOISE

import kdiff_jax as kd
from kdiff_jax._levels.alone import SigmasAlone
from kdiff_jax._levels.protocol import Noise

ZERO_SNR = kd.noise_schedule("squaredcos_cap_v2", rescale_zero_terminal_snr=True)
KINDS: dict[str, Noise] = {
    "beta schedule": NOISE,
    "zero SNR": ZERO_SNR.finite(),
    "flow": kd.flow_schedule(shift=3.0),
    "alone": SigmasAlone(),
}
every_kind = pytest.mark.parametrize("noise", KINDS.values(), ids=KINDS)
# Levels that every kind has.
LEVELS = st.lists(st.floats(0.03, 0.99), min_size=2, max_size=6, unique=True)


def descending(found: list[float]) -> np.ndarray:
    sigmas = np.sort(np.array(found))[::-1]
    return sigmas * (1 - 1e-6 * np.arange(len(sigmas)))  # apart in float32 as well


@every_kind
@settings(deadline=None, derandomize=True, max_examples=25, database=None)
@given(found=LEVELS, eta=st.floats(0, 1))
def test_every_kind_has_the_properties_of_noise_levels(
    noise: Noise, found: list[float], eta: float
) -> None:
    sigmas = descending(found)
    given_levels, timesteps = noise.given_sigmas(sigmas)
    np.testing.assert_array_equal(given_levels, sigmas)
    np.testing.assert_allclose(timesteps, noise.timestep_at(sigmas), rtol=1e-15)
    assert np.all(np.diff(timesteps) < 0)
    # The level of a row, in its units: None is 1, and noise over signal is that of the levels.
    alpha, sigma, input_scale = noise.units(sigmas)
    weight = np.ones_like(sigmas) if alpha is None else np.asarray(alpha)
    np.testing.assert_allclose(weight, noise.alpha_at(sigmas), rtol=1e-15)
    np.testing.assert_array_equal(sigma, sigmas)
    total = weight + sigmas if noise.flow else weight
    np.testing.assert_allclose(total, 1, rtol=1e-15)
    scale = 1.0 if input_scale is None else np.asarray(input_scale)
    expected = 1.0 if noise.flow else 1 / np.hypot(weight, sigmas)
    np.testing.assert_allclose(scale, expected * np.ones_like(sigmas), rtol=1e-15)
    # A latent-consistency run has the same ratio of noise to signal.
    a, s = (np.asarray(part) for part in noise.unit_variance(sigmas))
    np.testing.assert_allclose(s * weight, a * sigmas, rtol=1e-14)
    np.testing.assert_allclose(a + s if noise.flow else a**2 + s**2, 1, rtol=1e-14)
    # An ancestral step, down without noise, times keep, and up again, has the level it reaches.
    s0, s1 = sigmas[:-1], sigmas[1:]
    s_down, s_up, keep = (np.asarray(part) for part in noise.split(s0, s1, np.full(len(s0), eta)))
    assert np.all((s_down > 0) & (s_down <= s1) & (s_up >= 0))
    np.testing.assert_allclose(np.hypot(keep * s_down, s_up), s1, rtol=1e-13)
    signal = keep * np.asarray(noise.alpha_at(s_down))
    np.testing.assert_allclose(signal, noise.alpha_at(s1), rtol=1e-13)
    if eta == 0:
        np.testing.assert_array_equal(s_up, 0)


@every_kind
def test_every_kind_makes_levels_the_same_way(noise: Noise) -> None:
    assert noise.finite() is noise or noise.zero_terminal_snr
    given_noise: Any = None if isinstance(noise, SigmasAlone) else noise
    levels = kd.levels(given_noise, 5, grid="karras", sigma_min=0.03, sigma_max=0.9)
    np.testing.assert_allclose(levels.sigmas[:-1], kd.karras_sigmas(5, 0.03, 0.9), rtol=1e-15)
    np.testing.assert_allclose(levels.timesteps, noise.timestep_at(levels.sigmas[:-1]), rtol=1e-13)
    again = kd.levels(given_noise, sigmas=levels.sigmas)
    np.testing.assert_array_equal(again.sigmas, levels.sigmas)
    assert levels.noise.flow == noise.flow
    assert levels.zero_terminal_snr == noise.zero_terminal_snr
    assert levels.init_noise_sigma == levels.sigmas[0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OfAUser:
    """Noise levels of no known class, which call another kind for everything."""

    inner: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def finite(self) -> "OfAUser":
        return OfAUser(self.inner.finite())


@pytest.mark.parametrize("kind", ["beta schedule", "flow"])
def test_levels_of_a_user_s_own_kind_run_through_every_sampler(kind: str) -> None:
    inner: Any = KINDS[kind]
    own: Any = OfAUser(inner)
    options: Any = {"grid": "exponential", "strength": 0.5}
    samplers: list[Any] = [kd.dpm2, kd.dpm2_ancestral, kd.euler, kd.lcm]
    for sampler in samplers:
        expected = sampler(kd.levels(inner, 4, **options))
        found = sampler(kd.levels(own, 4, **options))
        # Of trees that differ, with a column more or less, jax.tree.map makes a ValueError.
        jax.tree.map(np.testing.assert_array_equal, found, expected)
