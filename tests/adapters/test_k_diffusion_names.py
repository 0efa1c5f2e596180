"""k-diffusion's other samplers, wrappers and noise sampler, against its formulas in float64."""

import functools
import itertools
import math
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import k_truth
import numpy as np
import pytest
from samplers import columns_of, relative_error, x64

import kdiff_jax as kd
from kdiff_jax.adapters import k_diffusion as K

KEY, X = jax.random.key(0), jnp.ones((2, 4))
GRIDS = [[9.0, 5.0, 2.0, 1.1, 0.3, 0.0], [7.0, 3.0, 1.0, 0.4]]
DRAWS = np.random.default_rng(0).normal(size=(6, 2, 2, 4))
# One program for all of them: every column of every sampler.
COLUMNS = sorted(
    set(columns_of(kd.dpmpp_3m(kd.levels(kd.noise_schedule(), 3))))
    | set(columns_of(kd.dpmpp_sde(kd.levels(kd.noise_schedule(), 3))))
)


def curved(np_: Any, x: Any, sigma: Any) -> Any:
    """A denoiser that mixes the numbers of a sample; sigma is [B]."""
    sigma = sigma[:, None]
    return x / (1 + sigma**2) + 0.3 * np_.tanh(x[:, ::-1] / (1 + sigma))


def model(x: jax.Array, sigma: jax.Array) -> jax.Array:
    return curved(jnp, x, sigma)


def still(x: jax.Array, sigma: jax.Array) -> jax.Array:
    """Nothing is to be removed, so that only noise moves the sample."""
    return x


def truth_model(x: np.ndarray, sigma: float) -> np.ndarray:
    return np.asarray(curved(np, x, np.full(len(x), sigma)))


def without_noise(truth: Any) -> Any:
    return lambda model, x, sigmas, noise: truth(model, x, sigmas)


def with_noise(truth: Any, **controls: Any) -> Any:
    def run(model: Any, x: Any, sigmas: Any, noise: Any) -> Any:
        return truth(model, x, sigmas, noise=noise[:, 0], **controls)

    return run


def with_two(sde: bool) -> Any:
    def run(model: Any, x: Any, sigmas: Any, noise: Any) -> Any:
        noise = noise if sde else noise[:, ::-1]  # 2S has none of the first draw
        return k_truth.k_sample_dpmpp(model, x, sigmas, 0.7, 0.9, noise, sde=sde)

    return run


ETA: dict[str, Any] = {"eta": 0.7, "s_noise": 0.9}
# name -> its controls, and the formula
CASES: list[tuple[Callable[..., Any], dict[str, Any], Any]] = [
    (K.sample_euler, {}, without_noise(k_truth.k_sample_euler)),
    (
        K.sample_euler,
        {"s_churn": 1.5, "s_noise": 0.9},
        with_noise(k_truth.k_sample_euler, s_churn=1.5, s_noise=0.9),
    ),
    (K.sample_euler_ancestral, ETA, with_noise(k_truth.k_sample_euler_ancestral, **ETA)),
    (K.sample_heun, {}, without_noise(k_truth.k_sample_heun)),
    (K.sample_heun, {"s_churn": 1.5}, with_noise(k_truth.k_sample_heun, s_churn=1.5)),
    (K.sample_dpmpp_2s_ancestral, ETA, with_two(sde=False)),
    (K.sample_dpmpp_sde, ETA, with_two(sde=True)),
    (K.sample_dpmpp_2m, {}, without_noise(k_truth.k_sample_dpmpp_2m)),
    (K.sample_dpmpp_2m_sde, {}, with_noise(k_truth.k_sample_dpmpp_2m_sde)),
    (
        K.sample_dpmpp_2m_sde,
        {**ETA, "solver_type": "heun"},
        with_noise(k_truth.k_sample_dpmpp_2m_sde, **ETA, solver="heun"),
    ),
    (K.sample_dpmpp_3m_sde, ETA, with_noise(k_truth.k_sample_dpmpp_3m_sde, **ETA)),
]
SDES: list[Any] = [K.sample_dpmpp_sde, K.sample_dpmpp_2m_sde, K.sample_dpmpp_3m_sde]


def draws_of(sampler: Any, asked: list[tuple[float, float]]) -> Callable[..., np.ndarray]:
    noise = DRAWS if sampler is K.sample_dpmpp_sde else DRAWS[:, :1]
    left: Iterator[np.ndarray] = iter(noise.reshape(-1, 2, 4))

    def noise_sampler(sigma: float, sigma_next: float) -> np.ndarray:
        asked.append((sigma, sigma_next))
        return next(left)

    return noise_sampler


@pytest.fixture
def one_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables and noise of one shape."""
    sample = kd.sample

    def sample_padded(
        denoise: Any, params: Any, schedule: Any, x: Any, key: Any, *, noise_fn: Any, progress: bool
    ) -> jax.Array:
        noise = np.full((8, 2, *x.shape), np.nan)
        if noise_fn is not None:
            given = np.asarray(noise_fn.noise)
            # Rows that end a step read the second of two.
            noise[: len(given)] = given if given.ndim > noise.ndim - 1 else given[:, None]
        table, fixed = schedule.pad(12, COLUMNS), kd.given_noise(jnp.asarray(noise))
        return sample(denoise, params, table, x, key, noise_fn=fixed, progress=progress)

    monkeypatch.setattr(kd, "sample", sample_padded)


@pytest.mark.usefixtures("one_program")
@pytest.mark.parametrize("sigmas", GRIDS, ids=["closed", "ends above 0"])
@pytest.mark.parametrize(("sampler", "controls", "truth"), CASES)
def test_every_run_is_k_diffusion_s_formula(
    sampler: Any, controls: dict[str, Any], truth: Any, sigmas: list[float]
) -> None:
    asked: list[tuple[float, float]] = []
    noisy = "eta" in controls or "s_churn" in controls or sampler in SDES
    options = {"noise_sampler": draws_of(sampler, asked)} if noisy else {}
    with x64():
        x = jnp.asarray(DRAWS[-1, 0] * sigmas[0])
        found = sampler(model, x, sigmas, **options, **controls)
        assert found.dtype == np.float64
    assert relative_error(found, truth(truth_model, np.asarray(x), sigmas, DRAWS)) < 1e-12
    # Asked as k-diffusion asks: step by step, of an SDE step its way to the middle first.
    pairs = list(itertools.pairwise(sigmas))
    pairs = pairs if "s_churn" in controls else [pair for pair in pairs if pair[1] > 0]
    if sampler is K.sample_dpmpp_sde:
        pairs = [way for s0, s1 in pairs for way in ((s0, (s0 * s1) ** 0.5), (s0, s1))]
    np.testing.assert_allclose(asked, pairs if noisy else [])


def test_an_sde_sampler_with_a_key_follows_one_path(monkeypatch: pytest.MonkeyPatch) -> None:
    key, sigmas = jax.random.key(3), [9.0, 2.0, 0.5, 0.1]
    path = K.BrownianTreeNoiseSampler(X, 1e-5, 1e5, seed=key)
    with_key = K.sample_dpmpp_sde(still, X, sigmas, key=key)
    with_path = K.sample_dpmpp_sde(still, X, sigmas, noise_sampler=path)
    np.testing.assert_allclose(with_key, with_path, rtol=1e-5)
    asked: list[Any] = []
    monkeypatch.setattr(kd, "sample", lambda *args, **options: asked.append((args[4], options)))
    for sampler in SDES:
        sampler(still, X, sigmas, key=key)
        # Levels beyond those of the path by default are on a longer one.
        sampler(still, X, [1e6, *sigmas], key=key)
    shown = [(keys is key, repr(options["noise_fn"])) for keys, options in asked]
    ends = [repr(kd.brownian_noise(1e-5, high)) for high in (1e5, 1e6)]
    assert shown == [(True, end) for end in ends] * 3


def test_the_callback_is_shown_the_first_evaluation_of_each_step() -> None:
    seen: list[dict[str, Any]] = []
    sigmas = [4.0, 2.0, 1.0, 0.0]
    for sampler in (K.sample_heun, K.sample_dpmpp_2m):
        seen.clear()
        sampler(still, X, sigmas, None, seen.append)
        assert [call["i"] for call in seen] == [0, 1, 2]
        assert [call["sigma"] for call in seen] == sigmas[:-1]
        assert set(seen[0]) == {"x", "i", "sigma", "sigma_hat", "denoised"}


# --- noise along a path ----------------------------------------------------------------------


@pytest.mark.parametrize("transform", [None, lambda sigma: sigma, lambda sigma: -jnp.log(sigma)])
def test_increments_of_a_path_add_up_and_are_unit_noise(transform: Any) -> None:
    x, (a, b, c) = jnp.zeros((2, 4000)), (14.0, 5.0, 0.4)
    z = K.BrownianTreeNoiseSampler(x, 0.1, 20.0, seed=7, transform=transform)
    clock: Any = math.log if transform is None else transform
    ab, bc, ac = (math.sqrt(abs(clock(s) - clock(t))) for s, t in ((a, b), (b, c), (a, c)))
    first, second = np.asarray(z(a, b)), np.asarray(z(b, c))
    np.testing.assert_allclose(ac * z(a, c), ab * first + bc * second, atol=2e-3 * ac)
    np.testing.assert_allclose(z(b, a), -first, atol=1e-5)
    for noise in (first, second):
        assert abs(np.mean(noise)) < 0.05
        assert abs(np.std(noise) - 1) < 0.05
    assert abs(np.mean(first * second)) < 0.05
    assert np.all(np.isfinite(z(20.0, 0.1)))


def test_seeds_are_one_for_all_or_one_a_sample() -> None:
    def noise(seed: Any, size: int = 2) -> np.ndarray:
        return np.asarray(K.BrownianTreeNoiseSampler(X[:size], 0.1, 9.0, seed)(5.0, 2.0))

    np.testing.assert_array_equal(noise(3), noise(jax.random.key(3)))
    assert np.all(noise(3)[0] != noise(3)[1])
    np.testing.assert_array_equal(noise([3, 4]), noise([4, 3])[::-1])
    np.testing.assert_array_equal(noise([3, 3])[0], noise([3, 3])[1])


# --- wrappers --------------------------------------------------------------------------------


def v_network(np_: Any, x: Any, t: Any) -> Any:
    return np_.tanh(x[:, ::-1]) * t[:, None]


def test_a_v_network_of_continuous_time_is_wrapped() -> None:
    def denoised(x: np.ndarray, sigma: float) -> np.ndarray:
        a, t = 1 / math.sqrt(1 + sigma**2), np.full(len(x), math.atan(sigma) * 2 / math.pi)
        return np.asarray(a**2 * x - sigma * a * v_network(np, a * x, t))

    wrapped, x = K.VDenoiser(functools.partial(v_network, jnp)), 3 * DRAWS[0, 0].astype(np.float32)
    np.testing.assert_allclose(wrapped(x, 2.5), denoised(x, 2.5), rtol=2e-5, atol=1e-6)
    found = K.sample_euler(wrapped, x, GRIDS[0])
    assert relative_error(found, k_truth.k_sample_euler(denoised, x, GRIDS[0])) < 2e-6
    t = wrapped.sigma_to_t(np.array([0.2, 3.0]))
    np.testing.assert_allclose(t, np.arctan([0.2, 3.0]) * 2 / np.pi, rtol=1e-12)
    np.testing.assert_allclose(wrapped.t_to_sigma(t), [0.2, 3.0], rtol=1e-12)


@pytest.mark.parametrize("axis", [1, 3])
def test_learned_sigmas_are_cut_off_in_either_layout(axis: int) -> None:
    diffusion = types.SimpleNamespace(alphas_cumprod=kd.noise_schedule().alphas_cumprod)

    def eps(x: jax.Array, t: jax.Array) -> jax.Array:
        return jnp.tanh(x) * (t / 1000)[:, None, None, None]

    def both(x: jax.Array, t: jax.Array) -> jax.Array:
        return jnp.concatenate([eps(x, t), 7 + x], axis)

    x = jax.random.normal(KEY, (2, 3, 4, 3))
    plain = K.DiscreteEpsDDPMDenoiser(eps, diffusion.alphas_cumprod)
    np.testing.assert_array_equal(K.OpenAIDenoiser(both, diffusion)(x, 2.0), plain(x, 2.0))
    whole = K.OpenAIDenoiser(eps, diffusion, False, False)
    np.testing.assert_array_equal(whole(x, 2.0), plain(x, 2.0))
    with pytest.raises(ValueError, match=r"twice the channels.*has_learned_sigmas=False"):
        K.OpenAIDenoiser(eps, diffusion)(x, 2.0)


# --- refusals --------------------------------------------------------------------------------

GRID = [4.0, 2.0, 0.0]
NULLARY: Any = lambda: None  # noqa: E731
REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: K.sample_dpmpp_2m_sde(still, X, GRID), "neither key nor noise_sampler"),
    (lambda: K.sample_heun(still, X, GRID, s_churn=1.0), "neither key nor noise_sampler"),
    (lambda: K.sample_dpmpp_sde(still, X, GRID, r=0.3, key=KEY), "r = 0.3 is another midpoint"),
    (
        lambda: K.sample_dpmpp_2m_sde(still, X, GRID, solver_type="euler", key=KEY),  # type: ignore
        "solver_type = 'euler'",
    ),
    (lambda: K.sample_heun(lambda x: x, X, GRID), r"model takes \(x\); pass model\(x, sigma"),
    (lambda: K.sample_heun(still, X, GRID, {"a": 1.0}), r"model takes .*extra_args"),
    (
        lambda: K.sample_euler(K.VDenoiser(still), X, GRID, {"a": 1.0}),
        r"model takes .*extra_args",
    ),
    (lambda: K.sample_heun(still, X, GRID, None, NULLARY), r"callback takes \(\); pass"),
    (lambda: K.sample_dpmpp_2m_sde(still, X, GRID, noise_sampler=NULLARY), "noise_sampler takes"),
    (lambda: K.sample_euler(still, X, GRID, key="0"), "key = '0' is no PRNG key"),  # type: ignore
    (lambda: K.sample_lcm(still, X, GRID, noise_clip_std=-1.0, key=KEY), "noise_clip_std = -1.0"),
    (lambda: K.BrownianTreeNoiseSampler(X, 0.1, 9.0), "seed is missing"),
    (lambda: K.BrownianTreeNoiseSampler(X, 0.1, 9.0, 0.5), "seed = 0.5"),  # type: ignore
    (lambda: K.BrownianTreeNoiseSampler(X, 0.1, 9.0, [1]), "seed holds 1 numbers for 2 samples"),
    (lambda: K.BrownianTreeNoiseSampler(X, 0.1, 9.0, jax.random.split(KEY, 3)), "seed: key holds"),
    (lambda: K.BrownianTreeNoiseSampler(X, 0.1, 9.0, 1, np.sign), "transform is 1.0 at both"),
    (lambda: K.BrownianTreeNoiseSampler(X, 0.1, 9.0, 1)(10.0, 1.0), "sigma = 10.0 is out of range"),
    (lambda: K.BrownianTreeNoiseSampler(X, 0.1, 9.0, 1)(5.0, 0.0), "sigma_next = 0.0"),
    (lambda: K.BrownianTreeNoiseSampler(X, 0.1, 9.0, 1)(np.ones(1), 1.0), "sigma has shape"),
    (lambda: K.VDenoiser("net"), "inner_model = 'net' is not callable"),  # type: ignore
    (lambda: K.OpenAIDenoiser(still, None), "diffusion = None has no alphas_cumprod"),  # type: ignore
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", ["lms", "dpm_fast", "dpm_adaptive"])
def test_samplers_that_are_no_tables_say_which_to_take(name: str) -> None:
    sampler = getattr(K, f"sample_{name}")
    with pytest.raises(NotImplementedError, match=f"sample_{name} .*take .*sample_dpmpp_2m"):
        sampler(still, X, GRID, order=3)
