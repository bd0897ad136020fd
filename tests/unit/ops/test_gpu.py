"""The kernels of common checkpoints on a real GPU: the trials of `nibble doctor`."""

from __future__ import annotations

import os

import pytest

from mlx_nibble import _native
from mlx_nibble.machine import gpu
from mlx_nibble.machine.diagnosis import diagnose
from mlx_nibble.machine.verdicts import Machine

pytestmark = pytest.mark.skipif(
    not gpu.has_our_kernels() or os.environ.get("NIBBLE_TEST_DEVICE") == "cpu",
    reason="there is no GPU, or the CPU is tested",
)


def test_the_kernels_of_common_checkpoints_agree(tmp_path, monkeypatch):
    monkeypatch.setenv("NIBBLE_CACHE_DIR", str(tmp_path))
    diagnosis = diagnose(_native.ext, Machine.here(), gpu=True)
    assert diagnosis.gpu
    assert [v for v in diagnosis.gpu if not v.ok] == []
