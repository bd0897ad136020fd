"""Blocks of each ggml type: by the package `gguf`, or random ones."""

from __future__ import annotations

import gguf
import numpy as np


def quantize(value: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Return a tensor's blocks: by `gguf`, or random ones if it has no quantizer."""
    try:
        return gguf.quants.quantize(value.astype(np.float32), kind)
    except NotImplementedError:
        rng = np.random.default_rng(value.size)
        return random_blocks(rng, value.shape, kind)


# Offsets of the fp16 numbers of a block.
_FP16 = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}
_FP16 |= dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2))


def random_blocks(
    rng: np.random.Generator, shape: tuple[int, ...], kind: gguf.GGMLQuantizationType
) -> np.ndarray:
    """Return random blocks with moderate scales: all codes occur."""
    elements, nbytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (*shape[:-1], shape[-1] // elements, nbytes))
    blocks = blocks.astype(np.uint8)
    if kind.name == "MXFP4":
        blocks[..., 0] = rng.integers(118, 124, blocks.shape[:-1])
    else:
        for at in _FP16.get(kind.name, (0,)):
            scales = rng.uniform(1e-4, 1e-3, blocks.shape[:-1]).astype("<f2")
            blocks[..., at : at + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(*shape[:-1], -1)
