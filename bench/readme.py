"""The measured tables of README and docs, made from the committed capsules.

python -m bench.readme        # rewrites them; a test checks that they agree
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from bench import distillation_page, tables

ROOT = Path(__file__).parents[1]
CAPSULES = ROOT / "bench" / "capsules"
RESULTS = ROOT / "docs" / "results"
BEGIN = "<!-- measured: python -m bench.readme ({name}) -->"
END = "<!-- /measured -->"


def load(name: str) -> dict:
    """Return a committed capsule."""
    return json.loads((CAPSULES / f"{name}.json").read_text())


PAGES: dict[Path, dict[str, Callable[[], str]]] = {
    ROOT / "README.md": {
        "highlights": lambda: tables.highlights_table(
            load("demo"),
            load("matmul"),
            load("quantization"),
            load("distillation"),
        ),
    },
    RESULTS / "models.md": {
        "demo": lambda: tables.model_table(load("demo")),
        "peers": lambda: tables.peers_table(load("llama"), load("int8"), "llama"),
        "generation": lambda: tables.generation_table(load("generation")),
    },
    RESULTS / "cpu.md": {
        "matmul": lambda: tables.matmul_table(load("matmul")),
        "products": lambda: tables.products_table(load("cpu"), load("cpu_hot")),
    },
    RESULTS / "distillation.md": {
        model: lambda model=model: distillation_page.table(load("distillation")[model])
        for model in load("distillation")
    },
}
"""The tables of each page, by the names of their places in it."""


def rewrite(path: Path) -> str:
    """Return a page's text with its tables made anew."""
    text = path.read_text()
    for name, table in PAGES[path].items():
        begin = BEGIN.format(name=name)
        before, rest = text.split(begin)
        after = rest.partition(END)[2]
        text = f"{before}{begin}\n{table()}\n{END}{after}"
    return text


def main() -> None:
    """Rewrite all pages."""
    for path in PAGES:
        path.write_text(rewrite(path))


if __name__ == "__main__":
    main()
