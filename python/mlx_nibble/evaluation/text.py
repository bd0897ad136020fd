"""Texts to calibrate and evaluate on."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

BUILT_IN = "builtin"


def read_text(source: str) -> str:
    """Read a text.

    Args:
        source: `builtin`, the reference topics of Python's own documentation (465 KB
            of technical English, which every CPython has); a file; or
            `hub:OWNER/DATASET/PATH`, a file of a dataset on the Hugging Face Hub. A
            file is a text, or, by its name, rows with a field `text`: `.jsonl`, or
            `.parquet`, for which the package pyarrow is needed.

    Raises:
        ValueError: If the source is none of these.
        OSError: If it cannot be read.
    """
    if source == BUILT_IN:
        from pydoc_data import topics

        return "\n\n".join(topics.topics.values())
    if source.startswith("hub:"):
        return _from_hub(source.removeprefix("hub:"))
    path = Path(source).expanduser()
    if not path.is_file():
        raise ValueError(
            f"[text] a text must be a file, {BUILT_IN!r} or hub:OWNER/DATASET/PATH "
            f"but got {source!r}."
        )
    return _read_file(path)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text, which may be longer than the model's context.

    Args:
        tokenizer: As mlx-lm loads it.
        text: To be cut into sequences that are not.
    """
    return tokenizer.encode(text, verbose=False)  # no warning of its length


def _read_file(path: Path) -> str:
    if path.suffix == ".parquet":
        return "\n".join(_parquet_rows(path))
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix != ".jsonl":
        return text
    try:
        return "\n".join(json.loads(line)["text"] for line in text.splitlines())
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"[text] each line of {path.name} must be a JSON object with a field "
            f"'text' but one is not: {error}."
        ) from error


def _parquet_rows(path: Path) -> list[str]:
    if importlib.util.find_spec("pyarrow") is None:
        raise ValueError(
            f"[text] the package pyarrow is required to read {path.name}: run pip "
            "install pyarrow."
        )
    parquet: Any = importlib.import_module("pyarrow.parquet")
    table = parquet.read_table(path)
    if "text" not in table.column_names:
        raise ValueError(
            f"[text] {path.name} must have a column 'text' but has "
            f"{table.column_names}."
        )
    return table.column("text").to_pylist()


def _from_hub(name: str) -> str:
    from huggingface_hub import hf_hub_download

    owner, _, rest = name.partition("/")
    dataset, _, path = rest.partition("/")
    if not (owner and dataset and path):
        raise ValueError(
            f"[text] a Hub text must be named hub:OWNER/DATASET/PATH but got {name!r}."
        )
    local = hf_hub_download(f"{owner}/{dataset}", path, repo_type="dataset")
    return _read_file(Path(local))
