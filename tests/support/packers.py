"""Writes matrices in other tools' layouts, bit by bit, as their formats define."""

from __future__ import annotations

import numpy as np

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def stream(codes: np.ndarray, bits: int, word: int = 32) -> np.ndarray:
    """Return rows of codes as dense, little-endian streams of words of `word` bits."""
    ones = (codes[..., None].astype(np.int64) >> np.arange(bits)) & 1
    ones = ones.reshape(len(codes), -1).astype(np.uint8)
    ones = np.pad(ones, ((0, 0), (0, -ones.shape[1] % word)))
    octets = np.packbits(ones, axis=1, bitorder="little")
    return octets.view(f"<i{word // 8}")


def whole_words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Return rows of codes in 32-bit words, as many as fit in each."""
    per = 32 // bits
    codes = np.pad(codes, ((0, 0), (0, -codes.shape[1] % per))).astype(np.uint64)
    words = codes.reshape(len(codes), -1, per) << (np.arange(per) * bits).astype("u8")
    return words.sum(-1).astype(np.uint32).view(np.int32)


def planes(codes: np.ndarray, widths: tuple[int, ...]) -> np.ndarray:
    """Return rows of codes as planes of bits for each 32 codes, low planes first."""
    blocks = codes.reshape(len(codes), -1, 32)
    words, at = [], 0
    for width in widths:
        plane = (blocks >> at) & ((1 << width) - 1)
        packed = [stream(plane[:, i], width) for i in range(plane.shape[1])]
        words.append(np.stack(packed, 1))
        at += width
    return np.concatenate(words, -1).reshape(len(codes), -1)


def gptq(
    codes: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray,
    bits: int,
    form: str = "gptq",
    g_idx: np.ndarray | None = None,
    word: int = 32,
) -> dict[str, np.ndarray]:
    """Return GPTQ's tensors of codes `[N, K]`, scales and zeros `[N, G]`.

    In format gptq (v1), 1 is subtracted from whole words, or from codes of 3 bits.
    """
    stored = zeros.T
    if form == "gptq" and bits == 3:
        stored = (stored - 1) % 8
    qzeros = stream(stored, bits, word)
    if form == "gptq" and bits != 3:
        one = sum(1 << i for i in range(0, word, bits))
        unsigned = qzeros.view(f"<u{word // 8}")
        qzeros = (unsigned - unsigned.dtype.type(one)).view(qzeros.dtype)
    parts = {
        "qweight": np.ascontiguousarray(stream(codes, bits, word).T),
        "qzeros": qzeros,
        "scales": np.ascontiguousarray(scales.T),
    }
    return parts if g_idx is None else parts | {"g_idx": g_idx.astype(np.int32)}


def awq(
    codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray
) -> dict[str, np.ndarray]:
    """Return AutoAWQ's tensors in its GEMM layout."""

    def interleaved(rows: np.ndarray) -> np.ndarray:
        eights = rows.reshape(len(rows), -1, 8)[..., AWQ_ORDER]
        return stream(eights.reshape(len(rows), -1), 4)

    return {
        "qweight": interleaved(codes.T),
        "qzeros": interleaved(zeros.T),
        "scales": np.ascontiguousarray(scales.T),
    }


def compressed(
    codes: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray | None,
    bits: int,
    pack=stream,
) -> dict[str, np.ndarray]:
    """Return the tensors of compressed-tensors' pack-quantized."""
    parts = {
        "weight_packed": pack(codes, bits),
        "weight_scale": scales,
        "weight_shape": np.array(codes.shape),
    }
    if zeros is not None:
        packed = np.ascontiguousarray(pack(zeros.T, bits).T)
        parts["weight_zero_point"] = packed
    return parts
