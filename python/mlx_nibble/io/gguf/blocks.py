"""From ggml's blocks to MLX's affine groups of 32, without loss.

ggml stores 32 consecutive weights of a row as one block, with an fp16 scale d:

    Q4_0  w = d·(q − 8)      q unsigned 4 bit          18 bytes: d, q
    Q4_1  w = d·q + m        q unsigned 4 bit          20 bytes: d, m, q
    Q8_0  w = d·q            q signed 8 bit            34 bytes: d, q

MLX's affine form is ŵ = s·q + b with unsigned q, so with group size 32

    Q4_0  s = d, b = −8·d        Q4_1  s = d, b = m        Q8_0  s = d, b = −128·d

and q + 128 for Q8_0. A product with a power of two is exact in fp16 unless it
overflows; the reader refuses an overflow. In a 4-bit block byte j has weights j (low
half) and j + 16 (high half); MLX stores weight i in bits 4i to 4i+3 of the row.

A decoder takes the blocks of a tensor, uint8 ``[..., blocks, bytes]``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Affine:
    """A weight matrix [N, K] in MLX's affine format.

    Attributes:
        weight: Packed codes, uint32 [N, K·bits/32].
        scales: float16 [N, G], one for each group.
        biases: float16 [N, G].
        bits: Width of a code.
    """

    weight: np.ndarray
    scales: np.ndarray
    biases: np.ndarray
    bits: int

    @property
    def group_size(self) -> int:
        """Number of consecutive weights that share a scale and a bias."""
        return self.weight.shape[-1] * 32 // self.bits // self.scales.shape[-1]


def f32(blocks: np.ndarray) -> np.ndarray:
    """Return the float32 values of F32."""
    return blocks.view("<f4")[..., 0]


def f16(blocks: np.ndarray) -> np.ndarray:
    """Return the float16 values of F16."""
    return blocks.view("<f2")[..., 0]


def bf16(blocks: np.ndarray) -> np.ndarray:
    """Return the values of BF16, widened to float32."""
    return (blocks.view("<u2")[..., 0].astype(np.uint32) << 16).view(np.float32)


def q4_0(blocks: np.ndarray) -> Affine:
    """Return a Q4_0 matrix."""
    scales = _halves(blocks, 0)
    with np.errstate(over="ignore", invalid="ignore"):  # the reader refuses them
        biases = scales * np.float16(-8)
    return Affine(_repack_nibbles(blocks[..., 2:]), scales, biases, bits=4)


def q4_1(blocks: np.ndarray) -> Affine:
    """Return a Q4_1 matrix."""
    scales, biases = _halves(blocks, 0), _halves(blocks, 2)
    return Affine(_repack_nibbles(blocks[..., 4:]), scales, biases, bits=4)


def q8_0(blocks: np.ndarray) -> Affine:
    """Return a Q8_0 matrix."""
    scales = _halves(blocks, 0)
    with np.errstate(over="ignore", invalid="ignore"):
        biases = scales * np.float16(-128)
    # Adding 128 to a signed byte flips its sign bit.
    codes = blocks[..., 2:] ^ np.uint8(0x80)
    return Affine(_rows_as_words(codes), scales, biases, bits=8)


def _halves(blocks: np.ndarray, at: int) -> np.ndarray:
    """Return the fp16 value at byte ``at`` of each block, [N, K/32]."""
    return np.ascontiguousarray(blocks[..., at : at + 2]).view("<f2")[..., 0]


def _repack_nibbles(packed: np.ndarray) -> np.ndarray:
    """Reorder uint8 [N, K/32, 16] from block order to stream order, uint32 [N, K/8]."""
    low, high = packed & 0xF, packed >> 4  # weights 0 to 15, and 16 to 31
    codes = np.concatenate([low, high], axis=-1)
    return _rows_as_words(codes[..., 0::2] | codes[..., 1::2] << 4)


def _rows_as_words(codes: np.ndarray) -> np.ndarray:
    """View uint8 [N, K/32, B] as uint32 [N, K/32·B/4], little endian."""
    rows = np.ascontiguousarray(codes).reshape(codes.shape[0], -1)
    return rows.view("<u4")
