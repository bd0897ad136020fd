"""Checks of models named on a command line, before they are loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_nibble.io.checkpoint import check_folder
from mlx_nibble.io.stranger import local_path

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def require_model(command: str, what: str, path: str) -> None:
    """Check that a path can be a model folder or a name on the Hub.

    Args:
        command: Command that the error names.
        what: Option that the path belongs to.
        path: Path or name.

    Raises:
        ValueError: If it is neither, or a file of it is damaged.
    """
    folder = Path(local_path(path))
    if folder.is_file():
        raise ValueError(
            f"[{command}] {what} must be a model folder but {path!r} is a file; "
            "nibble convert makes a folder of a GGUF file."
        )
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"[{command}] {what} must be a model folder but {path!r} has no "
                "config.json."
            )
        check_folder(folder, command)
        return
    if os.path.lexists(folder):
        raise ValueError(
            f"[{command}] {what} must be a model folder but {path!r} is neither a "
            "folder nor a file."
        )
    if path.startswith(".") or not _HUB_NAME.fullmatch(path):
        raise ValueError(f"[{command}] {what} {path!r} does not exist.")


@contextmanager
def hub_errors(command: str, what: str = "the model") -> Iterator[None]:
    """Turn the Hub's errors about a model into one line.

    Args:
        command: Command that the error names.
        what: Description of the model.

    Raises:
        OSError: If the Hub does not give us the model.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        yield
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = " ".join(str(error).split())
        raise OSError(
            f"[{command}] {what} is not a folder here, and could not be had from "
            f"the Hugging Face Hub: {reason}"
        ) from error
