"""A model of k-diffusion's contract as a denoiser of `kd.sample`, and what a callback is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kdiff_jax as kd
from kdiff_jax._arrays import Array
from kdiff_jax._checks import shown
from kdiff_jax._denoise.prediction import Denoise, as_pytree
from kdiff_jax.adapters.k_diffusion.checks import check_sample
from kdiff_jax.adapters.k_diffusion.continuous import ContinuousDenoiser
from kdiff_jax.adapters.k_diffusion.grids import to_d
from kdiff_jax.adapters.k_diffusion.models import DiscreteDenoiser, Model

Callback = Callable[[dict[str, Any]], object]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class _PlainModel:
    """A model of k-diffusion's contract as a denoiser; its params are the extra_args."""

    model: Model

    def __call__(self, params: Any, x: jax.Array, row: kd.Row, cond: Any = None) -> kd.Prediction:
        sigma = jnp.broadcast_to(row.sigma.astype(x.dtype), x.shape[:1])
        denoised = self.model(x, sigma, **params)
        if not isinstance(denoised, (jax.Array, np.ndarray)):
            raise ValueError(
                f"model returned {shown(denoised)}, which is no array; return denoised, of the "
                f"sample's shape {x.shape}."
            )
        denoised = check_sample("what model returned", denoised)
        if denoised.shape != x.shape:
            raise ValueError(
                f"model returned shape {denoised.shape} for a sample of shape {x.shape}; "
                "return denoised, of the same shape."
            )
        return kd.Prediction(denoised, to_d(x, sigma, denoised.astype(x.dtype)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class _Shown:
    """A denoiser whose first prediction of each step is shown to a callback."""

    denoise: Denoise
    sigmas: jax.Array
    callback: Callback = field(metadata={"static": True})

    def __call__(self, params: Any, x: jax.Array, row: kd.Row, cond: Any = None) -> kd.Prediction:
        prediction = self.denoise(params, x, row, cond)
        shown = (x, row.step, self.sigmas[row.step], row.sigma, prediction.denoised)
        if row.anchor_weight is None:
            self._show(*shown)
        else:
            # Rows that start from an anchor are the second evaluation of their step.
            jax.lax.cond(row.anchor_weight == 0, self._show, lambda *shown: None, *shown)
        return prediction

    def _show(self, *shown: jax.Array) -> None:
        def show(x: Array, i: Array, sigma: Array, sigma_hat: Array, denoised: Array) -> None:
            values = {"x": x, "i": int(i), "sigma": float(sigma), "sigma_hat": float(sigma_hat)}
            self.callback({**values, "denoised": denoised})

        jax.debug.callback(show, *shown, ordered=True)


def as_denoiser(model: Model, sigmas: jax.Array, callback: Callback | None = None) -> Denoise:
    """A model of k-diffusion's contract for `kd.sample`; a callback is shown the grid's levels."""
    # The table has the wrapper's noise levels in it: they need not cross into the program.
    denoise: Denoise
    if isinstance(model, (DiscreteDenoiser, ContinuousDenoiser)):
        denoise = model.denoise
    else:
        denoise = _PlainModel(as_pytree(model))
    return denoise if callback is None else _Shown(denoise, sigmas, callback)
