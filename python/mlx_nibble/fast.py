"""The operations of :mod:`mlx.core.fast` and a few others, on our CPU kernels.

Signatures are MLX's. On the CPU, MLX builds each operation from dozens of small ones,
whose scheduling costs more than their arithmetic. Ours are one node each, accumulate in
float32 and round once. MLX's operations compute on other devices, and for arguments
that our kernels do not support. All gradients are MLX's.

They differ from MLX's CPU operations in two ways:

* A query that sees no key gives zeros, as on Metal. MLX's CPU operation gives the mean
  of all values.
* :func:`rope` computes angles in float64. In float32 the angle at position 65536 is off
  by up to 0.004.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from mlx_nibble import _native
from mlx_nibble._arguments import StreamOrDevice, stock_swiglu


def rms_norm(
    x: mx.array,
    weight: mx.array | None,
    eps: float,
    *,
    stream: StreamOrDevice = None,
) -> mx.array:
    r"""Root-mean-square normalization of the last axis: :func:`mx.fast.rms_norm`.

    .. math:: y = \frac{x}{\sqrt{\frac1D \sum_i x_i^2 + \epsilon}} \, w

    Args:
        x: ``[..., D]``, float32, float16 or bfloat16.
        weight: ``[D]``, or ``None`` for ones.
        eps: Number that is added to the mean square.
        stream: Stream or device to run on.

    Returns:
        The shape of ``x``; the common type of ``x`` and ``weight``.
    """
    op = mx.fast.rms_norm if _native.ext is None else _native.ext.rms_norm
    return op(x, weight, eps, stream=stream)


def layer_norm(
    x: mx.array,
    weight: mx.array | None,
    bias: mx.array | None,
    eps: float,
    *,
    stream: StreamOrDevice = None,
) -> mx.array:
    r"""Normalization of the last axis: :func:`mx.fast.layer_norm`.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \, w + b

    Args:
        x: ``[..., D]``, float32, float16 or bfloat16.
        weight: ``[D]``, or ``None`` for ones.
        bias: ``[D]``, or ``None`` for zeros.
        eps: Number that is added to the variance.
        stream: Stream or device to run on.

    Returns:
        The shape of ``x``; the common type of the arrays.
    """
    op = mx.fast.layer_norm if _native.ext is None else _native.ext.layer_norm
    return op(x, weight, bias, eps, stream=stream)


def conv1d(
    input: mx.array,
    weight: mx.array,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    *,
    stream: StreamOrDevice = None,
) -> mx.array:
    r"""Convolution: :func:`mx.conv1d`. Depthwise ones are ours.

    .. math:: y_{t,c} = \sum_j w_{c,j} \, x_{t+j,c}

    Args:
        input: ``[B, T, C]``; float32, float16 or bfloat16.
        weight: ``[C, taps, 1]``. Our kernels support ``groups = C`` with the default
            stride, padding and dilation.
        stride, padding, dilation, groups: Arguments of MLX's operation.
        stream: Stream or device to run on.

    Returns:
        ``[B, T - taps + 1, C]`` of the type of ``input``.
    """
    op = mx.conv1d if _native.ext is None else _native.ext.conv1d
    return op(input, weight, stride, padding, dilation, groups, stream=stream)


def gather_mm(
    a: mx.array,
    b: mx.array,
    /,
    lhs_indices: mx.array | None = None,
    rhs_indices: mx.array | None = None,
    *,
    sorted_indices: bool = False,
    stream: StreamOrDevice = None,
) -> mx.array:
    """Products that choose their matrices: :func:`mx.gather_mm`.

    Args:
        a: ``[..., M, K]``; float32, float16 or bfloat16.
        b: ``[..., K, N]``. Our kernels read matrices that lie transposed, as
            ``w.swapaxes(-1, -2)`` does.
        lhs_indices: Indices of the matrices in ``a``. Default: each in turn.
        rhs_indices: Indices of the matrices in ``b``. Default: each in turn.
        sorted_indices: True if ``rhs_indices`` never falls.
        stream: Stream or device to run on.

    Returns:
        ``[..., M, N]`` of the common type, with the dimensions of the indices.
    """
    op = mx.gather_mm if _native.ext is None else _native.ext.gather_mm
    return op(
        a, b, lhs_indices, rhs_indices, sorted_indices=sorted_indices, stream=stream
    )


def rope(
    a: mx.array,
    dims: int,
    *,
    traditional: bool,
    base: float | None,
    scale: float,
    offset: int | mx.array,
    freqs: mx.array | None = None,
    stream: StreamOrDevice = None,
) -> mx.array:
    r"""Rotary position encoding: :func:`mx.fast.rope`.

    The angle of pair *i* of the row at position *p* is

    .. math:: \theta = p \cdot \mathrm{scale} \cdot \mathrm{base}^{-2i/\mathrm{dims}}

    or ``p * scale / freqs[i]``. Pair *i* consists of the elements *i* and
    *i* + dims / 2, or of 2\ *i* and 2\ *i* + 1 if ``traditional``.

    Args:
        a: ``[B, ..., L, D]``; float32, float16 or bfloat16.
        dims: Number of leading elements of a row that are rotated; the others are
            copied.
        traditional: True if the elements of a pair are neighbours.
        base: Base of the angles; exactly one of ``base`` and ``freqs`` is given.
        scale: Factor of the positions.
        offset: Position of the first row: a number, or ``[B]`` numbers.
        freqs: Reciprocal frequencies ``[dims / 2]``.
        stream: Stream or device to run on.

    Returns:
        The shape and the type of ``a``.
    """
    op = mx.fast.rope if _native.ext is None else _native.ext.rope
    return op(
        a,
        dims,
        traditional=traditional,
        base=base,
        scale=scale,
        offset=offset,
        freqs=freqs,
        stream=stream,
    )


def scaled_dot_product_attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    mask: None | str | mx.array = None,
    sinks: mx.array | None = None,
    force_fused: bool = False,
    batch_invariant: bool = False,
    cap: float = 0.0,
    stream: StreamOrDevice = None,
) -> mx.array:
    r"""Attention: :func:`mx.fast.scaled_dot_product_attention`.

    .. math:: y = \mathrm{softmax}(\mathrm{scale} \cdot q k^\top + \mathrm{mask}) \, v

    Args:
        q: ``[B, heads, L, D]``; float32, float16 or bfloat16.
        k: ``[B, kv_heads, S, D]``; ``kv_heads`` divides ``heads``.
        v: ``[B, kv_heads, S, Dv]``. The three may have different types.
        scale: Factor of the scores.
        mask: ``"causal"``: query *l* sees the keys up to *S* - *L* + *l*. Or an
            array that broadcasts to ``[B, heads, L, S]``: booleans, true where a
            key is seen, or numbers added to the scores.
        sinks: ``[heads]``: the score of one more key, whose value is 0.
        force_fused: Argument of MLX's operation only.
        batch_invariant: The bits of a query's result depend only on the query and the
            keys and values that it sees. Slower for many queries at once. Argument of
            our operation only.
        cap: Bound of the scores, which become ``cap * tanh(scores / cap)`` before the
            mask; 0 for none. Argument of our operation only, without sinks.
        stream: Stream or device to run on.

    Returns:
        ``[B, heads, L, Dv]`` of the type to which q, k and v are promoted.
    """
    options: dict[str, Any] = {"scale": scale, "mask": mask, "sinks": sinks}
    options |= {"force_fused": force_fused, "stream": stream}
    if _native.ext is None:
        if cap != 0:
            raise ValueError(
                "[scaled_dot_product_attention] the extension is required for a cap "
                "of scores."
            )
        return mx.fast.scaled_dot_product_attention(q, k, v, **options)
    return _native.ext.scaled_dot_product_attention(
        q, k, v, batch_invariant=batch_invariant, cap=cap, **options
    )


def quantized_scaled_dot_product_attention(
    queries: mx.array,
    q_keys: Sequence[mx.array],
    q_values: Sequence[mx.array],
    scale: float,
    mask: None | str | mx.array = None,
    group_size: int = 64,
    bits: int = 8,
    *,
    sinks: mx.array | None = None,
    batch_invariant: bool = False,
    stream: StreamOrDevice = None,
) -> mx.array:
    """Attention over quantized keys and values: mlx-lm's function of this name.

    Keys and values are ``scale * code + bias`` in float32, and are never stored.

    Args:
        queries: ``[B, heads, L, D]``; float32, float16 or bfloat16.
        q_keys: Codes, scales and biases of keys ``[B, kv_heads, S, D]``, from
            :func:`mx.quantize`. Our kernels support 2, 4 and 8 bits.
        q_values: The same of values ``[B, kv_heads, S, Dv]``.
        scale: Factor of the scores.
        mask: See :func:`scaled_dot_product_attention`.
        group_size: Number of elements that share a scale and a bias.
        bits: Width of a code.
        sinks: See :func:`scaled_dot_product_attention`.
        batch_invariant: See :func:`scaled_dot_product_attention`.
        stream: Stream or device to run on.

    Returns:
        ``[B, heads, L, Dv]`` of the type to which queries and scales are promoted.
    """
    if _native.ext is None:
        k, v = (
            mx.dequantize(*a, group_size=group_size, bits=bits, stream=stream)
            for a in (q_keys, q_values)
        )
        return mx.fast.scaled_dot_product_attention(
            queries, k, v, scale=scale, mask=mask, sinks=sinks, stream=stream
        )
    return _native.ext.quantized_scaled_dot_product_attention(
        queries,
        [*q_keys],
        [*q_values],
        scale=scale,
        mask=mask,
        sinks=sinks,
        group_size=group_size,
        bits=bits,
        batch_invariant=batch_invariant,
        stream=stream,
    )


def swiglu(gate: mx.array, x: mx.array, *, stream: StreamOrDevice = None) -> mx.array:
    r"""Gated linear unit: :math:`y = \frac{g}{1 + e^{-g}} \, x`.

    Args:
        gate: Any shape; float32, float16 or bfloat16.
        x: Array of the same shape and type.
        stream: Stream or device to run on.

    Returns:
        The shape and the type of ``gate``.
    """
    if _native.ext is None:
        return stock_swiglu(gate, x, stream)
    return _native.ext.swiglu(gate, x, stream=stream)


def logsumexp(
    a: mx.array,
    /,
    axis: int | Sequence[int] | None = None,
    keepdims: bool = False,
    *,
    stream: StreamOrDevice = None,
) -> mx.array:
    r"""Logarithm of a sum of exponentials: :func:`mx.logsumexp`.

    .. math:: y = m + \log \sum_i e^{x_i - m}, \quad m = \max_i x_i

    Every new token needs it once, over the whole vocabulary, for its probabilities.

    Args:
        a: Any shape. Our kernels support float32, float16 and bfloat16, and the last
            axis.
        axis: Axes to sum over. Default: all axes.
        keepdims: True if the summed axes stay, with size 1.
        stream: Stream or device to run on.

    Returns:
        The type of ``a``.
    """
    if _native.ext is None:
        return mx.logsumexp(a, axis, keepdims, stream=stream)
    axes = axis if axis is None or isinstance(axis, Sequence) else (axis,)
    return _native.ext.logsumexp(a, axes, keepdims, stream=stream)


def argmax(
    a: mx.array,
    /,
    axis: int | None = None,
    keepdims: bool = False,
    *,
    stream: StreamOrDevice = None,
) -> mx.array:
    """Index of the largest element: :func:`mx.argmax`.

    The first one counts, and a NaN is larger than all numbers. Every new token needs it
    once, over the whole vocabulary, unless tokens are drawn.

    Args:
        a: Any shape. Our kernels support float32, float16 and bfloat16, and the last
            axis.
        axis: Axis to search. Default: the flattened array.
        keepdims: True if the searched axis stays, with size 1.
        stream: Stream or device to run on.

    Returns:
        uint32.
    """
    if _native.ext is None:
        return mx.argmax(a, axis, keepdims, stream=stream)
    return _native.ext.argmax(a, axis, keepdims, stream=stream)
