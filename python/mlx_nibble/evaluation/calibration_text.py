"""Texts for calibration and evaluation, cut into sequences of tokens."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

BUILT_IN = "builtin"


def read_text(source: str) -> str:
    """Read a text.

    Args:
        source: `builtin`, a file, or `hub:OWNER/DATASET/PATH`, a file of a dataset on
            the Hugging Face Hub. `builtin` is the reference topics of Python's own
            documentation, 465 KB of technical English in every CPython. A `.jsonl` or
            `.parquet` file has rows with a field `text`; any other file is a text.
            Parquet needs the package pyarrow.

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
    """Return the token ids of a text, which may be longer than the model's context.

    Args:
        tokenizer: A tokenizer that mlx-lm loaded.
        text: Any text.
    """
    return tokenizer.encode(text, verbose=False)  # without a warning of the length


def batches(
    tokens: Sequence[int], length: int, samples: int, batch_size: int = 1
) -> list[mx.array]:
    """Cut a text into sequences, spread evenly over it.

    Args:
        tokens: The text's token ids.
        length: Tokens of a sequence.
        samples: Number of sequences; fewer if the text is too short.
        batch_size: Sequences of a batch.

    Returns:
        Arrays `[batch_size, length]`; the last one may be smaller.

    Raises:
        ValueError: If the text has fewer than `length` tokens, or either is below 1.
    """
    if min(length, samples) < 1:
        raise ValueError(
            "[text] samples and their length must be at least 1 but are "
            f"{samples} and {length}."
        )
    available = len(tokens) // length
    if available == 0:
        raise ValueError(
            f"[text] at least {length} tokens are required but the text has "
            f"{len(tokens)}."
        )
    count = min(samples, available)
    starts = [i * available // count * length for i in range(count)]
    rows = [list(tokens[s : s + length]) for s in starts]
    return [mx.array(rows[i : i + batch_size]) for i in range(0, count, batch_size)]


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
