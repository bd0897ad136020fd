"""The inventory of a model of the Hugging Face Hub, without its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlx_nibble.evaluation.inventory import inventory_of, read_inventory
from mlx_nibble.evaluation.memory import Inventory
from mlx_nibble.io.config import read_config
from mlx_nibble.io.packing import is_imported


@dataclass(frozen=True)
class _Header:
    """The facts of a tensor that its file's header states."""

    shape: tuple[int, ...]
    nbytes: int

    @property
    def ndim(self) -> int:
        return len(self.shape)


def read_hub_inventory(repo: str) -> Inventory:
    """Count the tensors of a repository; no weights are downloaded.

    Args:
        repo: The repository's name.

    Raises:
        ValueError: If it holds no model in safetensors, or a matrix is malformed.
        OSError: If the Hub does not give us the files' headers.
    """
    from huggingface_hub import get_safetensors_metadata, hf_hub_download
    from huggingface_hub.errors import (
        NotASafetensorsRepoError,
        SafetensorsParsingError,
    )

    folder = Path(hf_hub_download(repo, "config.json")).parent
    if any(folder.glob("model*.safetensors")):
        return read_inventory(folder)
    config = read_config(folder, "inspect")
    if is_imported(folder, config, "inspect"):
        raise ValueError(
            f"[inspect] weights that MLX reads are required but {repo!r} was packed by "
            "another tool: download it, run nibble convert FOLDER OUT, and inspect OUT."
        )
    try:
        files = get_safetensors_metadata(repo).files_metadata.values()
    except (NotASafetensorsRepoError, SafetensorsParsingError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"[inspect] weights in safetensors are required in {repo!r} but: {reason}"
        ) from None
    tensors = {}
    for file in files:
        for name, tensor in file.tensors.items():
            start, end = tensor.data_offsets
            tensors[name] = _Header(tuple(tensor.shape), end - start)
    return inventory_of(config, tensors, repo)
