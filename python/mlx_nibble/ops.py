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
        bias: ``[N]`` (``[K]`` if not ``transpose``), added to every row, taken in
            the type of ``x``.
        residual: Of the shape of the result and taken in the type of ``x``, added
            to it. Both are added in float32, before the one rounding, where our
            kernels compute the transposed product; else afterwards.
        activations: ``"int8"`` rounds ``x`` to 8 bits, with one scale for each row
            and group, and multiplies integers: faster on a CPU, and less exact (see
            docs/numerics.md). Other devices compute exactly all the same, and so do
            gradients and the product that is not transposed.
        batch_invariant: Have the bits of a row of the result not depend on the
            other rows. On a CPU they never do, unless by ``tuning``.
        symmetric: The caller knows that every bias is exactly ``-2**(bits - 1)``
            times its scale. Our kernels then do not read ``biases``, which saves
            traffic; a false promise gives wrong results.
        half_tiles: For many rows of bfloat16 on a GPU, which before M3 has no such
            type: compute in float16 what its range holds, and in bfloat16 what it
            does not (docs/numerics.md). No effect elsewhere.
        tuning: The table of measured choices that the planner looks into, as
            :func:`mlx_nibble.machine.tuned_table.in_use` gives it; 0 for none. It may
            leave a product to MLX's operation, but not if ``batch_invariant``.
        stream: Where to run.

    Returns:
        ``[..., M, N]`` (``[..., M, K]`` if not ``transpose``) of the type of ``x``.

    Raises:
        ValueError: If shapes or types do not fit together; the message names what
            was required and what came.
    """
    check_activations("quantized_matmul", activations)
    if _native.ext is None:
        y = mx.quantized_matmul(
            x, w, scales, biases, transpose, group_size, bits, mode, stream=stream
        )
        for addend in (bias, residual):
            y = y if addend is None else mx.add(y, addend, stream=stream)
        return y
    return _native.ext.quantized_matmul(
        x,
        w,
        scales,
        biases,
        transpose,
        group_size,
        bits,
        mode,
        bias=bias,
        residual=residual,
        int8_activations=activations == "int8",
        batch_invariant=batch_invariant,
        symmetric=symmetric,
        half_tiles=half_tiles,
        tuning=tuning,
        stream=stream,
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
    stream: StreamOrDevice = None,
) -> mx.array:
    r"""Multiply by quantized matrices that each product chooses, a mixture's experts.

    :func:`mx.gather_qmm`. With indices *l* and *r* of one shape,

    .. math:: y_i = x_{l_i} \hat W_{r_i}^\top

    On a CPU, the rows that choose the same matrix meet it together, sorted or not.

    Args:
        x: Activations ``[..., M, K]`` (``[..., M, N]`` if not ``transpose``);
            float32, float16 or bfloat16.
        w: Codes packed in uint32, ``[..., N, K * bits / 32]``.
        scales: ``[..., N, K / group_size]``, floating point.
        biases: The same shape as ``scales``; needed in the affine mode.
        lhs_indices: Integers that count the matrices of ``x``, in row-major order
            of its batch dimensions. Default: each in turn.
        rhs_indices: The same for ``w``. The two broadcast with each other.
        transpose: Multiply by the transposed matrices.
        group_size: Elements that share a scale and a bias. Default: 64.
        bits: Width of a code. Default: 4.
        mode: Any of MLX's quantization modes.
        global_scale: For MLX's nvfp4 mode only.
        sorted_indices: ``rhs_indices`` never fall, which may be faster.
        activations: As :func:`quantized_matmul` takes it.
        batch_invariant: As :func:`quantized_matmul` takes it: the bits do not
            depend on the other products either.
        symmetric: As :func:`quantized_matmul` takes it.
        stream: Where to run.

    Returns:
        ``[indices..., M, N]`` (``[indices..., M, K]`` if not ``transpose``) of the
        type of ``x``.

    Raises:
        ValueError: If shapes or types do not fit together; the message names what
            was required and what came.
    """
    check_activations("gather_qmm", activations)
    arguments = (x, w, scales, biases, lhs_indices, rhs_indices, transpose)
    arguments += (group_size, bits, mode, global_scale)
    if _native.ext is None:
        return mx.gather_qmm(*arguments, sorted_indices=sorted_indices, stream=stream)
    return _native.ext.gather_qmm(
        *arguments,
        sorted_indices=sorted_indices,
        int8_activations=activations == "int8",
        batch_invariant=batch_invariant,
        symmetric=symmetric,
        stream=stream,
    )


QuantizedArrays = tuple[mx.array, mx.array, mx.array | None]
"""``(w, scales, biases)``, as :func:`mx.quantize` returns them."""


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

    One node of the graph on a CPU, and one launch on a GPU for a single row:
    nothing is rounded in between. Elsewhere two products and an activation.

    Args:
        x: Activations ``[..., M, K]`` or ``[K]``; float32, float16 or bfloat16.
        gate: Codes ``[..., N, K * bits / 32]``, scales and biases
            ``[..., N, K / group_size]``.
        up: The same.
        group_size: Elements that share a scale and a bias. Default: 64.
        bits: Width of a code. Default: 4.
        mode: Any of MLX's quantization modes.
        activations: As :func:`quantized_matmul` takes it.
        batch_invariant: As :func:`quantized_matmul` takes it.
        symmetric: As :func:`quantized_matmul` takes it, of both matrices.
        stream: Where to run.

    Returns:
        ``[..., M, N]`` of the type of ``x``.

    Raises:
        ValueError: If shapes or types do not fit together; the message names what
            was required and what came.
    """
    check_activations("swiglu", activations)
    if _native.ext is None:
        form = (True, group_size, bits, mode)
        g, u = (
            mx.quantized_matmul(x, *matrix, *form, stream=stream)
            for matrix in (gate, up)
        )
        return _swiglu(g, u, stream)
    return _native.ext.swiglu_matmul(
        x,
        gate,
        up,
        group_size,
        bits,
        mode,
        int8_activations=activations == "int8",
        batch_invariant=batch_invariant,
        symmetric=symmetric,
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
    r"""Compute the first half of gated MLPs that each product chooses.

    With indices *l* and *r* as :func:`gather_qmm` takes them,

    .. math:: y_i = \mathrm{silu}(x_{l_i} \hat G_{r_i}^\top)
        \cdot (x_{l_i} \hat U_{r_i}^\top)

    Args:
        x: Activations ``[..., M, K]``; float32, float16 or bfloat16.
        gate: Codes ``[..., N, K * bits / 32]``, scales and biases
            ``[..., N, K / group_size]``.
        up: The same.
        lhs_indices: As :func:`gather_qmm` takes them.
        rhs_indices: As :func:`gather_qmm` takes them.
        group_size: Elements that share a scale and a bias. Default: 64.
        bits: Width of a code. Default: 4.
        mode: Any of MLX's quantization modes.
        sorted_indices: ``rhs_indices`` never fall, which may be faster.
        activations: As :func:`quantized_matmul` takes it.
        batch_invariant: As :func:`quantized_matmul` takes it: the bits do not
            depend on the other products either.
        symmetric: As :func:`quantized_matmul` takes it, of both matrices.
        stream: Where to run.

    Returns:
        ``[indices..., M, N]`` of the type of ``x``.

    Raises:
        ValueError: If shapes or types do not fit together; the message names what
            was required and what came.
    """
    check_activations("gather_swiglu", activations)
    if _native.ext is None:
        form = (lhs_indices, rhs_indices, True, group_size, bits, mode)
        g, u = (
            mx.gather_qmm(
                x, *matrix, *form, sorted_indices=sorted_indices, stream=stream
            )
            for matrix in (gate, up)
        )
        return _swiglu(g, u, stream)
    return _native.ext.gather_swiglu(
        x,
        gate,
        up,
        lhs_indices,
        rhs_indices,
        group_size,
        bits,
        mode,
        sorted_indices=sorted_indices,
        int8_activations=activations == "int8",
        batch_invariant=batch_invariant,
        symmetric=symmetric,
        stream=stream,
    )


def _swiglu(gate: mx.array, up: mx.array, stream: StreamOrDevice) -> mx.array:
    silu = mx.multiply(gate, mx.sigmoid(gate, stream=stream), stream=stream)
    return mx.multiply(silu, up, stream=stream)


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


def supports(mode: str, bits: int, group_size: int) -> bool:
    """Tell whether our kernels compute this format; MLX's do all others."""
    return _native.ext is not None and _native.ext.supports(mode, bits, group_size)
