"""Provide the extension on a stand-in for MLX's Metal device (recorder.cpp)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from tests.metal.replay import execute
from tests.simt import plans


class Recorder:
    """The recorder's module; its operations run on the stand-in GPU."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def quantized_matmul(
        self, x, w, scales, biases, transpose=True, group_size=64, bits=4, **options
    ):
        return self.module.quantized_matmul(
            *(x, w, scales, biases, transpose, group_size, bits),
            stream=self.stream,
            **options,
        )

    def gather_qmm(
        self, x, w, scales, biases, lhs, rhs, transpose=True, group_size=64, **options
    ):
        return self.module.gather_qmm(
            *(x, w, scales, biases, lhs, rhs, transpose, group_size),
            stream=self.stream,
            **options,
        )

    def swiglu(self, x, gate, up, lhs=None, rhs=None, **options):
        """Call gather_swiglu, which needs no indices."""
        return self.module.gather_swiglu(
            x, gate, up, lhs, rhs, stream=self.stream, **options
        )

    def gated_products(self, gate, up):
        return self.module.gated_products(gate, up, stream=self.stream)

    def dequantize(self, w, scales, biases, group_size=64, bits=4, dtype=None):
        return self.module.dequantize(
            w, scales, biases, group_size, bits, dtype=dtype, stream=self.stream
        )


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """The GPU that the planner assumes by default; nothing computes."""
    module = pytest.importorskip(
        "mlx_nibble._recorder",
        reason="only an editable installation has the recorder",
    )
    module.configure()
    yield Recorder(module)
    module.configure()
    module.set_executor(None)
    module.set_gpu_facts(None)


# Types and formats that the families take in turn.
TYPES = ("f16_f16", "f32_f32", "bf16_bf16")
FORMATS = ("b4_g64", "b4_g64", "b8_g64", "b4_g32")


def _kernels() -> Iterator[str]:
    """Yield one kernel of each family, for the first types that the family has."""
    for i, family in enumerate(plans.families()):
        shapes: list[str] = []
        for types in TYPES[i % len(TYPES) :] + TYPES:
            name = f"{family}_{types}_{FORMATS[i % len(FORMATS)]}"
            pattern = re.compile(rf"{name}(_[a-z]+\d+)*")
            shapes = shapes or [*filter(pattern.fullmatch, plans.instances())]
        yield shapes[len(shapes) // 2]


KERNELS = list(_kernels())


class Extension:
    """The extension as machine/trial.py sees it, on the recorder's GPU."""

    def __init__(self, recorder) -> None:
        self._recorder = recorder
        self.tried: list[str] = []

    def kernels(self):
        """One kernel of each family, of the types that most checkpoints have."""
        return KERNELS

    def cpu_isa(self):
        return "scalar"

    def trial(self, kernel):
        return self._recorder.trial(kernel)

    def compile_kernels(self, kernels):
        self._recorder.compile_kernels(kernels)

    def run_trial(self, kernel, operands):
        self.tried.append(kernel)
        y = self._recorder.run_trial(kernel, operands, stream=self._recorder.stream)
        self._recorder.evaluate(y)
        return y


@pytest.fixture
def ext(recorder, tmp_path, monkeypatch) -> Iterator[Extension]:
    """A GPU that computes, and an empty cache."""
    monkeypatch.setenv("NIBBLE_CACHE_DIR", str(tmp_path))
    # MLX's own GPU is not there to ask.
    monkeypatch.setattr("mlx_nibble.machine.trial.gpu_is_sound", lambda: True)
    recorder.set_executor(execute)
    yield Extension(recorder)
    recorder.set_judge(None)
