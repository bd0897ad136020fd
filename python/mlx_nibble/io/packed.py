r"""The layouts of AutoAWQ, GPTQ and compressed-tensors, converted to MLX's codes.

All three store integers with a scale and an integer zero for each group,
:math:`\hat w = s (q - z)`: MLX's format with a bias of :math:`-s z`. The bias is exact
if z is a power of two, as in every symmetric checkpoint. Otherwise it is rounded once,
to the type of the scales.
"""

from __future__ import annotations

import numpy as np

from mlx_nibble.formats import Quantized, round_to, unpack

# AutoAWQ interleaves the 8 columns of a word: its CUDA kernel reads even and odd
# columns from halves. Nibble i is column _AWQ_ORDER[i].
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
# GPTQ's widths whose codes never straddle two words.
_GPTQ_BITS = (2, 4, 8)


def from_awq(
    qweight: np.ndarray, qzeros: np.ndarray, scales: np.ndarray, dtype: str
) -> Quantized:
    """Convert AutoAWQ's GEMM layout, 4 bits.

    Args:
        qweight: int32 `[K, N / 8]`.
        qzeros: int32 `[G, N / 8]`.
        scales: `[G, N]`.
        dtype: Stored type of biases.

    Raises:
        ValueError: If shapes do not fit together.
    """
    codes, zeros = _awq_columns(qweight), _awq_columns(qzeros)
    return _affine(codes.T, scales.T, zeros.T, 4, dtype)


def from_gptq(
    qweight: np.ndarray,
    qzeros: np.ndarray,
    scales: np.ndarray,
    g_idx: np.ndarray | None,
    bits: int,
    dtype: str,
    *,
    zero_offset: int = 1,
) -> tuple[Quantized, np.ndarray | None]:
    """Convert the layout of AutoGPTQ and GPTQModel, 2, 4 or 8 bits.

    Args:
        qweight: int32 `[K * bits / 32, N]`, packed along K.
        qzeros: int32 `[G, N * bits / 32]`.
        scales: `[G, N]`.
        g_idx: Group of each input, `[K]`, or None.
        bits: Width of a code.
        dtype: Stored type of biases.
        zero_offset: Difference of the zero and the stored zero: 1; 0 in format v2.

    Returns:
        The weight, and the order of its inputs. With act-order a group is no run of
        consecutive inputs: input j of the weight is input `order[j]` of the layer.
        The order is None if inputs are in order.

    Raises:
        ValueError: If shapes do not fit together.
    """
    if bits not in _GPTQ_BITS:
        raise ValueError(f"[import] bits must be 2, 4 or 8 but got {bits}.")
    codes = unpack(np.ascontiguousarray(qweight.T).view(np.uint32), bits)
    zeros = unpack(qzeros.view(np.uint32), bits).astype(np.int32) + zero_offset
    order = None
    if g_idx is not None:
        order = _order(g_idx, codes.shape[-1], len(scales))
    if order is not None:
        codes = codes[:, order]
    return _affine(codes, scales.T, zeros.T, bits, dtype), order


def from_compressed_tensors(
    weight_packed: np.ndarray,
    weight_scale: np.ndarray,
    weight_zero_point: np.ndarray | None,
    g_idx: np.ndarray | None,
    bits: int,
    dtype: str,
) -> tuple[Quantized, np.ndarray | None]:
    """Convert the `pack-quantized` layout of compressed-tensors, 4 or 8 bits.

    Args:
        weight_packed: int32 `[N, K * bits / 32]`, each code plus `2**(bits - 1)`.
        weight_scale: `[N, G]`.
        weight_zero_point: int32 `[N * bits / 32, G]`, packed likewise, or None.
        g_idx: Group of each input, `[K]`; None or all -1 if in order.
        bits: Width of a code.
        dtype: Stored type of biases.

    Returns:
        The weight, and the order of its inputs, as `from_gptq` returns them.

    Raises:
        ValueError: If shapes do not fit together.
    """
    codes = unpack(weight_packed.view(np.uint32), bits)
    zeros = np.full(weight_scale.shape, 2 ** (bits - 1), np.int32)
    if weight_zero_point is not None:
        stored = np.ascontiguousarray(weight_zero_point.T).view(np.uint32)
        zeros = unpack(stored, bits).T.astype(np.int32)
    order = None
    if g_idx is not None and not (g_idx == -1).all():
        order = _order(g_idx, codes.shape[-1], weight_scale.shape[-1])
    if order is not None:
        codes = codes[:, order]
    return _affine(codes, weight_scale, zeros, bits, dtype), order


def _awq_columns(packed: np.ndarray) -> np.ndarray:
    """Unpack int32 `[rows, N / 8]` to codes `[rows, N]`."""
    nibbles = unpack(packed.view(np.uint32), 4).reshape(len(packed), -1, 8)
    columns = np.empty_like(nibbles)
    columns[..., _AWQ_ORDER] = nibbles
    return columns.reshape(len(packed), -1)


def _order(g_idx: np.ndarray, inputs: int, groups: int) -> np.ndarray | None:
    """Return the inputs sorted by group; None if they are in order already."""
    if g_idx.shape != (inputs,) or not ((0 <= g_idx) & (g_idx < groups)).all():
        raise ValueError(
            f"[import] g_idx must name one of {groups} groups for each of {inputs} "
            f"inputs but has shape {g_idx.shape} and values up to {g_idx.max()}."
        )
    if (np.bincount(g_idx, minlength=groups) != inputs // groups).any():
        raise ValueError(
            "[import] all groups of g_idx must be of the same size but are not."
        )
    order = np.argsort(g_idx, kind="stable")
    return None if (order == np.arange(inputs)).all() else order


def _affine(
    codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray, bits: int, dtype: str
) -> Quantized:
    rows, inputs = codes.shape
    groups = scales.shape[-1]
    if scales.shape != (rows, groups) or zeros.shape[-1] != groups or inputs % groups:
        raise ValueError(
            f"[import] codes [N, K], scales and zeros [N, G] are required but got "
            f"shapes {codes.shape}, {scales.shape} and {zeros.shape}."
        )
    if zeros.shape != scales.shape:
        raise ValueError(
            f"[import] zeros must be of shape {scales.shape} but are {zeros.shape}."
        )
    s = np.ascontiguousarray(scales, np.float32)
    biases = round_to(-s * zeros.astype(np.float32), dtype)
    return Quantized(np.ascontiguousarray(codes), round_to(s, dtype), biases, bits)
