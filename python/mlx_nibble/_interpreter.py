"""Refuse to be imported where the package cannot work.

Neither MLX nor a nanobind extension supports a second interpreter in one process: the
import would hang or crash.
"""

from __future__ import annotations

try:
    import _interpreters
except ImportError:  # before Python 3.13
    import _xxsubinterpreters as _interpreters

if _interpreters.get_current() != _interpreters.get_main():
    raise ImportError(
        "[mlx_nibble] the main interpreter was required but this is a subinterpreter, "
        "which MLX does not support; use a process instead."
    )
