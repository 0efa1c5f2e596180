"""Strict by default: warnings are errors, ranks and dtypes never promote, eight CPU devices."""

import os

# Before JAX is imported: the tests shard a batch over several devices without owning any.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
