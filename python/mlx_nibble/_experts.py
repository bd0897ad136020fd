"""Products by quantized matrices that indices choose: the experts of `ops`."""

from __future__ import annotations

from functools import partial

import mlx.core as mx

from mlx_nibble import _native
from mlx_nibble._arguments import (
    QuantizedArrays,
    StreamOrDevice,
    activation_bits,
    stock_swiglu,
)


def gather_qmm(
    x: mx.array,
    w: mx.array,
    /,
    scales: mx.array,
    biases: mx.array | None = None,
    lhs_indices: mx.array | None = None,
    rhs_indices: mx.array | None = None,
    transpose: bool = True,
    group_size: int | None = None,
    bits: int | None = None,
    mode: str = "affine",
    global_scale: mx.array | None = None,
    *,
    sorted_indices: bool = False,
    activations: str | None = None,
    batch_invariant: bool = False,
    symmetric: bool = False,
    tuning: int = 0,
    stream: StreamOrDevice = None,
) -> mx.array:
    r"""Multiply by quantized matrices that indices choose, such as experts.

    :func:`mx.gather_qmm`. With indices *l* and *r* of one shape,

    .. math:: y_i = x_{l_i} \hat W_{r_i}^\top

    On a CPU, all rows of one matrix are multiplied together, sorted or not. Arguments
    that are not listed are those of :func:`mlx_nibble.ops.quantized_matmul`.

    Args:
        x: Activations ``[..., M, K]`` (``[..., M, N]`` if not ``transpose``);
            float32, float16 or bfloat16.
        lhs_indices: Integers that count the matrices of ``x``, in row-major order
            of its batch dimensions. Default: each in turn.
        rhs_indices: Integers that count the matrices of ``w``. The two arrays of
            indices broadcast with each other.
        global_scale: Argument of MLX's nvfp4 mode only.
        sorted_indices: ``rhs_indices`` never decrease, which may be faster.
        batch_invariant: The bits of a row depend on no other row and no other product.

    Returns:
        ``[indices..., M, N]`` (``[indices..., M, K]`` if not ``transpose``) of the
        type of ``x``.
    """
    rounded = activation_bits("gather_qmm", activations)
    arguments = (x, w, scales, biases, lhs_indices, rhs_indices, transpose)
    arguments += (group_size, bits, mode, global_scale)
    if _native.ext is None:
        return mx.gather_qmm(*arguments, sorted_indices=sorted_indices, stream=stream)
    return _native.ext.gather_qmm(
        *arguments,
        sorted_indices=sorted_indices,
        activation_bits=rounded,
        batch_invariant=batch_invariant,
        symmetric=symmetric,
        tuning=tuning,
        stream=stream,
    )


def gather_swiglu(
    x: mx.array,
    gate: QuantizedArrays,
    up: QuantizedArrays,
    lhs_indices: mx.array | None = None,
    rhs_indices: mx.array | None = None,
    group_size: int | None = None,
    bits: int | None = None,
    mode: str = "affine",
    *,
    sorted_indices: bool = False,
    activations: str | None = None,
    batch_invariant: bool = False,
    symmetric: bool = False,
    stream: StreamOrDevice = None,
) -> mx.array:
    r"""Compute the first half of gated MLPs that indices choose.

    With the indices *l* and *r* of :func:`gather_qmm`,

    .. math:: y_i = \mathrm{silu}(x_{l_i} \hat G_{r_i}^\top)
        \cdot (x_{l_i} \hat U_{r_i}^\top)

    Arguments that are not listed are those of :func:`gather_qmm`.

    Args:
        x: Activations ``[..., M, K]``; float32, float16 or bfloat16.
        gate: Codes ``[..., N, K * bits / 32]``, scales and biases
            ``[..., N, K / group_size]``.
        up: Arrays of the same shapes.

    Returns:
        ``[indices..., M, N]`` of the type of ``x``.
    """
    rounded = activation_bits("gather_swiglu", activations)
    indices, form = (lhs_indices, rhs_indices), (group_size, bits, mode)
    if _native.ext is None:
        product = partial(mx.gather_qmm, sorted_indices=sorted_indices, stream=stream)
        g, u = (product(x, *matrix, *indices, True, *form) for matrix in (gate, up))
        return stock_swiglu(g, u, stream)
    return _native.ext.gather_swiglu(
        *(x, gate, up, *indices, *form),
        sorted_indices=sorted_indices,
        activation_bits=rounded,
        batch_invariant=batch_invariant,
        symmetric=symmetric,
        stream=stream,
    )
