"""The table of ggml's storage types: a new type is a row and its decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mlx_nibble.formats import Quantized
from mlx_nibble.io.gguf import blocks, superblocks
from mlx_nibble.io.gguf.blocks import Mxfp4

Decoded = Quantized | Mxfp4 | np.ndarray
"""A tensor as codes and scales, or as values."""


@dataclass(frozen=True)
class BlockType:
    """A ggml storage type: ``elements`` values are stored in ``nbytes`` bytes.

    Attributes:
        name: ggml's name.
        elements: Values of a block.
        nbytes: Bytes of a block.
        decode: Function from blocks, uint8 ``[..., blocks, nbytes]``, to codes with
            scales in groups of 32, or to values. None if the type is not supported.
    """

    name: str
    elements: int
    nbytes: int
    decode: Callable[[np.ndarray], Decoded] | None = None


# ggml's types by number (ggml.h); the gaps are types that ggml has removed.
BLOCK_TYPES = {
    0: BlockType("F32", 1, 4, blocks.f32),
    1: BlockType("F16", 1, 2, blocks.f16),
    2: BlockType("Q4_0", 32, 18, blocks.q4_0),
    3: BlockType("Q4_1", 32, 20, blocks.q4_1),
    6: BlockType("Q5_0", 32, 22, blocks.q5_0),
    7: BlockType("Q5_1", 32, 24, blocks.q5_1),
    8: BlockType("Q8_0", 32, 34, blocks.q8_0),
    9: BlockType("Q8_1", 32, 36),
    10: BlockType("Q2_K", 256, 84, superblocks.q2_k),
    11: BlockType("Q3_K", 256, 110, superblocks.q3_k),
    12: BlockType("Q4_K", 256, 144, superblocks.q4_k),
    13: BlockType("Q5_K", 256, 176, superblocks.q5_k),
    14: BlockType("Q6_K", 256, 210, superblocks.q6_k),
    15: BlockType("Q8_K", 256, 292),
    16: BlockType("IQ2_XXS", 256, 66),
    17: BlockType("IQ2_XS", 256, 74),
    18: BlockType("IQ3_XXS", 256, 98),
    19: BlockType("IQ1_S", 256, 50),
    20: BlockType("IQ4_NL", 32, 18, blocks.iq4_nl),
    21: BlockType("IQ3_S", 256, 110),
    22: BlockType("IQ2_S", 256, 82),
    23: BlockType("IQ4_XS", 256, 136, superblocks.iq4_xs),
    24: BlockType("I8", 1, 1),
    25: BlockType("I16", 1, 2),
    26: BlockType("I32", 1, 4),
    27: BlockType("I64", 1, 8),
    28: BlockType("F64", 1, 8),
    29: BlockType("IQ1_M", 256, 56),
    30: BlockType("BF16", 1, 2, blocks.bf16),
    34: BlockType("TQ1_0", 256, 54),
    35: BlockType("TQ2_0", 256, 66),
    39: BlockType("MXFP4", 32, 17, blocks.mxfp4),
}

SUPPORTED = tuple(row.name for row in BLOCK_TYPES.values() if row.decode)
