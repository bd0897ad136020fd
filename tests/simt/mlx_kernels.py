"""MLX's own kernels, from the installed wheel, as witnesses.

They run on every Apple GPU. If the bench applied Metal's rules differently from Apple,
they would fail here. Their counters are the reference for ours.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.support.oracle import FLOAT_MODES

from . import build, numbers
from .executor import Options, Outcome, load, run
from .plans import Launch, Problem
from .source import Unit, flatten, translate

_TYPES = {"float32": "float", "float16": "half", "bfloat16": "bfloat"}
_HEADERS = ("utils.h", "steel/gemm/gemm.h", "quantized_utils.h")
# These use the __metal_* functions of Apple's compiler or, in complex.h, constructors
# in every address space. No quantized product needs them.
_LEFT_OUT = frozenset({"bf16_math.h", "complex.h", "logging.h"})
_IN_THEIR_PLACE = '#include "simt/mlx_standins.h"\n'

Grid = tuple[int, int, int]


def _always(_: Problem) -> bool:
    return True


def _nothing(_: Problem) -> int:
    return 0


@dataclass(frozen=True)
class Witness:
    """A kernel of MLX's, and how MLX calls it.

    Attributes:
        template: Template arguments for a problem, after type, group size and bits.
        grid: Threadgroups.
        threads: Threads of a threadgroup.
        sizes: Names of the parameters after the arrays; see _sizes().
        takes: True if MLX may use the kernel for this problem.
        threadgroup_bytes: Bytes of threadgroup variables that the kernel declares.
        parts: Parts of K; each has an output of its own.
        experts: True if each row picks a matrix by index.
        offsets: True if the rows of x are sorted by expert. An array then has the
            first row of each.
    """

    template: Callable[[Problem], str]
    grid: Callable[[Problem], Grid]
    threads: Grid
    sizes: tuple[str, ...]
    takes: Callable[[Problem], bool] = _always
    threadgroup_bytes: Callable[[Problem], int] = _nothing
    parts: int = 1
    experts: bool = False
    offsets: bool = False


# Descriptions of batches; kernels do not read them without batches.
_BATCH = ("one", "x_shape", "x_strides", "one", "w_shape") + ("w_strides",) * 3
_EXPERTS = ("one", "experts_shape", "index_strides", "index_strides")
PARTS = 2


def _ceil(length: int, tile: int) -> int:
    return -(-length // tile)


def _vectors(p: Problem) -> int:
    """Return the rows that qmv_wide takes at once: equal shares of at most five."""
    return _ceil(p.M, _ceil(p.M, 5))


def _block(p: Problem) -> int:
    return {1: 1024, 6: 256, 8: 256}.get(p.bits, 512)


def _tiles(p: Problem) -> Grid:
    return _ceil(p.N, 32), _ceil(p.M, 32), 1


def _tile_bytes(p: Problem) -> int:
    """Return the bytes of a tile of x and one of w: 32 rows, padded by 16 bytes."""
    size = numbers.STORAGE[p.dtype].itemsize
    return 2 * 32 * (32 * size + 16)


def _sorted_tile_bytes(p: Problem) -> int:
    """Return the bytes of a tile of 16 rows of x and one of 32 of w."""
    return _tile_bytes(p) * 3 // 4


def _of_qvm(p: Problem) -> int:
    """Return the columns of a threadgroup of qvm: of two groups, at most 64."""
    return min(64, 2 * p.group_size)


def _aligned(p: Problem) -> str:
    return "true" if p.N % 32 == 0 else "false"


WITNESSES = {
    "affine_qmv_fast": Witness(
        lambda p: f"false, {'true' if p.N % 8 else 'false'}",
        lambda p: (p.M, _ceil(p.N, 8), 1),
        (32, 2, 1),
        ("K", "N", *_BATCH),
        lambda p: p.transpose and p.K % _block(p) == 0,
    ),
    "affine_qmv": Witness(
        lambda p: "false",
        lambda p: (p.M, _ceil(p.N, 8), 1),
        (32, 2, 1),
        ("K", "N", *_BATCH),
        lambda p: p.transpose,
    ),
    # With N % 64 it reads scales past the end, and drops the results.
    "affine_qmv_quad": Witness(
        lambda p: f"{p.K}, false",
        lambda p: (p.M, _ceil(p.N, 64), 1),
        (32, 1, 1),
        ("K", "N", *_BATCH),
        lambda p: (
            p.transpose
            and p.K in (64, 128)
            and p.bits in (1, 2, 4, 8)
            and p.N % 64 == 0
        ),
    ),
    "affine_qmv_wide": Witness(
        lambda p: f"{_vectors(p)}, 8, false",
        lambda p: (_ceil(p.M, _vectors(p)), _ceil(p.N, 8), 1),
        (32, 2, 1),
        ("K", "N", "M", *_BATCH),
        lambda p: p.transpose and p.M >= 2,
    ),
    "affine_qmm_t": Witness(
        lambda p: f"{_aligned(p)}, false",
        _tiles,
        (32, 2, 2),
        ("K", "N", "M", *_BATCH),
        lambda p: p.transpose,
        threadgroup_bytes=_tile_bytes,
    ),
    "affine_qmm_t_splitk": Witness(
        _aligned,
        lambda p: (*_tiles(p)[:2], PARTS),
        (32, 2, 2),
        ("K", "N", "M", "part_k", "part_outputs"),
        lambda p: p.transpose and p.K % (PARTS * max(p.group_size, 32)) == 0,
        threadgroup_bytes=_tile_bytes,
        parts=PARTS,
    ),
    "affine_qvm": Witness(
        lambda p: "false",
        lambda p: (p.M, _ceil(p.N, _of_qvm(p)), 1),
        (32, 2, 1),
        ("K", "N", *_BATCH),
        lambda p: not p.transpose and p.N % 64 == 0,
    ),
    "affine_qvm_split_k": Witness(
        lambda p: f"{PARTS}",
        lambda p: (p.M, _ceil(p.N, _of_qvm(p)), PARTS),
        (32, 2, 1),
        ("part_k", "N", *_BATCH, "part_k"),
        lambda p: not p.transpose and p.N % 64 == 0 and p.K % PARTS == 0,
        parts=PARTS,
    ),
    "affine_qmm_n": Witness(
        lambda p: "false",
        _tiles,
        (32, 2, 2),
        ("K", "N", "M", *_BATCH),
        lambda p: not p.transpose,
        threadgroup_bytes=_tile_bytes,
    ),
    "affine_gather_qmv_fast": Witness(
        lambda p: "false",
        lambda p: (p.M, _ceil(p.N, 8), p.batch_size),
        (32, 2, 1),
        ("K", "N", *_BATCH, *_EXPERTS),
        lambda p: p.transpose and p.K % _block(p) == 0 and p.N % 8 == 0,
        experts=True,
    ),
    "affine_gather_qmv": Witness(
        lambda p: "false",
        lambda p: (p.M, _ceil(p.N, 8), p.batch_size),
        (32, 2, 1),
        ("K", "N", *_BATCH, *_EXPERTS),
        lambda p: p.transpose,
        experts=True,
    ),
    "affine_gather_qmm_t": Witness(
        _aligned,
        lambda p: (*_tiles(p)[:2], p.batch_size),
        (32, 2, 2),
        ("K", "N", "M", *_BATCH, *_EXPERTS),
        lambda p: p.transpose,
        threadgroup_bytes=_tile_bytes,
        experts=True,
    ),
    "affine_gather_qmm_n": Witness(
        lambda p: "false",
        lambda p: (*_tiles(p)[:2], p.batch_size),
        (32, 2, 2),
        ("K", "N", "M", *_BATCH, *_EXPERTS),
        lambda p: not p.transpose,
        threadgroup_bytes=_tile_bytes,
        experts=True,
    ),
    # Its schedule_row_tile() gives each threadgroup rows of one expert. There is a
    # threadgroup for each expert that ends inside a tile; the last ones may be idle.
    # The bench's function constants are all true: N and K are whole tiles.
    "affine_gather_qmm_rhs": Witness(
        lambda p: f"16, 32, 32, 1, 2, {'true' if p.transpose else 'false'}",
        lambda p: (_ceil(p.N, 32), _ceil(p.M, 16) + p.batch_count, 1),
        (32, 1, 2),
        ("M", "N", "K", "experts_count"),
        lambda p: p.N % 32 == 0 and p.K % 32 == 0 and p.M >= 16,
        threadgroup_bytes=_sorted_tile_bytes,
        offsets=True,
    ),
}
# These kernels of the modes of floats have no array of global scales. Others do not
# read it here: their template says that there is none.
_WITHOUT_GLOBAL = ("qmv_quad", "qmv_wide", "qvm_split_k", "_qmm_n", "qmm_t_splitk")
# The modes of floats have kernels of the same names, grids and template arguments.
WITNESSES |= {
    name.replace("affine_", "fp_"): witness for name, witness in WITNESSES.items()
}
# Not here: the kernels of quantized_nax.h. They call Metal 4's matrix units through
# MetalPerformancePrimitives, whose headers come with Xcode only.


def include_root() -> Path:
    """Return the folder of the wheel that has `mlx/backend/metal/kernels`."""
    spec = importlib.util.find_spec("mlx")
    assert spec and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations))).resolve() / "include"


def takes(kernel: str, p: Problem) -> bool:
    """Return whether MLX may use this kernel for a problem."""
    floats = p.mode in FLOAT_MODES
    return kernel.startswith("fp_") == floats and WITNESSES[kernel].takes(p)


@functools.cache
def _header_text(floats: bool) -> str:
    folder = include_root() / "mlx" / "backend" / "metal" / "kernels"
    last = "fp_quantized.h" if floats else "quantized.h"
    paths = [folder / name for name in (*_HEADERS, last)]
    return _IN_THEIR_PLACE + flatten(paths, include_root(), leave_out=_LEFT_OUT)


def instance(kernel: str, p: Problem) -> tuple[str, str]:
    """Return (name, function) of the instance that a problem needs."""
    template = WITNESSES[kernel].template(p)
    arguments = f"{_TYPES[p.dtype]}, {p.group_size}, {p.bits}, {template}"
    name = f"{kernel}_{arguments}".replace(", ", "_")
    return name, f"{kernel}<{arguments}>"


def text(instances: set[tuple[str, str]]) -> str:
    """Return MLX's headers with these instances as one flat Metal source.

    All are of the modes of floats, or none.
    """
    floats = any(f.startswith("fp_") for _, f in instances)
    lines = (
        f'template [[host_name("{name}")]] [[kernel]] decltype({f}) {f};\n'
        for name, f in sorted(instances)
    )
    return _header_text(floats) + "".join(lines)


def unit(instances: set[tuple[str, str]], unroll: bool = False) -> Unit:
    """Return MLX's headers with these instances as a unit of the bench."""
    loose = "#define SIMT_BFLOAT_ASSIGNS_FLOAT\n"
    return translate(text(instances), prologue=loose, unroll=unroll)


def _sizes(p: Problem, parts: int) -> dict[str, np.ndarray]:
    """Return the parameters that MLX's kernels take beside the matrices, by name.

    Batches of x and of w, parts of a split K and experts are each one dimension.
    """
    part_k = p.K // parts
    w_words = p.K * p.N * p.bits // 32
    groups = p.K * p.N // p.group_size
    # A part of K is a band of x's columns and of w's rows.
    split = parts > 1
    x_stride = part_k if split else p.M * p.K
    share = parts if split else 1
    int64, int32 = np.int64, np.int32
    return {
        "K": np.array([p.K], int32),
        "N": np.array([p.N], int32),
        "M": np.array([p.M], int32),
        "one": np.array([1], int32),
        "part_k": np.array([part_k], int32),
        "part_outputs": np.array([p.M * p.N], int32),
        "x_shape": np.array([parts, p.M, part_k], int32),
        "x_strides": np.array([x_stride, p.K, 1], int64),
        "w_shape": np.array([parts], int32),
        "w_strides": np.array([w_words // share], int64),
        "s_strides": np.array([groups // share], int64),
        "b_strides": np.array([groups // share], int64),
        "experts_shape": np.array([p.batch_size], int32),
        "experts_count": np.array([p.batch_count], int32),
        "index_strides": np.array([1], int64),
    }


def launch(
    kernel: str, p: Problem, arrays: dict[str, np.ndarray]
) -> tuple[Launch, dict[str, np.ndarray], dict[str, tuple[tuple[int, ...], np.dtype]]]:
    """Return the arguments of run(): a launch of MLX's kernel, operands and outputs.

    Args:
        kernel: Name in WITNESSES.
        p: Shapes, types and format.
        arrays: "w", "scales" and "x" as they are stored, and "biases" if the mode has
            them. With experts also
            "lhs" and "rhs", the indices of x and of the matrix for each of
            batch_size products. The output is [parts or batch_size, M, N]. With
            offsets also "offsets", the first row of each of batch_count experts.
    """
    witness = WITNESSES[kernel]
    third = ["biases"]
    if kernel.startswith("fp_"):
        has_global = not kernel.removeprefix("fp").endswith(_WITHOUT_GLOBAL)
        has_global |= "gather" in kernel
        third = ["global_scale"] if has_global else []
        arrays = arrays | {"global_scale": np.ones(1, np.float32)}
    sizes = list(witness.sizes)
    if "w_strides" in sizes:
        at = sizes.index("w_strides")
        strides = ["w_strides", "s_strides", "b_strides"]
        sizes[at : at + 3] = strides[: 2 + ("biases" in third)]
    inputs = ["w", "scales", *third, "x"]
    if witness.experts:
        inputs += ["lhs", "rhs"]
    if witness.offsets:
        inputs = ["x", "w", "scales", *third, "offsets"]
    launch = Launch(
        kernel=instance(kernel, p)[0],
        threadgroups=witness.grid(p),
        threads=witness.threads,
        buffers=(*inputs, "out", *sizes),
        declared_bytes=witness.threadgroup_bytes(p),
    )
    count = p.batch_size if witness.experts else witness.parts
    outputs = {"out": ((count, p.M, p.N), numbers.STORAGE[result_type(kernel, p)])}
    return launch, arrays | _sizes(p, witness.parts), outputs


def result_type(kernel: str, p: Problem) -> str:
    """Return the type of a kernel's output: float for the parts of a split K."""
    return "float32" if kernel.endswith("splitk") else p.dtype


def call(
    kernel: str, p: Problem, arrays: dict[str, np.ndarray], options: Options
) -> Outcome:
    """Run MLX's kernel on `arrays`; see launch()."""
    only = unit({instance(kernel, p)})
    library = build.compile_unit(only, instrumented=options.instrumented)
    return run(*launch(kernel, p, arrays), options, load(library))
