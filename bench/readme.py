"""The measured tables of README and docs, made from the capsules that are committed.

python -m bench.readme        # rewrites them; a test checks that they agree
"""

from __future__ import annotations

import json
from pathlib import Path

from bench import tables

ROOT = Path(__file__).parents[1]
CAPSULES = ROOT / "bench" / "capsules"
BEGIN = "<!-- measured: python -m bench.readme -->"
END = "<!-- /measured -->"
CPU = ROOT / "docs" / "cpu.md"
BENCH = ROOT / "docs" / "bench.md"


def load(name: str) -> dict:
    return json.loads((CAPSULES / f"{name}.json").read_text())


def measured() -> str:
    made = [
        tables.model_table(load("demo")),
        tables.peer_table(load("llama"), load("int8")),
        tables.matmul_table(load("matmul")),
    ]
    return "\n\n".join(made)


def rewrite(text: str) -> str:
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{measured()}\n{END}{after}"


def rewrite_bench(text: str) -> str:
    """docs/bench.md, with its table made anew."""
    return blocks(text, {"generation": tables.generation_table(load("generation"))})


def rewrite_cpu(text: str) -> str:
    """docs/cpu.md, with its tables made anew."""
    made = {
        "products": tables.products_table(load("cpu"), load("cpu_hot")),
        "models": tables.model_peers_table(load("llama")),
    }
    return blocks(text, made)


def blocks(text: str, made: dict[str, str]) -> str:
    """A text with its named tables in their places."""
    for name, table in made.items():
        begin = BEGIN.replace(" -->", f" ({name}) -->")
        before, rest = text.split(begin)
        after = rest.partition(END)[2]
        text = f"{before}{begin}\n{table}\n{END}{after}"
    return text


def main() -> None:
    documents = {
        ROOT / "README.md": rewrite,
        CPU: rewrite_cpu,
        BENCH: rewrite_bench,
    }
    for path, made in documents.items():
        path.write_text(made(path.read_text()))


if __name__ == "__main__":
    main()
