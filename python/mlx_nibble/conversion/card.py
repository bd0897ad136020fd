"""README.md of a model folder: the card that the Hugging Face Hub shows."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from mlx_nibble._version import __version__
from mlx_nibble.io.stranger import open_regular

_NAME = "README.md"
# Ten times the longest that we know.
_LARGEST = 1 << 20
_TEXT = """\
# {name}

This model was converted to MLX format{source} with mlx-nibble {version}.

```python
from mlx_lm import generate, load

model, tokenizer = load("{name}")
generate(model, tokenizer, prompt="Hello", verbose=True)
```
"""


def write_card(
    folder: Path, name: str, source: Path | None = None, hub_name: str | None = None
) -> None:
    """Write the card, without which ``mlx_lm.upload`` refuses a folder.

    The license, the language and other facts of the source's card are kept.

    Args:
        folder: The unfinished model folder.
        name: The name that it will have.
        source: The folder of the original model.
        hub_name: The original model's repository.

    Raises:
        OSError: If the file cannot be written.
    """
    from huggingface_hub import ModelCard, ModelCardData

    data: Any = ModelCardData()
    with suppress(Exception):  # a card that nobody can read says nothing
        if source is not None and (source / _NAME).exists():
            with open_regular(source / _NAME, "convert") as file:
                data = ModelCard(file.read(_LARGEST).decode()).data
        elif hub_name is not None:
            data = ModelCard.load(hub_name).data
    data.library_name, data.pipeline_tag = "mlx", "text-generation"
    tags = data.tags if isinstance(data.tags, list) else []
    data.tags = [*tags, *(["mlx"] if "mlx" not in tags else [])]
    if hub_name is not None:
        data.base_model = hub_name
    link = f" from [{hub_name}](https://huggingface.co/{hub_name})" if hub_name else ""
    text = _TEXT.format(name=name, source=link, version=__version__)
    content = f"---\n{data.to_yaml().strip()}\n---\n\n{text}"
    (folder / _NAME).write_text(content, encoding="utf-8")
