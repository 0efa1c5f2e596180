"""Strict by default: warnings are errors, ranks and dtypes never promote, eight CPU devices."""

import os

# Before JAX is imported: the tests shard a batch over several devices without owning any.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import contextlib
import gc

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

with contextlib.suppress(ImportError):  # before kdiff_jax, where JAX 0.6 has what it needs
    import jax.export

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_collection_finish():
    """Of what is imported by now nothing becomes garbage: to look through it again takes time."""
    gc.freeze()
    gc.set_threshold(20_000)


@pytest.fixture
def compiled_once(tmp_path):
    """What a script compiles anew in every run of its main is compiled in the first one only."""
    before = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "programs"))
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def lenient():
    """For the code of clients, whose networks promote ranks and dtypes; nothing is downloaded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")
        jax.config.update("jax_numpy_rank_promotion", "allow")
        jax.config.update("jax_numpy_dtype_promotion", "standard")
        yield
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
