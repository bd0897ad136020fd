"""Find the kernels that work on this machine: run the trial of each."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import mlx.core as mx

from mlx_nibble import ops
from mlx_nibble.formats import MODES
from mlx_nibble.machine import trial
from mlx_nibble.machine.gpu import info as gpu_info
from mlx_nibble.machine.trial import Trial, Verdict
from mlx_nibble.machine.verdicts import Machine, Verdicts
from mlx_nibble.progress import Progress, silent

# By the label in a kernel's name: "f32", "f16" and "bf16".
_DTYPES = {name.replace("loat", ""): dtype for name, dtype in ops.DTYPES.items()}

# The formats of most checkpoints, and the types of their activations: 4 and 8 bits of
# mlx-community.
_COMMON = {"b4_g64": ("f16", "bf16"), "b8_g64": ("bf16",)}
# Families of the backward pass, and of tiles of float16, which a caller asks for.
_UNCOMMON = ("qmm_half", "qvm", "qmm_n", "gather_qvm", "gather_qmm_n")
_UNCOMMON += ("gather_sorted_qmm_n", "group_gradient", "gather_group_gradient")

# Kernels of one library. Reading their common text costs Metal's compiler more than
# another kernel does; a library is compiled whole before its first trial.
_AT_ONCE = 16


@dataclass(frozen=True)
class Diagnosis:
    """The verdicts and the machine. Names no person, host, file or network.

    Attributes:
        machine: GPU, system, mlx and mlx-nibble.
        hardware: Properties of the GPU and the CPU, as mlx reports them.
        python: Version.
        cpu_isa: Instruction set that the CPU backend uses.
        gpu: Verdicts on the Metal kernels; empty without a GPU.
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
        """Whether every tried kernel may be used."""
        return all(verdict.ok for verdict in self.gpu + self.cpu)

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {**asdict(self), "ok": self.ok}

    def table(self) -> list[list[str]]:
        """Count the verdicts: a row for each family, a column for each type."""
        rows = [["", *ops.DTYPES]]
        for family in dict.fromkeys(_family(v.kernel) for v in self.gpu + self.cpu):
            row = [family]
            for dtype in _DTYPES:
                cell = [
                    v
                    for v in self.gpu + self.cpu
                    # A kernel without types serves all.
                    if v.kernel == family or v.kernel.startswith(f"{family}_{dtype}_")
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
    """Try the kernels again, and keep each verdict as soon as it is known.

    Args:
        ext: The extension.
        machine: Machine that the verdicts are valid for.
        gpu: Whether there is a Metal GPU.
        everything: Try all Metal kernels, not only the :func:`common` ones.
        progress: Receiver of the number of tried kernels.
    """
    kernels = [
        kernel
        for kernel in (ext.kernels() if gpu else [])
        if (everything or common(kernel)) and ext.trial(kernel) is not None
    ]
    if gpu:
        kernels.insert(0, ext.view_kernel)
    known = Verdicts(machine, ext)
    verdicts = []
    for done, kernel in enumerate(kernels):
        if done % _AT_ONCE == 0:
            progress("Compiling kernels", done, len(kernels))
            ext.compile_kernels(kernels[done : done + _AT_ONCE])
        progress("Trying kernels", done, len(kernels))
        verdict = known.try_now(kernel)
        if verdict is not None:
            verdicts.append(verdict)
    return Diagnosis(
        machine,
        {
            f"{name} {key}": str(value)
            for name, found in (("gpu", gpu_info()), ("cpu", mx.device_info(mx.cpu)))
            for key, value in found.items()
        },
        platform.python_version(),
        ext.cpu_isa(),
        tuple(verdicts),
        tuple(_cpu_verdicts()),
    )


def _family(kernel: str) -> str:
    return re.split(r"_(?:b?f\d+)_", kernel)[0]


def common(kernel: str) -> bool:
    """Return whether inference with a common checkpoint uses a kernel.

    Its scales have the type of its activations, and its bits one of `_COMMON`. It runs
    no backward pass and does not ask for tiles of float16.

    Args:
        kernel: Name of the kernel.
    """
    match = re.fullmatch(r"(.*?)_(b?f\d+)_(b?f\d+)_(b\d_g\d+(?:_sym)?)(_.*)?", kernel)
    if match is None or match[2] != match[3] or match[4] not in _COMMON:
        return False
    return match[2] in _COMMON[match[4]] and match[1] not in _UNCOMMON


def _cpu_verdicts() -> Iterator[Verdict]:
    for short, dtype in _DTYPES.items():
        for name, mode in MODES.items():
            for bits, group_size in product(mode.bits, mode.group_sizes):
                if mode.mlx_name == name and ops.supports(name, bits, group_size):
                    form = (short, dtype, bits, group_size, name)
                    yield _cpu_verdict("cpu", _product, *form)
        # These families call the same inner kernels: one format is enough.
        for family, operation in _CPU_FAMILIES.items():
            yield _cpu_verdict(family, operation, short, dtype, 4, 64, "affine")


def _cpu_verdict(
    family: str,
    operation: Callable[..., mx.array],
    short: str,
    dtype: mx.Dtype,
    bits: int,
    group_size: int,
    mode: str,
) -> Verdict:
    gathered = "gather" in family
    # Ragged edges, as in csrc/core/trial.cpp; more rows than one block.
    problem = Trial(
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
        scale_dtype=dtype if MODES[mode].stores_biases else mx.uint8,
        bits=bits,
        group_size=group_size,
        mode=mode,
    )

    def run(operands: dict[str, mx.array]) -> mx.array:
        form = {"group_size": group_size, "bits": bits, "mode": mode}
        return operation(operands, **form, stream=mx.cpu)

    name = f"{family}_{short}_{short}_b{bits}_g{group_size}"
    if not MODES[mode].stores_biases:
        name = f"{family}_{short}_{mode}"
    return trial.judge(name, problem, run)


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
    # A mode of floats has no biases.
    biases = operands.get(f"{prefix}biases")
    return operands[f"{prefix}w"], operands[f"{prefix}scales"], biases


def _indices(operands: dict[str, mx.array]) -> tuple[mx.array, mx.array]:
    return operands["lhs_indices"], operands["rhs_indices"]
