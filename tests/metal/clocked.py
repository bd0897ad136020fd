"""The stand-in GPU with a clock that the tests move, and MLX beside it."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx

from mlx_nibble import _native, ops
from mlx_nibble.machine.first_use import FirstUse
from mlx_nibble.machine.trial import Verdict
from mlx_nibble.machine.tuned_table import Key
from mlx_nibble.machine.verdicts import Machine, Verdicts

# The class below takes its place.
_EXT = _native.ext

MACHINE = Machine("applegpu_g14s", "macOS 15.1", "0.32.4", "0.1.0")
FORM = Key(1, 96, 192, 4, 64, "float16", "float16")
EXPERTS = replace(FORM, experts=4)
CLASSES = (1, 5, 8, 16, 32, 128, 512)


class Gpu:
    """The stand-in GPU, its clock, and the extension as mlx_nibble sees it.

    Attributes:
        now: Seconds of the clock.
        ours: Function of kernel and rows: seconds of one of our launches.
        theirs: Function of the rows: seconds of MLX's operation.
        wrong: Kernels that fail their trial.
        tried: Kernels that had a trial.
        timed: Rows of our products that were launched.
    """

    def __init__(self, recorder) -> None:
        self.recorder = recorder
        self.now = 0.0
        self.ours = lambda kernel, rows: 2e-3
        self.theirs = lambda rows: 4e-3
        self.wrong: set[str] = set()
        self.tried: list[str] = []
        self.timed: list[int] = []
        self.compiling = 0.0
        self._rows = 0

    def __getattr__(self, name):
        return getattr(_EXT, name)

    def perf_counter(self) -> float:
        return self.now

    def launch(self, dispatch) -> None:
        self.now += self.ours(dispatch.kernel, self._rows)

    def check(self, kernel, ext):
        self.tried.append(kernel)
        return Verdict(kernel, "wrong results" if kernel in self.wrong else None)

    # The stand-in answers in place of the extension.
    def row_classes(self):
        return self.recorder.row_classes(stream=self.recorder.stream)

    def add_tuning(self, choices, complete=False):
        stream = self.recorder.stream
        return self.recorder.add_tuning(choices, complete, stream=stream)

    def replace_tuning(self, number, choices):
        self.recorder.replace_tuning(number, choices)

    def kernels_of(self, shape, choice=""):
        return self.recorder.kernels_of(shape, choice)

    def joining_kernels(self, shape):
        return self.recorder.joining_kernels(shape)

    def compile_kernels(self, kernels):
        self.now += self.compiling * len(kernels)
        self.recorder.compile_kernels(kernels)

    def trusted(self, kernels):
        return self.recorder.trusted(kernels)

    def _computed(self, product, x, *arrays, **options):
        """Launch a product at once: MLX cannot evaluate on this GPU."""
        self._rows = x.size // x.shape[-1]
        self.timed.append(self._rows)
        y = product(x, *arrays, stream=self.recorder.stream, **options)
        assert self.recorder.node(y).startswith("Nibble")
        self.recorder.evaluate(y)
        return mx.zeros(y.shape, y.dtype)

    def quantized_matmul(self, x, w, *, scales, biases, **options):
        mx.eval(x)
        product = self.recorder.module.quantized_matmul
        return self._computed(product, x, w, scales, biases, **options)

    def gather_qmm(self, x, w, *, scales, biases, rhs_indices, **options):
        lhs = mx.arange(rhs_indices.size).astype(mx.uint32)
        arrays = (x, w, scales, biases, lhs, rhs_indices)
        mx.eval(arrays)
        return self._computed(self.recorder.module.gather_qmm, *arrays, **options)


def start(gpu: Gpu, **options) -> FirstUse:
    """Start a process: the extension knows nothing, files are as they are."""
    judge = Verdicts(MACHINE, gpu)
    gpu.recorder.set_judge(judge)
    return FirstUse(gpu, judge, **options)


def operands(rows: int, form: Key = FORM):
    x = mx.zeros((rows, form.K), ops.DTYPES[form.dtype])
    w = mx.zeros((form.N, form.K * form.bits // 32), mx.uint32)
    groups, dtype = (form.N, form.K // form.group_size), getattr(mx, form.scale_dtype)
    scales = mx.ones(groups, dtype)
    # Not symmetric by their values, but nobody has looked.
    arrays = (x, w, scales, None if form.scale_dtype == "uint8" else scales * 3)
    mx.eval([a for a in arrays if a is not None])
    return arrays


def is_ours(gpu: Gpu, number: int, rows: int, form: Key = FORM, **options) -> bool:
    """Return whether a product becomes a node of ours, as a layer builds it."""
    options |= {"mode": form.mode, "bits": form.bits, "group_size": form.group_size}
    y = gpu.recorder.quantized_matmul(*operands(rows, form), tuning=number, **options)
    return gpu.recorder.node(y).startswith("Nibble")


def gathers_ours(gpu: Gpu, number: int, rows: int, **options) -> bool:
    _, w, scales, biases = operands(1)
    experts = [mx.contiguous(mx.stack([a] * 4)) for a in (w, scales, biases)]
    x = mx.zeros((rows, 1, FORM.K), mx.float16)
    rhs = mx.zeros((rows,), mx.uint32)
    mx.eval(x, experts, rhs)
    y = gpu.recorder.gather_qmm(x, *experts, None, rhs, tuning=number, **options)
    return gpu.recorder.node(y).startswith("Nibble")


def by_rows(standing) -> dict[int, str]:
    return {key.rows: why for key, why in standing.items()}
