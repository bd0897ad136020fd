"""Each check of the macOS wheel passes a good file and can fail.

The cross toolchain builds a miniature extension, which never runs.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable

import pytest

lief = pytest.importorskip("lief", reason="the dev extra is not installed")
ziglang = pytest.importorskip("ziglang", reason="the dev extra is not installed")

import check_macho  # noqa: E402
import mlx_wheels  # noqa: E402
import wheel_macos  # noqa: E402

pytestmark = pytest.mark.skipif(
    shutil.which(wheel_macos.LINKER) is None,
    reason=f"{wheel_macos.LINKER} is not installed (Debian: lld-19)",
)

HERE = pathlib.Path(__file__).parent
VERSION = mlx_wheels.versions()[-1]
ROOT = check_macho.ROOT
COMPILER = ROOT / "cmake" / "macos" / "bin" / "c++"

Build = Callable[..., bytes]


@pytest.fixture(scope="module")
def references() -> check_macho.References:
    return wheel_macos.references(VERSION)


def with_zig() -> dict[str, str]:
    zig = pathlib.Path(ziglang.__file__).parent / "zig"
    here = pathlib.Path(sys.executable).parent  # the environment's own cmake
    path = f"{here}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "ZIG": str(zig), "PATH": path}


def compiler(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMPILER, *arguments],
        env=with_zig(),
        capture_output=True,
        text=True,
    )


def link(objects: pathlib.Path, out: pathlib.Path, *flags: str):
    libmlx = wheel_macos.references(VERSION).mlx_metal / "mlx" / "lib" / "libmlx.dylib"
    symbols = pathlib.Path(check_macho.nanobind.cmake_dir()) / "darwin-ld-cpython.sym"
    return compiler(
        "-bundle",
        f"-Wl,@{symbols}",
        *(flags or ("-Wl,-rpath,@loader_path/../../mlx/lib",)),
        "-o",
        str(out),
        str(objects),
        str(libmlx),
    )


@pytest.fixture
def build(tmp_path: pathlib.Path) -> Build:
    """Return a function that builds the miniature with macros and linker flags."""

    def run(*macros: str, flags: tuple[str, ...] = (), kernels: bool = True) -> bytes:
        source = tmp_path / "tiny.cpp"
        text = (HERE / "tiny.cpp").read_text()
        for header in sorted((ROOT / "kernels").glob("*.h")) if kernels else ():
            text += f'asm(".section __TEXT,__const\\n.incbin \\"{header}\\"");\n'
        source.write_text(text)
        objects, out = tmp_path / "tiny.o", tmp_path / "_ext.abi3.so"
        hidden = "-fvisibility=hidden"
        compiled = compiler(
            "-O1", hidden, *macros, "-c", str(source), "-o", str(objects)
        )
        assert compiled.returncode == 0, compiled.stderr
        linked = link(objects, out, *flags)
        assert linked.returncode == 0, linked.stderr
        return out.read_bytes()

    return run


RPATH = "-Wl,-rpath,@loader_path/../../mlx/lib"


def test_a_good_extension_passes(build: Build, references):
    assert check_macho.check_extension(build(), references) == []


@pytest.mark.parametrize(
    ("macros", "flags", "complaint"),
    [
        ((), (RPATH, "--target=arm64-apple-macos15.0"), "the oldest macOS must be"),
        ((), (RPATH, "--target=arm64-apple-macos13.0"), "libmlx needs macOS (14, 0)"),
        ((), (RPATH, "-Wl,-no_adhoc_codesign"), "there is no code signature"),
        ((), (RPATH, "-Wl,-no_uuid"), "there is no LC_UUID"),
        (("-DWITHOUT_MLX",), (), "@rpath/libmlx.dylib is not linked"),
        ((), ("-Wl,-rpath,@loader_path/lib",), "the rpath must be"),
        ((), (RPATH, "-Wl,-rpath,/usr/lib"), "the rpath must be"),
        (("-DHIDDEN",), (RPATH, "-undefined", "dynamic_lookup"), "is in no library"),
        (("-DEXTRA_EXPORT",), (), "_PyInit__ext alone must be exported"),
        (("-DUNSTABLE",), (), "abi3audit: "),
        (('-DKEY="nanobind_system_libcpp_abi2"',), (), "our platform"),
        ((f'-DPATH="{ROOT}/csrc/bindings.cpp"',), (), "of the build is in the file"),
    ],
)
def test_a_check_fails(build: Build, references, macros, flags, complaint):
    complaints = check_macho.check_extension(build(*macros, flags=flags), references)
    assert any(complaint in c for c in complaints), complaints


@pytest.mark.parametrize(
    ("offset", "value", "complaint"),
    [
        (4, 0x01000007, "arm64 is needed"),  # CPU_TYPE_X86_64
        (12, 6, "a bundle is needed"),  # MH_DYLIB
    ],
)
def test_another_kind_of_file_fails(build: Build, references, offset, value, complaint):
    data = bytearray(build())
    data[offset : offset + 4] = value.to_bytes(4, "little")
    complaints = check_macho.check_extension(bytes(data), references)
    assert any(complaint in c for c in complaints), complaints


def test_a_foreign_library_fails(build: Build, references):
    jaccl = references.mlx_metal / "mlx" / "lib" / "libjaccl.dylib"
    data = build(flags=(RPATH, f"-Wl,-needed_library,{jaccl}"))
    complaints = check_macho.check_extension(data, references)
    assert any("unexpected libraries ['@rpath/libjaccl" in c for c in complaints)


def test_a_name_that_a_library_lacks_fails(build: Build, references, tmp_path):
    # This list has a name more than libSystem exports.
    lists = check_macho.SDK / "usr" / "lib"
    promise = (lists / "libSystem.tbd").read_text()
    name = "__ZN3mlx4core5metal16is_nax_availableEv"
    tbd = tmp_path / "libpromise.tbd"
    tbd.write_text(promise.replace("symbols:\n", f"symbols:\n      - '{name}'\n"))
    data = build("-DHIDDEN", flags=(RPATH, str(tbd)))
    assert check_macho.check_extension(data, references) == [
        f"/usr/lib/libSystem.B.dylib does not export {name}"
    ]


def test_kernels_that_are_missing_or_differ_fail(build: Build, references):
    headers = sorted((ROOT / "kernels").glob("*.h"))
    missing = check_macho.check_extension(build(kernels=False), references)
    assert missing == [f"kernels/{h.name} is missing or differs" for h in headers]
    text = headers[0].read_bytes()
    data = build().replace(text, text[:-2] + b" \n")
    complaints = check_macho.check_extension(data, references)
    assert complaints == [f"kernels/{headers[0].name} is missing or differs"]


def test_an_mlx_with_another_nanobind_fails(build: Build, references, tmp_path):
    (tmp_path / "core.cpython-311-darwin.so").write_bytes(
        b"\0nanobind_system_libcpp_abi1_a1_v23\0"
    )
    newer = check_macho.References(
        references.mlx_metal, tmp_path, references.nanobind_backend
    )
    (complaint,) = check_macho.check_extension(build(), newer)
    assert complaint.startswith("mlx's key {'nanobind_system_libcpp_abi1_a1_v23'}")


def pack(folder: pathlib.Path, tag: str, files: dict[str, bytes]) -> pathlib.Path:
    path = folder / f"mlx_nibble-0.1.0-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def test_wheels(build: Build, references, tmp_path):
    name, data = mlx_wheels.extension(VERSION), build()

    def complaints(tag: str, files: dict[str, bytes]) -> list[str]:
        return check_macho.check_wheel(
            pack(tmp_path, tag, files), {VERSION: references}
        )

    tag = check_macho.TAG
    assert complaints(tag, {name: data}) == []
    (wrong_tag,) = complaints("cp311-cp311-macosx_14_0_arm64", {name: data})
    assert "must be tagged" in wrong_tag
    (two,) = complaints(tag, {name: data, "mlx_nibble/libmlx.dylib": data})
    assert "alone expected" in two
    (large,) = complaints(tag, {name: data, "pad": bytes(check_macho.MAX_BYTES)})
    assert "more than" in large


def test_a_hidden_name_of_mlx_fails_the_link(tmp_path):
    objects = tmp_path / "tiny.o"
    source = str(HERE / "tiny.cpp")
    assert compiler("-DHIDDEN", "-c", source, "-o", str(objects)).returncode == 0
    linked = link(objects, tmp_path / "tiny.so")
    assert linked.returncode != 0
    assert "undefined symbol: mlx::core::metal::is_nax_available()" in linked.stderr


def configure(tmp_path: pathlib.Path) -> subprocess.CompletedProcess[str]:
    """Configure the project against the mlx of tmp_path, if there is one."""
    return subprocess.run(
        [
            "cmake",
            f"-S{ROOT}",
            f"-B{tmp_path / 'build'}",
            f"--toolchain={ROOT}/cmake/macos/toolchain.cmake",
            f"-DMLX_FOLDER={tmp_path}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DPython_INCLUDE_DIR={sysconfig.get_path('include')}",
        ],
        env=with_zig(),
        capture_output=True,
        text=True,
    )


def test_no_mlx_fails_the_build(tmp_path):
    configured = configure(tmp_path)
    assert configured.returncode != 0
    words = " ".join(configured.stderr.split())
    assert f"mlx {mlx_wheels.versions()[0]} is required but" in words


def test_another_mlx_fails_the_build(tmp_path):
    for version in mlx_wheels.versions():
        package = tmp_path / f"mlx-metal-{version}" / "mlx" / "share" / "cmake" / "MLX"
        package.mkdir(parents=True)
        (package / "MLXConfig.cmake").touch()
        (package / "MLXConfigVersion.cmake").write_text("set(PACKAGE_VERSION 0.32.2)")
    configured = configure(tmp_path)
    assert configured.returncode != 0
    words = " ".join(configured.stderr.split())
    assert f"{VERSION} is required but 0.32.2" in words
