"""Training noise levels against definitions written here in float64, some in 50 decimal digits."""

import contextlib
from decimal import Decimal, localcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers import x64

import kdiff_jax as kd

NAMES: list[Any] = ["linear", "scaled_linear", "squaredcos_cap_v2"]
SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {"beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {},
    "squaredcos_cap_v2": {},
    "T=1": {"num_train_timesteps": 1},
    "T=150, trained": {
        "num_train_timesteps": 150,
        "trained_betas": 0.001 + 0.1 * np.sin(np.arange(150)) ** 2,
    },
}


def betas_of(name: str, count: int, first: float, last: float) -> np.ndarray:
    """Ho et al. 2020; Rombach et al. 2022; Nichol and Dhariwal 2021, equation 17."""
    i = np.arange(count)
    if name == "linear":
        return first + i * (last - first) / (count - 1)
    if name == "scaled_linear":
        return (first**0.5 + i * (last**0.5 - first**0.5) / (count - 1)) ** 2

    def abar(u: np.ndarray) -> np.ndarray:
        return np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2

    return np.minimum(1 - abar((i + 1) / count) / abar(i / count), 0.999)


def levels_of(noise: kd.NoiseSchedule, timesteps: Any) -> tuple[np.ndarray, np.ndarray]:
    abar = noise.alphas_cumprod[timesteps]
    return np.sqrt(abar), np.sqrt(1 - abar)


def data_and_noise(*shape: int) -> Any:
    return np.random.default_rng(len(shape)).standard_normal((2, *shape)).astype(np.float32)


@pytest.fixture(scope="module", params=SCHEDULES, name="noise")
def _noise(request: pytest.FixtureRequest) -> kd.NoiseSchedule:
    name: Any = request.param if request.param in NAMES else "scaled_linear"
    return kd.noise_schedule(name, **SCHEDULES[request.param])


# --- the tables ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [2, 100, 1000])
def test_alphas_cumprod_are_the_running_product_of_one_minus_beta(name: Any, count: int) -> None:
    noise = kd.noise_schedule(name, num_train_timesteps=count, beta_start=2e-4, beta_end=0.03)
    expected = np.cumprod(1 - betas_of(name, count, 2e-4, 0.03))
    np.testing.assert_allclose(noise.alphas_cumprod, expected, rtol=1e-11)
    assert noise.num_train_timesteps == count


# The second starts so low that a subtraction 1 - abar in float64 leaves sigma_0 at 1e-10.
@pytest.mark.parametrize("ends", [("0.00085", "0.012"), ("0.0000001", "0.02")])
def test_scaled_linear_agrees_with_fifty_digit_arithmetic(ends: tuple[str, str]) -> None:
    noise = kd.noise_schedule("scaled_linear", beta_start=float(ends[0]), beta_end=float(ends[1]))
    with localcontext() as context:
        context.prec = 50
        first, last = (Decimal(end).sqrt() for end in ends)
        abar = Decimal(1)
        for t in range(1000):
            abar *= 1 - (first + (last - first) * t / 999) ** 2
            if t in (0, 1, 500, 999):
                sigma = ((1 - abar) / abar).sqrt()
                assert noise.alphas_cumprod[t] == pytest.approx(float(abar), rel=1e-13, abs=0)
                assert noise.sigmas[t] == pytest.approx(float(sigma), rel=1e-14, abs=0)


def test_stable_diffusion_has_its_published_sigma_range() -> None:
    # The sigma_min and sigma_max that k-diffusion's users pass for Stable Diffusion 1.
    sigmas = kd.noise_schedule("scaled_linear").sigmas
    assert sigmas[0] == pytest.approx(0.0292, abs=5e-5)
    assert sigmas[-1] == pytest.approx(14.6146, abs=5e-5)


def test_cosine_betas_stop_at_0_999() -> None:
    abar = kd.noise_schedule("squaredcos_cap_v2").alphas_cumprod
    assert 1 - abar[-1] / abar[-2] == pytest.approx(0.999, rel=1e-12)
    assert 1 - abar[-2] / abar[-3] < 0.999


def test_sigma_is_noise_over_signal(noise: kd.NoiseSchedule) -> None:
    abar = noise.alphas_cumprod
    # The subtraction, not the table, loses digits: 1 - abar is 4e-5 at its smallest.
    np.testing.assert_allclose(noise.sigmas, np.sqrt((1 - abar) / abar), rtol=1e-11)
    assert np.all(np.diff(noise.sigmas) > 0)
    assert np.all(np.diff(abar) < 0)


def test_tables_are_float64_on_the_host_with_and_without_x64() -> None:
    plain = kd.noise_schedule()
    with x64():
        wide = kd.noise_schedule()
    for table in (plain.alphas_cumprod, plain.sigmas, wide.alphas_cumprod, wide.sigmas):
        assert isinstance(table, np.ndarray)
        assert table.dtype == np.float64
    np.testing.assert_array_equal(plain.sigmas, wide.sigmas)


def test_trained_betas_replace_the_named_schedule() -> None:
    named = kd.noise_schedule("linear", 100, beta_start=0.00085, beta_end=0.012)
    betas = betas_of("linear", 100, 0.00085, 0.012)
    for name in NAMES:
        given = kd.noise_schedule(
            name, num_train_timesteps=100, beta_start=0.3, beta_end=0.4, trained_betas=list(betas)
        )
        np.testing.assert_allclose(given.sigmas, named.sigmas, rtol=1e-13)


# --- zero terminal signal-to-noise ratio: Lin et al. 2023, Algorithm 1 -----------------------


@pytest.mark.parametrize("name", NAMES)
def test_zero_terminal_snr_keeps_the_first_level_and_ends_without_signal(name: Any) -> None:
    plain = kd.noise_schedule(name)
    noise = kd.noise_schedule(name, rescale_zero_terminal_snr=True)
    assert noise.alphas_cumprod[0] == pytest.approx(plain.alphas_cumprod[0], rel=1e-14)
    assert noise.alphas_cumprod[-1] == 0
    assert noise.sigmas[-1] == np.inf
    assert noise.zero_terminal_snr
    assert not plain.zero_terminal_snr
    # sqrt(abar) is shifted and scaled, nothing else.
    before, after = np.sqrt(plain.alphas_cumprod), np.sqrt(noise.alphas_cumprod)
    expected = before[0] * (before - before[-1]) / (before[0] - before[-1])
    np.testing.assert_allclose(after, expected, rtol=1e-12)
    abar = noise.alphas_cumprod[:-1]
    np.testing.assert_allclose(noise.sigmas[:-1], np.sqrt((1 - abar) / abar), rtol=1e-10)


@pytest.mark.parametrize("compiled", [False, True])
def test_zero_terminal_snr_leaves_noise_alone_at_the_last_timestep(compiled: bool) -> None:
    noise = kd.noise_schedule(rescale_zero_terminal_snr=True)
    x0, eps = jax.random.normal(jax.random.key(0), (2, 3, 4))
    last = jnp.full(3, 999)
    add_noise, velocity = kd.NoiseSchedule.add_noise, kd.NoiseSchedule.velocity
    if compiled:
        add_noise, velocity = jax.jit(add_noise), jax.jit(velocity)
    np.testing.assert_array_equal(add_noise(noise, x0, eps, last), eps)
    np.testing.assert_array_equal(velocity(noise, x0, eps, last), -x0)


# --- sigma <-> timestep ----------------------------------------------------------------------


def test_sigma_at_and_timestep_at_are_inverse_on_the_training_grid(noise: kd.NoiseSchedule) -> None:
    timesteps = np.arange(noise.num_train_timesteps)
    np.testing.assert_array_equal(noise.sigma_at(timesteps), noise.sigmas)
    np.testing.assert_allclose(noise.timestep_at(noise.sigmas), timesteps, rtol=0, atol=1e-9)


def test_sigma_is_linear_between_timesteps_and_timestep_in_log_sigma() -> None:
    noise = kd.noise_schedule()
    low, high = noise.sigmas[700:702]
    assert noise.sigma_at(700.25) == pytest.approx(0.75 * low + 0.25 * high, rel=1e-14)
    between = np.exp(0.75 * np.log(low) + 0.25 * np.log(high))
    assert noise.timestep_at(between) == pytest.approx(700.25, abs=1e-9)


def test_both_directions_are_monotone_and_clamped(noise: kd.NoiseSchedule) -> None:
    last = noise.num_train_timesteps - 1
    timesteps = np.linspace(-3, last + 3, 777)
    sigmas = noise.sigma_at(timesteps)
    inside = (timesteps > 0) & (timesteps < last)
    assert np.all(np.diff(sigmas[inside]) > 0)
    assert np.all(sigmas[timesteps <= 0] == noise.sigmas[0])
    assert np.all(sigmas[timesteps >= last] == noise.sigmas[-1])
    back = noise.timestep_at(np.geomspace(noise.sigmas[0] / 10, noise.sigmas[-1] * 10, 777))
    assert np.all(np.diff(back) >= 0)
    assert back[0] == 0
    assert back[-1] == last


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_conversions_keep_shapes_and_run_traced(shape: tuple[int, ...]) -> None:
    noise = kd.noise_schedule()
    timesteps = np.random.default_rng(0).uniform(0, 999, shape)
    sigmas = noise.sigma_at(timesteps)
    assert sigmas.shape == noise.timestep_at(sigmas).shape == shape
    assert sigmas.dtype == np.float64
    traced = jax.jit(noise.sigma_at)(timesteps.astype(np.float32))
    np.testing.assert_allclose(traced, sigmas, rtol=3e-6)
    # float32 holds 999 + a fraction to 6e-5, and log sigma moves by less than 0.02 a timestep.
    traced = jax.jit(noise.timestep_at)(sigmas.astype(np.float32))
    np.testing.assert_allclose(traced, noise.timestep_at(sigmas), rtol=0, atol=1e-3)


# --- noising for training --------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5,), (5, 7), (5, 3, 3, 2)])
def test_add_noise_and_velocity_have_their_closed_forms(
    noise: kd.NoiseSchedule, shape: tuple[int, ...]
) -> None:
    x0, eps = data_and_noise(*shape)
    timesteps: Any = np.linspace(0, noise.num_train_timesteps - 1, 5).astype(np.int32)
    alpha, sigma = (v.reshape(-1, *[1] * (len(shape) - 1)) for v in levels_of(noise, timesteps))

    @jax.jit
    def both(x0: jax.Array, eps: jax.Array) -> tuple[jax.Array, jax.Array]:
        return noise.add_noise(x0, eps, timesteps), noise.velocity(x0, eps, timesteps)

    noised, velocity = both(x0, eps)
    assert noised.shape == velocity.shape == shape
    np.testing.assert_allclose(noised, alpha * x0 + sigma * eps, atol=1e-6)
    np.testing.assert_allclose(velocity, alpha * eps - sigma * x0, atol=1e-6)


def test_noising_preserves_variance(noise: kd.NoiseSchedule) -> None:
    timesteps = jnp.arange(noise.num_train_timesteps)
    one, zero = jnp.ones(timesteps.shape), jnp.zeros(timesteps.shape)
    add_noise = jax.jit(noise.add_noise)
    signal, added = add_noise(one, zero, timesteps), add_noise(zero, one, timesteps)
    np.testing.assert_allclose(np.square(signal) + np.square(added), 1, atol=3e-7)


def test_sample_and_velocity_are_a_rotation_of_data_and_noise() -> None:
    # Salimans and Ho 2022: x0 = a x - s v, eps = s x + a v.
    noise = kd.noise_schedule("linear", beta_start=1e-4, beta_end=0.02)
    timesteps: Any = np.arange(0, 1000, 37)
    x0, eps = data_and_noise(len(timesteps))
    alpha, sigma = levels_of(noise, timesteps)
    x, v = noise.add_noise(x0, eps, timesteps), noise.velocity(x0, eps, timesteps)
    np.testing.assert_allclose(alpha * x - sigma * v, x0, atol=2e-6)
    np.testing.assert_allclose(sigma * x + alpha * v, eps, atol=2e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_noised_samples_are_float32_whatever_the_data(dtype: jnp.dtype) -> None:
    noise = kd.noise_schedule()
    x0, eps = jnp.full((2, 3), 0.7, dtype), jnp.full((2, 3), -0.3, dtype)
    timesteps = jnp.array([3, 800], jnp.int16)
    noised = noise.add_noise(x0, eps, timesteps)
    assert noised.dtype == noise.velocity(x0, eps, timesteps).dtype == jnp.float32
    wide = noise.add_noise(x0.astype(jnp.float32), eps.astype(jnp.float32), timesteps)
    np.testing.assert_array_equal(noised, wide)


def test_float64_samples_are_noised_in_float64() -> None:
    noise = kd.noise_schedule()
    x0, eps = data_and_noise(4).astype(np.float64) / 3
    timesteps: Any = np.array([0, 1, 500, 999])
    alpha, sigma = levels_of(noise, timesteps)
    with x64():
        noised = noise.add_noise(x0, eps, timesteps)
        assert noised.dtype == jnp.float64
        np.testing.assert_allclose(noised, alpha * x0 + sigma * eps, rtol=1e-12)


def test_a_noise_schedule_is_an_argument_of_jit_vmap_and_grad() -> None:
    noise = kd.noise_schedule()
    x0, eps = data_and_noise(5, 3)
    timesteps: Any = np.array([0, 250, 500, 750, 999])
    expected = noise.add_noise(x0, eps, timesteps)

    @jax.jit
    def loss(noise: kd.NoiseSchedule, x0: jax.Array, timesteps: jax.Array) -> jax.Array:
        return jnp.sum(noise.add_noise(x0, eps, timesteps))

    compiled = jax.jit(kd.NoiseSchedule.add_noise)(noise, x0, eps, timesteps)
    np.testing.assert_allclose(compiled, expected, rtol=0, atol=1e-6)
    alpha, _ = levels_of(noise, timesteps)
    gradient = jax.grad(loss, argnums=1)(noise, x0, timesteps)
    np.testing.assert_allclose(gradient, np.broadcast_to(alpha[:, None], (5, 3)), rtol=1e-6)

    several = jax.tree.map(lambda *leaves: np.stack(leaves), noise, kd.noise_schedule("linear"))
    both = jax.vmap(kd.NoiseSchedule.add_noise, (0, None, None, None))(several, x0, eps, timesteps)
    np.testing.assert_allclose(both[0], expected, rtol=0, atol=1e-6)
    other = kd.noise_schedule("linear").add_noise(x0, eps, timesteps)
    np.testing.assert_allclose(both[1], other, rtol=0, atol=1e-6)


def test_another_schedule_of_the_same_length_does_not_recompile() -> None:
    traces = []

    @jax.jit
    def noised(noise: kd.NoiseSchedule, x0: jax.Array, timesteps: jax.Array) -> jax.Array:
        traces.append(1)
        return noise.add_noise(x0, x0, timesteps)

    for name in NAMES:
        noised(kd.noise_schedule(name), jnp.ones((2, 3)), jnp.array([1, 2]))
    assert len(traces) == 1


@pytest.mark.parametrize("order", [[False, True], [True, False]])
def test_one_schedule_serves_with_and_without_x64(order: list[bool]) -> None:
    # A table that jit captures must not carry the dtype of its first use into the other mode.
    noise = kd.noise_schedule()

    def there_and_back(timestep: jax.Array) -> Any:
        return noise.timestep_at(noise.sigma_at(timestep))

    for wide in order:
        with x64() if wide else contextlib.nullcontext():
            found = jax.jit(there_and_back)(300.0)
        assert found.dtype == (np.float64 if wide else np.float32)
        assert float(found) == pytest.approx(300, rel=1e-12 if wide else 1e-5)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), [1.0, 0.0]])
def test_a_level_that_has_no_logarithm_is_refused(sigma):
    with pytest.raises(ValueError, match="not positive"):
        kd.noise_schedule().timestep_at(sigma)
