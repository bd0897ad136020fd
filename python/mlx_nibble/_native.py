"""The compiled extension, or the reason why it is not in use.

libmlx's C++ ABI changes between patch releases. The extension is therefore loaded only
with the mlx that it was compiled against. With any other mlx the package still works,
and every operation is MLX's own.
"""

from __future__ import annotations

import warnings
from types import ModuleType

import mlx.core as mx

MLX_VERSION = "0.32.4"
"""The mlx version that this package is compiled against and requires.

This file states the version, because the extension cannot be asked before it is loaded,
and a bundled program may lack the metadata of packages.
"""


def _load(mlx_version: str) -> tuple[ModuleType | None, str | None]:
    if mlx_version != MLX_VERSION:
        return None, (
            f"it was built for mlx {MLX_VERSION} but mlx {mlx_version} is installed; "
            f"run: pip install 'mlx=={MLX_VERSION}'"
        )
    try:
        from mlx_nibble import _ext
    except ImportError as error:
        return None, f"its extension cannot be loaded: {error}"
    return _ext, None


# MLX's stubs lack the version.
ext, reason = _load(mx.__version__)  # pyright: ignore[reportAttributeAccessIssue]
if reason is not None:
    warnings.warn(
        f"mlx-nibble is inactive, every operation is MLX's own: {reason}",
        RuntimeWarning,
        stacklevel=2,
    )
