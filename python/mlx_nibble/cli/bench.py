"""``nibble bench``: measure, and compare what was measured."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

_PARTS = {
    "kernels": "products: ours, MLX's and the dense one",
    "model": "a model's tokens a second: ours, and mlx-lm alone",
    "plot": "pictures of a run, or one HTML page with all of it",
    "compare": "what changed between two runs, beyond noise",
}


def main(arguments: Sequence[str]) -> None:
    """Run one part; the exit status is 2 if there is none of that name."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        sys.exit(0 if arguments else 2)
    part = arguments[0]
    if part not in _PARTS:
        print(f"nibble bench: there is no part {part!r}\n\n{_usage()}", file=sys.stderr)
        sys.exit(2)
    importlib.import_module(f"mlx_nibble.cli.bench_{part}").main(arguments[1:])


def _usage() -> str:
    rows = [f"  {name:<10}{what}" for name, what in _PARTS.items()]
    return "\n".join(
        ["usage: nibble bench PART [OPTIONS]", "", *rows, ""]
        + ["  nibble bench PART --help tells a part's options"]
    )
