"""Builds and checks the macOS arm64 wheel on Linux: `make wheel-macos`.

Needs the `dev` extra and LLVM's Mach-O linker (Debian: lld-19). The limits of the
checks are in docs/internals/portability.md.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile

import tomllib
import ziglang
from check_macho import References, check_wheel
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "macos"
PLATFORM = "macosx_14_0_arm64"
LINKER = "ld64.lld-19"
# The oldest version that the wheel accepts; nanobind keeps later ones compatible.
NANOBIND_BACKEND = "1.0.0"

# Three quarters of the wheel, and not needed for compiling.
UNUSED_SUFFIX = ".metallib"


def project() -> dict:
    """Return the [project] table of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def mlx_version() -> str:
    """Return the one version of mlx that the macOS wheel requires."""
    for text in project()["dependencies"]:
        requirement = Requirement(text)
        marker = requirement.marker
        if requirement.name == "mlx" and (
            marker is None or marker.evaluate({"sys_platform": "darwin"})
        ):
            (pin,) = requirement.specifier
            return pin.version
    raise ValueError("[wheel_macos] a pinned mlx on darwin is required but got none.")


def fetch(requirement: str) -> pathlib.Path:
    """Download the macOS wheel of a pinned requirement and unpack it, once."""
    name, version = requirement.split("==")
    folder = BUILD / f"{name}-{version}"
    if folder.is_dir():
        return folder
    downloads = BUILD / "downloads"
    run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        + ["--only-binary=:all:", "--python-version=3.11"]
        + [f"--platform={PLATFORM}", "--platform=macosx_11_0_arm64"]
        + [f"--dest={downloads}", requirement]
    )
    (wheel,) = downloads.glob(f"{name.replace('-', '_')}-{version}-*.whl")
    with tempfile.TemporaryDirectory(dir=BUILD) as partial:
        with zipfile.ZipFile(wheel) as archive:
            wanted = [n for n in archive.namelist() if not n.endswith(UNUSED_SUFFIX)]
            archive.extractall(partial, wanted)
        # Another process may have been faster.
        if not folder.is_dir():
            shutil.copytree(partial, folder)
    return folder


def references() -> References:
    """Return the published wheels that ours is linked and checked against."""
    version = mlx_version()
    return References(
        mlx_metal=fetch(f"mlx-metal=={version}"),
        mlx=fetch(f"mlx=={version}"),
        nanobind_backend=fetch(f"nanobind-backend=={NANOBIND_BACKEND}"),
    )


def run(command: list[str], env: dict[str, str] | None = None) -> None:
    """Run a command; the build ends if it fails."""
    print("+", " ".join(command), flush=True)
    subprocess.run(command, check=True, cwd=ROOT, env=env)


def build(mlx_root: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    """Cross-build the wheel into `out`."""
    zig = pathlib.Path(ziglang.__file__).parent / "zig"
    settings = {
        "cmake.args": f"--toolchain={ROOT}/cmake/macos/toolchain.cmake",
        "cmake.define.MLX_ROOT": str(mlx_root),
        # Linux headers are enough: the limited API is the same everywhere.
        "cmake.define.Python_INCLUDE_DIR": sysconfig.get_path("include"),
        "build-dir": str(BUILD / "cmake"),
    }
    staging = BUILD / "wheel"
    shutil.rmtree(staging, ignore_errors=True)
    run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
        + ["--no-build-isolation", f"--wheel-dir={staging}", str(ROOT)]
        + [f"-C{key}={value}" for key, value in settings.items()],
        env={**os.environ, "ZIG": str(zig)},
    )
    (native,) = staging.glob("*.whl")
    run(
        [sys.executable, "-m", "wheel", "tags", "--remove"]
        + [f"--platform-tag={PLATFORM}", str(native)]
    )
    (wheel,) = staging.glob("*.whl")
    out.mkdir(parents=True, exist_ok=True)
    return pathlib.Path(shutil.move(wheel, out / wheel.name))


def main() -> int:
    """Build, check, report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "dist")
    out = parser.parse_args().out
    if shutil.which(LINKER) is None:
        print(f"{LINKER} is needed but not installed (Debian: apt install lld-19)")
        return 1

    published = references()
    wheel = build(published.mlx_metal / "mlx", out)
    complaints = check_wheel(wheel, published)
    for complaint in complaints:
        print("FAILED:", complaint)
    if not complaints:
        print(f"{wheel}: built and link-checked, not run on Apple hardware")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
