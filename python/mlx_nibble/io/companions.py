"""The files beside the weights of a model folder that a new folder needs too."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path

# Tokenizers (of Hugging Face, SentencePiece, tiktoken), chat templates, settings of
# generation and of preprocessing, Python code: mlx-lm downloads these.
_CARRIED = ("*.json", "*.jsonl", "*.jinja", "*.model", "*.tiktoken", "*.txt", "*.py")
# What describes the weights, which are other ones in the new folder.
_NOT_CARRIED = ("config.json", "*.index.json", "quant*_config.json")
_NOT_CARRIED += ("hf_quant_config.json",)
# transformers keeps templates that are not the default one in this folder.
_TEMPLATES = "additional_chat_templates"


def companions(folder: Path) -> list[Path]:
    """Return the files beside a model's weights, without its configuration."""
    files = [f for f in folder.iterdir() if _is_carried(f.name)]
    if (folder / _TEMPLATES).is_dir():
        files += (folder / _TEMPLATES).glob("*.jinja")
    return sorted(f for f in files if f.is_file())


def copy_companions(folder: Path, out: Path) -> None:
    """Copy the files beside a model's weights, byte for byte.

    Raises:
        OSError: If a file cannot be read or written.
    """
    for file in companions(folder):
        copy = out / file.relative_to(folder)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copy)


def _is_carried(name: str) -> bool:
    def like(patterns: tuple[str, ...]) -> bool:
        return any(fnmatch(name, pattern) for pattern in patterns)

    return like(_CARRIED) and not like(_NOT_CARRIED) and not name.startswith(".")
