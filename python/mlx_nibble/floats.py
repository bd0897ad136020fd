"""Floats of 4 and 8 bits, the codes and scales of the modes mxfp4, nvfp4 and mxfp8.

The definitions are those of the OCP Microscaling specification, with MLX's answer where
it has another: the scale 255 of E8M0 is infinite, not NaN.
"""

from __future__ import annotations

import numpy as np

_MAGNITUDES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
E2M1 = np.concatenate([_MAGNITUDES, -_MAGNITUDES])
"""The 16 values of a code of 4 bits: sign, 2 bits of exponent, 1 of mantissa."""


def _e4m3() -> np.ndarray:
    codes = np.arange(128)
    exponents, mantissas = codes >> 3, codes & 7
    normal = np.ldexp(1 + mantissas / 8, exponents - 7)
    values = np.where(exponents > 0, normal, np.ldexp(mantissas / 8, -6))
    values[127] = np.nan
    return np.concatenate([values, -values]).astype(np.float32)


E4M3 = _e4m3()
"""The 256 values of sign, 4 bits of exponent, 3 of mantissa; the largest is NaN."""

E8M0 = np.append(np.ldexp(1.0, np.arange(255) - 127), np.inf).astype(np.float32)
"""The 256 powers of two of an exponent of 8 bits."""

CODES = {"mxfp4": E2M1, "nvfp4": E2M1, "mxfp8": E4M3}
"""Value of each code, by mode."""
SCALES = {"mxfp4": E8M0, "nvfp4": E4M3, "mxfp8": E8M0}
"""Value of each scale, by mode."""
