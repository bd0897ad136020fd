"""tokenizer.json of a stranger: bounded before the tokenizers package uses it.

Each part of a chain works on the result of the one before. A few dozen parts that each
double a text make any text endless.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from mlx_nibble.io.stranger import read_json

_LARGEST_FILE = 256 << 20  # 7 times the largest that we know
_CHAINS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
# The longest chain of transformers' convert_slow_tokenizer.py has 8 parts. The largest
# growth, in all its chains, is 972: two compatibility forms and a lower case.
_MOST_PARTS = 64
_MOST_GROWTH = 1 << 16
# The most characters that a part makes of one. Unicode's normal forms: UAX 15, table 3;
# lower case: SpecialCasing.txt.
_GROWTH = {
    "BertNormalizer": 4 * 3,
    "ByteLevel": 2,
    "Lowercase": 3,
    "NFC": 3,
    "NFD": 4,
    "NFKC": 18,
    "NFKD": 18,
    "Precompiled": 18,
}


def check_tokenizer(folder: Path, op: str) -> None:
    """Check that the tokenizer of a model folder has no endless chain of parts.

    Args:
        folder: The model folder.
        op: Name of the operation in errors: ``[op] …``.

    Raises:
        ValueError: If a file is no JSON object, or a chain has too many parts. The
            error names the file and the chain.
        OSError: If a file cannot be read.
    """
    # A tokenizer_config.json may prefer tokenizer.VERSION.json.
    for file in sorted(
        {*folder.glob("tokenizer.json"), *folder.glob("*okenizer.*.json")}
    ):
        content = read_json(file, op, _LARGEST_FILE)
        for chain in _CHAINS:
            parts = list(_parts(content.get(chain)))
            growth = prod(map(_growth, parts))
            if len(parts) > _MOST_PARTS or growth > _MOST_GROWTH:
                times = growth if growth < 10**9 else "more than 10**9"
                raise ValueError(
                    f"[{op}] at most {_MOST_PARTS} parts, which make a text "
                    f"{_MOST_GROWTH} times as long, are required as {chain!r} in "
                    f"{str(file)!r} but got {len(parts)} parts and {times} times."
                )


def _parts(tree: Any) -> Iterator[Mapping[str, Any]]:
    """Return all objects with a type, at any depth."""
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, list):
            stack += node
        elif isinstance(node, dict):
            if "type" in node:
                yield node
            stack += node.values()


def _growth(part: Mapping[str, Any]) -> int:
    """Return how many times longer a part makes a text at most."""
    match part:
        case {"type": "Replace", "content": str(text), "pattern": {"String": str(old)}}:
            return max(1, -(-len(text) // len(old))) if old else 1 + len(text)
        case {"type": "Replace", "content": str(text)}:
            return 1 + len(text)  # of a pattern that matches between characters
        case {"type": "Prepend", "prepend": str(text)}:
            return 1 + len(text)
        case {"type": "TemplateProcessing", "single": list(one), "pair": list(two)}:
            return max(1, len(one), len(two))
    return _GROWTH.get(str(part["type"]), 1)
