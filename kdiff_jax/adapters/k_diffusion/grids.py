"""k-diffusion's functions of noise levels: its grids, its ancestral step, its derivative."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.typing import ArrayLike

import kdiff_jax as kd
from kdiff_jax._arrays import Array, common_namespace, is_traced, per_sample
from kdiff_jax._checks import check_int, check_number, check_vector, shown
from kdiff_jax._levels.split import variance_shares
from kdiff_jax.adapters.k_diffusion.checks import check_level, check_numbers, check_sample


def append_zero(sigmas: ArrayLike | Sequence[float]) -> Array:
    """[n + 1] levels with the closing 0: `[sigmas, 0]`.

    Args:
      sigmas: [n] noise levels; may be traced.

    Returns:
      [n + 1], float64 NumPy for values, traced for traced ones.

    Raises:
      ValueError: levels that are no one-dimensional list of finite numbers.

    Example:
      >>> from kdiff_jax.adapters import k_diffusion as K
      >>> K.append_zero([3.0, 1.0]).tolist()
      [3.0, 1.0, 0.0]

    Source: `append_zero` of k-diffusion.
    """
    if is_traced(sigmas):
        xp, levels = common_namespace(sigmas)
        if levels.ndim != 1:
            raise ValueError(f"sigmas has shape {levels.shape}; pass one-dimensional levels, [n].")
    else:
        xp, levels = np, check_vector("sigmas", sigmas)
    return xp.concatenate([levels, xp.zeros(1, levels.dtype)])


def get_sigmas_karras(
    n: int, sigma_min: ArrayLike, sigma_max: ArrayLike, rho: ArrayLike = 7.0
) -> Array:
    """Even in `sigma^(1/rho)`, from sigma_max to sigma_min, and 0.

    Args:
      n: the number of steps.
      sigma_min, sigma_max, rho: positive; may be traced.

    Returns:
      [n + 1], float64 NumPy for values, traced for traced ones.

    Raises:
      ValueError: n that is no positive integer, levels that are not positive or not in order.

    Example:
      >>> from kdiff_jax.adapters import k_diffusion as K
      >>> K.get_sigmas_karras(3, 0.5, 8.0).round(3).tolist()
      [8.0, 2.292, 0.5, 0.0]

    Source: `get_sigmas_karras` of k-diffusion.
    """
    n, low, high = _check(n, sigma_min, sigma_max)
    return append_zero(kd.karras_sigmas(n, low, high, rho))


def get_sigmas_exponential(n: int, sigma_min: ArrayLike, sigma_max: ArrayLike) -> Array:
    """Even in log sigma, from sigma_max to sigma_min, and 0.

    Args, Returns, Raises: as of `get_sigmas_karras`.

    Example:
      >>> from kdiff_jax.adapters import k_diffusion as K
      >>> K.get_sigmas_exponential(3, 0.5, 8.0).round(3).tolist()
      [8.0, 2.0, 0.5, 0.0]

    Source: `get_sigmas_exponential` of k-diffusion.
    """
    return append_zero(kd.exponential_sigmas(*_check(n, sigma_min, sigma_max)))


def get_sigmas_polyexponential(
    n: int, sigma_min: ArrayLike, sigma_max: ArrayLike, rho: ArrayLike = 1.0
) -> Array:
    """`log sigma = log min + u^rho (log max - log min)`, u even from 1 to 0; and 0.

    Args, Returns, Raises: as of `get_sigmas_karras`.

    Example:
      >>> from kdiff_jax.adapters import k_diffusion as K
      >>> K.get_sigmas_polyexponential(3, 0.5, 8.0, rho=2.0).round(3).tolist()
      [8.0, 1.0, 0.5, 0.0]

    Source: `get_sigmas_polyexponential` of k-diffusion.
    """
    n, low, high = _check(n, sigma_min, sigma_max)
    return append_zero(kd.polyexponential_sigmas(n, low, high, rho))


def get_sigmas_vp(
    n: int, beta_d: ArrayLike = 19.9, beta_min: ArrayLike = 0.1, eps_s: ArrayLike = 1e-3
) -> Array:
    """`sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1)` at even t from 1 to eps_s, and 0.

    Args:
      n: the number of steps.
      beta_d, beta_min: slope and start of the rate of noise of the continuous VP process.
      eps_s: the last t, in (0, 1). All three positive; they may be traced.

    Returns:
      [n + 1], float64 NumPy for values, traced for traced ones.

    Raises:
      ValueError: n that is no positive integer, parameters that are not positive.

    Example:
      >>> from kdiff_jax.adapters import k_diffusion as K
      >>> K.get_sigmas_vp(3).round(3).tolist()
      [152.167, 3.422, 0.01, 0.0]

    Source: `get_sigmas_vp` of k-diffusion; Song et al. 2020 (arXiv:2011.13456), appendix C.
    """
    n = check_int("n", n, 1)
    return append_zero(kd.vp_sigmas(n, beta_d=beta_d, beta_min=beta_min, eps_s=eps_s))


def get_ancestral_step(
    sigma_from: ArrayLike, sigma_to: ArrayLike, eta: ArrayLike = 1.0
) -> tuple[Array, Array]:
    """`(sigma_down, sigma_up)` of an ancestral step, as `kd.dpm2_ancestral` takes them.

    With `q = (from - to)(from + to) / from^2`: `up = min(to, to * eta * sqrt(q))` and
    `down = sqrt(to^2 - up^2)`, computed without that difference.

    Args:
      sigma_from, sigma_to: noise levels, from above to; any shape; may be traced.
      eta: 0 is deterministic, 1 the ancestral step.

    Returns:
      sigma_down and sigma_up, float64 NumPy for values, traced for traced ones.

    Raises:
      ValueError: sigma_from that is not positive or below sigma_to, a negative sigma_to or eta,
        shapes that do not fit.

    Example:
      >>> from kdiff_jax.adapters import k_diffusion as K
      >>> down, up = K.get_ancestral_step(2.0, 1.0)
      >>> down.item(), round(up.item(), 6)
      (0.5, 0.866025)

    Source: `get_ancestral_step` of k-diffusion.
    """
    high = check_numbers("sigma_from", sigma_from, above=0)
    low = check_numbers("sigma_to", sigma_to, at_least=0)
    eta = check_numbers("eta", eta, at_least=0)
    shapes = {"sigma_from": high.shape, "sigma_to": low.shape, "eta": eta.shape}
    try:
        np.broadcast_shapes(*shapes.values())
    except ValueError:
        raise ValueError(f"the shapes {shapes} do not fit; pass numbers, or one shape.") from None
    if not is_traced(high, low) and np.any(low > high):
        raise ValueError(
            f"sigma_to = {shown(sigma_to)} is above sigma_from = {shown(sigma_from)}; a step runs "
            "down: swap them."
        )
    xp, high, low, eta = common_namespace(high, low, eta)
    share, inside = variance_shares(high, low, eta)

    def root(value: Array) -> Array:
        return xp.where(value > 0, xp.sqrt(xp.where(value > 0, value, 1)), 0)

    return low * root(inside), xp.minimum(low, low * eta * root(share))


def to_d(x: ArrayLike, sigma: ArrayLike, denoised: ArrayLike) -> jax.Array:
    """`(x - denoised) / sigma`: the slope dx/dsigma, and the noise that the model finds in x.

    Args:
      x, denoised: [B, ...].
      sigma: a number or [B].

    Returns:
      [B, ...].

    Raises:
      ValueError: shapes that do not fit, dtypes that are not floating, sigma that is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from kdiff_jax.adapters import k_diffusion as K
      >>> K.to_d(jnp.ones((2, 3)), jnp.array([2.0, 4.0]), jnp.zeros((2, 3)))[:, 0].tolist()
      [0.5, 0.25]

    Source: `to_d` of k-diffusion.
    """
    x, denoised = check_sample("x", x), check_sample("denoised", denoised)
    if x.shape != denoised.shape:
        raise ValueError(
            f"x {x.shape} and denoised {denoised.shape} differ; expected [B, ...] both."
        )
    return (x - denoised) / per_sample(check_level("sigma", sigma, x), x)


def _check(n: int, sigma_min: ArrayLike, sigma_max: ArrayLike) -> tuple[int, ArrayLike, ArrayLike]:
    n = check_int("n", n, 1)
    low = check_number("sigma_min", sigma_min, above=0)
    high = check_number("sigma_max", sigma_max, above=0)
    if not is_traced(low, high) and low > high:
        raise ValueError(
            f"sigma_min = {low} is above sigma_max = {high}; the grid runs down from sigma_max."
        )
    return n, low, high
