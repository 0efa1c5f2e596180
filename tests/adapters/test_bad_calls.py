"""Wrong objects as arguments of k-diffusion's names: refused by name, whatever they are."""

import datetime
import math
import re
import types
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import Refusal, check, every

import kdiff_jax as kd
from kdiff_jax.adapters import k_diffusion as K

ABAR = kd.noise_schedule(num_train_timesteps=20).alphas_cumprod
X, KEY = jnp.ones((2, 8)), jax.random.key(0)
SIGMAS = [10.0, 3.0, 1.0, 0.0]


def network(x: jax.Array, timestep: jax.Array) -> jax.Array:
    return 0.1 * x


def model(x: jax.Array, sigma: jax.Array) -> jax.Array:
    return x / (1 + sigma[:, None] ** 2)


def deep(depth: int = 2000) -> list[Any]:
    """A list in a list: what JAX runs out of stack on, and leaves broken behind it."""
    nested: list[Any] = []
    for _ in range(depth):
        nested = [nested]
    return nested


# No argument of k-diffusion may be one of these.
NEVER: list[Any] = [
    "",
    "1",
    "nan",
    b"1",
    1j,
    np.array([1j, 1.0]),
    datetime.date(2020, 1, 1),
    np.datetime64("2020-01-01"),
    np.array(["a", "b"]),
    [],
    [None],
    ["10", "1"],
    [[1.0], [2.0, 3.0]],
    [10**400, 1],
    {1},
    object(),
    deep(),
]
# Nor these, where it is a number, or numbers.
NO_NUMBERS: list[Any] = [None, {}, {"a": 1}, len, True, np.True_, math.nan, -math.inf, 10**400]
NUMBERS = [*NEVER, *NO_NUMBERS, -1, [math.nan, 1.0], 1e300]
COUNTS = [*NUMBERS, 0, 2.5, 10**9, math.inf]
WRAPPED = K.DiscreteEpsDDPMDenoiser(network, ABAR)
RUN: dict[str, Any] = {"model": model, "x": X, "sigmas": SIGMAS, "key": KEY}
OF_RUN = {
    "model": [*NEVER, None, {}, 1, True, lambda x: x, kd.denoiser(lambda params, x, t: x)],
    "x": [*NEVER, *NO_NUMBERS, 1, X.astype(jnp.complex64), X.astype(int)],
    "sigmas": [*NUMBERS, 1, [1.0], [1.0, 2.0], [3.0, 1.0, 1.0], SIGMAS[::-1]],
    "extra_args": [*NEVER, 1, len, True, {1: 2}, {"a": "b"}, {"a": 10**400}, {"a": object()}],
    "callback": [*NEVER, {}, 1, True, int, lambda x, i: None],
    "disable": [*NEVER, {}, 1, 0, len],
    "noise_sampler": [*NEVER, {}, 1, True, lambda sigma: X],
}
# A function, the arguments of a call that is right, and the wrong ones of each.
CALLS: list[tuple[Callable[..., Any], dict[str, Any], dict[str, list[Any]]]] = [
    (K.append_zero, {"sigmas": [3.0, 1.0]}, {"sigmas": [*NUMBERS[:-3], 1, [[1.0]]]}),
    (
        K.get_sigmas_karras,
        {"n": 3, "sigma_min": 0.1, "sigma_max": 10.0, "rho": 7.0},
        {"n": COUNTS, "sigma_min": NUMBERS, "sigma_max": [*NUMBERS[:-1], 0], "rho": NUMBERS[:-1]},
    ),
    (
        K.get_sigmas_exponential,
        {"n": 3, "sigma_min": 0.1, "sigma_max": 10.0},
        {"n": COUNTS, "sigma_min": NUMBERS, "sigma_max": NUMBERS[:-1]},
    ),
    (
        K.get_sigmas_polyexponential,
        {"n": 3, "sigma_min": 0.1, "sigma_max": 10.0, "rho": 1.0},
        {"n": COUNTS, "sigma_min": NUMBERS, "sigma_max": NUMBERS[:-1], "rho": NUMBERS[:-1]},
    ),
    (
        K.get_sigmas_vp,
        {"n": 3, "beta_d": 19.9, "beta_min": 0.1, "eps_s": 1e-3},
        {"n": COUNTS, "beta_d": NUMBERS[:-1], "beta_min": NUMBERS[:-1], "eps_s": NUMBERS[:-1]},
    ),
    (
        K.get_ancestral_step,
        {"sigma_from": 2.0, "sigma_to": 1.0, "eta": 1.0},
        {"sigma_from": [*NUMBERS, 0, 0.5], "sigma_to": [*NUMBERS, 3], "eta": NUMBERS},
    ),
    (
        K.to_d,
        {"x": X, "sigma": jnp.array([2.0, 4.0]), "denoised": X},
        {
            "x": [*NUMBERS, X[0], X.astype(int)],
            "sigma": [*NUMBERS, 0, 5e-324, [1.0, 2.0, 3.0], [[1.0], [2.0]]],
            "denoised": [*NUMBERS, X[0], X.astype(int)],
        },
    ),
    *(
        (
            wrapper,
            {"model": network, "alphas_cumprod": ABAR},
            {
                "model": [*NEVER, None, {}, 1, True],
                "alphas_cumprod": [*NUMBERS, 0, [0.5, 0.7]],
                "quantize": [*NEVER, None, 1, 0, len],
            },
        )
        for wrapper in (K.DiscreteEpsDDPMDenoiser, K.DiscreteVDDPMDenoiser)
    ),
    *(
        (
            wrapper,
            {"model": types.SimpleNamespace(apply_model=network, alphas_cumprod=ABAR)},
            {
                "model": [*NEVER, None, {}, 1, network],
                "quantize": [*NEVER, None, 1, 0, len],
            },
        )
        for wrapper in (K.CompVisDenoiser, K.CompVisVDenoiser)
    ),
    (
        WRAPPED,
        {"x": X, "sigma": 3.0},
        {"x": [*NUMBERS, 1.0, X.astype(int)], "sigma": [*NUMBERS, 0, [1.0, 2.0, 3.0]]},
    ),
    (
        WRAPPED.sigma_to_t,
        {"sigma": 3.0},
        {"sigma": [*NUMBERS, 0], "quantize": [*NEVER, 1, 0, len]},
    ),
    (WRAPPED.t_to_sigma, {"t": 3.0}, {"t": [*NUMBERS, 19.5]}),
    (WRAPPED.get_sigmas, {"n": 3}, {"n": [value for value in COUNTS if value is not None]}),
    (K.sample_dpm_2, RUN, {**OF_RUN, "s_churn": NUMBERS[:-1], "s_noise": NUMBERS[:-1]}),
    (
        K.sample_dpm_2_ancestral,
        RUN,
        {**OF_RUN, "eta": [*NEVER[:-1], *NO_NUMBERS, -1], "s_noise": NUMBERS[:-1]},
    ),
    (K.sample_lcm, RUN, {**OF_RUN, "s_noise": NUMBERS[:-1]}),
]
CASES = [
    pytest.param(
        function, {**right, "key": None} if name == "noise_sampler" else right, name, wrong
    )
    for function, right, all_wrong in CALLS
    for name, wrong in all_wrong.items()
]
RAW = "ufunc|truth value|broadcast|inhomogeneous|object too deep|valid JAX|has no attribute"


@pytest.mark.parametrize(("function", "right", "name", "wrong"), CASES)
def test_wrong_objects_are_refused_by_name(
    function: Callable[..., Any], right: dict[str, Any], name: str, wrong: list[Any]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for value in wrong:
            with pytest.raises(ValueError, match=name) as refusal:
                function(**{**right, name: value})
            text = str(refusal.value)
            assert not re.search(RAW, text), text
            assert len(text) < 1500, text


@pytest.mark.parametrize("call", CALLS, ids=lambda call: getattr(call[0], "__name__", "wrapped"))
def test_the_right_call_is_finite(call: tuple[Any, dict[str, Any], Any]) -> None:
    function, right, _ = call
    out = function(**right)
    if not isinstance(out, K.DiscreteDenoiser):
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(out))


RETURNED: list[Refusal] = [
    (lambda: K.sample_dpm_2(model, X, SIGMAS, key=7), "key = 7 is no PRNG key"),  # type: ignore[arg-type]
    (lambda: run(lambda x, sigma: None), "model returned None.*return denoised"),
    (lambda: run(lambda x, sigma: x.astype(int)), "model returned is int32.*cast it"),
    (lambda: run(lambda x, sigma: (x, x)), r"model returned \(.*return denoised"),
    (lambda: drawn(lambda s, s_next: None), "noise_sampler returned = None"),
    (lambda: drawn(lambda s, s_next: "1"), "noise_sampler returned = '1'"),
    (
        lambda: drawn(lambda s, s_next: X.astype(jnp.complex64)),
        "noise_sampler returned is complex64",
    ),
    (lambda: K.get_ancestral_step(np.ones(2), np.ones(3)), "shapes.*sigma_from.*do not fit"),
    (
        lambda: K.CompVisDenoiser(types.SimpleNamespace(apply_model=1, alphas_cumprod=ABAR)),
        "apply_model = 1 is not callable",
    ),
]


def run(model: Any) -> Any:
    return K.sample_dpm_2(model, X, SIGMAS)


def drawn(noise_sampler: Any) -> Any:
    return K.sample_lcm(model, X, SIGMAS, noise_sampler=noise_sampler)


@every(RETURNED)
def test_what_functions_of_the_user_return_is_checked(
    call: Callable[[], Any], message: str
) -> None:
    check(call, message)
