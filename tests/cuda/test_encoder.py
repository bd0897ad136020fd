"""The executor for CUDA makes the right launches, on a stand-in."""

from __future__ import annotations

import subprocess
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_nibble import _native


def test_launches_reach_mlx_as_planned() -> None:
    assert _native.ext is not None and _native.ext.__file__ is not None
    program = Path(_native.ext.__file__).parents[1] / "cuda_encoder_test"
    if not program.exists():
        pytest.skip("only an editable installation has this program")
    done = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "4 launches\n"


def test_no_gpu_of_ours_without_mlx_s_cuda_backend() -> None:
    if not mx.is_available(mx.gpu):
        assert _native.ext is not None and not _native.ext.has_gpu()
