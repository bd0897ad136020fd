"""Texts to calibrate and evaluate on."""

from __future__ import annotations

from pathlib import Path

BUILT_IN = "builtin"


def read_text(source: str) -> str:
    """Read a text.

    Args:
        source: `builtin`, the reference topics of Python's own documentation (465 KB
            of technical English, which every CPython has); a text file; or
            `hub:OWNER/DATASET/PATH`, a text file of a dataset on the Hugging Face
            Hub.

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
    return path.read_text(encoding="utf-8", errors="replace")


def _from_hub(name: str) -> str:
    from huggingface_hub import hf_hub_download

    owner, _, rest = name.partition("/")
    dataset, _, path = rest.partition("/")
    if not (owner and dataset and path):
        raise ValueError(
            f"[text] a Hub text must be named hub:OWNER/DATASET/PATH but got {name!r}."
        )
    local = hf_hub_download(f"{owner}/{dataset}", path, repo_type="dataset")
    return Path(local).read_text(encoding="utf-8", errors="replace")
