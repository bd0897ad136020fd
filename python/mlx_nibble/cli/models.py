"""Checks of models named on a command line, before they are loaded."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from mlx_nibble.cli.hub import reach_hub
from mlx_nibble.io.checkpoint import check_folder
from mlx_nibble.io.config import read_config
from mlx_nibble.io.gguf.reader import starts_as_gguf
from mlx_nibble.io.packing import require_readable
from mlx_nibble.io.stranger import local_path

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_FILES = (".gguf", ".safetensors")


def require_model(command: str, what: str, path: str) -> None:
    """Check that a path can be a model folder or a name on the Hub.

    Args:
        command: Command that the error names.
        what: Option that the path belongs to.
        path: Path or name.

    Raises:
        ValueError: If it is neither, a file of it is damaged, or mlx-lm does not read
            its weights.
    """
    folder = Path(local_path(path))
    if folder.is_file():
        advice = _import_of(folder) if starts_as_gguf(folder) else ""
        raise ValueError(
            f"[{command}] {what} must be a model folder but {path!r} is a file{advice}."
        )
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            file = next(iter(sorted(folder.glob("*.gguf"))), None)
            advice = "" if file is None else _import_of(file)
            raise ValueError(
                f"[{command}] {what} must be a model folder but {path!r} has no "
                f"config.json{advice}."
            )
        check_folder(folder, command)
        require_readable(folder, read_config(folder, command), command)
        return
    if os.path.lexists(folder):
        raise ValueError(
            f"[{command}] {what} must be a model folder but {path!r} is neither a "
            "folder nor a file."
        )
    if not is_hub_name(path):
        raise ValueError(f"[{command}] {what} {path!r} does not exist.")
    reach_hub()


def is_hub_name(text: str) -> bool:
    """Return whether a text can be the name of a repository of the Hub.

    A name that ends like a file's is taken for a file, which then has to be here.
    """
    is_file = text.startswith(".") or text.lower().endswith(_FILES)
    return not is_file and _HUB_NAME.fullmatch(text) is not None


def gguf_imported(path: str) -> str | None:
    """Return the folder in the cache for a GGUF file, and None for anything else.

    Raises:
        ValueError: If the file cannot be imported.
    """
    file = Path(local_path(path))
    if not file.is_file() or not starts_as_gguf(file):
        return None
    from mlx_nibble.cli.console import byte_progress, err
    from mlx_nibble.conversion.in_cache import imported

    def tell(fact: str) -> None:
        err.print(fact, soft_wrap=True)

    with byte_progress() as progress:
        return str(imported(file, progress, tell))


def _import_of(file: Path) -> str:
    """Return the part of an error that names the command for a GGUF file."""
    return f": run nibble convert {shlex.quote(str(file))} OUT, and use OUT"
