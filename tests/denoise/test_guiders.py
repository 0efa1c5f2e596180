"""CFG++, projected guidance and autoguidance: what `tests/denoise/test_rows.py` does not show."""

import collections
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers as sp
from samplers import MIXING, NOISE, SAMPLERS, relative_error

import kdiff_jax as kd
from kdiff_jax._denoise.cfg_plus_plus import check_rows

COND, UNCOND = np.array([0.5, -1, 2, 0], np.float32), np.float32(0.25)
SCALES = np.array([0, 0.6, 1, 1.5], np.float32)
X = jnp.asarray(5 * np.random.default_rng(0).normal(size=(4, 8)), jnp.float32)
mixing = kd.denoiser(sp.mixing_model)
MADE_OF_D = ["euler", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "unipc"]
MADE_OF_D += ["lcm", "tcd"]


def counted(traced: Any, params: Any, x: jax.Array, timestep: jax.Array, cond: Any) -> jax.Array:
    traced["network"] += 1
    return params * x * cond[:, None] / (1 + x * x) + timestep[:, None] / 1000


def euler(flow: bool) -> kd.Schedule:
    return kd.euler(kd.levels(kd.flow_schedule(shift=3.0) if flow else NOISE, 5))


@pytest.mark.parametrize("flow", [False, True], ids=["ddim", "flow"])
def test_a_run_of_cfg_plus_plus_is_algorithm_2_of_the_paper(flow):
    """Chung et al. 2024, on x = alpha x0 + sigma eps: D guided, the noise that returns is not."""
    schedule = euler(flow)
    base = kd.denoiser(sp.mixing_model, "flow_prediction" if flow else "epsilon")
    with sp.x64():
        denoise = kd.cfg_plus_plus(base, SCALES, UNCOND, batched=not flow)
        got = kd.sample(denoise, MIXING, schedule, X, cond=COND)
    x, levels = np.asarray(X, np.float64), np.asarray(schedule.sigmas, np.float64)
    weight = MIXING["weight"].astype(np.float64)
    for row, s0, s1 in zip(schedule, levels[:-1], levels[1:], strict=True):
        a0, a1 = (1 - s0, 1 - s1) if flow else (1.0, 1.0)
        scaled = x if flow else x / np.sqrt(1 + s0**2)
        hidden = np.tanh(scaled @ weight) * (1 + float(row.timestep) / 1000)
        out = [hidden + np.float64(c).reshape(-1, 1) for c in (COND, UNCOND)]
        eps = [x + a0 * v for v in out] if flow else out
        x0 = [x - s0 * v for v in out]
        guided = x0[1] + SCALES.reshape(4, 1).astype(np.float64) * (x0[0] - x0[1])
        x = a1 * guided + s1 * eps[1]
    assert relative_error(got, x) < 1e-6


@pytest.mark.parametrize("name", SAMPLERS)
def test_cfg_plus_plus_is_refused_where_a_row_is_not_made_of_d_and_noise(name):
    schedule = SAMPLERS[name](3)
    denoise = kd.cfg_plus_plus(kd.denoiser(sp.elementwise_model), 0.6, np.float32(0))
    key = jax.random.key(0) if sp.draws(schedule) else None

    if name in MADE_OF_D:
        check_rows(schedule.rows)  # what kd.sample asks; of euler the test above runs it
        return
    for table in (schedule, schedule.pad(12), kd.stack([schedule, SAMPLERS["euler"](3)] * 2)):
        with pytest.raises(ValueError, match=r"goes on from the anchor or has no D.*kd\.euler"):
            kd.sample(denoise, None, table, X, key, COND)
    with pytest.raises(ValueError, match="goes on from the anchor"):
        denoise(None, X, schedule[1], COND)


def test_cfg_plus_plus_is_refused_where_a_row_has_no_d():
    """The noise of a flow that is turned over: its last row, at alpha = 0, is epsilon alone."""
    schedule = kd.euler(kd.levels(kd.flow_schedule(), 3).reversed())
    assert schedule.rows.anchor_weight is None
    assert schedule.rows.denoised_weight[-1] == 0
    denoise = kd.cfg_plus_plus(kd.denoiser(sp.mixing_model, "flow_prediction"), 0.6, UNCOND)
    with pytest.raises(ValueError, match="has no D"):
        kd.sample(denoise, MIXING, schedule, X, cond=COND)


def test_a_wrapper_that_makes_epsilon_from_d_is_refused_outside_of_cfg_plus_plus():
    inner = kd.cfg_plus_plus(mixing, 0.6, UNCOND)
    for outer in (kd.clipped(inner), kd.inpainted(kd.thresholded(inner), 0.0, 1.0)):
        with pytest.raises(ValueError, match=r"inside of .*; wrap kd.cfg_plus_plus around it"):
            kd.sample(outer, MIXING, SAMPLERS["euler"](2), X, cond=COND)
    # epsilon of inpainting is that of the network where nothing is known.
    row = SAMPLERS["euler"](2)[0]
    inpainted = kd.inpainted(inner, 0.0, 1.0)(MIXING, X, row, COND)
    plain = inner(MIXING, X, row, COND)
    for got, expected in zip(jax.tree.leaves(inpainted), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(got, expected)


def guiders(traced: Any = None) -> dict[str, Any]:
    traced = collections.Counter() if traced is None else traced
    base = kd.denoiser(jax.tree_util.Partial(counted, traced))
    return {
        "cfg_plus_plus, two calls": kd.cfg_plus_plus(base, SCALES, UNCOND, batched=False),
        "projected": kd.projected(base, SCALES, UNCOND, eta=0.3, norm_threshold=2.0),
        "autoguided": kd.autoguided(base, SCALES),
    }


@pytest.mark.parametrize("name", guiders())
def test_the_network_is_traced_once_and_no_sample_sees_another(name):
    traced: collections.Counter[str] = collections.Counter()
    denoise = guiders(traced)[name]
    params = (jnp.float32(0.7), jnp.float32(0.4)) if name == "autoguided" else jnp.float32(0.7)
    row = SAMPLERS["euler"](4)[1]
    predict = jax.jit(denoise)
    cond = COND + 3
    whole = predict(params, X, row, cond)
    assert traced["network"] == 1
    others = jnp.concatenate([X[:1], 9 * X[:0:-1]])
    company = predict(params, others, row, np.concatenate([cond[:1], -cond[1:]]))
    for got, expected in zip(jax.tree.leaves(company), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(got[0], expected[0])
        assert np.all(got[1:] != expected[1:])


def scaled(params: Any, x: jax.Array, row: kd.Row, cond: Any = None) -> kd.Prediction:
    return kd.Prediction(params * x * cond[:, None], x)


def test_gradients_are_finite_where_there_is_nothing_to_guide():
    """An estimate of 0 has no direction, and a difference of 0 has no length."""
    row = SAMPLERS["euler"](4)[1]
    x, cond = jnp.concatenate([0 * X[:1], X[1:]]), np.array([1, UNCOND, 3, 2], np.float32)

    @jax.jit
    @jax.grad
    def slope(numbers: dict[str, jax.Array]) -> jax.Array:
        params, scale, eta, limit = (numbers[name] for name in ("params", "scale", "eta", "limit"))
        options: dict[str, Any] = {"eta": eta, "norm_threshold": limit}
        predictions = [
            kd.projected(scaled, scale, UNCOND, **options)(params, x, row, cond),
            kd.cfg_plus_plus(scaled, scale, UNCOND)(params, x, row, cond),
            kd.autoguided(scaled, scale)((params, params / 2), x, row, cond),
        ]
        return jnp.sum(jnp.stack([jnp.stack(jax.tree.leaves(p)) for p in predictions]) ** 2)

    names = {"params": 0.7, "scale": 3.0, "eta": 0.5, "limit": 2.0}
    slopes = slope({name: jnp.float32(value) for name, value in names.items()})
    assert all(np.isfinite(value) and value != 0 for value in slopes.values())
