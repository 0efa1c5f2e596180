"""What a client's own code needs: promotion of ranks and dtypes, and no look at the network."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(scope="module")
def lenient() -> Iterator[None]:
    """The rest of the suite forbids these promotions, which the networks of clients make."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")
        before = {name: getattr(jax.config, name) for name in ALLOWED}
        for name, value in ALLOWED.items():
            jax.config.update(name, value)
        yield
        for name, value in before.items():
            jax.config.update(name, value)


ALLOWED = {"jax_numpy_rank_promotion": "allow", "jax_numpy_dtype_promotion": "standard"}
