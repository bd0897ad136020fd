"""The files of a checkpoint's weights: all that the index names, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from mlx_nibble.io.safetensors import tensor_names
from mlx_nibble.io.stranger import read_json

USUAL = "model*.safetensors"
"""The files that mlx-lm reads, whatever an index says."""
_INDEX = "model.safetensors.index.json"
_LARGEST_INDEX = 32 << 20  # 4 times the largest that we know
_NUMBERED = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")


def weight_files(folder: Path, op: str, usual: str = USUAL) -> list[Path]:
    """Return the safetensors of a model folder, checked to be complete.

    Args:
        folder: The model folder.
        op: Name of the operation in errors: ``[op] …``.
        usual: Pattern of the names of the files.

    Raises:
        ValueError: If a file or a tensor is missing, or a tensor is in two files.
        OSError: If a file cannot be read.
    """
    files = sorted(p for p in folder.iterdir() if p.match(usual) and p.is_file())
    index = folder / _INDEX
    expected = _weight_map(index, op) if index.is_file() else {}
    wanted = {folder / name for name in expected.values()} | _numbered(files)
    if missing := sorted(wanted - set(files)):
        raise ValueError(
            f"[{op}] all files of a checkpoint are required but {missing[0].name!r} is "
            f"missing in '{folder}', one of {len(missing)} that are: download it again."
        )
    if not files:
        raise ValueError(
            f"[{op}] a model folder must hold config.json and {usual} but '{folder}' "
            "does not."
        )
    stored = _places(files, op)
    if lost := sorted(expected.keys() - stored.keys()):
        raise ValueError(
            f"[{op}] all tensors of the index are required but {lost[0]!r} is missing "
            f"in {expected[lost[0]]!r}, one of {len(lost)} that are."
        )
    return files


def known_tensors(folder: Path, op: str) -> set[str]:
    """Return the names of the tensors that a folder has, or its index.

    A process of several may have some of the shards only.

    Raises:
        ValueError: If the index or a file is damaged.
        OSError: If one cannot be read.
    """
    index = folder / _INDEX
    names = set(_weight_map(index, op) if index.is_file() else ())
    for file in folder.iterdir():
        if file.match(USUAL):
            names.update(tensor_names(file, op))
    return names


def _weight_map(index: Path, op: str) -> dict[str, str]:
    """Return the file of each tensor, as the index has it."""
    places = read_json(index, op, _LARGEST_INDEX).get("weight_map")
    # A path out of the folder is a stranger's.
    if isinstance(places, dict) and all(
        isinstance(v, str) and v == Path(v).name for v in places.values()
    ):
        return places
    raise ValueError(
        f"[{op}] an index must map names of tensors to names of files as 'weight_map' "
        f"but '{index}' does not."
    )


def _numbered(files: Iterable[Path]) -> set[Path]:
    """Return all files of which `files` has a part, by their numbers."""
    wanted = set()
    for file in files:
        if found := _NUMBERED.fullmatch(file.name):
            stem, number, count = found.groups()
            # A count of strangers' making: the files must be about as many.
            for i in range(1, min(int(count), 10_000) + 1):
                name = f"{stem}-{i:0{len(number)}}-of-{count}.safetensors"
                wanted.add(file.with_name(name))
    return wanted


def _places(files: Iterable[Path], op: str) -> dict[str, Path]:
    """Return the file of each tensor, as the files' headers have it."""
    places: dict[str, Path] = {}
    for file in files:
        for name in tensor_names(file, op):
            if name in places:
                raise ValueError(
                    f"[{op}] each tensor must be in one file but {name!r} is in "
                    f"{places[name].name!r} and {file.name!r}: remove the older one."
                )
            places[name] = file
    return places
