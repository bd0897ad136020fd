"""Cases: launches with operands and the exact results."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mlx_nibble import numerics
from tests.support import oracle, tolerance

from . import numbers
from .executor import Options, load, run
from .plans import GatherProblem, Launch, Problem

Weights = oracle.Weights | oracle.FloatWeights
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
        declared = outcome.counters["threadgroup_bytes"]
        assert declared == self.launch.declared_bytes, (self.launch.kernel, declared)
        parts = [numbers.decode(outcome.outputs[name], self.dtype) for name in outputs]
        result = np.concatenate(parts, axis=-1)
        if self.parts > 1:
            result = result.astype(np.float64).sum(0, keepdims=True)
        label = f"{self.launch.kernel} {self.launch.threadgroups}"
        tolerance.assert_close(result, self.exact, self.allowed, label)


def weights(
    p: Problem | GatherProblem,
    shape: tuple[int, ...],
    rng: np.random.Generator,
    first: float = 1.0,
) -> tuple[Weights, dict[str, np.ndarray]]:
    """Return random weights [..., N, K], and their arrays as they are stored.

    Args:
        p: The format.
        shape: Shape of the weights.
        rng: Source of numbers.
        first: Factor of the first row.
    """
    if p.mode in oracle.FLOAT_MODES:
        return _floats(p, shape, rng, first)
    w = oracle.random_weights(rng, shape, p.bits, p.group_size)
    factors = np.ones((shape[-2], 1))
    factors[0] = first
    scales = numbers.rounded(w.scales * factors, p.scale_dtype)
    biases = w.biases * factors
    symmetric = p.mode == "symmetric"
    if symmetric:
        biases = scales * np.float32(-(2 ** (p.bits - 1)))
    w = replace(w, scales=scales, biases=numbers.rounded(biases, p.scale_dtype))
    # A kernel must not read the biases of a symmetric matrix.
    stored = np.full_like(w.biases, np.nan) if symmetric else w.biases
    return w, {
        "w": w.words,
        "scales": numbers.encode(w.scales, p.scale_dtype),
        "biases": numbers.encode(stored, p.scale_dtype),
    }


def _floats(
    p: Problem | GatherProblem,
    shape: tuple[int, ...],
    rng: np.random.Generator,
    first: float,
) -> tuple[Weights, dict[str, np.ndarray]]:
    """Return weights of a mode of floats, which has no array of biases."""
    w = oracle.random_floats(rng, shape, p.mode)
    if first != 1:
        # The exponent of E8M0.
        w.scales[..., 0, :] += np.uint8(int(np.log2(first)) % 256)
    return w, {"w": w.words, "scales": w.scales}


def _activations(
    shape: tuple[int, ...], dtype: str, rng: np.random.Generator
) -> np.ndarray:
    return numbers.rounded(rng.standard_normal(shape), dtype)


def _type_of_w_hat(launch: Launch, dtype: str) -> str:
    """Return the type that a kernel rounds w_hat to: in tiles of K, that of x."""
    return dtype if "_bk" in launch.kernel else "float32"


def _fits_half(x: np.ndarray, w: Weights) -> bool:
    """Return True if qmm_half computes no tile in bfloat; see kernels/loader.h."""
    if isinstance(w, oracle.FloatWeights):
        reach = w.reach()
    else:
        last = np.float32(2**w.bits - 1)
        reach = np.maximum(abs(w.biases), abs(w.scales * last + w.biases))
    largest = np.concatenate([abs(x).max(-1).ravel(), reach.ravel()])
    return bool(((largest == 0) | (largest >= 2**-13) & (largest <= 65504)).all())


def _product(
    launch: Launch,
    p: Problem | GatherProblem,
    x: np.ndarray,
    w: Weights,
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
    w, operands = weights(p, (p.batch_count, p.N, p.K), rng, first_w)
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
    w, operands = weights(p, (p.M, p.K), np.random.default_rng(seed))
    exact = w.dequantize()
    allowed = tolerance.bound(exact, w.magnitude(), 1, p.dtype)
    return Case(launch, operands, p.dtype, exact, allowed)


def gather(
    p: GatherProblem, launch: Launch, seed: int = 0, chosen: Sequence[int] = ()
) -> Case:
    """Return a case of products; `chosen` are the experts, random by default."""
    rng = np.random.default_rng(seed)
    w, operands = weights(p, (p.experts, p.N, p.K), rng)
    x = _activations((p.B, p.M, p.K if p.transpose else p.N), p.dtype, rng)
    lhs, rhs = _indices(p, rng)
    if chosen:
        rhs = np.array(chosen, np.uint32)
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
    gate, operands = weights(p, (matrices, p.N, p.K), rng)
    up, up_operands = weights(p, (matrices, p.N, p.K), rng)
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


def gradient(
    p: Problem | GatherProblem,
    launch: Launch,
    seed: int = 0,
    chosen: Sequence[int] = (),
) -> Case:
    """Return a case of the gradients of scales and biases.

    Args:
        p: The product.
        launch: Launch of a plan for its gradients.
        seed: Seed of the operands.
        chosen: Experts of the products. Default: random ones.
    """
    rng = np.random.default_rng(seed)
    gathered = isinstance(p, GatherProblem)
    matrices = p.experts if gathered else p.batch_count
    products = p.B if gathered else p.batch_size
    w, operands = weights(p, (matrices, p.N, p.K), rng)
    inner, outer = (p.K, p.N) if p.transpose else (p.N, p.K)
    x = _activations((products, p.M, inner), p.dtype, rng)
    dy = _activations((products, p.M, outer), p.dtype, rng)
    operands = {"w": operands["w"], "x": numbers.encode(x, p.dtype)}
    operands["dy"] = numbers.encode(dy, p.dtype)
    which = np.arange(products) // (1 if gathered else p.batch_repeat) % matrices
    if gathered:
        lhs, which = _indices(p, rng)
        if chosen:
            which = np.array(chosen, np.uint32)
        order = np.argsort(which, kind="stable").astype(np.uint32)
        operands |= {"lhs_indices": lhs, "rhs_indices": which, "order": order}
        x = x[lhs]
    assert isinstance(w, oracle.Weights)
    exact, allowed = tolerance.group_gradients(x, dy, w, which, p.transpose)
    return Case(launch, operands, "float32", exact, allowed)


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
