"""Provide the extension on a stand-in for MLX's Metal device (recorder.cpp)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import mlx.core as mx
import pytest

from mlx_nibble import _native
from mlx_nibble.machine import duel, first_use, trial, turns
from mlx_nibble.machine.verdicts import Machine
from tests.metal.clocked import MACHINE, Gpu
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

    def dequantize(self, w, scales, biases, group_size=64, bits=4, **options):
        return self.module.dequantize(
            w, scales, biases, group_size, bits, stream=self.stream, **options
        )


# The model of time knows no GPU of this generation, so without a duel none of its
# products is MLX's (csrc/core/plan/mlx_tiles.cpp).
GPU = "applegpu_g17g"


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """A GPU whose products are all ours; nothing computes."""
    module = pytest.importorskip(
        "mlx_nibble._recorder",
        reason="only an editable installation has the recorder",
    )
    module.configure(GPU)
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
# The kernel that copies views. It belongs to no family.
VIEW = "contiguous"


class Extension:
    """The extension as machine/trial.py sees it, on the recorder's GPU."""

    def __init__(self, recorder) -> None:
        self._recorder = recorder
        self.tried: list[str] = []
        self._of_views: list[str] = []

    def kernels(self):
        """One kernel of each family, of the types that most checkpoints have."""
        return KERNELS

    def cpu_isa(self):
        return "scalar"

    @property
    def view_kernel(self):
        return self._recorder.view_kernel

    def kernels_of(self, shape):
        """Answer the trial of views, which runs this product."""
        found = self._recorder.kernels_of(shape)
        self._of_views += found
        return found

    def trial(self, kernel):
        return self._recorder.trial(kernel)

    def compile_kernels(self, kernels):
        self._recorder.compile_kernels(kernels)

    def run_trial(self, kernel, operands):
        viewed = kernel in self._of_views
        if viewed:
            self._of_views.remove(kernel)
        if not viewed or VIEW not in self.tried:
            self.tried.append(VIEW if viewed else kernel)
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


class Device:
    type = mx.DeviceType.gpu


@pytest.fixture
def gpu(recorder, tables, monkeypatch):
    """A GPU that is new to this user."""
    made = Gpu(recorder)

    def mlx(x, w, *arrays, rhs_indices=None, **form):
        rows = x.size // x.shape[-1]
        made.now += made.theirs(rows)
        return mx.zeros((*x.shape[:-1], w.shape[-2]), x.dtype)

    monkeypatch.setattr(_native, "ext", made)
    monkeypatch.setattr(mx, "default_device", lambda: Device)
    monkeypatch.setattr("mlx_nibble.machine.gpu.has_our_kernels", lambda: True)
    monkeypatch.setattr(mx, "quantized_matmul", mlx)
    monkeypatch.setattr(mx, "gather_qmm", mlx)
    monkeypatch.setattr(turns, "time", made)
    monkeypatch.setattr(first_use, "time", made)
    monkeypatch.setattr(trial, "check", made.check)
    monkeypatch.setattr(trial, "gpu_is_sound", lambda: True)
    monkeypatch.setattr(duel, "_ALL_WEIGHTS", 1)
    monkeypatch.setattr(Machine, "here", lambda: MACHINE)
    monkeypatch.setattr(first_use, "_here", [])
    recorder.set_executor(made.launch)
    yield made
    recorder.set_judge(None)
