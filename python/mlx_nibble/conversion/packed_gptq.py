"""The layouts of AutoGPTQ and GPTQModel: one scheme, and rules for some matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mlx_nibble.conversion.packed_layouts import (
    Parts,
    QWeight,
    group_map,
    require_shape,
)
from mlx_nibble.conversion.packed_settings import (
    Scheme,
    matches,
    refuse,
    scheme,
    section,
)
from mlx_nibble.io import packed
from mlx_nibble.io.packed import Unpacked, affine
from mlx_nibble.io.values import shown

_FORMATS = ("gptq", "gptq_v2", "gptq_p")
# Widths whose codes never straddle two words, all widths, and those of gptq_p's planes.
_WHOLE_BITS, _BITS, _PLANAR_BITS = (2, 4, 8), (2, 3, 4, 8), (3, 5, 6, 7)


class GPTQ(QWeight):
    """The layouts of AutoGPTQ and GPTQModel: gptq (v1), gptq_v2 and gptq_p."""

    widths: tuple[int, ...] = _BITS

    def __init__(self, settings: Mapping[str, Any]):
        """Check the settings."""
        stated = settings.get("checkpoint_format") or settings.get("format") or "gptq"
        if stated not in _FORMATS or settings.get("is_marlin_format"):
            refuse(
                f"a GPTQ checkpoint must be of format {', '.join(_FORMATS)} but "
                f"is of {'marlin' if stated in _FORMATS else shown(stated)}"
            )
        self._format = stated
        self.usual = scheme(settings, "quantization_config", None)
        self._rules = section(settings, "dynamic")
        for key in ("rotation", "adapter"):
            if settings.get(key):
                refuse(f"a GPTQ checkpoint without {key} is required")
        self._old = self._format == "gptq" and _before_three_bits(settings)

    def scheme_of(self, path: str) -> Scheme:
        """Return the scheme of a matrix: the first rule that matches its name."""
        for rule, own in self._rules.items():
            if matches(rule.removeprefix("-:").removeprefix("+:"), path):
                if rule.startswith("-:"):
                    raise ValueError(
                        f"must not be packed by dynamic's rule {shown(rule)} but is"
                    )
                return (
                    scheme(
                        section(self._rules, rule),
                        f"dynamic {shown(rule)}",
                        self.usual,
                    )
                    if own
                    else self.usual
                )
        return self.usual

    def read(self, parts: Parts) -> Unpacked:
        """Return a matrix."""
        mine = self.scheme_of(parts.path)
        bits, planar = mine.bits, self._format == "gptq_p" and mine.bits in _PLANAR_BITS
        if bits not in self.widths and not planar:
            raise ValueError(f"must be of {self.widths} bits but is of {bits}")
        if bits == 3 and self._old:
            raise ValueError(
                "must be of another width than 3: gptqmodel before 6.1 wrote its "
                "zeros wrongly (pack it again with format gptq_v2)"
            )
        qweight, qzeros = parts.integers("qweight"), parts.integers("qzeros")
        scales = parts.values("scales")
        width = 8 * qweight.dtype.itemsize
        if qzeros.dtype != qweight.dtype or width < bits or (bits == 3 and width != 32):
            raise ValueError(
                f"must have words of 32 bits but has {qweight.dtype} and {qzeros.dtype}"
            )
        (groups, rows), inputs = scales.shape, len(qweight) * width // bits
        if parts.has("g_idx"):
            inputs = min(inputs, len(parts.integers("g_idx", 1)))
        require_shape("qweight", qweight, (-(-inputs * bits // width), rows))
        require_shape("qzeros", qzeros, (groups, -(-rows * bits // width)))
        unpack = packed.planes if planar else packed.stream
        if self._format == "gptq" and bits in _WHOLE_BITS:
            qzeros = packed.plus_one(qzeros, bits)
        zeros = unpack(qzeros, bits, rows).astype(np.int32)
        if self._format == "gptq" and bits not in _WHOLE_BITS:
            zeros = (zeros + 1) % (1 << bits)
        return affine(
            unpack(qweight.T, bits, inputs),
            scales.T,
            zeros.T,
            group_map(parts, "g_idx", inputs, mine, groups),
            bits,
        )


def _before_three_bits(settings: Mapping[str, Any]) -> bool:
    """Tell whether a GPTQModel wrote a checkpoint that misplaced zeros of 3 bits.

    Before 6.1 it subtracted 4 instead of 1 from most of them.
    """
    quantizer = section(settings, "meta").get("quantizer")
    stated = quantizer[0] if isinstance(quantizer, list) and quantizer else quantizer
    if not isinstance(stated, str) or not stated.startswith("gptqmodel:"):
        return False
    version = stated.removeprefix("gptqmodel:").split(".")[:2]
    return tuple(int(n) for n in version if n.isdigit()) < (6, 1)
