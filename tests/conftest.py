"""Settings that every test shares."""

import os
import signal
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# The device that MLX is to use where a test does not say: on a Mac, the GPU is
# its own choice.
if device := os.environ.get("NIBBLE_TEST_DEVICE"):
    mx.set_default_device(getattr(mx, device))

# A job in the background ignores Ctrl-C, and so would the programs that tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Programs for Linux: the SIMT bench and what it computes for, the cross toolchain.
if sys.platform != "linux":
    collect_ignore = ["macos", "metal", "simt"]
    collect_ignore += ["property/test_gather_kernels.py", "property/test_kernels.py"]
    collect_ignore += ["property/test_planner.py"]

# Deadlines are for users; a test never asserts a time.
settings.register_profile(
    "default",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("default")
# For what decides whether a change lands: the examples follow from the test's own
# text, so that the same change is judged the same way each time. Anywhere else each
# run draws new ones.
settings.register_profile(
    "repeatable", settings.get_profile("default"), derandomize=True
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    mx.random.seed(0)


@pytest.fixture
def tables(tmp_path, monkeypatch) -> Path:
    """A cache folder of the test's own, in which a tuned table counts."""
    monkeypatch.setenv("NIBBLE_CACHE_DIR", str(tmp_path))
    return tmp_path / "tuned"


@pytest.fixture(autouse=True)
def _as_the_planner_chooses(request, monkeypatch) -> None:
    """What was tuned on this machine has no part in other tests."""
    if "tables" not in request.fixturenames:
        monkeypatch.setattr("mlx_nibble.machine.tuned_table.in_use", lambda: (0, {}))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Where system packages are promised, a skip for want of one is a failure.

    Such skips give the package's name: "... is not installed (Debian: lld-19)".
    """
    report = yield
    promised = os.environ.get("NIBBLE_REQUIRE_SYSTEM_PACKAGES")
    if promised and report.skipped and "(Debian: " in str(report.longrepr):
        report.outcome = "failed"
    return report


def pytest_terminal_summary(terminalreporter):
    """Print the score of the seeded mistakes: tests/simt/test_mutants.py."""
    caught, survived = (
        sum("test_no_mutant_survives" in report.nodeid for report in reports)
        for reports in map(terminalreporter.getreports, ("passed", "failed"))
    )
    if caught + survived:
        terminalreporter.write_line(f"mutants: {caught} of {caught + survived} caught")
