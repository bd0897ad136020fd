"""The compiled extension, or the reason why it is not in use.

libmlx's C++ ABI changes between patch releases. The package therefore has an extension
for each mlx that it supports, and loads that of the installed mlx. With any other mlx
the package still works, and every operation is MLX's own.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from types import ModuleType

try:
    import mlx.core as mx
except ModuleNotFoundError:
    raise
except ImportError as error:  # of a library
    raise ImportError(
        f"[mlx_nibble] a backend of MLX was required but got: {error}. On Linux, "
        "install one: pip install 'mlx[cpu]', or 'mlx[cuda13]' with an NVIDIA driver."
    ) from error

MLX_VERSIONS = ("0.32.3", "0.32.4")
"""The mlx versions that this package supports, those of pyproject.toml.

This file states them, because a bundled program may lack the metadata of packages.
"""

REQUIREMENT = "mlx>=0.32.3,<0.32.5"
"""The range of those, as pip and pyproject.toml write it."""

_BACKEND = "nanobind-backend>=1.0,<1.1"  # also as pyproject.toml writes it

# MLX's stubs lack it.
mlx_version: str = mx.__version__  # pyright: ignore[reportAttributeAccessIssue]


def _load(version: str) -> tuple[ModuleType | None, str | None]:
    if version not in MLX_VERSIONS:
        return None, (
            f"it supports mlx {' and '.join(MLX_VERSIONS)} but mlx {version} is "
            f"installed; run: pip install '{REQUIREMENT}'"
        )
    folder = f"mlx_nibble._mlx_{version.replace('.', '_')}"
    try:
        ext = importlib.import_module(f"{folder}._ext")
    except ImportError as error:
        # Another module that is missing is nanobind's.
        missing = isinstance(error, ModuleNotFoundError)
        if missing and (error.name or "").startswith(folder):
            return None, (
                f"this installation was compiled for another mlx than {version}; "
                "run: pip install --force-reinstall --no-deps mlx-nibble"
            )
        return None, f"its extension cannot be loaded: {error}"
    try:
        ext.accepts(mx.array(0))
    except TypeError:
        return None, (
            "its extension does not know mx.array, because nanobind-backend does not "
            f"fit mlx; run: pip install '{_BACKEND}'"
        )
    return ext, None


ext, reason = _load(mlx_version)
if reason is not None:
    _message = f"mlx-nibble is inactive, every operation is MLX's own: {reason}"
    # For a server that must not run slowly.
    if os.environ.get("NIBBLE_REQUIRE_ACTIVE", "0") not in ("", "0"):
        raise ImportError(f"[mlx_nibble] {_message} (NIBBLE_REQUIRE_ACTIVE is set)")
    # The commands print it themselves, in red.
    if os.path.basename("".join(sys.argv[:1])) != "nibble":
        warnings.warn(_message, RuntimeWarning, stacklevel=2)
