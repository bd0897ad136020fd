"""Provide the extension on a stand-in for MLX's Metal device (recorder.cpp)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.metal.replay import execute
from tests.simt import plans


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
    """The extension as selfcheck.py sees it, on the recorder's GPU."""

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
