"""Converts a tiny model of every family of mlx-lm with every method.

    make families                      # runs all, then writes the table
    python -m bench.families           # runs what is missing
    python -m bench.families --table   # runs nothing

Results are kept in `bench/families.json`, one family after another, so a run
that was stopped goes on. The table goes into `docs/results/families.md`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx

from mlx_nibble.io.atomic import write_text
from tests.support import family_configs, family_models

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "bench" / "families.json"
PAGE = ROOT / "docs" / "results" / "families.md"
METHODS = tuple(m for m in family_models.METHODS if m != "rtn")
Row = dict[str, dict]


def run(families: Iterator[str] | tuple[str, ...]) -> None:
    """Convert each family that has no result yet."""
    rows = load()
    for family in families:
        if family in rows:
            continue
        with contextlib.redirect_stdout(io.StringIO()):  # mlx-lm prints
            rows[family] = {m: outcome(family, m) for m in METHODS}
        write_text(KEPT, json.dumps(rows, indent=1) + "\n")
        print(line(family, rows[family]), flush=True)


def outcome(family: str, method: str) -> dict:
    """Return the outcome of one conversion, or the error that it died of."""
    try:
        result = family_models.convert_tiny(family, method)
    except Exception as error:  # a failure is a result here
        return {"failed": f"{type(error).__name__}: {error}"}
    return asdict(result) | {"right": result.right}


def load() -> dict[str, Row]:
    return json.loads(KEPT.read_text()) if KEPT.exists() else {}


def cell(result: dict) -> str:
    """Return one cell: the error, or that the method is refused or fails."""
    if "failed" in result:
        return "**fails**"
    if result["refused"]:
        return "refused"
    return f"{result['error']:.1%}" + ("" if result["right"] else " **wrong**")


def line(family: str, row: Row) -> str:
    """Return a family's line of the table."""
    worked = [r for r in row.values() if r.get("layers", (0, 0))[0]]
    rounded = f"{worked[0]['rounded']:.1%}" if worked else ""
    swapped = "{1} of {0}".format(*worked[0]["layers"]) if worked else ""
    off = f"{max(r['accelerated'] for r in worked):.0e}" if worked else ""
    cells = [family, rounded, *(cell(row[m]) for m in METHODS), swapped, off]
    return "| " + " | ".join(cells).replace("|  |", "| |") + " |"


def table(rows: dict[str, Row]) -> str:
    """Return the table, the lines of refusals, and the totals."""
    names = ["family", "mlx-lm, 8 bits", *METHODS, "accelerated", "off by"]
    lines = ["| " + " | ".join(names) + " |", "| --- " * len(names) + "|"]
    lines += [line(family, rows[family]) for family in sorted(rows)]
    refusals: dict[str, list[str]] = {}
    for family in sorted(rows):
        for result in rows[family].values():
            text = result.get("refused") or result.get("failed")
            text = text and re.sub(r"'/\S+/(model\S*)'", r"'\1'", text)
            if text and family not in refusals.setdefault(text, []):
                refusals[text].append(family)
    said = [
        textwrap.fill(f"- {', '.join(f)}: {text}", 88, subsequent_indent="  ")
        for text, f in refusals.items()
        if f
    ]
    return "\n".join([totals(rows), "", *lines, "", *said])


def totals(rows: dict[str, Row]) -> str:
    """Return one sentence with the counts."""
    every = [r for row in rows.values() for r in row.values()]
    count = Counter(
        "failed"
        if "failed" in r
        else "refused"
        if r["refused"]
        else "right"
        if r["right"]
        else "wrong"
        for r in every
    )
    return (
        f"{len(rows)} families of mlx-lm {version('mlx-lm')}: {count['right']} "
        f"conversions right, {count['refused']} refused, {count['wrong']} wrong, "
        f"{count['failed']} failed."
    )


def write(text: str) -> None:
    """Put the table into the page, between its marks."""
    start, end = "<!-- measured: python -m bench.families -->", "<!-- /measured -->"
    page = PAGE.read_text()
    body = re.compile(f"{start}.*?{end}", re.DOTALL)
    write_text(PAGE, body.sub(lambda _: f"{start}\n\n{text}\n\n{end}", page))


def main() -> int:
    """Parse, run, write the page; return 1 if a conversion is wrong or fails."""
    parser = argparse.ArgumentParser(description="Converts all families.")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("families", nargs="*", help="default: all")
    args = parser.parse_args()
    mx.disable_compile()  # else each fused expression takes a run of the C++ compiler
    if not args.table:
        run(tuple(args.families) or family_configs.all_families())
    rows = load()
    write(table(rows))
    every = [result for row in rows.values() for result in row.values()]
    return int(not all(result.get("right") for result in every))


if __name__ == "__main__":
    sys.exit(main())
