"""Makes a release: `make release VERSION=0.2.0`.

Sets the version and the changelog's date, builds and checks all files, commits and
tags. It pushes nothing: the tag's push starts .github/workflows/release.yml, which
builds again on clean machines, attests and publishes.
"""

from __future__ import annotations

import argparse
import datetime
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
# The line that states the version, in each file that has one.
_LINES = {
    "pyproject.toml": r'(?m)^version = ".*"$',
    "python/mlx_nibble/_version.py": r'(?m)^__version__ = ".*"$',
    "CITATION.cff": r"(?m)^version: .*$",
}
_CHANGELOG = "CHANGELOG.md"


def set_version(root: pathlib.Path, version: str, date: str) -> None:
    """Write the version and the date of its section in the changelog.

    Raises:
        ValueError: If the changelog has no section for the version without a date.
    """
    changes = (root / _CHANGELOG).read_text()
    heading = f"## [{version}] - "
    if f"{heading}unreleased\n" not in changes:
        raise ValueError(
            f"[release] a section '{heading}unreleased' was required in {_CHANGELOG}."
        )
    changed = {_CHANGELOG: changes.replace(f"{heading}unreleased", heading + date)}
    for name, line in _LINES.items():
        text = (root / name).read_text()
        (found,) = re.findall(line, text)
        changed[name] = text.replace(found, re.sub(r"\d[^\"]*", version, found))
    for name, text in changed.items():
        (root / name).write_text(text)


def _run(*command: str) -> str:
    print("+", *command, flush=True)
    return subprocess.run(
        command, cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE
    ).stdout


def main() -> None:
    """Check, write, build, commit, tag."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("version", help="such as 0.2.0")
    version = parser.parse_args().version
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        parser.error(f"a version such as 0.2.0 was required but got {version}")
    if changed := _run("git", "status", "--porcelain"):
        sys.exit(f"release: a clean tree was required but got\n{changed}")
    try:
        set_version(ROOT, version, datetime.date.today().isoformat())
        _run(".ci/run")
        _run("git", "commit", "--all", f"--message=release: {version}")
        _run("git", "tag", f"v{version}")
    except (ValueError, subprocess.CalledProcessError) as error:
        sys.exit(f"release: {error}")
    print(f"dist/ is built and checked. Publish: git push origin main v{version}")


if __name__ == "__main__":
    main()
