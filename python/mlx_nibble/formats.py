"""Formats of a quantized matrix: codes, scales and biases, and how they are packed.

Arrays are NumPy's. A bfloat16 number is stored as the float32 that equals it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mlx_nibble.numerics import UNIT_ROUNDOFF

BITS = (1, 2, 3, 4, 5, 6, 8)
"""Widths of a code in the affine modes: kBits of csrc/core/format.h."""
SUPPORTED_BITS = BITS[1:]
"""Those that commands offer: MLX has 1 bit since 0.32.4."""
GROUP_SIZES = (32, 64, 128)
"""Group sizes of the affine modes: kGroupSizes of csrc/core/format.h."""
SCALE_DTYPES = tuple(UNIT_ROUNDOFF)
"""Names of the types of scales and biases in the affine modes."""
SCALE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "uint8": 1}
"""Bytes of a scale, by the name of its type in MLX."""


@dataclass(frozen=True)
class Mode:
    """How a code becomes a value: a row of kModes in csrc/core/format.h.

    Attributes:
        mlx_name: Name of the mode in mlx.core and in config.json.
        arrays: Stored arrays of one value for each group.
        symmetric: True if each bias is exactly `-2**(bits - 1) * scale`.
        bits: Widths of a code.
        group_sizes: Numbers of codes that share a scale.
        scale_dtypes: Names of the types of scales, and of biases if there are any.
            "uint8" is a float of 8 bits, E8M0 or E4M3.
        default_bits: MLX's default.
        default_group_size: MLX's default.
    """

    mlx_name: str
    arrays: tuple[str, ...] = ("scales", "biases")
    symmetric: bool = False
    bits: tuple[int, ...] = BITS
    group_sizes: tuple[int, ...] = GROUP_SIZES
    scale_dtypes: tuple[str, ...] = SCALE_DTYPES
    default_bits: int = 4
    default_group_size: int = 64

    @property
    def stores_biases(self) -> bool:
        """True if a matrix has an array of biases."""
        return "biases" in self.arrays


def _floats(name: str, bits: int, group_size: int) -> Mode:
    """Return a mode whose codes are floats, and whose scales are bytes."""
    only = (bits,), (group_size,), ("uint8",), bits, group_size
    return Mode(name, ("scales",), False, *only)


MODES = {
    "affine": Mode("affine"),
    "symmetric": Mode("affine", symmetric=True),
    "mxfp4": _floats("mxfp4", 4, 32),
    "nvfp4": _floats("nvfp4", 4, 16),
    "mxfp8": _floats("mxfp8", 8, 32),
}
FLOAT_MODES = tuple(name for name, mode in MODES.items() if not mode.stores_biases)
"""Modes whose codes are floats."""


@dataclass(frozen=True)
class Format:
    """The format of a stored matrix.

    Attributes:
        bits: Width of a code, one of the mode's.
        group_size: Number of consecutive inputs that share a scale, one of the mode's.
        scale_dtype: Type of scales and biases, one of the mode's.
        mode: One of `MODES`.

    Raises:
        ValueError: If MLX has no such format.
    """

    bits: int = 4
    group_size: int = 64
    scale_dtype: str = "float16"
    mode: str = "affine"

    def __post_init__(self) -> None:
        """Check the values."""
        mode = MODES.get(self.mode)
        for name, value, allowed in (
            ("mode", self.mode, tuple(MODES)),
            ("bits", self.bits, mode.bits if mode else ()),
            ("group_size", self.group_size, mode.group_sizes if mode else ()),
            ("scale_dtype", self.scale_dtype, mode.scale_dtypes if mode else ()),
        ):
            if value not in allowed:
                raise ValueError(
                    f"[format] {name} must be one of {allowed} but got {value!r}."
                )

    @classmethod
    def of_mode(
        cls, mode: str, bits: int | None = None, group_size: int | None = None
    ) -> Format:
        """Return a float mode's format; sizes that are not given are MLX's defaults.

        Raises:
            ValueError: If MLX has no such format.
        """
        row = MODES[mode]
        return cls(
            row.default_bits if bits is None else bits,
            row.default_group_size if group_size is None else group_size,
            row.scale_dtypes[0],
            mode,
        )

    @property
    def levels(self) -> int:
        """The largest code, `2**bits - 1`."""
        return 2**self.bits - 1

    @property
    def symmetric(self) -> bool:
        """True if each bias follows from its scale."""
        return MODES[self.mode].symmetric

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each weight: the code, and a share of scale and bias."""
        value = 8 * SCALE_BYTES[self.scale_dtype]
        return self.bits + len(MODES[self.mode].arrays) * value / self.group_size

    @property
    def config(self) -> dict[str, Any]:
        """The entry of a matrix in the `quantization` of config.json."""
        mode = MODES[self.mode].mlx_name
        return {"group_size": self.group_size, "bits": self.bits, "mode": mode}

    def fits(self, inputs: int) -> bool:
        """Return whether rows of `inputs` weights can be stored."""
        return inputs % self.group_size == 0

    def fitted(self, inputs: int) -> Format | None:
        """Return this format with the largest group size that rows allow.

        The group size is at most this format's. None if no group size divides
        `inputs`.
        """
        known = MODES[self.mode].group_sizes
        sizes = [g for g in known if g <= self.group_size and inputs % g == 0]
        return replace(self, group_size=sizes[-1]) if sizes else None

    def nbytes(self, rows: int, inputs: int) -> int:
        """Return the bytes of a matrix `[rows, inputs]`."""
        return round(rows * inputs * self.bits_per_weight / 8)


@dataclass(frozen=True)
class Quantized:
    r"""A matrix as codes: :math:`\hat w_{nk} = s_{ng} q_{nk} + b_{ng}`.

    The group size is `K / G`, any divisor of K. G = 1 is one scale for each row.

    Attributes:
        codes: uint8 `[..., N, K]`.
        scales: float32 `[..., N, G]`, exact in the stored type.
        biases: float32 `[..., N, G]`, exact in the stored type.
        bits: Width of a code.
    """

    codes: np.ndarray
    scales: np.ndarray
    biases: np.ndarray
    bits: int

    @property
    def group_size(self) -> int:
        """Number of weights that share a scale."""
        return self.codes.shape[-1] // self.scales.shape[-1]

    def dequantize(self) -> np.ndarray:
        """Return the matrix, float32 `[..., N, K]`."""
        codes = grouped(self.codes.astype(np.float32), self.group_size)
        values = codes * self.scales[..., None] + self.biases[..., None]
        return values.reshape(self.codes.shape)

    def words(self) -> np.ndarray:
        """Return the codes as MLX stores them, uint32 `[..., N, K * bits / 32]`."""
        return pack(self.codes, self.bits)


def grouped(a: np.ndarray, group_size: int) -> np.ndarray:
    """View `[..., K]` as `[..., K / group_size, group_size]`."""
    return a.reshape(*a.shape[:-1], -1, group_size)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack codes as MLX does: a row is a little-endian stream of `bits`-wide fields.

    Args:
        codes: uint8 `[..., K]`, each below `2**bits`; `K * bits` is a multiple of 32.
        bits: One of `BITS`.

    Returns:
        uint32 `[..., K * bits / 32]`.
    """
    if bits == 8:
        packed = np.ascontiguousarray(codes)
    elif bits in (1, 2, 4):
        fields = grouped(codes, 8 // bits)
        packed = fields[..., 0].copy()
        for i in range(1, 8 // bits):
            packed |= fields[..., i] << (i * bits)
    else:
        # 8 codes fill `bits` bytes exactly.
        fields = grouped(codes, 8)
        stream = np.zeros(fields.shape[:-1], np.uint64)
        for i in range(8):
            stream |= fields[..., i].astype(np.uint64) << np.uint64(i * bits)
        octets = stream.astype("<u8")[..., None].view(np.uint8)[..., :bits]
        packed = np.ascontiguousarray(octets).reshape(*codes.shape[:-1], -1)
    return packed.view("<u4")


def unpack(words: np.ndarray, bits: int) -> np.ndarray:
    """Unpack words to codes: the inverse of `pack`.

    Args:
        words: uint32 `[..., K * bits / 32]`.
        bits: One of `BITS`.

    Returns:
        uint8 `[..., K]`.
    """
    octets = np.ascontiguousarray(words, dtype="<u4").view(np.uint8)
    if bits == 8:
        return octets
    mask = (1 << bits) - 1
    if bits in (1, 2, 4):
        fields = [(octets >> (i * bits)) & mask for i in range(8 // bits)]
    else:
        stream = np.zeros((*octets.shape[:-1], octets.shape[-1] // bits), np.uint64)
        for i, octet in enumerate(np.moveaxis(grouped(octets, bits), -1, 0)):
            stream |= octet.astype(np.uint64) << np.uint64(8 * i)
        fields = [
            (stream >> np.uint64(i * bits)).astype(np.uint8) & mask for i in range(8)
        ]
    return np.stack(fields, -1).reshape(*octets.shape[:-1], -1)


def round_to(a: np.ndarray, dtype: str) -> np.ndarray:
    """Round float32 to the nearest value of `dtype`, stored as float32.

    Ties round to even. Values beyond the largest finite value become that value, for
    an infinite scale has no use.
    """
    a = np.asarray(a, np.float32)
    if dtype == "float32":
        return a
    if dtype == "float16":
        largest = np.float32(np.finfo(np.float16).max)
        return np.clip(a, -largest, largest).astype(np.float16).astype(np.float32)
    raw = a.view(np.uint32)
    rounded = raw + np.uint32(0x7FFF) + ((raw >> np.uint32(16)) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)
