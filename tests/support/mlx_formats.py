"""Formats of the installed MLX; those of OTHER_FORMATS have no Metal kernels."""

from __future__ import annotations

from mlx_nibble import _native, formats

# mlx 0.32.3 has no codes of 1 bit.
MLX_BITS = [b for b in formats.BITS if b > 1 or _native.mlx_version != "0.32.3"]
# (mode, bits, group_size)
OTHER_FORMATS = [("mxfp4", 4, 32), ("nvfp4", 4, 16), ("mxfp8", 8, 32)]
OTHER_FORMATS += [("affine", bits, 64) for bits in MLX_BITS if bits == 1]
