"""The extension on a stand-in for MLX's Metal device (recorder.cpp)."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.metal.replay import execute


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


KERNELS = [
    "qmv_f16_f16_b4_g64",
    "qmv_quad_f16_f16_b4_g64",
    "qmv_multi_bf16_bf16_b8_g64_r3",
    "qmm_skinny_f16_f16_b4_g32_bm16_bn32_wk8",
    "qmm_f32_f32_b4_g64_bm32_bn32_bk32_wm2_wn2",
    "qmm_half_bf16_bf16_b4_g64_bm32_bn32_bk32_wm2_wn2",
    "qmm_splitk_bf16_bf16_b4_g32_bm64_bn64_bk32_wm2_wn2",
    "qmm_splitk_sum_f16_f16_b4_g64",
    "qvm_f16_f16_b4_g64",
    "qmm_n_f16_f16_b4_g64_bm32_bn128_bk32_wm1_wn4",
    "joint_qmv_f16_f16_b4_g64",
    "joint_qmv_multi_bf16_bf16_b4_g64_r6",
    "joint_qmm_skinny_f16_f16_b4_g64_bm16_bn32_wk8",
    "gather_qmv_bf16_bf16_b4_g64",
    "gather_qmm_skinny_f16_f16_b4_g64_bm16_bn32_wk8",
    "gather_qmm_f16_f16_b4_g64_bm32_bn32_bk32_wm2_wn2",
    "gather_qvm_bf16_bf16_b4_g64",
    "gather_qmm_n_f16_f16_b4_g64_bm32_bn128_bk32_wm1_wn4",
    "gather_sorted_qmm_n_f16_f16_b4_g64_bm32_bn128_bk32_wm1_wn4",
    "swiglu_f32_f32_b4_g64",
    "gather_swiglu_f16_f16_b4_g64",
    "dequantize_bf16_bf16_b4_g64",
]


class Extension:
    """The extension as machine/trial.py sees it, on the recorder's GPU."""

    def __init__(self, recorder) -> None:
        self._recorder = recorder
        self.tried: list[str] = []

    def kernels(self):
        """One of each family; all have the types that most checkpoints have."""
        return KERNELS

    def cpu_isa(self):
        return "scalar"

    def trial(self, kernel):
        return self._recorder.trial(kernel)

    def run_trial(self, kernel, operands):
        self.tried.append(kernel)
        y = self._recorder.run_trial(kernel, operands, stream=self._recorder.stream)
        self._recorder.evaluate(y)
        return y


@pytest.fixture
def ext(recorder, tmp_path, monkeypatch) -> Iterator[Extension]:
    """A GPU that computes, and an empty cache."""
    monkeypatch.setenv("NIBBLE_CACHE_DIR", str(tmp_path))
    recorder.set_executor(execute)
    yield Extension(recorder)
    recorder.set_judge(None)
