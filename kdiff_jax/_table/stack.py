"""Many tables as one: every sample of a batch on its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from kdiff_jax._arrays import is_traced, put_like
from kdiff_jax._checks import shown
from kdiff_jax._table.row import columns_of
from kdiff_jax._table.schedule import NEUTRAL, Schedule, padded, with_columns

_NO_LISTS = Schedule, jax.Array, np.ndarray, str, bytes


def stack(schedules: Sequence[Schedule]) -> Schedule:
    """Tables of B samples as one, leaves [B, R]: `kd.sample` then runs each sample on its own.

    Each table gets the columns of all, filled so that they change nothing, and tables of other
    lengths are padded to the longest. The tables may come from different samplers as long as one
    network serves them: nothing here can see that a latent-consistency table and a DPM2 table
    belong to different networks. Stacks of one shape stack once more: B stacks of F tables are
    [B, F, R], a table for each frame of each sample.

    Args:
      schedules: B tables, each from a sampler, a slice of one, or `pad`.

    Returns:
      A Schedule with leaves [B, R], sigmas [B, N + 1], init_noise_sigma [B], and length [B], or
      None where no table is padded or needs to be. Padded, `kd.sample` stops each sample at its
      own end, but evaluates the network for the whole batch until the longest ends; to fill the
      places that are free, step by hand with `rows_at`. A sample keeps its bits in every place
      and company of one stack; run alone it is another program, and rounds apart.

    Raises:
      ValueError: no schedules, something else than schedules, single tables with stacks, float32
        tables with float64 ones, tables padded to different sizes, a flow's with others.

    Example:
      >>> import jax, jax.numpy as jnp, kdiff_jax as kd
      >>> noise = kd.noise_schedule("scaled_linear")
      >>> tables = [kd.euler(kd.levels(noise, 30)), kd.dpm2_ancestral(kd.levels(noise, 10))]
      >>> tables = kd.stack(tables)
      >>> tables.rows.sigma.shape, tables.length.tolist()
      ((2, 30), [30, 19])
      >>> x = kd.initial_sample(tables, jax.random.key(0), (2, 8))
      >>> denoise = kd.denoiser(lambda params, x, timestep: params * x)
      >>> kd.sample(denoise, jnp.float32(0.1), tables, x, jax.random.key(0)).shape
      (2, 8)
    """
    several = isinstance(schedules, Iterable) and not isinstance(schedules, _NO_LISTS)
    tables = list(schedules) if several else []
    strange = [table for table in tables if not isinstance(table, Schedule)]
    if strange or not tables:
        got = shown(strange[0] if strange else schedules)
        got = got if strange or not several else "an empty list"
        raise ValueError(
            f"schedules: stack was given {got}; pass a list of at least one schedule: "
            "kd.stack([schedule])."
        )
    like = tables[0].sigmas
    shapes = {table.rows.index.shape[:-1] for table in tables}
    if len(shapes) > 1 or len(next(iter(shapes))) > 1:
        raise ValueError(
            f"the rows have shapes {[table.rows.index.shape for table in tables]}; stack single "
            "tables, or stacks of one shape."
        )
    dtypes = sorted({str(table.rows.sigma.dtype) for table in tables})
    if len(dtypes) > 1:
        raise ValueError(f"tables of {' and '.join(dtypes)} do not stack; build them alike.")
    if len({table.flow for table in tables}) > 1:
        raise ValueError(
            "some of the tables are levels of a rectified flow and some are not, and no network "
            "serves both; stack them apart."
        )
    columns = {name for table in tables for name in columns_of(table.rows)} & set(NEUTRAL)
    tables = [with_columns(table, columns) for table in tables]
    zero_snr = any(table.zero_terminal_snr for table in tables)
    continues = any(table.continues for table in tables)
    tables = _of_one_size(
        [replace(table, zero_terminal_snr=zero_snr, continues=continues) for table in tables]
    )
    if is_traced(*jax.tree.leaves(tables)):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *tables)
    together = jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(tables))
    return put_like(together, like)


def _of_one_size(tables: list[Schedule]) -> list[Schedule]:
    sizes = {(t.rows.index.shape, t.sigmas.shape, t.length is None) for t in tables}
    if len(sizes) == 1:
        return tables
    if tables[0].rows.index.ndim > 1:
        raise ValueError(
            f"the stacks have rows of {sorted(size[0] for size in sizes)}; pad their tables alike "
            "before stacking them, so that the stacks are of one shape."
        )
    num_rows = max(table.rows.index.shape[0] for table in tables)
    num_sigmas = max(table.sigmas.shape[0] for table in tables)
    lengths = {table.rows.index.shape[0] for table in tables if table.length is not None}
    if lengths - {num_rows}:
        raise ValueError(
            f"tables are already padded to {sorted(lengths)} rows and the stack needs {num_rows}; "
            "pad them alike, or stack them before padding."
        )
    return [padded(table, num_rows, num_sigmas) for table in tables]
