"""Settings that every test shares."""

import os
import signal
import sys
from pathlib import Path

# Before NumPy and MLX start theirs: OpenBLAS's threads spin between the small products
# of tests, while pytest-xdist has a worker for each core.
os.environ.update(OPENBLAS_NUM_THREADS="1")

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from tests.support import no_kernel
from tests.support.linux_only import linux_only

# Sets MLX's default device. On a Mac, MLX would choose the GPU.
if device := os.environ.get("NIBBLE_TEST_DEVICE"):
    mx.set_default_device(getattr(mx, device))

# A background job ignores Ctrl-C, and the programs that tests start inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if sys.platform != "linux":
    collect_ignore = linux_only()

# No deadline: a test never asserts a time.
settings.register_profile(
    "default",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("default")
# For `.ci/run`: the examples depend on the test's own text only, so that a change gets
# the same verdict each time. All other runs draw new examples.
settings.register_profile(
    "repeatable", settings.get_profile("default"), derandomize=True
)


def pytest_collection_modifyitems(items):
    if mx.default_device().type == mx.DeviceType.gpu:
        for item in items:
            if item.get_closest_marker("cpu"):
                item.add_marker(pytest.mark.skip("only our kernels for CPUs do this"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    """Skip a test of products for which MLX has no kernel for CUDA."""
    try:
        return (yield)
    except Exception as error:
        if no_kernel.is_missing(error):
            pytest.skip(f"MLX: {error}")
        raise


@pytest.fixture(autouse=True)
def _seed() -> None:
    mx.random.seed(0)


@pytest.fixture
def tables(tmp_path, monkeypatch) -> Path:
    """Give the test an empty cache folder, whose tuned table is used."""
    monkeypatch.setenv("NIBBLE_CACHE_DIR", str(tmp_path))
    return tmp_path / "tuned"


@pytest.fixture(autouse=True)
def _as_the_planner_chooses(request, monkeypatch) -> None:
    """Hide this machine's tuned table from tests that do not ask for one."""
    if "tables" not in request.fixturenames:
        monkeypatch.setattr("mlx_nibble.machine.tuned_table.in_use", lambda: (0, {}))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Turn a skip for a missing system package into a failure, if asked to.

    Such a skip names the package: "... is not installed (Debian: lld-19)".
    """
    report = yield
    promised = os.environ.get("NIBBLE_REQUIRE_SYSTEM_PACKAGES")
    if promised and report.skipped and "(Debian: " in str(report.longrepr):
        report.outcome = "failed"
    return report


def pytest_terminal_summary(terminalreporter):
    """Print how many mutants tests/simt/test_mutants.py caught."""
    caught, survived = (
        sum("test_no_mutant_survives" in report.nodeid for report in reports)
        for reports in map(terminalreporter.getreports, ("passed", "failed"))
    )
    if caught + survived:
        terminalreporter.write_line(f"mutants: {caught} of {caught + survived} caught")
