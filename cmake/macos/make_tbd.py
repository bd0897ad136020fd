"""Writes the .tbd lists of sdk/usr/lib: what macOS libraries are known to export.

A name is listed if a published arm64 wheel for macOS 14 or earlier imports it
from that library. It then exists on every Mac that accepts the wheel. No file of
Apple's is read. Run again, with one more wheel, when the build needs a name that
is missing:

    python cmake/macos/make_tbd.py WHEEL...

The committed lists come from the macOS wheels of mlx 0.32.4, mlx-metal 0.32.4,
nanobind-backend 1.0.0, numpy 2.4.6, sentencepiece 0.2.3, pyzmq 27.3.0,
onnxruntime 1.32.0 and grpcio 1.85.1.
"""

from __future__ import annotations

import argparse
import pathlib
import zipfile
from collections import defaultdict
from collections.abc import Iterator

import lief

DEPLOYMENT_TARGET = [14, 0]
LIBRARIES = {
    "/usr/lib/libc++.1.dylib": "libc++.tbd",
    "/usr/lib/libSystem.B.dylib": "libSystem.tbd",
    "/usr/lib/libobjc.A.dylib": "libobjc.tbd",
}
# No wheel was found that imports these. They are std::atomic's wait and notify,
# which LLVM's libc++ marks as introduced in macOS 11.0 (_LIBCPP_AVAILABILITY_SYNC).
STATED = {
    "/usr/lib/libc++.1.dylib": {
        "__ZNSt3__120__libcpp_atomic_waitEPVKvx",
        "__ZNSt3__123__cxx_atomic_notify_allEPVKv",
        "__ZNSt3__123__cxx_atomic_notify_oneEPVKv",
        "__ZNSt3__123__libcpp_atomic_monitorEPVKv",
    }
}
TEMPLATE = """--- !tapi-tbd
tbd-version: 4
targets: [ arm64-macos ]
install-name: '{install_name}'
current-version: 1
exports:
  - targets: [ arm64-macos ]
    symbols:
{symbols}
...
"""


def binaries(wheel: pathlib.Path) -> Iterator[lief.MachO.Binary]:
    """The arm64 binaries in a wheel that run on the deployment target."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if not name.endswith((".so", ".dylib")):
                continue
            parsed = lief.MachO.parse(archive.read(name))
            for binary in parsed or ():
                version = binary.build_version
                arm64 = binary.header.cpu_type == lief.MachO.Header.CPU_TYPE.ARM64
                if arm64 and version and list(version.minos)[:2] <= DEPLOYMENT_TARGET:
                    yield binary


def imported(binary: lief.MachO.Binary) -> Iterator[tuple[str, str]]:
    """(library, symbol) of every import that must exist at load time."""
    for binding in binary.bindings:
        if binding.has_library and binding.has_symbol and not binding.weak_import:
            yield binding.library.name, binding.symbol.name


def main() -> None:
    """Read the wheels, write the lists."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("wheels", nargs="+", type=pathlib.Path)
    symbols: dict[str, set[str]] = defaultdict(set)
    for wheel in parser.parse_args().wheels:
        for binary in binaries(wheel):
            for library, symbol in imported(binary):
                symbols[library].add(symbol)

    folder = pathlib.Path(__file__).parent / "sdk" / "usr" / "lib"
    for library, file in LIBRARIES.items():
        names = symbols[library] | STATED.get(library, set())
        lines = "\n".join(f"      - '{name}'" for name in sorted(names))
        text = TEMPLATE.format(install_name=library, symbols=lines)
        (folder / file).write_text(text)
        print(f"{file}: {len(names)} symbols")


if __name__ == "__main__":
    main()
