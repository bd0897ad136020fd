"""What works on this machine: every kernel tried, as :mod:`selfcheck` tries them."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx

from mlx_nibble import ops
from mlx_nibble.machine import selfcheck
from mlx_nibble.machine.selfcheck import Machine, Trial, Verdict
from mlx_nibble.progress import Progress, silent

_DTYPES = {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16}
_BITS = (2, 3, 4, 5, 6, 8)
_GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class Diagnosis:
    """What was tried, and on what. Names no person, host, file or network.

    Attributes:
        machine: GPU, system, mlx and mlx-nibble.
        hardware: What mlx says of the GPU and of the CPU.
        python: Version.
        cpu_isa: The instruction set that the CPU backend uses.
        gpu: Verdicts on the Metal kernels; empty where there is no GPU.
        cpu: Verdicts on the CPU backend, by format and type.
    """

    machine: Machine
    hardware: dict[str, str]
    python: str
    cpu_isa: str
    gpu: tuple[Verdict, ...]
    cpu: tuple[Verdict, ...]

    @property
    def ok(self) -> bool:
        """Whether all that was tried may be used."""
        return all(verdict.ok for verdict in self.gpu + self.cpu)

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "ok": self.ok}

    def table(self) -> list[list[str]]:
        """Counts of verdicts: a row for each family, a column for each type."""
        rows = [
            ["", *(str(dtype).removeprefix("mlx.core.") for dtype in _DTYPES.values())]
        ]
        for family in dict.fromkeys(_family(v.kernel) for v in self.gpu + self.cpu):
            row = [family]
            for dtype in _DTYPES:
                cell = [
                    v
                    for v in self.gpu + self.cpu
                    if v.kernel.startswith(f"{family}_{dtype}_")
                ]
                off = sum(not v.ok for v in cell)
                row.append(f"{len(cell) - off} ok" + (f", {off} OFF" if off else ""))
            rows.append(row)
        return rows


def diagnose(
    ext: Any,
    machine: Machine,
    gpu: bool,
    everything: bool = False,
    progress: Progress = silent,
) -> Diagnosis:
    """Try the kernels afresh; what is found is remembered.

    Args:
        ext: The extension.
        machine: What the verdicts hold for.
        gpu: Whether there is a Metal GPU.
        everything: Try all Metal kernels, not only those of formats that the
            operations use, with scales of the type of the activations.
        progress: Called with the number of kernels tried, and of all.
    """
    kernels = [k for k in ext.kernels() if everything or usual(k)] if gpu else []
    verdicts = []
    for done, kernel in enumerate(kernels):
        progress("Trying kernels", done, len(kernels))
        verdict = selfcheck.check(kernel, ext)
        if verdict is not None:
            verdicts.append(verdict)
    if gpu:
        selfcheck.Verdicts(machine, ext).remember(verdicts)
    return Diagnosis(
        machine,
        {
            f"{name} {key}": str(value)
            for name, device in (("gpu", mx.gpu), ("cpu", mx.cpu))
            for key, value in mx.device_info(device).items()
        },
        platform.python_version(),
        ext.cpu_isa(),
        tuple(verdicts),
        tuple(_cpu_verdicts()),
    )


def _family(kernel: str) -> str:
    return re.split(r"_(?:b?f\d+)_", kernel)[0]


def usual(kernel: str) -> bool:
    """Whether a kernel serves checkpoints of one type.

    With biases, or without them in the widths that Q4_0 and Q8_0 are imported to.

    Args:
        kernel: Its name.
    """
    match = re.fullmatch(r".*?_(b?f\d+)_(b?f\d+)_b(\d)_g(\d+)(_sym)?(_.*)?", kernel)
    if match is None or match[1] != match[2]:
        return False
    if match[5] and int(match[3]) not in (4, 8):
        return False
    return ops.holds("affine", int(match[3]), int(match[4]))


def _cpu_verdicts() -> Iterator[Verdict]:
    for short, dtype in _DTYPES.items():
        for bits in _BITS:
            for group_size in _GROUP_SIZES:
                if ops.holds("affine", bits, group_size):
                    form = (short, dtype, bits, group_size)
                    yield _cpu_verdict("cpu", _product, *form)
        # These make other use of the same inner kernels: one format will do.
        for family, operation in _CPU_FAMILIES.items():
            yield _cpu_verdict(family, operation, short, dtype, 4, 64)


def _cpu_verdict(
    family: str,
    operation: Callable[..., mx.array],
    short: str,
    dtype: mx.Dtype,
    bits: int,
    group_size: int,
) -> Verdict:
    gathered = "gather" in family
    # Ragged edges, as in csrc/core/trial.cpp; more rows than one block has.
    trial = Trial(
        kind="swiglu" if "swiglu" in family else "product",
        B=67 if gathered else 1,
        rows=5 if gathered else 1,
        M=1 if gathered else 7,
        N=67,
        K=5 * group_size,
        experts=3 if gathered else 1,
        sorted=False,
        epilogue=family == "cpu",
        dtype=dtype,
        scale_dtype=dtype,
        bits=bits,
        group_size=group_size,
        symmetric=False,
    )

    def run(operands: dict[str, mx.array]) -> mx.array:
        return operation(operands, group_size=group_size, bits=bits, stream=mx.cpu)

    name = f"{family}_{short}_{short}_b{bits}_g{group_size}"
    return selfcheck.judge(name, trial, run)


def _product(operands: dict[str, mx.array], **form: Any) -> mx.array:
    addends = {name: operands[name] for name in ("bias", "residual")}
    return ops.quantized_matmul(operands["x"], *_matrix(operands), **addends, **form)


def _gather(operands: dict[str, mx.array], **form: Any) -> mx.array:
    return ops.gather_qmm(
        operands["x"], *_matrix(operands), *_indices(operands), **form
    )


def _swiglu(operands: dict[str, mx.array], **form: Any) -> mx.array:
    gate, up = _matrix(operands), _matrix(operands, "up_")
    return ops.swiglu(operands["x"], gate, up, **form)


def _gather_swiglu(operands: dict[str, mx.array], **form: Any) -> mx.array:
    gate, up = _matrix(operands), _matrix(operands, "up_")
    return ops.gather_swiglu(operands["x"], gate, up, *_indices(operands), **form)


_CPU_FAMILIES = {
    "cpu_gather": _gather,
    "cpu_swiglu": _swiglu,
    "cpu_gather_swiglu": _gather_swiglu,
}


def _matrix(operands: dict[str, mx.array], prefix: str = "") -> ops.QuantizedArrays:
    w, scales, biases = (operands[f"{prefix}{a}"] for a in ("w", "scales", "biases"))
    return w, scales, biases


def _indices(operands: dict[str, mx.array]) -> tuple[mx.array, mx.array]:
    return operands["lhs_indices"], operands["rhs_indices"]
