"""The extension on a stand-in for MLX's Metal device (recorder.cpp)."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest


@pytest.fixture
def recorder() -> Iterator[ModuleType]:
    """A GPU of the kind that is planned for by default, with nobody computing."""
    module = pytest.importorskip(
        "mlx_nibble._recorder",
        reason="only an editable installation has the recorder",
    )
    module.configure()
    yield module
    module.configure()
    module.set_executor(None)
