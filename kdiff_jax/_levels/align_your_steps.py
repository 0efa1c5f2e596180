"""A published table of noise levels, read at any number of places."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jax.typing import ArrayLike

from kdiff_jax._arrays import Array, common_namespace
from kdiff_jax._checks import as_the_table_rounds, check_int, check_sigmas, shown


def align_your_steps_sigmas(num_steps: int, table: ArrayLike | Sequence[float]) -> Array:
    """A table of noise levels read at N even places, linear in log sigma between its entries.

    It runs from the first entry to the last. ComfyUI replaces the last one by the closing 0: that
    is `align_your_steps_sigmas(N + 1, table)[:-1]`.

    Args:
      num_steps: N.
      table: [M] levels, strictly descending, at least 2; a closing 0 may end them. May be traced,
        then without a 0.

    Returns:
      [N] float64 on the host, or a traced array; the table itself where N = M.

    Raises:
      ValueError: N that is no positive integer; a table that does not descend.

    Example:
      >>> import kdiff_jax as kd
      >>> sd15 = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029]
      >>> sigmas = kd.align_your_steps_sigmas(5, sd15)
      >>> kd.levels(kd.noise_schedule(), sigmas=sigmas).num_steps
      5

    Source: Sabour et al. 2024 (arXiv:2404.14507), section 4 and its published tables.
    """
    num_steps = check_int("num_steps", num_steps, 1)
    levels = check_sigmas("table", table)
    if levels.shape[0] < 2:
        raise ValueError(
            f"table = {shown(table)} holds one level; give at least two to read between."
        )
    xp, levels, at, knots = common_namespace(
        levels, np.linspace(0, 1, num_steps), np.linspace(0, 1, levels.shape[0])
    )
    sigmas: Array = xp.exp(xp.interp(at, knots, xp.log(levels)))
    return as_the_table_rounds("table", sigmas)
