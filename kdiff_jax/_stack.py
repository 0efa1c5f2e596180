"""Many tables as one: every sample of a batch on its own."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdiff_jax._checks import is_traced
from kdiff_jax._schedule import PROMISES, Schedule, padded, put


def stack(schedules: Sequence[Schedule]) -> Schedule:
    """Tables of B samples as one, leaves [B, R]: `kd.sample` then runs each sample on its own.

    Tables of other lengths are padded to the longest. A fact stays static where all tables agree
    on it. The tables may come from different builders as long as one network serves them: nothing
    here can see that a latent-consistency table and a DPM2 table belong to different networks.

    Args:
      schedules: B tables, each from a builder, `start_at` or `pad`.

    Returns:
      A Schedule with leaves [B, R], sigmas [B, N + 1], init_noise_sigma [B], and length [B], or
      None where no table is padded or needs to be. Padded, `kd.sample` stops each sample at its
      own end, but evaluates the network for the whole batch until the longest ends; to fill the
      places that are free, step by hand with `rows_at`.

    Raises:
      ValueError: no schedules, something else than schedules, stacks among them, float32 tables
        with float64 ones, tables padded to different sizes, a flow's with others.

    Example:
      >>> import jax, jax.numpy as jnp, kdiff_jax as kd
      >>> noise = kd.noise_schedule("scaled_linear")
      >>> tables = kd.stack([kd.euler_schedule(noise, 30), kd.dpm2_ancestral_schedule(noise, 10)])
      >>> tables.rows.sigma.shape, tables.length.tolist(), tables.deterministic
      ((2, 30), [30, 19], False)
      >>> x = kd.initial_sample(tables, jax.random.key(0), (2, 8))
      >>> denoise = kd.denoiser(lambda params, x, timestep: params * x)
      >>> kd.sample(denoise, jnp.float32(0.1), tables, x, jax.random.key(0)).shape
      (2, 8)
    """
    tables = list(schedules)
    strange = [table for table in tables if not isinstance(table, Schedule)]
    if strange or not tables:
        got = f"{strange[0]!r}" if strange else "an empty list"
        raise ValueError(f"stack was given {got}; pass a list of at least one schedule.")
    shapes = [table.rows.index.shape for table in tables]
    if any(len(shape) != 1 for shape in shapes):
        raise ValueError(f"the rows have shapes {shapes}; stack single tables, not stacks.")
    dtypes = sorted({str(table.rows.sigma.dtype) for table in tables})
    if len(dtypes) > 1:
        raise ValueError(f"tables of {' and '.join(dtypes)} do not stack; build them alike.")

    facts: dict[str, Any] = {
        name: all(getattr(table, name) for table in tables) for name in PROMISES
    }
    facts["zero_terminal_snr"] = any(table.zero_terminal_snr for table in tables)
    if len({table.flow for table in tables}) > 1:
        raise ValueError(
            "some of the tables are levels of a rectified flow and some are not, and no network "
            "serves both; stack them apart."
        )
    kinds = {(t.rows.index.shape, t.sigmas.shape, t.length is None) for t in tables}
    if len(kinds) > 1:
        num_rows = max(shape[0] for shape in shapes)
        tables = [table.pad(num_rows) for table in tables]
        num_sigmas = max(table.sigmas.shape[0] for table in tables)
        tables = [padded(table, num_rows, num_sigmas) for table in tables]
    tables = [replace(table, **facts) for table in tables]
    if is_traced(*jax.tree.leaves(tables)):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *tables)

    def on_host(*leaves: Any) -> np.ndarray:
        return np.stack([np.asarray(leaf) for leaf in leaves])

    return put(jax.tree.map(on_host, *tables))
