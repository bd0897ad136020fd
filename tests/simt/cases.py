"""A small problem for each kernel that a plan can name, with the right answer."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from mlx_nibble import numerics
from tests.support import oracle, tolerance

from . import numbers, plans
from .executor import Options, load, run
from .plans import GatherProblem, Launch, Problem

_LONG = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_GROUP_SIZES = (32, 64, 128)
# Not a multiple of any tile or of a simdgroup's rows.
_N = 37
# Groups in K: three; one and twenty for kernels of very short and very long rows.
_GROUPS = (3, 1, 20)
# The number of rows of each kernel that is made for one number, and edges of tiles.
_ROWS = (1, 2, 3, 4, 6, 8, 13, 37)
_EXPERTS = 3
# (batch, rows, sorted) of gathered products: vectors, then rows of tiles.
_GATHERED = ((4, 1, False), (2, 5, False), (2, 13, False), (2, 29, False))
# Factors of the first row of x and of w: inside the range of half, and outside.
_FIRSTS = ((1.0, 1.0), (2.0**20, 1.0), (2.0**-24, 1.0), (1.0, 2.0**20), (1.0, 2.0**-24))
_SORTED = (40, 1, True)
_SPLIT = struct.Struct("6i")  # SplitParams of kernels/shared.h


@dataclass(frozen=True)
class Case:
    """One launch, its operands, and the exact result with the error allowed.

    If a kernel splits K into `parts`, `exact` is the sum of its outputs.
    """

    launch: Launch
    operands: dict[str, np.ndarray]
    dtype: str
    exact: np.ndarray
    allowed: np.ndarray
    parts: int = 1
    # Columns of each output of joint products; they are side by side in `exact`.
    columns: tuple[int, ...] = ()
    output: str = "out"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the output."""
        whole = self.exact.shape
        return whole if self.parts == 1 else (self.parts, *whole[1:])

    @property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        """Shape of each output buffer; they are side by side in `exact`."""
        shapes = {self.output: self.shape}
        for i, columns in enumerate(self.columns):
            shapes[f"out{i or ''}"] = (*self.shape[:-1], columns)
        return shapes

    def check(self, options: Options, library: Path | None = None) -> None:
        """Run it; raise KernelError or AssertionError if anything is wrong.

        Args:
            options: Options of the run.
            library: Path of a library to run instead of the planned kernel's.
        """
        storage = numbers.STORAGE[self.dtype]
        outputs = {name: (shape, storage) for name, shape in self.outputs.items()}
        kernels = load(library) if library else None
        outcome = run(self.launch, self.operands, outputs, options, kernels)
        parts = [numbers.decode(outcome.outputs[name], self.dtype) for name in outputs]
        result = np.concatenate(parts, axis=-1)
        if self.parts > 1:
            result = result.astype(np.float64).sum(0, keepdims=True)
        label = f"{self.launch.kernel} {self.launch.threadgroups}"
        tolerance.assert_close(result, self.exact, self.allowed, label)


def _weights(
    p: Problem | GatherProblem,
    shape: tuple[int, ...],
    rng: np.random.Generator,
    first: float = 1.0,
) -> tuple[oracle.Weights, dict[str, np.ndarray]]:
    w = oracle.random_weights(rng, shape, p.bits, p.group_size)
    factors = np.ones((shape[-2], 1))
    factors[0] = first
    scales = numbers.rounded(w.scales * factors, p.scale_dtype)
    biases = w.biases * factors
    if p.symmetric:
        biases = scales * np.float32(-(2 ** (p.bits - 1)))
    w = replace(w, scales=scales, biases=numbers.rounded(biases, p.scale_dtype))
    # A kernel must not read the biases of a symmetric matrix.
    stored = np.full_like(w.biases, np.nan) if p.symmetric else w.biases
    return w, {
        "w": w.words,
        "scales": numbers.encode(w.scales, p.scale_dtype),
        "biases": numbers.encode(stored, p.scale_dtype),
    }


def _activations(
    shape: tuple[int, ...], dtype: str, rng: np.random.Generator
) -> np.ndarray:
    return numbers.rounded(rng.standard_normal(shape), dtype)


def _type_of_w_hat(launch: Launch, dtype: str) -> str:
    """Return the type that a kernel rounds w_hat to: in tiles of K, that of x."""
    return dtype if "_bk" in launch.kernel else "float32"


def _fits_half(x: np.ndarray, w: oracle.Weights) -> bool:
    """Return True if qmm_half computes no tile in bfloat; see kernels/loader.h."""
    last = np.float32(2**w.bits - 1)
    reach = np.maximum(abs(w.biases), abs(w.scales * last + w.biases))
    largest = np.concatenate([abs(x).max(-1).ravel(), reach.ravel()])
    return bool(((largest == 0) | (largest >= 2**-13) & (largest <= 65504)).all())


def _product(
    launch: Launch,
    p: Problem | GatherProblem,
    x: np.ndarray,
    w: oracle.Weights,
    which: np.ndarray,
    operands: dict[str, np.ndarray],
    transpose: bool = True,
    addends: tuple[np.ndarray, ...] = (),
    dtype: str = "",
) -> Case:
    dtype = dtype or p.dtype
    exact = oracle.matmul(x, w.dequantize()[which], transpose)
    magnitude = oracle.matmul(abs(x), w.magnitude()[which], transpose)
    for addend in addends:
        exact = exact + addend
        magnitude = magnitude + abs(addend)
    terms = x.shape[-1] + len(addends)
    held = _type_of_w_hat(launch, p.dtype)
    off = 0.0
    if launch.kernel.startswith("qmm_half") and _fits_half(x, w):
        held = "float16"
        # Add the bits that x and w_hat lose below the smallest normal half.
        lost = oracle.matmul(np.ones_like(x), abs(w.dequantize()[which]))
        lost += oracle.matmul(abs(x), np.ones_like(w.dequantize()[which]))
        off = numerics.UNDERFLOW["float16"] * lost
    allowed = tolerance.bound(exact, magnitude, terms, dtype, held) + off
    return Case(launch, operands, dtype, exact, allowed)


def matmul(
    p: Problem,
    launch: Launch,
    seed: int = 0,
    first_x: float = 1.0,
    first_w: float = 1.0,
    x: np.ndarray | None = None,
) -> Case:
    """Return a case with random operands.

    Args:
        p: Shapes, types and format.
        launch: Launch of a plan for `p`.
        seed: Seed of the operands.
        first_x: Factor of the first row of x, for kernels that check its range.
        first_w: Factor of the first row of w.
        x: Activations [batch_size, M, K] to use instead of random ones.
    """
    rng = np.random.default_rng(seed)
    w, operands = _weights(p, (p.batch_count, p.N, p.K), rng, first_w)
    inner = p.K if p.transpose else p.N
    if x is None:
        x = rng.standard_normal((p.batch_size, p.M, inner))
        x[:, 0] *= first_x
    x = numbers.rounded(x, p.dtype)
    which = np.arange(p.batch_size) // p.batch_repeat % p.batch_count
    operands["x"] = numbers.encode(x, p.dtype)
    addends = {}
    if p.bias:
        addends["bias"] = 9 * _activations((p.N,), p.dtype, rng)
    if p.residual:
        shape = (p.batch_size, p.M, p.N)
        addends["residual"] = 9 * _activations(shape, p.dtype, rng)
    addends = {name: numbers.rounded(a, p.dtype) for name, a in addends.items()}
    operands |= {name: numbers.encode(a, p.dtype) for name, a in addends.items()}
    added = tuple(addends.values())
    if launch.kernel.startswith("qmm_splitk_sum"):
        return _sum_of_parts(launch, p, operands, added, rng)
    if launch.kernel.startswith("qmm_splitk"):
        case = _product(launch, p, x, w, which, operands, dtype="float32")
        rows = (1, -1, p.N)
        exact, allowed = case.exact.reshape(rows), case.allowed.reshape(rows)
        parts = _SPLIT.unpack(launch.params)[4]
        return replace(case, exact=exact, allowed=allowed, parts=parts, output="sums")
    return _product(launch, p, x, w, which, operands, p.transpose, added)


def _sum_of_parts(
    launch: Launch,
    p: Problem,
    operands: dict[str, np.ndarray],
    addends: tuple[np.ndarray, ...],
    rng: np.random.Generator,
) -> Case:
    """Return a case of the second launch of a split product, with random sums."""
    M, N, _, _, parts, _ = _SPLIT.unpack(launch.params)
    sums = _activations((parts, M, N), "float32", rng)
    added = [np.broadcast_to(a, (p.batch_size, p.M, N)) for a in addends]
    rows = [*sums, *(a.reshape(M, N) for a in added)]
    exact = np.sum(rows, axis=0, dtype=np.float64)[None]
    magnitude = np.sum(np.abs(rows), axis=0, dtype=np.float64)[None]
    allowed = tolerance.bound(exact, magnitude, len(rows), p.dtype)
    return Case(launch, operands | {"sums": sums}, p.dtype, exact, allowed)


def dequantize(p: Problem, launch: Launch, seed: int = 0) -> Case:
    w, operands = _weights(p, (p.M, p.K), np.random.default_rng(seed))
    exact = w.dequantize()
    allowed = tolerance.bound(exact, w.magnitude(), 1, p.dtype)
    return Case(launch, operands, p.dtype, exact, allowed)


def gather(p: GatherProblem, launch: Launch, seed: int = 0) -> Case:
    rng = np.random.default_rng(seed)
    w, operands = _weights(p, (p.experts, p.N, p.K), rng)
    x = _activations((p.B, p.M, p.K if p.transpose else p.N), p.dtype, rng)
    lhs, rhs = _indices(p, rng)
    operands["x"] = numbers.encode(x, p.dtype)
    operands |= {"lhs_indices": lhs, "rhs_indices": rhs}
    return _product(launch, p, x[lhs], w, rhs, operands, p.transpose)


def _indices(
    p: GatherProblem, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    lhs = rng.permutation(p.B).astype(np.uint32)
    rhs = rng.integers(0, p.experts, p.B, dtype=np.uint32)
    return lhs, np.sort(rhs) if p.sorted else rhs


def swiglu(p: Problem | GatherProblem, launch: Launch, seed: int = 0) -> Case:
    rng = np.random.default_rng(seed)
    gathered = isinstance(p, GatherProblem)
    matrices = p.experts if gathered else p.batch_count
    batch = p.B if gathered else p.batch_size
    gate, operands = _weights(p, (matrices, p.N, p.K), rng)
    up, up_operands = _weights(p, (matrices, p.N, p.K), rng)
    operands |= {f"up_{name}": array for name, array in up_operands.items()}
    x = _activations((batch, p.M, p.K), p.dtype, rng)
    operands["x"] = numbers.encode(x, p.dtype)
    which = np.arange(batch) % matrices
    if gathered:
        lhs, which = _indices(p, rng)
        operands |= {"lhs_indices": lhs, "rhs_indices": which}
        x = x[lhs]
    exact, allowed = tolerance.swiglu(x, gate, up, which, p.dtype)
    return Case(launch, operands, p.dtype, exact, allowed)


def joint(products: Sequence[Problem], launch: Launch, seed: int = 0) -> Case:
    """Return a case of joint products, which all use the x of the first one."""
    first = products[0]
    rng = np.random.default_rng(seed)
    x = _activations((1, first.M, first.K), first.dtype, rng)
    operands = {"x": numbers.encode(x, first.dtype)}
    exact, allowed = [], []
    for i, p in enumerate(products):
        case = matmul(p, launch, seed + i, x=x)
        exact.append(case.exact)
        allowed.append(case.allowed)
        for name in ("w", "scales", "biases", "bias"):
            if name in case.operands:
                operands[f"{name}{i or ''}"] = case.operands[name]
    return Case(
        launch,
        operands,
        first.dtype,
        np.concatenate(exact, axis=-1),
        np.concatenate(allowed, axis=-1),
        columns=tuple(p.N for p in products),
    )


def of_unit(unit: str) -> Iterator[Case]:
    """Yield a case for each kernel of a unit of plans.unit_names()."""
    family, dtype, scale_dtype, bits = unit.rsplit("_", 3)
    base = Problem(
        dtype=_LONG[dtype], scale_dtype=_LONG[scale_dtype], bits=int(bits[1:])
    )
    seen: set[str] = set()
    for group_size in _GROUP_SIZES:
        for symmetric in (False, True):
            p = replace(base, group_size=group_size, symmetric=symmetric)
            for groups in _GROUPS:
                sized = replace(p, N=_N, K=groups * group_size)
                for kernel, case in _of_format(family, sized):
                    if plans.unit_name(kernel) == unit and kernel not in seen:
                        seen.add(kernel)
                        yield case()


def of_kernel(kernel: str) -> Iterator[Case]:
    """Yield cases of one kernel, for every size of which it is a candidate."""
    family, dtype, scale_dtype, bits, group = plans.unit_name(kernel).rsplit("_", 3) + [
        kernel[len(plans.unit_name(kernel)) + 2 :].split("_")[0]
    ]
    p = Problem(
        N=_N,
        dtype=_LONG[dtype],
        scale_dtype=_LONG[scale_dtype],
        bits=int(bits[1:]),
        group_size=int(group),
        symmetric="_sym" in kernel,
    )
    for groups in _GROUPS:
        for name, case in _of_format(family, replace(p, K=groups * p.group_size)):
            if name == kernel:
                yield case()


def _of_format(family: str, base: Problem) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Yield (kernel, maker of its case) for launches that may be of this family."""
    N, K = base.N, base.K
    if family.startswith("gather"):
        shapes = (*_GATHERED, _SORTED)
        for B, M, in_order in shapes:
            g = GatherProblem(
                B=B,
                M=M,
                N=N,
                K=K,
                experts=_EXPERTS,
                dtype=base.dtype,
                scale_dtype=base.scale_dtype,
                bits=base.bits,
                group_size=base.group_size,
                symmetric=base.symmetric,
                sorted=in_order,
            )
            for form in (g, replace(g, transpose=False)):
                for launch in plans.plan_gather(form) or ():
                    yield launch.kernel, lambda g=form, launch=launch: gather(g, launch)
            for launch in plans.plan_swiglu(g) or () if M == 1 else ():
                yield launch.kernel, lambda g=g, launch=launch: swiglu(g, launch)
        return
    if family.startswith("joint"):
        for M in (1, 2, 3, 4, 5, 8, 13, 29):
            p = replace(base, M=M)
            # Three products, two of them with a bias; or two without.
            three = (p, replace(p, N=9, bias=True), replace(p, N=_N - 1, bias=True))
            products = three if K == _GROUPS[0] * base.group_size else three[:1] * 2
            for launch in plans.plan_joint(products) or ():
                yield (
                    launch.kernel,
                    lambda products=products, launch=launch: joint(products, launch),
                )
        return
    for M in _ROWS:
        for transpose in (True, False):
            # With few rows a batch costs little: use each weight matrix twice.
            batch = {"batch_size": 4, "batch_count": 2}
            p = replace(base, M=M, N=N, transpose=transpose, **(batch if M < 3 else {}))
            # Addends at one length of a row only, so that tests cover both.
            split = family.startswith("qmm_splitk")
            if transpose and (split or base.K == _GROUPS[0] * base.group_size):
                p = replace(p, bias=True, residual=True)
            if family == "qmm_half":
                yield from _of_half(replace(p, half_tiles=True))
                continue
            for launch in chain.from_iterable(plans.candidates(p)):
                yield launch.kernel, lambda p=p, launch=launch: matmul(p, launch)
    p = replace(base, M=N, N=N, K=K)
    for launch in plans.plan_dequantize(p) or ():
        yield launch.kernel, lambda p=p, launch=launch: dequantize(p, launch)
    p = replace(base, M=1, N=N, K=K, batch_size=4, batch_count=2)
    for launch in plans.plan_swiglu(p) or ():
        yield launch.kernel, lambda p=p, launch=launch: swiglu(p, launch)


def _of_half(p: Problem) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Yield cases inside the range of half, then with a row of x or w outside."""
    for first_x, first_w in _FIRSTS:
        if first_w > 1 and p.scale_dtype == "float16":
            continue  # float16 scales end where half does
        for (launch,) in plans.candidates(p):
            yield (
                launch.kernel,
                lambda launch=launch, first_x=first_x, first_w=first_w: matmul(
                    p, launch, 0, first_x, first_w
                ),
            )
