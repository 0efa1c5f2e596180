"""Deterministic inversion: a run turned over, from an image up to the noise that it comes from.

    midpoint   x_m    = alpha_m * D + sigma_m * epsilon       at the lower level of the two
    landing    x_next = (x - denoised_weight * D_m - epsilon_weight * epsilon_m) / anchor_weight

The levels are those of the run, in reverse, midpoints and timesteps included. The landing is the
landing line of the run, solved for the sample that it began from: with alpha = 1 it is
`x + (s0 - s1) * epsilon_m`. Up and down, a step comes to the midpoint from opposite ends with the
same leading error, so that there and back is of third order, although either way is of second.
Euler's row up is `alpha_next * D + sigma_next * epsilon`.

Song et al. 2020 (arXiv:2010.02502), section 4.3: an ODE without noise encodes an image; Wallace
et al. 2022 (arXiv:2211.12446) and Hong et al. 2023 (arXiv:2311.18387) on what is lost in it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdiff_jax._checks import is_traced
from kdiff_jax._schedule import Schedule, build_schedule


def inversion_schedule(schedule: Schedule) -> Schedule:
    """A deterministic run turned over: `kd.sample` takes an image up to its noise, and no key.

    It climbs the grid of the run, from `sigmas[-2]` to `sigmas[0]`; the run then takes what it
    ends with as it is, and comes back to the image, to an error of order `1/N^3` with DPM2 and
    `1/N` with Euler (DDIM inversion). With another `cond` on the way back the image is edited.
    `schedule.start_at(k)` inverts up to a lower level, and is then the way back from there.

    The closing step of a run, from its lowest level to 0, has no inverse: an image is taken for
    a sample at that level, which it misses by at most about that sigma, whatever N is. Flat areas
    lack even that noise, and what is found for them is not Gaussian, which edits suffer from:
    `kd.add_noise(up[0], x0, eps)` makes the image a sample of that level.

    Args:
      schedule: of N >= 2 steps, from `dpm2_schedule` or from `euler_schedule` without an eta, or
        `start_at` of one; its numbers may be traced.

    Returns:
      A Schedule of N - 1 steps, 2N - 2 rows (Euler: N - 1); sigmas [N] ascend, without a 0.

    Raises:
      ValueError: a schedule that draws noise (eta, LCM), whose landing nothing can undo; one
        whose promises were cleared, of a single step, turned over already, padded, or a stack.

    Example:
      >>> import jax, jax.numpy as jnp, kdiff_jax as kd
      >>> down = kd.dpm2_schedule(kd.noise_schedule("scaled_linear"), 25, grid="karras")
      >>> up = kd.inversion_schedule(down)
      >>> up.num_steps, up.num_rows, up.sigmas.tolist() == down.sigmas[-2::-1].tolist()
      (24, 48, True)
      >>> denoise = kd.denoiser(lambda params, x, timestep: params * x)
      >>> x0 = jnp.linspace(-1, 1, 8).reshape(1, 8)
      >>> noise = kd.sample(denoise, jnp.float32(0.9), up, x0)
      >>> back = kd.sample(denoise, jnp.float32(0.9), down, noise)
      >>> bool(jnp.max(jnp.abs(back - x0)) < 0.05)
      True

    Source: Song et al. 2020 (arXiv:2010.02502), section 4.3; `DDIMInverseScheduler` of diffusers,
    which tells the network the timestep that a step goes to, here it is the one it leaves.
    """
    _check(schedule)
    traced = is_traced(*jax.tree.leaves(schedule))
    xp: Any = jnp if traced else np
    table = schedule if traced else jax.tree.map(np.asarray, schedule)
    row = jax.tree.map(lambda leaf: leaf[:0:-1], table.rows)  # all levels but the highest,
    after = jax.tree.map(lambda leaf: leaf[-2::-1], table.rows)  # and the level above each
    index = np.arange(row.index.shape[0])
    rows_per_step = 1 if schedule.num_rows == schedule.num_steps else 2
    lands = (index % 2 == 1) & (rows_per_step == 2)
    began = xp.where(lands, row.anchor_weight, xp.ones_like(row.anchor_weight))
    columns = {
        "index": index,
        "step": index // rows_per_step,
        "timestep": row.timestep,
        "alpha": row.alpha,
        "sigma": row.sigma,
        "input_scale": row.input_scale,
        "anchor_weight": xp.where(lands, 1 / began, xp.zeros_like(began)),
        "denoised_weight": xp.where(lands, -row.denoised_weight / began, after.alpha),
        "epsilon_weight": xp.where(lands, -row.epsilon_weight / began, after.sigma),
        "noise_weight": 0.0,
        "advances": lands | (rows_per_step == 1),
    }
    return build_schedule(
        columns,
        table.sigmas[-2::-1],
        xp.hypot(row.alpha[0], row.sigma[0]),
        deterministic=True,
        anchorless=schedule.anchorless,
        unit_alpha=schedule.unit_alpha,
        flow=schedule.flow,
    )


def _check(schedule: Schedule) -> None:
    if not isinstance(schedule, Schedule):
        raise ValueError(f"inversion_schedule was given {schedule!r}; pass the run to turn over.")
    if schedule.rows.index.ndim != 1 or schedule.length is not None:
        raise ValueError(
            "the schedule is padded or a stack; turn each run over first, and pad or stack what "
            "comes out."
        )
    if not schedule.deterministic:
        raise ValueError(
            "the schedule draws noise, or its builder's tables may (eta, LCM), and what noise has "
            "covered no way back can find; invert dpm2_schedule(...), or euler_schedule(...) "
            "without eta."
        )
    steps, rows = schedule.num_steps, schedule.num_rows
    descends = is_traced(schedule.sigmas) or np.all(np.diff(np.asarray(schedule.sigmas)) < 0)
    if rows not in (steps, 2 * steps - 1) or not descends:
        raise ValueError(
            f"the schedule of {steps} steps and {rows} rows is no run down to 0 (sigmas: "
            f"{schedule.sigmas}); pass one as its builder made it, not one turned over already."
        )
    if steps < 2:
        raise ValueError(
            "the schedule has one step, which closes at 0 and has no inverse; take at least 2."
        )
