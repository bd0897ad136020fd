"""From ggml's blocks to MLX's affine groups of 32, without loss.

ggml stores 32 consecutive weights of a row as one block, with an fp16 scale d:

    Q4_0  w = d·(q − 8)      q unsigned 4 bit          18 bytes: d, q
    Q4_1  w = d·q + m        q unsigned 4 bit          20 bytes: d, m, q
    Q8_0  w = d·q            q signed 8 bit            34 bytes: d, q

MLX's affine form is ŵ = s·q + b with unsigned q, so with group size 32

    Q4_0  s = d, b = −8·d        Q4_1  s = d, b = m        Q8_0  s = d, b = −128·d

and q + 128 for Q8_0. A product with a power of two is exact in fp16 unless it
overflows, which is refused. In a 4-bit block byte j holds weights j (low half)
and j + 16 (high half); MLX wants weight i in bits 4i to 4i+3 of the row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlx_nibble.io.gguf import GGUF, TensorInfo, fail

GROUP_SIZE = 32


@dataclass(frozen=True)
class Affine:
    """A weight matrix [N, K] in MLX's affine format, group size 32.

    Attributes:
        weight: Packed codes, uint32 [N, K·bits/32].
        scales: float16 [N, K/32].
        biases: float16 [N, K/32].
        bits: 4 or 8.
    """

    weight: np.ndarray
    scales: np.ndarray
    biases: np.ndarray
    bits: int


def read_tensor(file: GGUF, name: str) -> Affine | np.ndarray:
    """Read one tensor in the form that keeps every bit of it.

    Args:
        file: From ``read_gguf``.
        name: A tensor of it, of type F32, F16, BF16, Q4_0, Q4_1 or Q8_0.

    Returns:
        A quantized matrix as ``Affine``; any other tensor as a float32 or float16
        array of its shape (BF16 widens to float32).

    Raises:
        ValueError: If the type is another, if a quantized tensor is no matrix,
            or if a scale or a value is not finite in fp16.
    """
    info = file.tensors[name]
    kind = info.type.name
    if kind in _PLAIN:
        return _PLAIN[kind](file.read(name)).reshape(info.shape)
    if kind not in _AFFINE:
        fail(
            f"tensor {name!r} is of type {kind}; supported are "
            f"{', '.join([*_PLAIN, *_AFFINE])}."
        )
    if len(info.shape) != 2:
        fail(f"tensor {name!r} ({kind}) must be a matrix but has shape {info.shape}.")
    rows, columns = info.shape
    blocks = file.read(name).reshape(
        rows, columns // info.type.elements, info.type.nbytes
    )
    affine = _AFFINE[kind](blocks)
    _require_finite(info, affine)
    return affine


def _plain_f32(data: np.ndarray) -> np.ndarray:
    return data.view("<f4")


def _plain_f16(data: np.ndarray) -> np.ndarray:
    return data.view("<f2")


def _plain_bf16(data: np.ndarray) -> np.ndarray:
    return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _q4_0(blocks: np.ndarray) -> Affine:
    scales = _halves(blocks, 0)
    with np.errstate(over="ignore", invalid="ignore"):  # refused below, by name
        biases = scales * np.float16(-8)
    return Affine(_repack_nibbles(blocks[..., 2:]), scales, biases, bits=4)


def _q4_1(blocks: np.ndarray) -> Affine:
    scales, biases = _halves(blocks, 0), _halves(blocks, 2)
    return Affine(_repack_nibbles(blocks[..., 4:]), scales, biases, bits=4)


def _q8_0(blocks: np.ndarray) -> Affine:
    scales = _halves(blocks, 0)
    with np.errstate(over="ignore", invalid="ignore"):
        biases = scales * np.float16(-128)
    # Adding 128 to a signed byte flips its sign bit.
    codes = blocks[..., 2:] ^ np.uint8(0x80)
    return Affine(_rows_as_words(codes), scales, biases, bits=8)


_PLAIN = {"F32": _plain_f32, "F16": _plain_f16, "BF16": _plain_bf16}
_AFFINE = {"Q4_0": _q4_0, "Q4_1": _q4_1, "Q8_0": _q8_0}


def _halves(blocks: np.ndarray, at: int) -> np.ndarray:
    """The fp16 value at byte ``at`` of each block, [N, K/32]."""
    return np.ascontiguousarray(blocks[..., at : at + 2]).view("<f2")[..., 0]


def _repack_nibbles(packed: np.ndarray) -> np.ndarray:
    """Block order to stream order: uint8 [N, K/32, 16] to uint32 [N, K/8]."""
    low, high = packed & 0xF, packed >> 4  # weights 0 to 15, and 16 to 31
    codes = np.concatenate([low, high], axis=-1)
    return _rows_as_words(codes[..., 0::2] | codes[..., 1::2] << 4)


def _rows_as_words(codes: np.ndarray) -> np.ndarray:
    """uint8 [N, K/32, B] to uint32 [N, K/32·B/4], little endian."""
    rows = np.ascontiguousarray(codes).reshape(codes.shape[0], -1)
    return rows.view("<u4")


def _require_finite(info: TensorInfo, affine: Affine) -> None:
    for values in (affine.scales, affine.biases):
        if not np.isfinite(values).all():
            fail(
                f"tensor {info.name!r} ({info.type.name}) must have scales and "
                "offsets that are finite in fp16 but some are not."
            )
