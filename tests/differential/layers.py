"""Random calls of the operations between the products, against float64.

The exact value is the formula that MLX's operation documents, and NumPy computes it:
MLX's own exponential and cosine of float64 are no more accurate than float32.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_nibble import fast
from mlx_nibble.numerics import UNDERFLOW, UNIT_ROUNDOFF
from tests.differential.compare import Case
from tests.differential.draw import Draw
from tests.support import layer_oracle
from tests.support.arrays import DTYPES, to_numpy
from tests.support.tolerance import bound

WIDTHS = (1, 7, 16, 17, 24, 32, 33, 64, 72, 80, 96, 128, 200)


def wide(a: mx.array) -> np.ndarray:
    return to_numpy(a).astype(np.float64)


def compiled(d: Draw, call, *arrays: mx.array):
    """Return the call, at times compiled."""
    if d.chance("compile", 0.08):
        call = mx.compile(call)
    return lambda: call(*arrays)


def rms_norm(d: Draw) -> Case:
    dtype, weight_dtype = d.dtype(), d.dtype("weight dtype")
    shape = (*d.lead("lead", 3), d.pick("D", *WIDTHS, 576, 1025))
    x = d.laid_out("x as", d.numbers(shape), DTYPES[dtype])
    weight = None
    if d.chance("weight", 0.7):
        values = d.numbers(shape[-1:], False)
        weight = d.laid_out("weight as", values, DTYPES[weight_dtype])
    eps = d.pick("eps", 1e-5, 1e-6, 0.1)
    mean = np.square(wide(x)).mean(-1, keepdims=True)
    exact = wide(x) / np.sqrt(mean + np.float32(eps))
    exact = exact if weight is None else exact * wide(weight)
    out = dtype if weight is None else str(mx.result_type(x, weight)).split(".")[-1]

    def call(x, *w):
        return fast.rms_norm(x, w[0] if w else None, eps)

    arrays = [x] if weight is None else [x, weight]
    allowed = bound(exact, abs(exact), shape[-1], out)
    # A subnormal quotient is rounded before the weight.
    allowed = allowed + 2.0**-150 * (0 if weight is None else abs(wide(weight)))
    return Case(compiled(d, call, *arrays), exact, allowed, out)


def swiglu(d: Draw) -> Case:
    dtype = d.dtype()
    shape = (*d.lead("lead", 2), d.size("D", 300))
    gate = d.laid_out("gate as", d.numbers(shape) * d.pick("by", 1, 30), DTYPES[dtype])
    up = d.laid_out("up as", d.numbers(shape), DTYPES[dtype])
    g, u = wide(gate), wide(up)
    silu = g / (1 + np.exp(-g))
    # There the kernel's exponential is infinite.
    silu = np.where((g < -88.37) & (g > -np.inf), 0, silu)
    exact = silu * u
    allowed = bound(exact, abs(exact), 4, dtype)
    allowed = allowed + abs(g * u) * 2.0**-127
    return Case(compiled(d, fast.swiglu, gate, up), exact, allowed, dtype)


def logsumexp(d: Draw) -> Case:
    dtype = d.dtype()
    most = 40_000 if d.rng.random() < 0.03 else 300
    shape = (*d.lead("lead", 2), d.size("D", most))
    a = d.laid_out("a as", d.numbers(shape) * d.pick("by", 1, 10), DTYPES[dtype])
    values = wide(a)
    top = values.max(-1)
    base = np.where(np.isinf(top), 0, top)
    exact = base + np.log(np.exp(values - base[..., None]).sum(-1))
    scale = abs(exact) + abs(top) + 1
    keepdims = d.chance("keepdims", 0.3)
    if keepdims:
        exact, scale = exact[..., None], scale[..., None]

    def call(a):
        return fast.logsumexp(a, -1, keepdims)

    allowed = bound(exact, scale, min(shape[-1], 64), dtype)
    return Case(compiled(d, call, a), exact, allowed, dtype)


def rope(d: Draw) -> Case:
    dtype = d.dtype()
    B, L, D = d.size("B", 3), d.size("L", 70), 2 * d.size("half of D", 64)
    middle = d.lead("middle", 1)
    dims = 2 * int(d.rng.integers(1, D // 2 + 1)) if d.chance("part", 0.4) else D
    d.notes["dims"] = dims
    x = d.laid_out("x as", d.numbers((B, *middle, L, D)), DTYPES[dtype])
    base, freqs = d.pick("base", 1e4, 5e5), None
    if d.chance("freqs", 0.3):
        freqs = mx.array(d.rng.uniform(1, 1e4, dims // 2).astype(np.float32))
    traditional, scale = d.chance("traditional", 0.5), d.pick("scale", 1.0, 0.25)
    first = d.pick("offset", 0, 3, 4000, 100_000)
    offset, offsets = first, np.full(B, first)
    if d.chance("offsets", 0.4):
        offsets = first + 5 * np.arange(B)
        offset = mx.array(offsets)
    half = dims // 2
    periods = base ** (np.arange(half) / half) if freqs is None else wide(freqs)
    positions = offsets[:, None] + np.arange(L)
    angles = positions[..., None] * scale / periods
    angles = angles.reshape(B, *(1 for _ in middle), L, half)
    cos, sin = np.cos(angles), np.sin(angles)
    pairs = (
        (slice(0, dims, 2), slice(1, dims, 2))
        if traditional
        else (slice(0, half), slice(half, dims))
    )
    a, b = (wide(x)[..., pair] for pair in pairs)
    exact = wide(x)
    size = abs(exact)
    exact[..., pairs[0]], size[..., pairs[0]] = (
        a * cos - b * sin,
        abs(a * cos) + abs(b * sin),
    )
    exact[..., pairs[1]], size[..., pairs[1]] = (
        a * sin + b * cos,
        abs(a * sin) + abs(b * cos),
    )

    def call(x):
        return fast.rope(
            x,
            dims,
            traditional=traditional,
            base=None if freqs is not None else base,
            scale=scale,
            offset=offset,
            freqs=freqs,
        )

    allowed = bound(exact, size, 2, dtype)
    return Case(compiled(d, call, x), exact, allowed, dtype)


def _mask(d: Draw, shape: tuple[int, ...], dtype: str):
    """Return a mask as an argument, and as the array of keys seen or of addends."""
    B, heads, L, S = shape
    kind = d.pick("mask", "none", "causal", "bool", "added")
    if kind == "none":
        return None, None
    if kind == "causal":
        return "causal", np.tril(np.ones((L, S), bool), S - L)
    form = d.pick("mask shape", shape, (B, 1, L, S), (L, S), (1, S))
    if kind == "bool":
        seen = d.rng.random(form) < d.pick("seen", 0.5, 0.97)
        return d.laid_out("mask as", seen, mx.bool_), seen
    values = d.rng.standard_normal(form).astype(np.float32)
    values[d.rng.random(form) < 0.2] = -np.inf
    added = d.laid_out("mask as", values, DTYPES[dtype])
    return added, to_numpy(added)


def attention(d: Draw) -> Case:
    dtype = d.dtype()
    B, kv_heads = d.size("B", 2), d.size("kv heads", 2)
    heads = kv_heads * d.pick("group", 1, 2, 3, 7)
    L = d.size("L", d.pick("most L", 1, 6, 40))
    S = L + d.size("more keys", d.pick("most keys", 2, 20, 300)) - 1
    D, Dv = d.pick("D", *WIDTHS), d.pick("Dv", *WIDTHS)
    shapes = ((B, heads, L, D), (B, kv_heads, S, D), (B, kv_heads, S, Dv))
    q, k, v = (
        d.laid_out(f"{name} as", d.numbers(shape), DTYPES[dtype])
        for name, shape in zip("qkv", shapes, strict=True)
    )
    mask, meaning = _mask(d, (B, heads, L, S), dtype)
    scale = float(np.float32(D**-0.5))
    sinks = None
    if d.chance("sinks", 0.2):
        sinks = d.laid_out("sinks as", d.numbers((heads,), False), DTYPES[dtype])
    invariant = d.chance("batch_invariant", 0.2)
    # A weight that the kernel's exponential rounds to 0 matters for infinite values.
    exact, unrounded = (
        _softmax_form(q, k, v, scale, meaning, sinks, least)
        for least in (np.exp(-87.68), 0)
    )
    _, allowed = layer_oracle.attention(
        *(to_numpy(a) for a in (q, k, v)),
        scale,
        meaning,
        None if sinks is None else to_numpy(sinks),
    )
    u = UNIT_ROUNDOFF[dtype]
    allowed = allowed * (1 + u) + u * abs(exact) + UNDERFLOW[dtype]

    def call(q, k, v):
        return fast.scaled_dot_product_attention(
            q, k, v, scale=scale, mask=mask, sinks=sinks, batch_invariant=invariant
        )

    run = compiled(d, call, q, k, v)
    return Case(run, exact, allowed, dtype, unrounded)


def _softmax_form(q, k, v, scale, meaning, sinks, least) -> np.ndarray:
    """Return softmax(scale q k^T + mask) v; zeros where no key is seen."""
    group = q.shape[1] // k.shape[1]
    keys, values = (np.repeat(wide(a), group, axis=1) for a in (k, v))
    scores = (wide(q) * scale) @ keys.swapaxes(-1, -2)
    seen = np.ones(scores.shape, bool)
    if meaning is not None and meaning.dtype == np.bool_:
        seen = np.broadcast_to(meaning, scores.shape)
        scores = np.where(seen, scores, -np.inf)
    elif meaning is not None:
        scores = scores + meaning
        seen = (meaning > -np.inf) | np.isnan(scores)
    if sinks is not None:
        sink = wide(sinks)[None, :, None, None]
        sink = np.broadcast_to(sink, (*scores.shape[:-1], 1))
        scores = np.concatenate([scores, sink], -1)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights = np.where(weights < least, 0, weights)
    weights = weights / weights.sum(-1, keepdims=True)
    if sinks is not None:
        weights = weights[..., :-1]
    return np.where(seen.any(-1, keepdims=True), weights, 0) @ values
