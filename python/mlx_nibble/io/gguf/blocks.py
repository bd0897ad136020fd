"""ggml's blocks of 32 values, as codes with scales, or as values.

A block has an fp16 scale d, in some types an fp16 offset m, and 32 codes q:

    | Q4_0 | w = d·(q - 8) | q unsigned 4 bit |
    | Q4_1 | w = d·q + m | q unsigned 4 bit |
    | Q5_0 | w = d·(q - 16) | q unsigned 5 bit, the fifth bits apart |
    | Q5_1 | w = d·q + m | q unsigned 5 bit |
    | Q8_0 | w = d·q | q signed 8 bit |
    | IQ4_NL | w = d·table[q] | 16 signed 8-bit numbers |
    | MXFP4 | w = 2^(e - 127)·q | e unsigned 8 bit, q an E2M1 number |

Byte j of 4-bit codes has code j (low half) and j + 16 (high half). MLX's affine form is
w = s·q + b with unsigned q. So s = d, and b is m or a product of d and a power of two:
all are exact in float32. Signed bytes get 128 added.

A decoder takes the blocks of a tensor, uint8 ``[..., blocks, bytes]``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlx_nibble.floats import E2M1
from mlx_nibble.formats import Quantized, grouped, pack, unpack

# The 16 values of IQ4_NL and IQ4_XS (ggml-common.h, kvalues_iq4nl).
_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_IQ4_CODES = np.array(_IQ4, np.int16).astype(np.uint8) ^ np.uint8(0x80)

# The magnitudes of E2M1; the highest bit of a code is the sign.


@dataclass(frozen=True)
class Mxfp4:
    """A matrix in MLX's mode `mxfp4`.

    Attributes:
        words: E2M1 codes, packed as MLX does: uint32 `[..., N, K / 8]`.
        scales: E8M0 scales, uint8 `[..., N, K / 32]`.
    """

    words: np.ndarray
    scales: np.ndarray


def f32(blocks: np.ndarray) -> np.ndarray:
    """Return the float32 values of F32."""
    return blocks.view("<f4")[..., 0]


def f16(blocks: np.ndarray) -> np.ndarray:
    """Return the float16 values of F16."""
    return blocks.view("<f2")[..., 0]


def bf16(blocks: np.ndarray) -> np.ndarray:
    """Return the values of BF16, widened to float32."""
    return (blocks.view("<u2")[..., 0].astype(np.uint32) << 16).view(np.float32)


def q4_0(blocks: np.ndarray) -> Quantized:
    """Return a Q4_0 matrix."""
    scales = half(blocks, 0)
    return affine(nibbles(blocks[..., 2:]), scales, -8 * scales, 4)


def q4_1(blocks: np.ndarray) -> Quantized:
    """Return a Q4_1 matrix."""
    return affine(nibbles(blocks[..., 4:]), half(blocks, 0), half(blocks, 2), 4)


def q5_0(blocks: np.ndarray) -> Quantized:
    """Return a Q5_0 matrix."""
    scales = half(blocks, 0)
    codes = nibbles(blocks[..., 6:]) | _fifth_bits(blocks[..., 2:6])
    return affine(codes, scales, -16 * scales, 5)


def q5_1(blocks: np.ndarray) -> Quantized:
    """Return a Q5_1 matrix."""
    codes = nibbles(blocks[..., 8:]) | _fifth_bits(blocks[..., 4:8])
    return affine(codes, half(blocks, 0), half(blocks, 2), 5)


def q8_0(blocks: np.ndarray) -> Quantized:
    """Return a Q8_0 matrix."""
    scales = half(blocks, 0)
    # Adding 128 to a signed byte flips its sign bit.
    return affine(blocks[..., 2:] ^ np.uint8(0x80), scales, -128 * scales, 8)


def iq4_nl(blocks: np.ndarray) -> Quantized:
    """Return an IQ4_NL matrix, with the 8-bit numbers of its table as codes."""
    scales = half(blocks, 0)
    return affine(iq4_codes(nibbles(blocks[..., 2:])), scales, -128 * scales, 8)


def mxfp4(blocks: np.ndarray) -> Mxfp4:
    """Return an MXFP4 matrix."""
    codes = nibbles(blocks[..., 1:])
    rows = codes.reshape(*codes.shape[:-2], -1)
    return Mxfp4(pack(rows, 4), np.ascontiguousarray(blocks[..., 0]))


def mxfp4_values(matrix: Mxfp4) -> np.ndarray:
    """Return the values of an MXFP4 matrix, float32 `[..., K]`."""
    codes = grouped(unpack(matrix.words, 4), 32)
    exponents = matrix.scales.astype(np.int32)[..., None] - 127
    values = np.ldexp(E2M1[codes], exponents)
    return values.reshape(*matrix.scales.shape[:-1], -1)


def affine(
    codes: np.ndarray, scales: np.ndarray, biases: np.ndarray, bits: int
) -> Quantized:
    """Return the matrix of codes `[..., groups, 32]` and a scale and bias for each."""
    rows = codes.reshape(*codes.shape[:-2], -1)
    return Quantized(rows, scales, biases, bits)


def half(blocks: np.ndarray, at: int) -> np.ndarray:
    """Return the fp16 number at byte `at` of each block, in float32."""
    raw = np.ascontiguousarray(blocks[..., at : at + 2])
    return raw.view("<f2")[..., 0].astype(np.float32)


def nibbles(packed: np.ndarray) -> np.ndarray:
    """Return uint8 `[..., 32]`: the low halves of 16 bytes, then the high ones."""
    return np.concatenate([packed & 0xF, packed >> 4], axis=-1)


def iq4_codes(codes: np.ndarray) -> np.ndarray:
    """Return the table's numbers plus 128."""
    return _IQ4_CODES[codes]


def _fifth_bits(packed: np.ndarray) -> np.ndarray:
    """Return bit i of four bytes as bit 4 of code i, uint8 `[..., 32]`."""
    return np.unpackbits(packed, axis=-1, bitorder="little") << np.uint8(4)
