"""Settings that every test shares."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# Deadlines are for users; a test never asserts a time.
settings.register_profile(
    "default",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("default")


@pytest.fixture(autouse=True)
def _seed() -> None:
    mx.random.seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
