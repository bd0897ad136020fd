"""The layouts of AutoRound: those of GPTQ and AWQ, by its own names and settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mlx_nibble.conversion.packed_awq import AWQ
from mlx_nibble.conversion.packed_gptq import GPTQ
from mlx_nibble.conversion.packed_layouts import Layout
from mlx_nibble.conversion.packed_settings import (
    Scheme,
    matches,
    refuse,
    scheme,
    section,
)
from mlx_nibble.io.values import shown

# A name of matrices; anything else is a pattern.
_NAME = re.compile(r"[\w.-]+")
# AutoRound's names of a packing to GPTQ's. A name of kernels may follow.
_PACKINGS = {
    "auto_round:auto_gptq": "gptq",
    "auto_round:gptq": "gptq",
    "auto_round:gptqmodel": "gptq_v2",
    "auto_round": "gptq_v2",
}
_AWQ = ("auto_round:auto_awq", "auto_round:awq")
_KERNELS = ("exllamav2", "marlin", "triton", "tritonv2", "torch")


def auto_round(settings: Mapping[str, Any]) -> Layout:
    """Return the layout of a checkpoint.

    Raises:
        ValueError: If it has another one, or numbers that are no integers.
    """
    stated = settings.get("packing_format")
    name = stated if isinstance(stated, str) else ""
    start, _, kernels = name.rpartition(":")
    name = start if kernels in _KERNELS else name
    if name not in (*_PACKINGS, *_AWQ):
        refuse(
            f"an AutoRound checkpoint must have the packing_format "
            f"{', '.join((*_PACKINGS, *_AWQ))} but has {shown(stated)}"
        )
    if settings.get("data_type", "int") != "int":
        refuse(
            "an AutoRound checkpoint must have the data_type int but has "
            f"{shown(settings['data_type'])}"
        )
    if settings.get("rotation_config"):
        refuse("an AutoRound checkpoint without rotation_config is required")
    own = {k: settings[k] for k in ("bits", "group_size") if k in settings}
    if name in _AWQ:
        return AWQ(own)
    return _Integers(settings, {**own, "format": _PACKINGS[name]})


class _Integers(GPTQ):
    """GPTQ's layout, with schemes by the names of matrices."""

    widths = tuple(range(2, 9))

    def __init__(self, settings: Mapping[str, Any], own: Mapping[str, Any]):
        """Check the settings."""
        super().__init__(own)
        self._schemes = {}
        extra = section(settings, "extra_config")
        for name in extra:
            stated = section(extra, name)
            if stated.get("bits", 0) != 16:  # in full precision, and not packed
                place = f"extra_config {shown(name)}"
                self._schemes[name] = scheme(stated, place, self.usual)

    def scheme_of(self, path: str) -> Scheme:
        """Return the scheme of a matrix: by its name, then by the first pattern."""
        if path in self._schemes:
            return self._schemes[path]
        patterns = (name for name in self._schemes if not _NAME.fullmatch(name))
        found = (p for p in patterns if matches(f".*(?:{p})", path))
        return self._schemes.get(next(found, ""), self.usual)
