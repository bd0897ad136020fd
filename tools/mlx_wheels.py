"""Fetches published wheels to compile against: the supported versions of mlx.

A wheel of this package holds one extension for each of them. As a program it fetches
all of them for cibuildwheel.
"""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "mlx"
# Three quarters of a macOS wheel, and not needed for compiling.
_UNUSED_SUFFIX = ".metallib"


def versions(root: pathlib.Path = ROOT) -> list[str]:
    """Return the supported versions of mlx, oldest first.

    Args:
        root: Folder of pyproject.toml.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text())
    return project["tool"]["mlx-nibble"]["mlx-versions"]


def extension(version: str) -> str:
    """Return the path in a wheel of the extension for a version of mlx."""
    return f"mlx_nibble/_mlx_{version.replace('.', '_')}/_ext.abi3.so"


def fetch(requirement: str, platforms: list[str], into: pathlib.Path) -> pathlib.Path:
    """Download the wheel of a pinned requirement and unpack it, once.

    Args:
        requirement: Name and version, as "mlx-metal==0.32.4".
        platforms: Tags of wheels that will do.
        into: Folder of downloads and unpacked wheels; it is made.
    """
    name, version = requirement.split("==")
    folder = into / f"{name}-{version}"
    if folder.is_dir():
        return folder
    downloads = into / "downloads"
    into.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        + ["--only-binary=:all:", "--python-version=3.11"]
        + [f"--platform={platform}" for platform in platforms]
        + [f"--dest={downloads}", requirement],
        check=True,
    )
    (wheel,) = downloads.glob(f"{name.replace('-', '_')}-{version}-*.whl")
    with tempfile.TemporaryDirectory(dir=into) as partial:
        with zipfile.ZipFile(wheel) as archive:
            wanted = [n for n in archive.namelist() if not n.endswith(_UNUSED_SUFFIX)]
            archive.extractall(partial, wanted)
        # Another process may have been faster.
        if not folder.is_dir():
            shutil.copytree(partial, folder)
    return folder


def fetch_all(name: str, platform: str) -> None:
    """Unpack the wheel of each supported version into FOLDER.

    Args:
        name: The package with the headers, "mlx-cpu" or "mlx-metal".
        platform: Tag of the wheels.
    """
    for version in versions():
        fetch(f"{name}=={version}", [platform], FOLDER)


if __name__ == "__main__":
    fetch_all(*sys.argv[1:])
