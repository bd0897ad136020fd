"""One planned problem with random operands, run and held to the oracle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tests import oracle, tolerance

from . import numbers, products
from .executor import Options, run
from .plans import GatherProblem, Launch, Problem

UP = {"w": "up_w", "scales": "up_scales", "biases": "up_biases"}


def weights_of(
    p: Problem | GatherProblem, matrices: int, rng: np.random.Generator
) -> oracle.Weights:
    """Random weights [matrices, N, K], their scales and biases as stored."""
    w = oracle.random_weights(rng, (matrices, p.N, p.K), p.bits, p.group_size)
    scales = numbers.rounded(w.scales, p.scale_dtype)
    biases = scales * np.float32(-(2 ** (p.bits - 1))) if p.symmetric else w.biases
    return replace(w, scales=scales, biases=numbers.rounded(biases, p.scale_dtype))


def _readable_biases(p: Problem | GatherProblem, w: oracle.Weights) -> np.ndarray:
    """A kernel that reads the biases of a symmetric matrix is wrong everywhere."""
    return np.full_like(w.biases, np.nan) if p.symmetric else w.biases


def _operands(p: Problem | GatherProblem, w: oracle.Weights) -> dict[str, np.ndarray]:
    return {
        "w": w.words,
        "scales": numbers.encode(w.scales, p.scale_dtype),
        "biases": numbers.encode(_readable_biases(p, w), p.scale_dtype),
    }


def _held_as(launches: list[Launch], dtype: str) -> str:
    """What w_hat is rounded to: tiles in threadgroup memory have the type of x."""
    return dtype if "_bk" in launches[0].kernel else "float32"


def check_matmul(p: Problem, launches: list[Launch], options: Options) -> None:
    """x @ w_hat.T or x @ w_hat, batches and all."""
    rng = np.random.default_rng(options.seed)
    w = weights_of(p, p.batch_count, rng)
    terms = p.K if p.transpose else p.N
    x = numbers.rounded(rng.standard_normal((p.batch_size, p.M, terms)), p.dtype)
    biases = _readable_biases(p, w)
    y = products.matmul(p, w.words, w.scales, biases, x, options, launches)

    which = np.arange(p.batch_size) // p.batch_repeat % p.batch_count
    exact = oracle.matmul(x, w.dequantize()[which], p.transpose)
    magnitude = oracle.matmul(abs(x), w.magnitude()[which], p.transpose)
    held = _held_as(launches, p.dtype)
    allowed = tolerance.bound(exact, magnitude, terms, p.dtype, held)
    tolerance.assert_close(y, exact, allowed, f"{launches[0].kernel} {p}")


def check_dequantize(p: Problem, options: Options) -> None:
    """w_hat, M rows of it."""
    p = replace(p, N=p.M)
    w = weights_of(p, 1, np.random.default_rng(options.seed))
    biases = _readable_biases(p, w)
    out = products.dequantize(p, w.words[0], w.scales[0], biases[0], options)
    exact = w.dequantize()[0]
    allowed = tolerance.bound(exact, w.magnitude()[0], 1, p.dtype)
    tolerance.assert_close(out, exact, allowed, f"dequantize {p}")


def _run_one(
    launches: list[Launch],
    operands: dict[str, np.ndarray],
    shape: tuple[int, ...],
    dtype: str,
    options: Options,
) -> np.ndarray:
    (launch,) = launches
    outputs = {"out": (shape, numbers.STORAGE[dtype])}
    return numbers.decode(run(launch, operands, outputs, options).outputs["out"], dtype)


def _indices(
    p: GatherProblem, matrices_of_x: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    lhs = rng.integers(0, matrices_of_x, p.B, dtype=np.uint32)
    rhs = rng.integers(0, p.experts, p.B, dtype=np.uint32)
    return lhs, np.sort(rhs) if p.sorted else rhs


def check_gather(p: GatherProblem, launches: list[Launch], options: Options) -> None:
    """x[lhs[b]] @ w_hat[rhs[b]].T for random indices."""
    rng = np.random.default_rng(options.seed)
    w = weights_of(p, p.experts, rng)
    x = numbers.rounded(rng.standard_normal((7, p.M, p.K)), p.dtype)
    lhs, rhs = _indices(p, len(x), rng)
    operands = _operands(p, w) | {"x": numbers.encode(x, p.dtype)}
    operands |= {"lhs_indices": lhs, "rhs_indices": rhs}
    y = _run_one(launches, operands, (p.B, p.M, p.N), p.dtype, options)

    exact = oracle.matmul(x[lhs], w.dequantize()[rhs])
    magnitude = oracle.matmul(abs(x[lhs]), w.magnitude()[rhs])
    held = _held_as(launches, p.dtype)
    allowed = tolerance.bound(exact, magnitude, p.K, p.dtype, held)
    tolerance.assert_close(y, exact, allowed, f"{launches[0].kernel} {p}")


def check_swiglu(
    p: Problem | GatherProblem, launches: list[Launch], options: Options
) -> None:
    """silu(x @ gate.T) * (x @ up.T) for one row of x each."""
    rng = np.random.default_rng(options.seed)
    gathered = isinstance(p, GatherProblem)
    rows, matrices = (p.B, p.experts) if gathered else (p.batch_size, p.batch_count)
    gate, up = (weights_of(p, matrices, rng) for _ in range(2))
    x = numbers.rounded(rng.standard_normal((rows, 1, p.K)), p.dtype)
    operands = _operands(p, gate) | {"x": numbers.encode(x, p.dtype)}
    operands |= {UP[name]: array for name, array in _operands(p, up).items()}
    if gathered:
        lhs, which = _indices(p, rows, rng)
        operands |= {"lhs_indices": lhs, "rhs_indices": which}
        x = x[lhs]
    else:
        which = np.arange(rows) // p.batch_repeat % matrices
    y = _run_one(launches, operands, (rows, 1, p.N), p.dtype, options)
    exact, allowed = _swiglu_oracle(x, gate, up, which, p.dtype)
    tolerance.assert_close(y, exact, allowed, f"{launches[0].kernel} {p}")


def _swiglu_oracle(
    x: np.ndarray,
    gate: oracle.Weights,
    up: oracle.Weights,
    which: np.ndarray,
    dtype: str,
) -> tuple[np.ndarray, np.ndarray]:
    """silu(g) * u, and how far from it a result may lie."""
    (g, off_g), (u, off_u) = (
        (exact, tolerance.bound(exact, magnitude, x.shape[-1], "float32"))
        for exact, magnitude in (
            (
                oracle.matmul(x, w.dequantize()[which]),
                oracle.matmul(abs(x), w.magnitude()[which]),
            )
            for w in (gate, up)
        )
    )
    silu = g / (1 + np.exp(-g))
    exact = silu * u
    # |silu'| < 1.1; exp, the sum, the quotient and the product each round.
    off = 1.1 * off_g * (abs(u) + off_u) + abs(silu) * off_u
    off += 4 * tolerance.UNIT_ROUNDOFF["float32"] * abs(exact)
    off += tolerance.UNIT_ROUNDOFF[dtype] * (abs(exact) + off)
    return exact, off + tolerance.UNDERFLOW[dtype]
