"""A small last-level cache, for what is measured in the tests' own process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def _small_cache() -> Iterator[None]:
    """Report a cache of 4 MB: a virtual machine may report 480 MB of its host's.

    The buffers that are read to measure memory have four times that size.
    """
    with pytest.MonkeyPatch.context() as patch:
        for module in ("machine", "products"):
            name = f"mlx_nibble.bench.{module}.last_level_cache_bytes"
            patch.setattr(name, lambda: 4 << 20)
        yield
