"""DPM++ 2M, 3M and their SDE forms: k-diffusion's formulas, and recordings of diffusers."""

import functools
import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import k_truth
import multistep
import numpy as np
import pytest
from flows import FLOW, SD3
from samplers import NOISE, relative_error, x64

import kdiff_jax as kd
from kdiff_jax._table.exponential import phis

SIGMAS = np.append(kd.karras_sigmas(12, 0.03, 14.6), 0)


def denoised(x: Any, sigma: Any, xp: Any = np) -> Any:
    return xp.tanh(x / (1 + sigma)) * 0.8 + 0.1 * xp.cos(sigma)


K_DIFFUSION: dict[str, tuple[Any, Any]] = {
    "2m": (kd.dpmpp_2m, k_truth.k_sample_dpmpp_2m),
    "2m, eta = 0": (functools.partial(kd.dpmpp_2m, eta=0.0), k_truth.k_sample_dpmpp_2m),
    **{
        f"2m sde, {solver}": (
            functools.partial(kd.dpmpp_2m, eta=0.7, s_noise=0.9, solver=solver),
            functools.partial(k_truth.k_sample_dpmpp_2m_sde, eta=0.7, s_noise=0.9, solver=solver),
        )
        for solver in ("midpoint", "heun")
    },
    **{
        f"3m sde, {eta}": (
            functools.partial(kd.dpmpp_3m, eta=eta),
            functools.partial(k_truth.k_sample_dpmpp_3m_sde, eta=eta),
        )
        for eta in (0.0, 1.0)
    },
}


@pytest.mark.parametrize("name", K_DIFFUSION)
def test_tables_reproduce_the_formulas_of_k_diffusion(name):
    sampler, truth = K_DIFFUSION[name]
    rng = np.random.default_rng(0)
    x, noise = 14.6 * rng.normal(size=(2, 5)), rng.normal(size=(12, 2, 5))
    expected = truth(denoised, x, SIGMAS, noise=noise)
    with x64():
        schedule = sampler(kd.levels(None, sigmas=SIGMAS))
        state = kd.init(schedule, jnp.asarray(x))
        for row, z in zip(schedule, noise, strict=True):
            d = denoised(state.sample, row.sigma, jnp)
            prediction = kd.Prediction(d, (state.sample - d) / row.sigma)
            z = None if row.noise_weight is None else jnp.asarray(z)
            state = kd.step(state, row, prediction, noise=z)
    assert relative_error(state.sample, expected) < 1e-12


CASES = [case for case in multistep.cases() if case["scheduler"].startswith("DPM")]


def sampler_of(case: dict[str, Any], levels: kd.Levels) -> kd.Schedule:
    config = case["config"]
    order, solver = config.get("solver_order", 2), config.get("solver_type", "midpoint")
    eta = 1.0 if "algorithm_type" in config else None
    if order == 1:
        return kd.euler(levels, eta)
    if order == 2:
        return kd.dpmpp_2m(levels, eta, solver=solver)
    lower = config.get("lower_order_final", True) and case["steps"] < 15
    return kd.dpmpp_3m(levels, eta, solver=solver, lower_order_final=lower)


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["number"]))
def test_tables_reproduce_diffusers(case):
    with x64():
        error = multistep.relative_to_recording(case, functools.partial(sampler_of, case))
    assert case["loss"] < 1e-6
    if case["config"].get("solver_order") == 3 and "algorithm_type" in case["config"]:
        # - 0.5 for + 0.5 beside phi_3: we follow k-diffusion, above.
        assert error > 1e-2
    else:
        assert error < 1e-10


def test_3m_of_third_order_has_twice_phi_3():
    levels = kd.levels(None, sigmas=SIGMAS)
    h = -np.diff(np.log(SIGMAS[:-1]))
    b, phi_3 = h[-1] / h[-2], ((np.expm1(-h) + h) / h**2 - 0.5)[-1]
    b_2 = b * h[-2] / h[-3]
    with x64():
        tables = [kd.dpmpp_3m(levels, published=flag).rows for flag in (False, True)]
        ours, published = jax.tree.map(np.asarray, tables)
    extra = -phi_3 * b * b_2 / (b + b_2)  # of w
    for name, expected in (
        ("denoised_weight", extra * b),
        ("denoised_weight_1", -extra * (b + b_2)),
        ("denoised_weight_2", extra * b_2),
    ):
        found = getattr(ours, name)[-2] - getattr(published, name)[-2]
        assert float(found) == pytest.approx(expected, rel=1e-9)


def test_the_first_steps_of_levels_and_the_last_ones_on_demand_are_of_lower_order():
    levels = kd.levels(NOISE, 8)
    for sampler in (kd.dpmpp_2m, kd.dpmpp_3m, kd.unipc):
        first: Any = sampler(levels.start_at(3))[0]
        assert first.denoised_weight_1 == 0
        assert sampler(levels)[3].denoised_weight_1 != 0
    plain: Any = kd.dpmpp_3m(levels, solver="midpoint").rows
    second: Any = kd.dpmpp_2m(levels).rows.denoised_weight_1
    assert plain.denoised_weight_1[1] == second[1]
    assert np.all(np.asarray(plain.denoised_weight_2) != 0, where=np.arange(8) % 7 > 1)
    lower = functools.partial(kd.dpmpp_3m, solver="midpoint", lower_order_final=True)
    closing: Any = lower(levels).rows
    above: Any = lower(levels.end_at(7)).rows
    assert closing.denoised_weight_2[6] == 0
    assert closing.denoised_weight_1[6] == second[6]
    assert above.denoised_weight_1[6] == above.denoised_weight_2[6] == above.denoised_weight_2[5]
    assert above.denoised_weight_1[5] == second[5]
    assert above.denoised_weight_2[4] == plain.denoised_weight_2[4] != 0


# --- the phi functions -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_phi_2_and_phi_3_keep_their_digits_near_0(dtype):
    h = np.array([-9, -1, -0.31, -0.29, -1e-3, -1e-9, 0, 1e-9, 1e-3, 0.04, 0.29, 0.31, 1, 9])

    def exactly(h: float, first: int) -> float:  # the sum of (-h)^k / (k + first)!, exact in h
        terms = (Fraction(-h) ** k / math.factorial(k + first) for k in range(80))
        return float(sum(terms))

    h = h.astype(dtype).astype(np.float64)
    expected = [x * exactly(x, 2) for x in h], [-x * exactly(x, 3) for x in h]
    found = phis(h) if dtype is np.float64 else jax.jit(phis)(jnp.asarray(h, jnp.float32))
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=60 * np.finfo(dtype).eps)


# --- steps that are infinitely long ----------------------------------------------------------

FAMILY: dict[str, Any] = {
    "2m": kd.dpmpp_2m,
    "2m sde": functools.partial(kd.dpmpp_2m, eta=1.0, solver="heun"),
    "3m": kd.dpmpp_3m,
    "3m sde": functools.partial(kd.dpmpp_3m, eta=0.5),
    "unipc": kd.unipc,
}
MULTISTEP = ("denoised_weight_1", "denoised_weight_2")


@pytest.mark.parametrize("name", FAMILY)
def test_a_step_from_or_to_alpha_0_is_of_first_order_and_has_finite_gradients(name):
    sampler = FAMILY[name]
    levels = kd.levels(SD3, 5)
    assert levels.sigmas[0] == 1
    rows = sampler(levels).rows
    assert rows.denoised_weight[0] == pytest.approx(1 - levels.sigmas[1], rel=1e-6)
    # What is near to the limit is near to it in the table.
    near = sampler(kd.levels(SD3, sigmas=[1 - 1e-9, *levels.sigmas[1:-1]])).rows
    if "sde" not in name:
        assert rows.epsilon_weight[0] == np.float32(levels.sigmas[1])
        assert near.epsilon_weight[0] == np.float32(levels.sigmas[1])
    for column in MULTISTEP:
        if getattr(rows, column) is not None:
            np.testing.assert_allclose(getattr(rows, column), getattr(near, column), atol=0.06)

    def total(sigmas):
        table = sampler(kd.levels(SD3, sigmas=sigmas))
        return jnp.sum(kd.sample(velocity, 0.3, table, jnp.ones((1, 3)), jax.random.key(0)))

    with x64():
        gradient = jax.jit(jax.grad(total))(jnp.asarray(levels.sigmas[:-1]))
    assert np.all(np.isfinite(gradient))
    assert np.count_nonzero(gradient) >= 4
    if "sde" not in name:
        up = sampler(levels.reversed()).rows
        assert levels.reversed().sigmas[-1] == 1
        for leaf in jax.tree.leaves(up):
            assert np.all(np.isfinite(leaf))
        # To the level without signal: only noise is left.
        history = [getattr(up, column) for column in MULTISTEP]
        corrections = sum(float(column[-1]) for column in history if column is not None)
        assert float(up.denoised_weight[-1]) == pytest.approx(-corrections, abs=1e-6)


velocity = kd.denoiser(lambda gain, x, timestep: gain * jnp.sin(x), "flow_prediction")


def test_the_noise_of_an_sde_has_a_finite_slope_at_eta_0():
    def weights(eta):
        rows: Any = kd.dpmpp_2m(kd.levels(FLOW, 4), eta=eta).rows
        return jnp.sum(rows.noise_weight) + jnp.sum(rows.epsilon_weight)

    assert np.isfinite(jax.jit(jax.grad(weights))(0.0))
    assert np.isfinite(jax.jit(jax.grad(weights))(0.6))


# --- marginals -------------------------------------------------------------------------------


def recurred(schedule: kd.Schedule, variance: float) -> np.ndarray:
    """The variance of x after every row, where data of this variance and D are Gaussian.

    x, D_1, D_2 are linear in what is independent: the initial sample, and one z a row.
    """
    rows = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), schedule.rows)
    count = schedule.num_rows
    x, d_1, d_2 = (np.zeros(count + 1) for _ in range(3))
    x[0], found = math.sqrt(variance + rows.sigma[0] ** 2), []
    for i in range(count):
        norm = variance + rows.sigma[i] ** 2
        d, eps = variance / norm * x, rows.sigma[i] / norm * x
        x = rows.denoised_weight[i] * d + rows.epsilon_weight[i] * eps
        x = x + rows.denoised_weight_1[i] * d_1
        if rows.denoised_weight_2 is not None:
            x = x + rows.denoised_weight_2[i] * d_2
        x[i + 1] += rows.noise_weight[i]
        d_1, d_2 = d, d_1
        found.append(x @ x)
    return np.array(found)


@pytest.mark.parametrize("name", ["2m sde", "3m sde"])
def test_the_sde_forms_have_the_marginals_of_their_tables_and_those_converge(name):
    levels = functools.partial(kd.levels, NOISE, grid="karras", sigma_min=0.02)
    variance, size = 0.49, 40_000
    schedule = FAMILY[name](levels(16))

    def denoise(params: Any, x: Any, row: kd.Row, cond: Any = None) -> kd.Prediction:
        norm = variance + row.sigma**2
        return kd.Prediction(variance / norm * x, row.sigma / norm * x)

    start = np.random.default_rng(1).normal(size=(size, 1))
    x = jnp.asarray(math.hypot(math.sqrt(variance), levels(16).sigmas[0]) * start, jnp.float32)
    x0 = kd.sample(denoise, None, schedule, x, jax.random.key(3))
    expected = recurred(schedule, variance)[-1]
    assert float(np.mean(np.square(x0))) == pytest.approx(
        expected, abs=3 * expected * math.sqrt(2 / size)
    )
    with x64():
        errors = [abs(recurred(FAMILY[name](levels(n)), variance)[-1] - variance) for n in (16, 64)]
    assert errors[1] < errors[0] / 3
    assert errors[1] < 0.02 * variance
