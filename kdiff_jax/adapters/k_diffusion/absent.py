"""k-diffusion's samplers that are no tables here: each says what to take."""

from __future__ import annotations

from typing import Any, NoReturn


def sample_lms(*args: Any, **kwargs: Any) -> NoReturn:
    """Not here: take `sample_dpmpp_2m`, or `sample_heun`.

    Raises:
      NotImplementedError: always.

    Example:
      >>> from kdiff_jax.adapters import k_diffusion as K
      >>> K.sample_lms()  # doctest: +ELLIPSIS
      Traceback (most recent call last):
        ...
      NotImplementedError: sample_lms reads three estimates...
    """
    raise NotImplementedError(
        "sample_lms reads three estimates of before, integrated one by one, which no table here "
        "has; take sample_dpmpp_2m, which also costs one evaluation a step, or sample_heun."
    )


def sample_dpm_fast(*args: Any, **kwargs: Any) -> NoReturn:
    """Not here: take `kd.unipc`, or `sample_dpmpp_2m`.

    Raises:
      NotImplementedError: always.

    Example:
      >>> from kdiff_jax.adapters import k_diffusion as K
      >>> K.sample_dpm_fast()  # doctest: +ELLIPSIS
      Traceback (most recent call last):
        ...
      NotImplementedError: sample_dpm_fast takes steps of...
    """
    raise NotImplementedError(
        "sample_dpm_fast takes steps of three evaluations, which no table here has; take "
        "kd.dpm2(kd.levels(...)) for steps of two, or sample_dpmpp_2m and kd.unipc, which reach "
        "their order with one evaluation a step."
    )


def sample_dpm_adaptive(*args: Any, **kwargs: Any) -> NoReturn:
    """Not here: take `sample_dpmpp_2m` or `kd.unipc` with a grid that is fine enough.

    Raises:
      NotImplementedError: always.

    Example:
      >>> from kdiff_jax.adapters import k_diffusion as K
      >>> K.sample_dpm_adaptive()  # doctest: +ELLIPSIS
      Traceback (most recent call last):
        ...
      NotImplementedError: sample_dpm_adaptive chooses its steps...
    """
    raise NotImplementedError(
        "sample_dpm_adaptive chooses its steps as it runs, and a table is filled before the run; "
        "take sample_dpmpp_2m, or kd.unipc, with K.get_sigmas_karras(n, sigma_min, sigma_max) of "
        "enough steps."
    )
