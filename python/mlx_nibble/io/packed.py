r"""The codes of AutoAWQ, GPTQ and compressed-tensors, and their form in MLX's groups.

All of them store integers with a scale and a zero for each group,
:math:`\hat w = s (q - z)`: MLX's format with a bias of :math:`-s z`. The bias is exact
if z is a power of two, as in every symmetric checkpoint, or if it is stored in float32.
Otherwise it is rounded once, to the type of the scales.

Words are little-endian streams of codes here, whatever their width: 16-, 32- and
64-bit words have the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlx_nibble.formats import GROUP_SIZES, SUPPORTED_BITS, Quantized, round_to, unpack

# AutoAWQ interleaves the 8 columns of a word: its CUDA kernel reads even and odd
# columns from halves. Nibble i is column _AWQ_ORDER[i].
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
# AutoAWQ's GEMVFast stores 4 rows in a 16-bit word, and 64 inputs in a tile.
_FAST_ROWS, _FAST_TILE = 4, 64
# GPTQModel's gptq_p splits a code into planes, low bits first. These are their widths.
_PLANES = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}
_WORD = 32
_LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Unpacked:
    r"""A matrix of another tool, :math:`\hat w_{nk} = s_{ng} q_{nk} + b_{ng}`.

    Attributes:
        codes: uint8 `[N, K]`.
        scales: float32 `[N, G]`.
        biases: float32 `[N, G]`, :math:`-s z`.
        groups: Group of each input, `[K]`, from 0 to G - 1.
        bits: Width of a code.
    """

    codes: np.ndarray
    scales: np.ndarray
    biases: np.ndarray
    groups: np.ndarray
    bits: int


def stream(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Unpack the first `count` codes of rows that are dense streams of bits.

    Args:
        words: Integers `[R, W]` of any width.
        bits: Width of a code.
        count: Number of codes, for which the words have room.

    Returns:
        uint8 `[R, count]`.
    """
    octets = np.ascontiguousarray(words).view(np.uint8)
    octets = np.pad(octets, ((0, 0), (0, -octets.shape[-1] % (4 * bits))))
    return unpack(octets.view(np.uint32), bits)[:, :count]


def whole_words(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Unpack rows whose 32-bit words hold whole codes, with a rest of unused bits.

    compressed-tensors stored 3, 5, 6 and 7 bits so before it stored dense streams.
    """
    shifts = np.arange(_WORD // bits, dtype=np.uint32) * np.uint32(bits)
    raw = np.ascontiguousarray(words).view(np.uint32)[..., None] >> shifts
    codes = (raw & np.uint32((1 << bits) - 1)).astype(np.uint8)
    return codes.reshape(len(words), -1)[:, :count]


def planes(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Unpack rows in GPTQModel's planar layout: `bits` words hold 32 codes."""
    blocks = np.ascontiguousarray(words).view(np.uint32)
    blocks = blocks.reshape(len(words), -1, bits)
    codes = np.zeros((*blocks.shape[:2], _WORD), np.uint8)
    at = 0
    for width in _PLANES[bits]:
        codes |= unpack(blocks[..., at : at + width], width) << at
        at += width
    return codes.reshape(len(words), -1)[:, :count]


def awq_columns(words: np.ndarray) -> np.ndarray:
    """Unpack AutoAWQ's GEMM layout, int32 `[R, C / 8]`, to codes `[R, C]`."""
    nibbles = stream(words, 4, 8 * words.shape[-1]).reshape(len(words), -1, 8)
    columns = np.empty_like(nibbles)
    columns[..., _AWQ_ORDER] = nibbles
    return columns.reshape(len(words), -1)


def awq_fast_rows(words: np.ndarray) -> np.ndarray:
    """Unpack AutoAWQ's GEMVFast layout, int16 `[N / 4, K]`, to codes `[N, K]`."""
    blocks, inputs = words.shape
    tiles = stream(words, 4, 4 * inputs)
    tiles = tiles.reshape(blocks, -1, _FAST_ROWS, _FAST_TILE).swapaxes(1, 2)
    # Within 32 inputs, pairs were dealt to four eights, and each eight is stored in
    # the order 0 2 4 6 1 3 5 7.
    eights = tiles.reshape(blocks * _FAST_ROWS, -1, 4, 2, 4).swapaxes(-1, -2)
    pairs = eights.reshape(len(eights), -1, 4, 4, 2).swapaxes(2, 3)
    return pairs.reshape(len(eights), inputs)


def plus_one(words: np.ndarray, bits: int) -> np.ndarray:
    """Add 1 to each zero of GPTQ's format v1, as GPTQModel does.

    It subtracted 1 from all fields of a word at once, so a zero of 0 borrowed from its
    neighbours. The sum modulo the word gives all of them back.

    Args:
        words: Integers of any width.
        bits: 2, 4 or 8: no field straddles two words.
    """
    width = 8 * words.dtype.itemsize
    raw = np.ascontiguousarray(words).view(f"u{words.dtype.itemsize}")
    return raw + raw.dtype.type(((1 << width) - 1) // ((1 << bits) - 1))


def affine(
    codes: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray,
    groups: np.ndarray,
    bits: int,
) -> Unpacked:
    """Return a matrix of codes `[N, K]`, and scales and integer zeros `[N, G]`."""
    scales = np.asarray(scales, np.float32)
    with np.errstate(invalid="ignore"):  # in_mlx_groups refuses infinite scales
        biases = -scales * zeros.astype(np.float32)
    return Unpacked(codes, scales, biases, groups, bits)


def in_mlx_groups(matrix: Unpacked, dtype: str) -> tuple[Quantized, np.ndarray | None]:
    """Convert a matrix to MLX's runs of inputs, by repeating scales and biases.

    Args:
        matrix: The matrix; its groups have any sizes, and may be scattered.
        dtype: Type of scales and biases.

    Returns:
        The weight, and the order of its inputs. With act-order a group is no run of
        consecutive inputs: input j of the weight is input `order[j]` of the layer.
        The order is None if inputs are in order.

    Raises:
        ValueError: If no group size of MLX divides the groups, or if a scale or a bias
            is not finite in `dtype`. The message lacks the name of the matrix.
    """
    codes, order = matrix.codes, None
    size = _run(matrix.groups)
    if size is None:
        order = np.argsort(matrix.groups, kind="stable")
        codes, size = codes[:, order], _run(matrix.groups[order])
    if size is None:
        least = np.unique(matrix.groups, return_counts=True)[1].min()
        raise ValueError(
            f"must have groups of a multiple of {GROUP_SIZES[0]} inputs but one has "
            f"{least}"
        )
    groups = matrix.groups if order is None else matrix.groups[order]
    values = []
    for name, value in (("scales", matrix.scales), ("biases", matrix.biases)):
        if not np.isfinite(value).all():
            raise ValueError(f"must have finite {name} but some are not")
        if dtype == "float16" and (abs(value) > _LARGEST_HALF).any():
            raise ValueError(
                f"must have {name} up to {_LARGEST_HALF:.0f} in float16 but one is "
                f"{abs(value).max():.6g} (--dtype float32 has room)"
            )
        values.append(round_to(value[:, groups[::size]], dtype))
    bits = next(bits for bits in SUPPORTED_BITS if bits >= matrix.bits)
    scales, biases = values
    return Quantized(np.ascontiguousarray(codes), scales, biases, bits), order


def _run(groups: np.ndarray) -> int | None:
    """Return the largest of MLX's group sizes whose runs of inputs share a group."""
    for size in reversed(GROUP_SIZES):
        if len(groups) % size == 0:
            runs = groups.reshape(-1, size)
            if (runs == runs[:, :1]).all():
                return size
    return None
