"""Kernels on a real GPU: the trials of machine/trial.py, one type at a time."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlx_nibble import _native
from mlx_nibble.machine import trial
from mlx_nibble.machine.diagnosis import usual

pytestmark = pytest.mark.skipif(
    not mx.metal.is_available(), reason="there is no Metal GPU"
)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_the_kernels_of_common_checkpoints_agree(dtype):
    assert _native.ext is not None
    kernels = [k for k in _native.ext.kernels() if usual(k) and f"_{dtype}_" in k]
    verdicts = [trial.check(kernel, _native.ext) for kernel in kernels]
    assert [v for v in verdicts if v is not None and not v.ok] == []
