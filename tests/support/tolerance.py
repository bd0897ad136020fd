"""Tolerances of results against the oracle: computed, never tuned.

The bounds are the library's own: its self-check applies the same ones to kernels.
"""

from __future__ import annotations

import functools
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_nibble import numerics
from tests.support import oracle


def bound(
    exact: np.ndarray,
    magnitude: np.ndarray,
    terms: int,
    dtype: str,
    weight_dtype: str = "float32",
) -> np.ndarray:
    """Return the elementwise bound on |result - exact|.

    Args:
        exact: Result of the oracle.
        magnitude: Array of the same shape: sum |x| (|scale| code + |bias|).
        terms: Length of each sum.
        dtype: Type of the result, rounded to once, at the store.
        weight_dtype: Type that w_hat is rounded to before it is multiplied.
    """
    off = numerics.of_sum(magnitude, terms, weight_dtype)
    return numerics.of_result(exact, off, dtype)


# The roundoff of one bfloat16, and of two. The second of a weight is cut off.
ONE, TWO, TWO_OF_WEIGHTS = 2.0**-8, 2.0**-16, 2.0**-15
# The largest integer that activations become, and the part of a step by which the
# rounded quotient may be off.
INTEGERS = {"int8": (127, 2.0**-15), "int16": (32639, 2.0**-7)}


def on_cuda() -> bool:
    """Return whether operations run on MLX's CUDA backend by default."""
    return mx.cuda.is_available() and mx.default_device().type == mx.DeviceType.gpu


# CUDA's kernels for products and for gate, up and SwiGLU have no more rows
# (docs/internals/cuda.md).
MOST_ROWS, MOST_GATED_ROWS = 64, 32


def weight_dtype(
    dtype: str, transpose: bool, rows: int = 1, scale_dtype: str | None = None
) -> str:
    """Return the type that the weights of a product are rounded to.

    Args:
        dtype: Type of the result.
        transpose: Whether the product is transposed.
        rows: Number of rows that one matrix is multiplied with.
        scale_dtype: Type of the scales; by default that of the result.
    """
    dense = on_cuda() and (not transpose or rows > MOST_ROWS)
    return dtype if dense and scale_dtype in (None, dtype) else "float32"


def swiglu_in_steps(dtype: str, scale_dtype: str, rows: int) -> bool:
    """Return whether gate, up and SwiGLU are operations that round one by one."""
    return on_cuda() and (
        dtype == "float32" or scale_dtype != dtype or rows > MOST_GATED_ROWS
    )


def integer_bound(
    x: np.ndarray,
    w_hat: np.ndarray,
    group_size: int,
    activations: str,
    tiles: bool | None = None,
) -> np.ndarray:
    """Return what rounding activations to integers, group by group, adds to `bound`.

    step[m, g] = max(max |x[m, k]| / largest, 2^-126) over the k in g. An activation is
    off by half a step, and slightly more because the quotient is rounded:
    sum over g of (1/2 + e) step[m, g] sum over k in g of |w_hat[n, k]|.
    CPUs with tiles of bfloat16 may multiply these instead, so their bound is returned
    where it is larger.

    Args:
        x: [..., M, K].
        w_hat: [..., N, K].
        group_size: Activations that share a step.
        activations: "int8" or "int16"; 0 for anything else.
        tiles: Whether the instruction set has tiles of bfloat16. By default, whether
            this machine has.
    """
    if activations not in INTEGERS:
        return np.zeros(())
    largest, e = INTEGERS[activations]
    count = x.shape[-1] // group_size
    groups = x.reshape(*x.shape[:-1], count, group_size)
    step = np.maximum(abs(groups).max(-1).astype(np.float64) / largest, 2.0**-126)
    weights = abs(w_hat).reshape(*w_hat.shape[:-1], count, group_size)
    off = (0.5 + e) * (step @ weights.sum(-1).swapaxes(-1, -2))
    if not (has_bfloat_tiles() if tiles is None else tiles):
        return off
    # A scale is at most twice the largest weight of its group, unless all are alike.
    scales = 2 * np.broadcast_to(weights.max(-1, keepdims=True), weights.shape)
    how = (ONE, ONE) if activations == "int8" else (TWO, TWO_OF_WEIGHTS)
    return np.maximum(off, bfloat_bound(x, w_hat, *how, scales.reshape(w_hat.shape)))


@functools.cache
def has_bfloat_tiles() -> bool:
    """Return whether this machine's CPU multiplies bfloat16 in tiles."""
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text().split() if cpu.exists() else []
    return {"amx_bf16", "avx512_fp16", "avx512vbmi"} <= set(flags)


def bfloat_bound(
    x: np.ndarray,
    w_hat: np.ndarray,
    roundoff: float,
    weights_roundoff: float = 0,
    scales: np.ndarray | None = None,
) -> np.ndarray:
    """Return what tiles of bfloat16 add to `bound`.

    Rows of x are multiplied by a power of two that brings their largest number to
    [1, 4). Each number is then rounded to one or two bfloat16. Numbers, products and
    sums below 2^-126 become zero: a number costs its weight, each of K products two
    additions. The products of second numbers of weights and x are left out. Integer
    codes become weights with 2^-16 of their scale as an error.

    Args:
        x: [..., M, K].
        w_hat: [..., N, K].
        roundoff: 0 if x fits, else ONE or TWO.
        weights_roundoff: The same for weights; TWO_OF_WEIGHTS for two.
        scales: The scale of each weight [..., N, K], for integer codes.
    """
    largest = abs(x).max(-1, keepdims=True)
    weights = abs(w_hat).swapaxes(-1, -2)
    lost = 2.0**-126 * largest * (weights.sum(-2, keepdims=True) + 3 * x.shape[-1])
    both = ONE * ONE if weights_roundoff == TWO_OF_WEIGHTS else ONE * weights_roundoff
    off = (roundoff + weights_roundoff + both) * (abs(x) @ weights) + lost
    if scales is not None:
        off = off + 2.0**-16 * (abs(x) @ abs(scales).swapaxes(-1, -2))
    return off


def integers(dtype: str, int8: bool = False) -> str:
    """Return the most that a CPU rounds activations of this type to."""
    return "int8" if int8 else "exact" if dtype == "float32" else "int16"


def swiglu(
    x: np.ndarray,
    gate: oracle.Weights,
    up: oracle.Weights,
    which: np.ndarray,
    dtype: str,
    activations: str = "exact",
    in_steps: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return silu(g) * u in float64, and the bound of a result that rounds it once.

    Args:
        x: [B, M, K].
        gate: [E, N, K]; g = x @ gate_hat[which].T.
        up: [E, N, K]; u = x @ up_hat[which].T.
        which: Index of the matrix for each of the B.
        dtype: Type of the result.
        activations: Integers that x is rounded to first, as in `integer_bound`.
        in_steps: Whether each operation rounds its result to `dtype`.
    """
    products, offs = [], []
    for w in (gate, up):
        w_hat = w.dequantize()[which]
        exact = oracle.matmul(x, w_hat)
        magnitude = oracle.matmul(abs(x), w.magnitude()[which])
        off = bound(exact, magnitude, x.shape[-1], "float32")
        rounding = integer_bound(x, w_hat, w.group_size, activations)
        off = off + rounding * (1 + 2.0**-24)
        products.append(exact)
        offs.append(numerics.of_result(exact, off, dtype) if in_steps else off)
    return of_gated(*products, *offs, dtype, in_steps)


def of_gated(
    g: np.ndarray,
    u: np.ndarray,
    off_g: np.ndarray,
    off_u: np.ndarray,
    dtype: str,
    in_steps: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Return silu(g) * u in float64, and its bound, from g, u and their bounds."""
    exact, off = numerics.of_swiglu(g, u, off_g, off_u)
    if in_steps:
        # The exponential, the sum, the quotient and a product are rounded as well.
        off = off + 4 * numerics.UNIT_ROUNDOFF[dtype] * abs(exact)
        off = off + numerics.UNDERFLOW[dtype] * (1 + abs(u))
    return exact, numerics.of_result(exact, off, dtype)


def group_gradients(
    x: np.ndarray,
    dy: np.ndarray,
    w: oracle.Weights,
    which: np.ndarray,
    transpose: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradients of scales and biases in float64, and their bounds.

    Args:
        x, dy: The operands that meet matrix `which[b]` for each b: [B, M, ...].
        w: Weights [count, N, K].
        which: Index of the matrix for each of the B.
        transpose: Whether the product was transposed.
    """
    left, right = (dy, x) if transpose else (x, dy)
    count, N, groups = w.scales.shape
    codes = oracle.unpack(w.words, w.bits).astype(np.float64)
    codes = codes.reshape(count, N, groups, -1)

    def sums(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        dense = np.zeros(codes.shape)
        for matrix, a, b in zip(which, left, right, strict=True):
            part = a.astype(np.float64).T @ b.astype(np.float64)
            dense[matrix] += part.reshape(N, groups, -1)
        return np.stack([(codes * dense).sum(-1), dense.sum(-1)])

    exact, magnitude = sums(left, right), sums(abs(left), abs(right))
    terms = left.shape[0] * left.shape[1] * w.group_size
    return exact, bound(exact, magnitude, terms, "float32")


def assert_close(
    result: np.ndarray, exact: np.ndarray, allowed: np.ndarray, label: str = ""
) -> None:
    """Fail with the worst element, its neighbours and its bound.

    Where the oracle has an infinity, the result must have the same one.
    """
    assert result.shape == exact.shape, f"{label}: {result.shape} != {exact.shape}"
    endless = np.isinf(exact)
    error = abs(result.astype(np.float64) - np.where(endless, 0, exact))
    error = np.where(endless, np.where(result == exact, 0, np.inf), error)
    allowed = np.where(endless, 0, allowed)
    bad = ~(error <= allowed)  # a NaN is bad too
    if not bad.any():
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(bad, np.nan_to_num(error / allowed, nan=np.inf), 0)
    worst = np.unravel_index(np.argmax(ratio), ratio.shape)
    raise AssertionError(
        f"{label}: {bad.sum()} of {bad.size} elements are off; worst at "
        f"{tuple(int(i) for i in worst)}: got {result[worst]!r}, exact "
        f"{exact[worst]!r}, error {error[worst]:.3e} > {allowed[worst]:.3e}"
    )


def relative_rms(result: np.ndarray, exact: np.ndarray) -> float:
    """Return sqrt(mean (result - exact)^2 / mean exact^2)."""
    error = result.astype(np.float64) - exact
    return float(np.sqrt((error**2).mean() / (exact**2).mean()))
