"""ggml's blocks of 256 values: the K-quants, and IQ4_XS.

A block has one or two fp16 scales, d and D, and small integers for each group:

    | Q2_K | w = d·s·q - D·m | 16 groups of 16; s, m unsigned 4 bit, q 2 bit |
    | Q3_K | w = d·(s - 32)·(q - 4) | 16 groups of 16; s 6 bit, q 3 bit |
    | Q4_K | w = d·s·q - D·m | 8 groups of 32; s, m unsigned 6 bit, q 4 bit |
    | Q5_K | w = d·s·q - D·m | 8 groups of 32; s, m unsigned 6 bit, q 5 bit |
    | Q6_K | w = d·s·(q - 32) | 16 groups of 16; s signed 8 bit, q 6 bit |
    | IQ4_XS | w = d·(s - 32)·table[q] | 8 groups of 32; s 6 bit |

A product of d and an integer of 6 bits has 17 bits, so float32 holds the scales of
Q4_K, Q5_K and IQ4_XS exactly. MLX has no groups of 16: these types become values, which
float32 holds exactly, too, but for one rounding of the difference in Q2_K.
"""

from __future__ import annotations

import numpy as np

from mlx_nibble.formats import Quantized
from mlx_nibble.io.gguf.blocks import affine, half, iq4_codes, nibbles

_PAIRS = np.array([0, 2, 4, 6], np.uint8)[:, None]
_HALVES = np.array([0, 4], np.uint8)[:, None]
_BITS = np.arange(8, dtype=np.uint8)[:, None]


def q2_k(blocks: np.ndarray) -> np.ndarray:
    """Return the values of a Q2_K matrix."""
    small = blocks[..., :16]
    scale = half(blocks, 80)[..., None] * (small & 0xF)
    offset = half(blocks, 82)[..., None] * (small >> 4)
    codes = _shifted(blocks[..., 16:80], 32, _PAIRS, 3).reshape(*small.shape, 16)
    return _rows(scale[..., None] * codes - offset[..., None])


def q3_k(blocks: np.ndarray) -> np.ndarray:
    """Return the values of a Q3_K matrix."""
    low = _shifted(blocks[..., 96:104], 8, _HALVES, 0xF)
    high = _shifted(blocks[..., 104:108], 4, _PAIRS, 3)
    scale = (low | high << np.uint8(4)).astype(np.float32) - 32
    top = _shifted(blocks[..., :32], 32, _BITS, 1) << np.uint8(2)
    codes = _shifted(blocks[..., 32:96], 32, _PAIRS, 3) | top
    return _rows(
        (half(blocks, 108)[..., None] * scale)[..., None]
        * (codes.reshape(*scale.shape, 16).astype(np.float32) - 4)
    )


def q4_k(blocks: np.ndarray) -> Quantized:
    """Return a Q4_K matrix."""
    scales, biases = _six_bit_scales(blocks)
    codes = _shifted(blocks[..., 16:], 32, _HALVES, 0xF)
    return _groups(codes, scales, biases, 4)


def q5_k(blocks: np.ndarray) -> Quantized:
    """Return a Q5_K matrix."""
    scales, biases = _six_bit_scales(blocks)
    top = _shifted(blocks[..., 16:48], 32, _BITS, 1) << np.uint8(4)
    codes = _shifted(blocks[..., 48:], 32, _HALVES, 0xF) | top
    return _groups(codes, scales, biases, 5)


def q6_k(blocks: np.ndarray) -> np.ndarray:
    """Return the values of a Q6_K matrix."""
    low = _shifted(blocks[..., :128], 64, _HALVES, 0xF)
    high = _shifted(blocks[..., 128:192], 32, _PAIRS, 3) << np.uint8(4)
    small = np.ascontiguousarray(blocks[..., 192:208]).view(np.int8)
    scale = half(blocks, 208)[..., None] * small
    codes = (low | high).reshape(*small.shape, 16).astype(np.float32) - 32
    return _rows(scale[..., None] * codes)


def iq4_xs(blocks: np.ndarray) -> Quantized:
    """Return an IQ4_XS matrix, with the 8-bit numbers of its table as codes."""
    high = np.ascontiguousarray(blocks[..., 2:4]).view("<u2")
    high = (high >> np.arange(0, 16, 2, dtype=np.uint16) & 3).astype(np.uint8)
    low = blocks[..., 4:8, None] >> _HALVES[:, 0] & 0xF
    small = low.reshape(high.shape) | high << np.uint8(4)
    scales = half(blocks, 0)[..., None] * (small.astype(np.float32) - 32)
    packed = blocks[..., 8:].reshape(*high.shape, 16)
    return _groups(iq4_codes(nibbles(packed)), scales, -128 * scales, 8)


def _six_bit_scales(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return scales and biases of Q4_K and Q5_K, float32 `[..., blocks, 8]`.

    The first four of each are in the low 6 bits of bytes 0 to 3 and 4 to 7. The others
    have their low 4 bits in bytes 8 to 11, and 2 more at the top of bytes 0 to 7.
    """
    first, second, rest = (blocks[..., at : at + 4] for at in (4, 8, 12))
    scale = np.concatenate([first & 63, rest & 0xF | (first >> 6) << 4], axis=-1)
    offset = np.concatenate([second & 63, rest >> 4 | (second >> 6) << 4], axis=-1)
    scales = half(blocks, 0)[..., None] * scale
    return scales, -half(blocks, 2)[..., None] * offset


def _shifted(
    packed: np.ndarray, size: int, shifts: np.ndarray, mask: int
) -> np.ndarray:
    """Take the bytes in chunks of `size`; of each, take all bytes at each shift."""
    chunks = packed.reshape(*packed.shape[:-1], -1, 1, size) >> shifts & np.uint8(mask)
    return chunks.reshape(*packed.shape[:-1], -1)


def _groups(
    codes: np.ndarray, scales: np.ndarray, biases: np.ndarray, bits: int
) -> Quantized:
    """Return the matrix of codes `[..., blocks, 256]` in 8 groups of 32."""
    rows = (*scales.shape[:-2], -1)
    codes = codes.reshape(*rows, 32)
    return affine(codes, scales.reshape(rows), biases.reshape(rows), bits)


def _rows(values: np.ndarray) -> np.ndarray:
    """Return values `[..., blocks, 16, 16]` as rows."""
    return values.reshape(*values.shape[:-3], -1)
