"""What the grids by formula share: their ends, and that the table can hold what comes out."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec

import numpy as np
from jax.typing import ArrayLike
from scipy.special import betaincinv

from kdiff_jax._arrays import Array, is_traced
from kdiff_jax._checks import as_the_table_rounds, check_int, check_number

P = ParamSpec("P")


def checked(grid: Callable[P, Array]) -> Callable[P, Array]:
    """A grid whose levels are refused where the table cannot tell them apart, or hold them."""
    name = grid.__name__.removesuffix("_sigmas")
    arguments = ", ".join([*inspect.signature(grid).parameters][1:])

    @functools.wraps(grid)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Array:
        with np.errstate(all="ignore"):
            return as_the_table_rounds(f"grid={name!r}", grid(*args, **kwargs), arguments)

    return wrapper


def beta_quantiles(shares: np.ndarray, alpha: ArrayLike, beta: ArrayLike) -> np.ndarray:
    """The quantiles of Beta(alpha, beta), on the host."""
    if is_traced(alpha, beta):
        raise ValueError(
            "alpha or beta is traced, and JAX has no quantiles of a beta distribution; pass "
            "numbers, and trace sigma_min and sigma_max."
        )
    alpha, beta = check_number("alpha", alpha, above=0), check_number("beta", beta, above=0)
    quantiles: np.ndarray = betaincinv(alpha, beta, shares)
    if not np.all(np.isfinite(quantiles)):
        raise ValueError(f"alpha = {alpha} and beta = {beta} have no quantiles; take others.")
    return quantiles


def ends_of(
    num_steps: ArrayLike, sigma_min: ArrayLike, sigma_max: ArrayLike
) -> tuple[np.ndarray, ArrayLike, ArrayLike]:
    """`i / (N - 1)` and the checked ends; of one step the first end is all there is."""
    num_steps = check_int("num_steps", num_steps, 1)
    low = check_number("sigma_min", sigma_min, above=0)
    high = check_number("sigma_max", sigma_max, above=0)
    if num_steps > 1 and not is_traced(low, high) and not low < high:
        raise ValueError(
            f"sigma_min = {low} is not below sigma_max = {high}, and the grid runs down from "
            "sigma_max to sigma_min; swap them."
        )
    return np.linspace(0, 1, num_steps), low, high
