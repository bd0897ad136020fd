"""Adds or removes a supported version of mlx: `make mlx VERSION=...`.

The versions stand in pyproject.toml and in `_native.py`, and the range that they span
in the documents too. This edits all of them. Then `make wheel` and `make wheel-macos`
compile, check and test against each version.
"""

from __future__ import annotations

import argparse
import pathlib
import re

import mlx_wheels

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROJECT = "pyproject.toml"
NATIVE = "python/mlx_nibble/_native.py"
DOCUMENTS = ("README.md", "docs/guide/install.md", "docs/guide/troubleshooting.md")

_RANGE = re.compile(r"(?<=>=)\d+\.\d+\.\d+,<\d+\.\d+\.\d+")
# The first is TOML's, the second Python's.
_LISTS = {
    PROJECT: re.compile(r"(?<=\nmlx-versions = )\[[^]]*\]"),
    NATIVE: re.compile(r"(?<=\nMLX_VERSIONS = )\([^)]*\)"),
}


def range_of(versions: list[str]) -> str:
    """Return the range that pip reads; it ends below the next, unknown version."""
    *release, patch = versions[-1].split(".")
    return f"{versions[0]},<{'.'.join([*release, str(int(patch) + 1)])}"


def write_versions(root: pathlib.Path, versions: list[str]) -> list[str]:
    """Write the versions and their range everywhere; return the changed files."""
    quoted = ", ".join(f'"{version}"' for version in versions)
    after = {
        PROJECT: f"[{quoted}]",
        NATIVE: f"({quoted}{',' if len(versions) == 1 else ''})",
    }
    old, new = range_of(mlx_wheels.versions(root)), range_of(versions)
    changed = []
    for name in (PROJECT, NATIVE, *DOCUMENTS):
        before = (root / name).read_text()
        text = before
        if name in _LISTS:
            text = _LISTS[name].sub(lambda _: after[name], text)  # noqa: B023
        # The ranges of other packages differ from mlx's.
        text = _RANGE.sub(lambda m: new if m[0] == old else m[0], text)
        if text != before:
            (root / name).write_text(text)
            changed.append(name)
    return changed


def main() -> None:
    """Edit, and say what to do next."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("version", help="as mlx writes it, such as 0.32.5")
    parser.add_argument("--remove", action="store_true", help="support it no longer")
    args = parser.parse_args()
    if not re.fullmatch(r"\d+\.\d+\.\d+", args.version):
        parser.error(f"a version such as 0.32.5 was required but got {args.version}")
    known = set(mlx_wheels.versions())
    wanted = known - {args.version} if args.remove else known | {args.version}
    if not wanted or wanted == known:
        parser.error(f"another version was required but the list is {sorted(known)}")
    versions = sorted(wanted, key=lambda v: tuple(map(int, v.split("."))))
    for name in write_versions(ROOT, versions):
        print(f"changed {name}")
    print(
        "now: make wheel && make wheel-macos, and docs/internals/supporting_a_new_mlx"
    )


if __name__ == "__main__":
    main()
