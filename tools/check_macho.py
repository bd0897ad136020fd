"""Checks on Linux, as far as possible, that a macOS arm64 wheel will load.

Every import must be bound to a name that its library exports. The names of libmlx come
from the real library, those of Apple's libraries from the lists in cmake/macos/sdk.
"""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import lief
import mlx_wheels
import nanobind

ROOT = pathlib.Path(__file__).resolve().parent.parent
SDK = ROOT / "cmake" / "macos" / "sdk"

TAG = "cp310-abi3-macosx_14_0_arm64"
MINIMUM_OS = (14, 0)
RPATH = "@loader_path/../../mlx/lib"
LIBMLX = "@rpath/libmlx.dylib"
ENTRY = "_PyInit__ext"
# The wheel has a few hundred kB. A much larger one contains a foreign part, such as
# another library.
MAX_BYTES = 8_000_000
LIMITED_API = "3.10"

# LLVM's linker lists these names for the classic format; nothing calls them.
UNBOUND = {"dyld_stub_binder"}


@dataclass(frozen=True)
class References:
    """Folders of the unpacked macOS wheels that ours must fit."""

    mlx_metal: pathlib.Path
    mlx: pathlib.Path
    nanobind_backend: pathlib.Path

    @cached_property
    def libmlx(self) -> lief.MachO.Binary:
        """The library that the extension is linked against."""
        return parse(self.mlx_metal / "mlx" / "lib" / "libmlx.dylib")

    @cached_property
    def exports(self) -> dict[str, set[str]]:
        """The exported names of each library, by its install name."""
        known = {LIBMLX: {symbol.name for symbol in self.libmlx.exported_symbols}}
        for tbd in (SDK / "usr" / "lib").glob("*.tbd"):
            text = tbd.read_text()
            install_name = re.search(r"install-name: '(.*)'", text)
            assert install_name, tbd
            known[install_name[1]] = set(re.findall(r"- '(.*)'", text))
        return known

    @cached_property
    def python(self) -> set[str]:
        """The names that a Python executable exports to its extensions."""
        symbols = pathlib.Path(nanobind.cmake_dir()) / "darwin-ld-cpython.sym"
        return set(re.findall(r"-U (\S+)", symbols.read_text()))


@dataclass(frozen=True)
class Extension:
    """The extension module of a wheel, as bytes and as parsed."""

    data: bytes

    @cached_property
    def binary(self) -> lief.MachO.Binary:
        """The parsed form."""
        return parse(self.data)


def parse(source: pathlib.Path | bytes) -> lief.MachO.Binary:
    """Return the only architecture in a Mach-O file."""
    parsed = lief.MachO.parse(source)
    if parsed is None or parsed.size != 1:
        count = 0 if parsed is None else parsed.size
        raise ValueError(
            "[check_macho] a Mach-O file of one architecture is required but got "
            f"{count} architectures."
        )
    return parsed.at(0)


def check_target(extension: Extension, references: References) -> Iterator[str]:
    """Check for an arm64 bundle for macOS 14, no older than libmlx needs."""
    header = extension.binary.header
    if header.cpu_type != lief.MachO.Header.CPU_TYPE.ARM64:
        yield f"arm64 is needed but the file is for {header.cpu_type}"
    if header.file_type != lief.MachO.Header.FILE_TYPE.BUNDLE:
        yield f"a bundle is needed but the file is {header.file_type}"
    minimum = tuple(extension.binary.build_version.minos[:2])
    libmlx = tuple(references.libmlx.build_version.minos[:2])
    if minimum != MINIMUM_OS:
        yield f"the oldest macOS must be {MINIMUM_OS} but is {minimum}"
    if libmlx > minimum:
        yield f"libmlx needs macOS {libmlx}, newer than our {minimum}"


def check_signature(extension: Extension, references: References) -> Iterator[str]:
    """Check for a signature: arm64 macOS loads signed files only, at least ad hoc."""
    if not extension.binary.has_code_signature:
        yield "there is no code signature"


def check_identity(extension: Extension, references: References) -> Iterator[str]:
    """Check for an LC_UUID: recent versions of macOS load no image without one."""
    if not extension.binary.has_uuid:
        yield "there is no LC_UUID"


def check_libraries(extension: Extension, references: References) -> Iterator[str]:
    """Check that only mlx's library and Apple's are linked, and the rpath to mlx's."""
    names = {library.name for library in extension.binary.libraries}
    if strange := names - set(references.exports):
        yield f"unexpected libraries {sorted(strange)}"
    if LIBMLX not in names:
        yield f"{LIBMLX} is not linked"
    if not any(library.name == LIBMLX for library in references.libmlx.libraries):
        yield f"mlx-metal's library no longer calls itself {LIBMLX}"
    rpaths = [rpath.path for rpath in extension.binary.rpaths]
    if rpaths != [RPATH]:
        yield f"the rpath must be {RPATH} but is {rpaths}"


def check_imports(extension: Extension, references: References) -> Iterator[str]:
    """Check that every import is bound to a name that its library exports."""
    own = {symbol.name for symbol in extension.binary.exported_symbols}
    bound = set(UNBOUND)
    for binding in extension.binary.bindings:
        symbol = binding.symbol.name
        bound.add(symbol)
        if not binding.has_library:
            if symbol not in references.python | own:
                yield f"{symbol} is in no library and not Python's"
        elif symbol not in references.exports.get(binding.library.name, set()):
            yield f"{binding.library.name} does not export {symbol}"
    for symbol in extension.binary.imported_symbols:
        if symbol.name not in bound:
            yield f"{symbol.name} is imported but bound to nothing"


def check_entry(extension: Extension, references: References) -> Iterator[str]:
    """Check that the module's entry point, and nothing else, is visible."""
    exported = [symbol.name for symbol in extension.binary.exported_symbols]
    if exported != [ENTRY]:
        yield f"{ENTRY} alone must be exported but {exported} are"


def check_limited_api(extension: Extension, references: References) -> Iterator[str]:
    """Check that only 3.10's stable ABI of CPython is used."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "_ext.abi3.so"
        path.write_bytes(extension.data)
        audit = subprocess.run(
            [pathlib.Path(sys.executable).parent / "abi3audit", "--strict"]
            + ["--verbose", "--assume-minimum-abi3", LIMITED_API, path],
            capture_output=True,
            text=True,
        )
    if audit.returncode != 0:
        yield f"abi3audit: {' '.join((audit.stdout + audit.stderr).split())}"


def check_nanobind(extension: Extension, references: References) -> Iterator[str]:
    """Check that mlx, the backend and we agree on nanobind's ABI.

    Only then do we share arrays with mlx. We name the platform's ABI. The backend adds
    its own and its version of the internals; mlx must name the same.
    """
    core = strings(read_only(references.mlx, "core.*.so"), rb"nanobind_\w+_v\d+")
    backend = strings(read_only(references.nanobind_backend, "*.so"), rb"nanobind_\w+")
    ours = strings(extension.data, rb"nanobind_system_\w+")
    if len(core) != 1 or not core <= backend:
        yield f"mlx's key {core} is not nanobind-backend's: {backend}"
    if not ours or not ours <= backend:
        yield f"our platform {ours} is not nanobind-backend's: {backend}"


def check_kernels(extension: Extension, references: References) -> Iterator[str]:
    """Check that the file contains the kernels' text, byte for byte."""
    headers = sorted((ROOT / "kernels").glob("*.h"))
    if not headers:
        yield "there are no kernels"
    for header in headers:
        if header.read_bytes() not in extension.data:
            yield f"kernels/{header.name} is missing or differs"


def check_paths(extension: Extension, references: References) -> Iterator[str]:
    """Check that the file contains no path of the machine that built it."""
    for folder in (str(ROOT), "/Applications/"):
        if folder.encode() in extension.data:
            yield f"the path {folder} of the build is in the file"


EXTENSION_CHECKS: tuple[Callable[[Extension, References], Iterator[str]], ...] = (
    check_target,
    check_signature,
    check_identity,
    check_libraries,
    check_imports,
    check_entry,
    check_limited_api,
    check_nanobind,
    check_kernels,
    check_paths,
)


def strings(data: bytes, pattern: bytes) -> set[str]:
    """Return the ends of zero-terminated strings in `data` that match `pattern`."""
    return {text.decode() for text in re.findall(pattern + rb"(?=\0)", data)}


def read_only(folder: pathlib.Path, pattern: str) -> bytes:
    """Return the content of the one file below `folder` that matches."""
    (path,) = folder.rglob(pattern)
    return path.read_bytes()


def check_extension(data: bytes, references: References) -> list[str]:
    """Return the complaints about an extension module."""
    extension = Extension(data)
    return [
        complaint
        for check in EXTENSION_CHECKS
        for complaint in check(extension, references)
    ]


def check_wheel(wheel: pathlib.Path, references: dict[str, References]) -> list[str]:
    """Return the complaints about a wheel for these versions of mlx."""
    complaints = []
    if not wheel.name.endswith(f"-{TAG}.whl"):
        complaints.append(f"the wheel must be tagged {TAG} but is {wheel.name}")
    if wheel.stat().st_size > MAX_BYTES:
        complaints.append(f"{wheel.stat().st_size} bytes, more than {MAX_BYTES}")
    with zipfile.ZipFile(wheel) as archive:
        binaries = {
            name
            for name in archive.namelist()
            if name.endswith((".so", ".dylib", ".metallib", ".a"))
        }
        expected = {mlx_wheels.extension(version): version for version in references}
        if binaries != expected.keys():
            found = ", ".join(sorted(binaries))
            return [*complaints, f"{', '.join(expected)} alone expected, not {found}"]
        for name, version in expected.items():
            found = check_extension(archive.read(name), references[version])
            complaints += [f"{name}: {complaint}" for complaint in found]
    return complaints
