"""The quantized operations, with the signatures of :mod:`mlx.core`.

They differ from MLX's operations where those are wrong:

* The result has the type of ``x``. MLX promotes ``x``, ``scales`` and ``biases`` to a
  common type: bfloat16 activations with float16 scales silently run in float32. Our
  kernels read each array in its own type.
* Sums accumulate in float32 for every type of ``x``, and are rounded once.
* ``x`` of two dimensions and ``w`` of three broadcast as in :func:`mx.matmul`. MLX
  uses only ``w[0]``.
* An empty ``x`` gives an empty result. A signal kills MLX's CPU build.
* :func:`mx.vmap` and the full :func:`mx.jvp` work.

Every operation raises ValueError if shapes or types do not fit together. The message
names the requirement and the actual value.
"""

from __future__ import annotations

import mlx.core as mx

from mlx_nibble import _native
from mlx_nibble._arguments import (
    QuantizedArrays as QuantizedArrays,
)
from mlx_nibble._arguments import (
    StreamOrDevice,
    activation_bits,
    stock_swiglu,
)
from mlx_nibble._experts import gather_qmm as gather_qmm
from mlx_nibble._experts import gather_swiglu as gather_swiglu
from mlx_nibble.numerics import UNIT_ROUNDOFF

DTYPES: dict[str, mx.Dtype] = {name: getattr(mx, name) for name in UNIT_ROUNDOFF}
"""Types that our kernels compute in, by name."""


def quantized_matmul(
    x: mx.array,
    w: mx.array,
    /,
    scales: mx.array,
    biases: mx.array | None = None,
    transpose: bool = True,
    group_size: int | None = None,
    bits: int | None = None,
    mode: str = "affine",
    *,
    bias: mx.array | None = None,
    residual: mx.array | None = None,
    activations: str | None = None,
    batch_invariant: bool = False,
    symmetric: bool = False,
    half_tiles: bool = False,
    tuning: int = 0,
    stream: StreamOrDevice = None,
) -> mx.array:
    r"""Multiply by a quantized matrix: :func:`mx.quantized_matmul`, faster.

    .. math:: y = x \hat W^\top + \mathrm{bias} + \mathrm{residual}, \qquad
        \hat W_{nk} = s_{n,\lfloor k/g \rfloor}\, q_{nk} + b_{n,\lfloor k/g \rfloor}

    Our kernels support all of MLX's formats; those for CUDA have no float32. In the
    modes mxfp4, nvfp4 and mxfp8 a code is a float, and there are no biases.

    Args:
        x: Activations ``[..., M, K]`` or ``[K]`` (``[..., M, N]`` if not
            ``transpose``); float32, float16 or bfloat16.
        w: Codes packed in uint32, ``[..., N, K * bits / 32]``. Batch dimensions
            broadcast with those of ``x``.
        scales: ``[..., N, K / group_size]``, floating point; uint8 in the float modes.
        biases: Array of the shape of ``scales``; required in the affine mode.
        transpose: Multiply by the transposed matrix.
        group_size: Number of elements that share a scale and a bias. Default: 64 in the
            affine mode.
        bits: Width of a code. Default: 4 in the affine mode.
        mode: Any of MLX's quantization modes.
        bias: ``[N]`` (``[K]`` if not ``transpose``), added to every row.
        residual: Array of the result's shape, added to it. Both addends are converted
            to the type of ``x``. Our transposed product adds them in float32, before
            its one rounding; other products add them afterwards.
        activations: ``"int16"`` and ``"int8"`` round ``x`` to integers, with one scale
            for each row and group, and multiply integers. This is faster on a CPU;
            int8 is less exact, int16 hardly (docs/reference/numerics.md). None does
            this with int16 if ``x`` has 16 bits. In the modes of floats, CPUs with AMX
            round to bfloat16 instead, which loses less; on other CPUs mxfp8 stays
            exact. So do other devices, gradients and the product that is not
            transposed.
        batch_invariant: The bits of a row of the result do not depend on the other
            rows. On a CPU they never do, except by ``tuning`` and, with AMX, in modes
            mxfp4 and nvfp4.
        symmetric: The caller promises that every bias is exactly ``-2**(bits - 1)``
            times its scale. Our kernels then do not read ``biases``. A false promise
            gives wrong results.
        half_tiles: For many rows of bfloat16 on a GPU without that type (before M3):
            compute in float16 where its range allows it, else in bfloat16
            (docs/reference/numerics.md). No effect elsewhere.
        tuning: The table of measured choices, a number from
            :mod:`mlx_nibble.machine.tuned_table`; 0 for none. The table may choose
            MLX's operation, but not if ``batch_invariant``. Without a table, a GPU's
            kernel needs only to be right.
        stream: Stream or device to run on.

    Returns:
        ``[..., M, N]`` (``[..., M, K]`` if not ``transpose``) of the type of ``x``.
    """
    rounded = activation_bits("quantized_matmul", activations)
    arguments = (x, w, scales, biases, transpose, group_size, bits, mode)
    if _native.ext is None:
        y = mx.quantized_matmul(*arguments, stream=stream)
        for addend in (bias, residual):
            y = y if addend is None else mx.add(y, addend, stream=stream)
        return y
    return _native.ext.quantized_matmul(
        *arguments,
        bias=bias,
        residual=residual,
        activation_bits=rounded,
        batch_invariant=batch_invariant,
        symmetric=symmetric,
        half_tiles=half_tiles,
        tuning=tuning,
        stream=stream,
    )


def swiglu(
    x: mx.array,
    gate: QuantizedArrays,
    up: QuantizedArrays,
    group_size: int | None = None,
    bits: int | None = None,
    mode: str = "affine",
    *,
    activations: str | None = None,
    batch_invariant: bool = False,
    symmetric: bool = False,
    stream: StreamOrDevice = None,
) -> mx.array:
    r"""Compute the first half of a gated MLP by quantized matrices.

    .. math:: y = \mathrm{silu}(x \hat G^\top) \cdot (x \hat U^\top), \qquad
        \mathrm{silu}(v) = \frac{v}{1 + e^{-v}}

    A CPU computes one node of the graph, and a GPU one launch for a single row: no
    intermediate result is rounded. Other cases are two products and an activation.
    Arguments that are not listed are those of :func:`quantized_matmul`.

    Args:
        x: Activations ``[..., M, K]`` or ``[K]``; float32, float16 or bfloat16.
        gate: Codes ``[..., N, K * bits / 32]``, scales and biases
            ``[..., N, K / group_size]``.
        up: Arrays of the same shapes.

    Returns:
        ``[..., M, N]`` of the type of ``x``.
    """
    rounded = activation_bits("swiglu", activations)
    form = (group_size, bits, mode)
    if _native.ext is None:
        g, u = (
            mx.quantized_matmul(x, *matrix, True, *form, stream=stream)
            for matrix in (gate, up)
        )
        return stock_swiglu(g, u, stream)
    return _native.ext.swiglu_matmul(
        *(x, gate, up, *form),
        activation_bits=rounded,
        batch_invariant=batch_invariant,
        symmetric=symmetric,
        stream=stream,
    )


def dequantize(
    w: mx.array,
    /,
    scales: mx.array,
    biases: mx.array | None = None,
    group_size: int | None = None,
    bits: int | None = None,
    mode: str = "affine",
    global_scale: mx.array | None = None,
    dtype: mx.Dtype | None = None,
    *,
    tuning: int = 0,
    stream: StreamOrDevice = None,
) -> mx.array:
    """Compute the matrix of codes, scales and biases: :func:`mx.dequantize`.

    Values are computed in float32 and rounded once. Arguments that are not listed are
    those of :func:`quantized_matmul`.

    Args:
        global_scale: Argument of MLX's nvfp4 mode only.
        dtype: Type of the result. Default: the type of ``scales``, or bfloat16 in the
            float modes.

    Returns:
        ``[..., N, K]``.
    """
    arguments = (w, scales, biases, group_size, bits, mode, global_scale, dtype)
    if _native.ext is None:
        return mx.dequantize(*arguments, stream=stream)
    return _native.ext.dequantize(*arguments, tuning=tuning, stream=stream)


def supports(mode: str, bits: int, group_size: int, *, gpu: bool = False) -> bool:
    """Return whether our kernels support a format; MLX computes all others.

    Args:
        gpu: Ask for the kernels of a GPU, not for those of a CPU.
    """
    return _native.ext is not None and _native.ext.supports(mode, bits, group_size, gpu)
