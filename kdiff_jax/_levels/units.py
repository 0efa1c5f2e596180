"""From noise over signal to what multiplies a sample: the units of a row."""

from __future__ import annotations

from kdiff_jax._arrays import Array, common_namespace


def input_scale_at(sigma: Array) -> Array:
    """What brings `x0 + sigma * eps` to unit variance: `1 / sqrt(1 + sigma^2)`."""
    xp, sigma = common_namespace(sigma)
    return 1 / xp.sqrt(1 + sigma**2)


def unit_variance(sigma: Array) -> tuple[Array, Array]:
    """`sqrt(abar)` and `sqrt(1 - abar)` from sigma, without cancellation; right at infinity."""
    xp, sigma = common_namespace(sigma)
    return 1 / xp.sqrt(1 + sigma**2), 1 / xp.sqrt(1 + sigma**-2.0)
