"""Random products of quantized matrices.

Kernels for CUDA multiply codes and biases apart, as MLX's do: for an infinite
activation they have a NaN where the exact result is infinite.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_nibble import numerics, ops
from mlx_nibble.acceleration.repack import pack
from tests.differential.compare import Case
from tests.differential.draw import Draw
from tests.differential.matrices import UNIT, Format, Matrix, Product
from tests.support import tolerance
from tests.support.arrays import DTYPES, to_numpy


def transformed(d: Draw, call, arrays: list[mx.array], mapped: list[bool] | None):
    """Return a call of the arrays, at times compiled or mapped over the first axis."""
    if mapped is not None and d.chance("vmap", 0.4):
        call = mx.vmap(call, in_axes=tuple(0 if m else None for m in mapped))
    elif d.chance("compile", 0.08):
        call = mx.compile(call, shapeless=d.chance("shapeless", 0.3))
    return lambda: call(*arrays)


def options(d: Draw, fmt: Format, transpose: bool = True) -> dict:
    """Return keywords that every product takes."""
    form = {"group_size": fmt.group_size, "bits": fmt.bits}
    if d.chance("int8", 0.35):
        form["activations"] = "int8"
    form["batch_invariant"] = d.chance("batch_invariant", 0.2)
    form["symmetric"] = fmt.symmetric and d.chance("promised", 0.7)
    return form


def rounding(fmt: Format, form: dict, dtype: str) -> tuple[int, str]:
    """Return what activations are rounded to: the group of a step, and the type."""
    return fmt.group_size, tolerance.integers(dtype, "activations" in form)


def columns(d: Draw) -> int:
    return 0 if d.chance("no columns", 0.01) else d.size("N", d.pick("most N", 9, 80))


def depth(d: Draw, fmt: Format) -> int:
    groups = d.size("groups", 4 if d.rng.random() < 0.96 else 4200 // fmt.group_size)
    return groups * fmt.group_size


def rows(d: Draw) -> int:
    return 0 if d.chance("no rows", 0.01) else d.size("M", d.pick("most M", 4, 4, 40))


def quantized_matmul(d: Draw) -> Case:
    fmt, dtype = Format.of(d), d.dtype()
    transpose = not d.chance("not transposed", 0.3)
    M, N, K = rows(d), columns(d), depth(d, fmt)
    if not transpose:
        N = max(N, 1)
    both, extra = d.lead("batch of both", 1), d.lead("batch of x", 2)
    w_lead = both if d.chance("batch of w", 0.3) else ()
    x_lead = (*extra, *w_lead) if w_lead else extra
    vector = not w_lead and not x_lead and M == 1 and d.chance("vector", 0.5)
    w = fmt.matrix(d, (*w_lead, N, K))
    inside, outside = (K, N) if transpose else (N, K)
    values = d.numbers((inside,) if vector else (*x_lead, M, inside))
    x = d.laid_out("x as", values, DTYPES[dtype])
    if not vector and x_lead and x_lead[0] > 1 and d.chance("x broadcast", 0.1):
        x = mx.broadcast_to(x[:1], x.shape)
    shape = (*x.shape[:-1], outside)
    form = options(d, fmt) | {"transpose": transpose}
    addends = {}
    if d.chance("bias", 0.25):
        bias = d.laid_out("bias as", d.numbers((outside,), False), DTYPES[dtype])
        addends["bias"] = bias
    if d.chance("residual", 0.25):
        residual = d.laid_out("residual as", d.numbers(shape, False), DTYPES[dtype])
        addends["residual"] = residual
    # One matrix has all rows, whatever batch it is.
    several = w_lead and np.prod(w_lead) > 1
    count = M if several else int(np.prod(x.shape[:-1]))
    rounded = tolerance.weight_dtype(dtype, transpose, count, fmt.scale_dtype)
    product = Product.of(
        to_numpy(x),
        w.w_hat,
        w.magnitude,
        transpose,
        rounding(fmt, form, dtype),
        tuple(to_numpy(a).astype(np.float64) for a in addends.values()),
        rounded,
    )
    allowed = numerics.of_result(product.exact, product.off, dtype)
    # On CUDA, only our kernels of few rows add before they round.
    if addends and (not transpose or tolerance.on_cuda()):
        # This product is rounded before each addend is added.
        steps = abs(product.exact) + 2 * sum(abs(to_numpy(a)) for a in addends.values())
        allowed = allowed + 4 * numerics.UNIT_ROUNDOFF[dtype] * steps
    chance = 0.2 if transpose and w.w_hat.size else 0
    arrays = [x, *_perhaps_repacked(d, chance, w, fmt), *addends.values()]

    def call(x, w, s, b, *rest):
        more = dict(zip(addends, rest, strict=True))
        return ops.quantized_matmul(x, w, s, b, **form, **more)

    mapped = None
    if x_lead and "bias" not in addends and (not w_lead or x_lead == w_lead):
        mapped = [True, *[bool(w_lead)] * 3, *[True] * len(addends)]
    run = transformed(d, call, arrays, mapped)
    return Case(run, product.exact, allowed, dtype, or_nan=tolerance.on_cuda())


def _perhaps_repacked(
    d: Draw, chance: float, w: Matrix, fmt: Format
) -> tuple[mx.array, mx.array, mx.array]:
    packed = None
    if d.chance("repacked", chance):
        packed = pack(*w.arrays, fmt.bits, fmt.group_size)
    return w.arrays if packed is None else packed[0]


def _indices(d: Draw, x_count: int, w_count: int):
    """Return the indices and the arguments that choose the same matrices."""
    shape = d.lead("indices", 2) or (d.size("index", 12),)
    lhs = d.rng.integers(0, x_count, shape).astype(np.uint32)
    rhs = d.rng.integers(0, w_count, shape).astype(np.uint32)
    given = {}
    if len(shape) == 1 and d.chance("sorted", 0.4):
        rhs = np.sort(rhs)
        given["sorted_indices"] = True
    kind = d.pick("index type", mx.uint32, mx.int32)
    if len(shape) == 2 and d.chance("indices broadcast", 0.3):
        lhs = np.broadcast_to(lhs[:, :1], shape)
        left = mx.array(lhs[:, :1]).astype(kind)
    else:
        left = d.laid_out("lhs as", lhs, kind)
    given["lhs_indices"] = left
    given["rhs_indices"] = d.laid_out("rhs as", rhs, kind)
    mx.eval(given["lhs_indices"], given["rhs_indices"])
    return lhs, rhs, given


def gather_qmm(d: Draw) -> Case:
    fmt, dtype = Format.of(d), d.dtype()
    transpose = not d.chance("not transposed", 0.25)
    M, N, K = max(rows(d), 1), max(columns(d), 1), depth(d, fmt)
    x_count, experts = d.size("x matrices", 6), d.size("experts", 7)
    w = fmt.matrix(d, (experts, N, K))
    values = d.numbers((x_count, M, K if transpose else N))
    x = d.laid_out("x as", values, DTYPES[dtype])
    lhs, rhs, given = _indices(d, x_count, experts)
    form = options(d, fmt) | {"transpose": transpose}
    product = Product.of(
        to_numpy(x)[lhs],
        w.w_hat[rhs],
        w.magnitude[rhs],
        transpose,
        rounding(fmt, form, dtype),
        weight_dtype=tolerance.weight_dtype(
            dtype, transpose, scale_dtype=fmt.scale_dtype
        ),
    )
    allowed = numerics.of_result(product.exact, product.off, dtype)

    def call(x, w, s, b):
        return ops.gather_qmm(x, w, s, b, **given, **form)

    matrix = _perhaps_repacked(d, 0.15 if transpose else 0, w, fmt)
    run = transformed(d, call, [x, *matrix], None)
    return Case(run, product.exact, allowed, dtype, or_nan=tolerance.on_cuda())


def _gated(
    x: np.ndarray,
    pair: list[tuple[np.ndarray, np.ndarray]],
    rounding: tuple[int, str],
    dtype: str,
    in_steps: bool = False,
    weight_dtype: str = "float32",
) -> tuple[np.ndarray, np.ndarray]:
    """Return silu(g) u and its bound; in steps, each of them is rounded to dtype."""
    gate, up = (
        Product.of(x, *w, rounding=rounding, weight_dtype=weight_dtype) for w in pair
    )
    offs = [p.off for p in (gate, up)]
    if in_steps:
        offs = [numerics.of_result(p.exact, p.off, dtype) for p in (gate, up)]
    return tolerance.of_gated(gate.exact, up.exact, *offs, dtype, in_steps)


def swiglu(d: Draw) -> Case:
    fmt, dtype = Format.of(d), d.dtype()
    M, N, K = rows(d), columns(d), depth(d, fmt)
    lead = d.lead("batch", 2)
    gate, up = fmt.matrix(d, (N, K)), fmt.matrix(d, (N, K))
    x = d.laid_out("x as", d.numbers((*lead, M, K)), DTYPES[dtype])
    form = options(d, fmt)
    pair = [(w.w_hat, w.magnitude) for w in (gate, up)]

    def call(x, *a):
        return ops.swiglu(x, a[:3], a[3:], **form)

    arrays = [x, *gate.arrays, *up.arrays]
    mapped = [True, *[False] * 6] if lead else None
    run = transformed(d, call, arrays, mapped)
    count = M * int(np.prod(lead))
    in_steps = tolerance.swiglu_in_steps(dtype, fmt.scale_dtype, count)
    # Transformed, they are the composition.
    in_steps |= "vmap" in d.notes or (tolerance.on_cuda() and "compile" in d.notes)
    exact, allowed = _gated(
        to_numpy(x),
        pair,
        rounding(fmt, form, dtype),
        dtype,
        in_steps,
        tolerance.weight_dtype(dtype, True, count, fmt.scale_dtype),
    )
    return Case(run, exact, allowed, dtype, or_nan=tolerance.on_cuda())


def gather_swiglu(d: Draw) -> Case:
    fmt, dtype = Format.of(d), d.dtype()
    M, N, K = d.size("M", 4), max(columns(d), 1), depth(d, fmt)
    x_count, experts = d.size("x matrices", 6), d.size("experts", 7)
    gate, up = (fmt.matrix(d, (experts, N, K)) for _ in range(2))
    x = d.laid_out("x as", d.numbers((x_count, M, K)), DTYPES[dtype])
    lhs, rhs, given = _indices(d, x_count, experts)
    form = options(d, fmt)
    pair = [(w.w_hat[rhs], w.magnitude[rhs]) for w in (gate, up)]

    def call(x, *a):
        return ops.gather_swiglu(x, a[:3], a[3:], **given, **form)

    run = transformed(d, call, [x, *gate.arrays, *up.arrays], None)
    in_steps = tolerance.swiglu_in_steps(dtype, fmt.scale_dtype, M)
    in_steps |= tolerance.on_cuda() and "compile" in d.notes
    exact, allowed = _gated(
        to_numpy(x)[lhs], pair, rounding(fmt, form, dtype), dtype, in_steps
    )
    return Case(run, exact, allowed, dtype, or_nan=tolerance.on_cuda())


def dequantize(d: Draw) -> Case:
    fmt = Format.of(d)
    dtype = d.dtype() if d.chance("own dtype", 0.5) else fmt.scale_dtype
    w = fmt.matrix(d, (*d.lead("batch", 2), columns(d), depth(d, fmt)))
    off = numerics.of_sum(w.magnitude, 1) + 2 * UNIT * w.magnitude
    allowed = numerics.of_result(w.w_hat, off, dtype)

    def call(w, s, b):
        form = (fmt.group_size, fmt.bits)
        return ops.dequantize(w, s, b, *form, dtype=DTYPES[dtype])

    run = transformed(d, call, list(w.arrays), None)
    return Case(run, w.w_hat, allowed, dtype)
