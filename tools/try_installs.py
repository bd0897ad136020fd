"""Installs a wheel in every way that people do, and writes a table: `make installs`.

Each case is a fresh environment. A row says if the machine lacks its Python. Nothing is
simulated, but no case needs a GPU.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlx_wheels
from wheel_linux import find_python

ROOT = pathlib.Path(__file__).resolve().parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
FREE_THREADED = "3.13t"  # it takes no wheel of the stable ABI
SMOKE = str(ROOT / "tools" / "smoke.py")
OLD_MLX = "0.32.2"  # the newest that no extension fits


class Environment:
    """A virtual environment, and the installer that fills it."""

    def __init__(self, folder: str, python: str, installer: str) -> None:
        """Make the environment."""
        self.folder, self.installer = pathlib.Path(folder), installer
        self.python = str(self.folder / "bin" / "python")
        done = subprocess.run([python, "-m", "venv", folder], capture_output=True)
        done.check_returncode()

    def install(self, *packages: str) -> None:
        """Install packages; raise RuntimeError with the last line of an error."""
        command = [self.python, "-m", "pip", "install", "-q"]
        if self.installer == "uv":
            command = [sys.executable, "-m", "uv", "pip", "install", "-q"]
            command += ["--python", self.python]
        self.run(*command, *packages)

    def run(self, *command: str, **env: str) -> str:
        """Return what a command prints; raise RuntimeError if it fails."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        done = subprocess.run(command, capture_output=True, text=True, env=clean | env)
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines()
            raise RuntimeError(lines[-1] if lines else f"status {done.returncode}")
        return done.stdout + done.stderr

    def says(self, code: str, text: str, **env: str) -> None:
        """Require that an import fails, with this text in its last line."""
        try:
            self.run(self.python, "-c", code, **env)
        except RuntimeError as error:
            if text in str(error):
                return
            raise
        raise RuntimeError(f"an error with {text!r} was required but there was none")

    def files(self) -> set[str]:
        """Return the paths of this package in the environment."""
        return {
            str(path.relative_to(self.folder))
            for pattern in ("**/*mlx_nibble*", "bin/nibble")
            for path in self.folder.glob(pattern)
        }


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        mlx: Version and backend of MLX.
        what: The step that is tried, and the result that it must have.
        check: Function that does it and raises RuntimeError if it fails.
    """

    installer: str
    python: str
    mlx: str
    what: str
    check: Callable[[Environment], None]


def _works(env: Environment) -> None:
    env.run(env.python, SMOKE)


def cases(wheel: str, sdist: str) -> Iterator[Case]:
    """Yield all cases."""
    *_, newest = versions = mlx_wheels.versions()

    def beside(version: str, *packages: str) -> Callable[[Environment], None]:
        def check(env: Environment) -> None:
            env.install(f"mlx[cpu]=={version}", *packages)
            _works(env)

        return check

    for installer in ("pip", "uv"):
        for python in PYTHONS:
            check = beside(newest, f"{wheel}[cpu]")
            yield Case(installer, python, f"{newest}, cpu", "products right", check)
        yield Case(installer, FREE_THREADED, "none", "a clear refusal", _refused(wheel))
        for version in versions[:-1]:
            check = beside(version, f"{wheel}[cpu]")
            yield Case(installer, "3.11", f"{version}, cpu", "products right", check)
        text = "`[lm]`: products right, `nibble doctor` passes"
        yield Case(installer, "3.11", f"{newest}, cpu", text, _with_mlx_lm(wheel))
    check = beside(newest, f"{sdist}[cpu]")
    yield Case("pip", "3.11", f"{newest}, cpu", "from the sdist: products right", check)

    def without(env: Environment) -> None:
        env.install(wheel)
        env.says("import mlx_nibble", "pip install 'mlx[cpu]'")

    text = "the import says what to install"
    yield Case("pip", "3.11", f"{newest}, no backend", text, without)
    text = "`libmlx.so` as before; the import names the driver"
    yield Case("pip", "3.11", f"{newest}, cuda13", text, _beside_cuda(wheel, newest))
    text = "later downgrade: inactive, with the fix; an error on request"
    yield Case("pip", "3.11", f"{OLD_MLX}, cpu", text, _downgraded(wheel))

    def removed(env: Environment) -> None:
        env.install(f"{wheel}[cpu]")
        _works(env)
        if not env.files():
            raise RuntimeError("files of the package were required but there are none")
        env.run(env.python, "-m", "pip", "uninstall", "-y", "mlx-nibble")
        if left := env.files():
            raise RuntimeError(f"no file was to be left but got {sorted(left)}")

    yield Case("pip", "3.11", f"{newest}, cpu", "uninstalled: no file is left", removed)


def _refused(wheel: str) -> Callable[[Environment], None]:
    reasons = ("not a supported wheel on this platform", "a GIL-enabled interpreter")

    def check(env: Environment) -> None:
        try:
            env.install("--no-deps", wheel)
        except RuntimeError as error:
            if any(reason in str(error) for reason in reasons):
                return
            raise
        raise RuntimeError(f"an error with one of {reasons} was required but got none")

    return check


def _with_mlx_lm(wheel: str) -> Callable[[Environment], None]:
    def check(env: Environment) -> None:
        env.install(f"{wheel}[cpu,lm]")
        _works(env)
        env.run(str(env.folder / "bin" / "nibble"), "doctor")

    return check


def _beside_cuda(wheel: str, version: str) -> Callable[[Environment], None]:
    def check(env: Environment) -> None:
        # NVIDIA's libraries, 1.7 GB, change nothing of this.
        env.install("--no-deps", f"mlx=={version}", f"mlx-cuda-13=={version}")
        (library,) = env.folder.glob("lib/python*/site-packages/mlx/lib/libmlx.so")
        before = hashlib.sha256(library.read_bytes()).hexdigest()
        env.install(wheel)
        if hashlib.sha256(library.read_bytes()).hexdigest() != before:
            raise RuntimeError("libmlx.so was to stay the same but it differs")
        env.says("import mlx_nibble", "NVIDIA driver")

    return check


def _downgraded(wheel: str) -> Callable[[Environment], None]:
    def check(env: Environment) -> None:
        env.install(f"{wheel}[cpu]")
        env.install(f"mlx[cpu]=={OLD_MLX}")
        fix, code = "run: pip install 'mlx>=", "import mlx_nibble"
        said = env.run(env.python, "-c", code)
        if "is inactive" not in said or fix not in said:
            raise RuntimeError(f"a warning with {fix!r} was required but got {said!r}")
        env.says(code, fix, NIBBLE_REQUIRE_ACTIVE="1")

    return check


def try_case(case: Case) -> str:
    """Return "yes", what failed, or why it was not tried."""
    python = find_python(case.python)
    if python is None:
        return "not tried: no such Python here"
    with tempfile.TemporaryDirectory() as folder:
        try:
            case.check(Environment(folder, python, case.installer))
        except (RuntimeError, subprocess.CalledProcessError) as error:
            return f"**no**: {error}"
    return "yes"


def main() -> int:
    """Try all, print the table as Markdown or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dist", type=pathlib.Path, default=ROOT / "dist")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    (wheel,) = args.dist.glob("*linux*.whl")
    (sdist,) = args.dist.glob("*.tar.gz")
    rows, failed = [], False
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB", file=sys.stderr)
    for case in cases(str(wheel), str(sdist)):
        start = time.monotonic()
        outcome = try_case(case)
        failed |= outcome.startswith("**no**")
        seconds = time.monotonic() - start
        row = (case.installer, case.python, case.mlx, case.what, outcome)
        rows.append(row)
        print(f"{' | '.join(row)} ({seconds:.0f} s)", file=sys.stderr, flush=True)
    header = ("installer", "Python", "mlx", "what", "as required")
    if args.json:
        print(
            json.dumps([dict(zip(header, row, strict=True)) for row in rows], indent=2)
        )
    else:
        for row in (header, ["---"] * len(header), *rows):
            print(f"| {' | '.join(row)} |")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
