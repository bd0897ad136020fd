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

import mlx_wheels
import ziglang
from check_macho import References, check_wheel

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "macos"
PLATFORM = "macosx_14_0_arm64"
LINKER = "ld64.lld-19"
# The oldest version that the wheel accepts; nanobind keeps later ones compatible.
NANOBIND_BACKEND = "1.0.0"


def fetch(requirement: str) -> pathlib.Path:
    """Return the folder of a published macOS wheel."""
    return mlx_wheels.fetch(requirement, [PLATFORM, "macosx_11_0_arm64"], BUILD)


def references(version: str) -> References:
    """Return the published wheels that the extension for an mlx is checked against."""
    return References(
        mlx_metal=fetch(f"mlx-metal=={version}"),
        mlx=fetch(f"mlx=={version}"),
        nanobind_backend=fetch(f"nanobind-backend=={NANOBIND_BACKEND}"),
    )


def run(command: list[str], env: dict[str, str] | None = None) -> None:
    """Run a command; the build ends if it fails."""
    print("+", " ".join(command), flush=True)
    subprocess.run(command, check=True, cwd=ROOT, env=env)


def build(out: pathlib.Path, quick: bool) -> pathlib.Path:
    """Cross-build the wheel into `out`, against the published wheels in BUILD.

    Args:
        out: Folder of the wheel.
        quick: Optimise little, and the kernels of the CPU not at all.
    """
    zig = pathlib.Path(ziglang.__file__).parent / "zig"
    settings = {
        "cmake.args": f"--toolchain={ROOT}/cmake/macos/toolchain.cmake",
        "cmake.define.MLX_FOLDER": str(BUILD),
        "cmake.define.CMAKE_CXX_FLAGS_RELEASE": f"{'-O1' if quick else '-O3'} -DNDEBUG",
        # zig takes a tenth of -O1's time. Other code would import names of libc++ that
        # cmake/macos/sdk does not list.
        "cmake.define.NIBBLE_KERNEL_OPTIONS": "-O0" if quick else "",
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
    parser.add_argument(
        "--quick",
        action="store_true",
        help="optimise little: the checks concern names and headers, not speed",
    )
    args = parser.parse_args()
    out = args.out
    if shutil.which(LINKER) is None:
        print(f"{LINKER} is needed but not installed (Debian: apt install lld-19)")
        return 1

    published = {version: references(version) for version in mlx_wheels.versions()}
    wheel = build(out, args.quick)
    complaints = check_wheel(wheel, published)
    for complaint in complaints:
        print("FAILED:", complaint)
    if not complaints:
        print(f"{wheel}: built and link-checked, not run on Apple hardware")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
