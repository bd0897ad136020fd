"""Refuse to be imported where the package cannot work.

Neither MLX nor a nanobind extension supports a second interpreter in one process: the
import would hang or crash.
"""

from __future__ import annotations

import importlib
import sys

# Python's own modules, private until 3.14.
_NAME = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
try:
    _interpreters = importlib.import_module(_NAME)
except ImportError:  # without the module there are no subinterpreters
    _interpreters = None

if _interpreters and _interpreters.get_current() != _interpreters.get_main():
    raise ImportError(
        "[mlx_nibble] the main interpreter was required but this is a subinterpreter, "
        "which MLX does not support; use a process instead."
    )
