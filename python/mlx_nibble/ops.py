"""The operations, with the signatures of :mod:`mlx.core`.

They differ from MLX's where MLX's are wrong:

* The result has the type of ``x``. MLX promotes ``x``, ``scales`` and ``biases``
  to a common type, so that bfloat16 activations with float16 scales silently run
  in float32; here each is read in its own type.
* Sums are accumulated in float32 whatever the type of ``x``, and rounded once.
* ``x`` of two dimensions and ``w`` of three broadcast as in :func:`mx.matmul`
  (MLX uses ``w[0]`` alone).
* An empty ``x`` gives an empty result (MLX's CPU build is killed by a signal).
* :func:`mx.vmap` and the full :func:`mx.jvp` work.
"""

from __future__ import annotations

import mlx.core as mx

from mlx_nibble import _native

StreamOrDevice = mx.Stream | mx.ThreadLocalStream | mx.Device | mx.DeviceType | None


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
    activations: str | None = None,
    batch_invariant: bool = False,
    stream: StreamOrDevice = None,
) -> mx.array:
    r"""Multiply by a quantized matrix: :func:`mx.quantized_matmul`, faster.

    .. math:: y = x \hat W^\top, \qquad
        \hat W_{nk} = s_{n,\lfloor k/g \rfloor}\, q_{nk} + b_{n,\lfloor k/g \rfloor}

    Our kernels compute the affine mode with 2 to 6 or 8 bits and groups of 32, 64
    or 128; what they do not hold is passed on to MLX's operation.

    Args:
        x: Activations ``[..., M, K]`` or ``[K]`` (``[..., M, N]`` if not
            ``transpose``); float32, float16 or bfloat16.
        w: Codes packed in uint32, ``[..., N, K * bits / 32]``. Batch dimensions
            broadcast with those of ``x``.
        scales: ``[..., N, K / group_size]``, floating point.
        biases: The same shape as ``scales``; needed in the affine mode.
        transpose: Multiply by the transposed matrix.
        group_size: Elements that share a scale and a bias. Default: 64.
        bits: Width of a code. Default: 4.
        mode: Any of MLX's quantization modes.
        activations: ``"int8"`` rounds ``x`` to 8 bits, with one scale for each row
            and group, and multiplies integers: faster on a CPU, and less exact (see
            docs/numerics.md). Other devices compute exactly all the same, and so do
            gradients and the product that is not transposed.
        batch_invariant: Have the bits of a row of the result not depend on the
            other rows. On a CPU they never do.
        stream: Where to run.

    Returns:
        ``[..., M, N]`` (``[..., M, K]`` if not ``transpose``) of the type of ``x``.

    Raises:
        ValueError: If shapes or types do not fit together; the message names what
            was required and what came.
    """
    check_activations("quantized_matmul", activations)
    if _native.ext is None:
        return mx.quantized_matmul(
            x, w, scales, biases, transpose, group_size, bits, mode, stream=stream
        )
    return _native.ext.quantized_matmul(
        x,
        w,
        scales,
        biases,
        transpose,
        group_size,
        bits,
        mode,
        int8_activations=activations == "int8",
        batch_invariant=batch_invariant,
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
    stream: StreamOrDevice = None,
) -> mx.array:
    """Restore the matrix that codes, scales and biases stand for.

    :func:`mx.dequantize`, computed in float32 and rounded once.

    Args:
        w: Codes packed in uint32, ``[..., N, K * bits / 32]``.
        scales: ``[..., N, K / group_size]``, floating point.
        biases: The same shape as ``scales``; needed in the affine mode.
        group_size: Elements that share a scale and a bias. Default: 64.
        bits: Width of a code. Default: 4.
        mode: Any of MLX's quantization modes.
        global_scale: For MLX's nvfp4 mode only.
        dtype: Type of the result. Default: that of ``scales``.
        stream: Where to run.

    Returns:
        ``[..., N, K]``.

    Raises:
        ValueError: If shapes or types do not fit together.
    """
    op = mx.dequantize if _native.ext is None else _native.ext.dequantize
    return op(
        w, scales, biases, group_size, bits, mode, global_scale, dtype, stream=stream
    )


def check_activations(op: str, activations: str | None) -> None:
    """Raise ValueError unless these are activations that we know."""
    if activations not in (None, "int8"):
        raise ValueError(
            f"[{op}] activations must be None or 'int8' but got {activations!r}."
        )


def holds(mode: str, bits: int, group_size: int) -> bool:
    """Tell whether our own kernels compute this format, or MLX's."""
    return _native.ext is not None and _native.ext.holds(mode, bits, group_size)
