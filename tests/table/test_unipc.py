"""UniPC: against recordings of diffusers, and where its table comes from."""

import jax.numpy as jnp
import multistep
import numpy as np
import pytest
from samplers import NOISE, x64

import kdiff_jax as kd

CASES = [case for case in multistep.cases() if case["scheduler"] == "UniPCMultistepScheduler"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["number"]))
def test_unipc_is_that_of_diffusers(case):
    corrector = "disable_corrector" not in case["config"]
    with x64():
        error = multistep.relative_to_recording(case, lambda s: kd.unipc(s, corrector=corrector))
        other = multistep.relative_to_recording(case, lambda s: kd.unipc(s, not corrector))
    assert error < 1e-10
    assert case["loss"] < 1e-6
    assert other > 1e-4


def test_without_its_corrector_it_is_dpmpp_2m():
    levels = kd.levels(NOISE, 9, grid="karras")
    found, expected = kd.unipc(levels, corrector=False).rows, kd.dpmpp_2m(levels).rows
    assert found.denoised_weight_2 is None
    for name in ("denoised_weight", "denoised_weight_1", "epsilon_weight"):
        columns = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(*columns, rtol=1e-6, atol=1e-7)


def test_the_correction_of_a_step_is_made_in_the_next_one():
    # By its definition: predict, evaluate, correct the sample, go on from the corrected one.
    sigmas = np.append(kd.karras_sigmas(6, 0.1, 10.0), 0)
    lam = -np.log(sigmas[:-1])

    def denoised(x, sigma):
        return np.tanh(x / (1 + sigma)) * 0.8

    x = predicted = 10.0
    d_0 = d_1 = 0.0
    for i in range(6):
        d = denoised(predicted, sigmas[i])
        if i > 0:  # correct what led here, from level i - 1 to i
            h = lam[i] - lam[i - 1]
            phi = [-np.expm1(-h), 1 - -np.expm1(-h) / h]
            phi.append(phi[1] / h - 0.5)
            if i == 1:
                share, older = 0.5, 0.0
            else:
                # The two weights that are exact for linear and for quadratic D.
                back = (lam[i - 1] - lam[i - 2]) / h
                matrix = [[1.0, 1.0], [-back, 1.0]]
                older, share = np.linalg.solve(matrix, [phi[1] / phi[0], -2 * phi[2] / phi[0]])
                older /= -back
            x = sigmas[i] / sigmas[i - 1] * x + phi[0] * (
                d_0 + older * (d_1 - d_0) + share * (d - d_0)
            )
        if i == 5:
            break
        h = lam[i + 1] - lam[i]
        b = h / (lam[i] - lam[i - 1]) if i > 0 else 0.0
        predicted = sigmas[i + 1] / sigmas[i] * x - np.expm1(-h) * (d + b / 2 * (d - d_0))
        d_0, d_1 = d, d_0
    with x64():
        levels = kd.levels(None, sigmas=sigmas)
        schedule = kd.unipc(levels)
        state = kd.init(schedule, jnp.full((1, 1), 10.0))
        for row in schedule:
            estimate = denoised(np.asarray(state.sample), float(row.sigma))
            epsilon = (state.sample - estimate) / row.sigma
            state = kd.step(state, row, kd.Prediction(estimate, epsilon))
    assert float(state.sample[0, 0]) == pytest.approx(float(d), rel=1e-12)
