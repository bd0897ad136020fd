"""Models as they are named on a command line: checked before they are looked for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_nibble.io.config import read_config

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def require_model(command: str, what: str, path: str) -> None:
    """Say so of what cannot be a model folder, nor a name on the Hub.

    Args:
        command: Whose error it will be.
        what: What was named: an option.
        path: What was given.

    Raises:
        ValueError: If it is neither, or its config.json no JSON object.
    """
    folder = Path(path).expanduser()
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
        read_config(folder, command)
        return
    if path.startswith(".") or not _HUB_NAME.fullmatch(path):
        raise ValueError(f"[{command}] {what} {path!r} does not exist.")


@contextmanager
def hub_errors(command: str, what: str = "the model") -> Iterator[None]:
    """Have what the Hub says against a model be one line.

    Args:
        command: Whose error it will be.
        what: What is loaded.

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
