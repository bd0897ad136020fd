"""Compile the native code with sanitizers, and run its tests (``make sanitize``).

AddressSanitizer and UndefinedBehaviorSanitizer see the CPU backend behind its runner,
and the extension in a Python process. ThreadSanitizer sees the pool of threads, the
backend, the graph nodes and their backlog. MLX and Python are not compiled with them:
a fault inside either, or a race between two of their threads, is not seen.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from functools import cached_property
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import mlx_wheels

ROOT = Path(__file__).resolve().parents[1]
PYTEST = ["-m", "pytest", "-q", "-p", "no:cacheprovider"]
OPTIONS = {
    # Python and MLX keep memory until the process ends, so leaks are not reported.
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    # MLX and Python are not instrumented: their own accesses would be reported
    # without the atomics that order them.
    "TSAN_OPTIONS": "halt_on_error=1:ignore_noninstrumented_modules=1",
}
# Removes the finder of the editable installation, which comes before PYTHONPATH.
SITE = """import sys
sys.meta_path[:] = [f for f in sys.meta_path if "Redirecting" not in type(f).__name__]
"""


class Build:
    """The native code, compiled with one set of sanitizers."""

    def __init__(self, name: str, sanitizers: str, optimisation: str) -> None:
        """Compile what is not up to date."""
        self.folder = ROOT / "build" / f"sanitize-{name}"
        self.runtime = "libtsan.so" if sanitizers == "thread" else "libasan.so"
        defines = {
            "CMAKE_BUILD_TYPE": "None",
            "CMAKE_CXX_FLAGS": f"{optimisation} -g1",
            "CMAKE_MAKE_PROGRAM": _program("ninja"),
            "NIBBLE_SANITIZE": sanitizers,
            "NIBBLE_TESTING": "ON",
            "Python_EXECUTABLE": sys.executable,
        }
        flags = [f"-D{name}={value}" for name, value in defines.items()]
        _run([_program("cmake"), "-S", ROOT, "-B", self.folder, "-G", "Ninja", *flags])
        _run([_program("ninja"), "-C", self.folder])

    def program(self, name: str, *arguments: str) -> None:
        """Run a test's program."""
        spec = find_spec("mlx")
        assert spec and spec.submodule_search_locations
        libraries = Path(next(iter(spec.submodule_search_locations)), "lib")
        env = {"LD_LIBRARY_PATH": str(libraries), "NIBBLE_NUM_THREADS": "4"}
        _run([self._built(name), *arguments], env)

    def backend(self, wanted: str = "") -> None:
        """Run the property tests with the runner of this build.

        Args:
            wanted: Expression that selects tests; all of this machine's without it.
        """
        tests = [
            ROOT / "tests/property" / f"test_{n}.py"
            for n in ("cpu", "cpu_experts", "cpu_layers")
        ]
        native = "not neon" + (f" and ({wanted})" if wanted else "")
        env = {"NIBBLE_CPU_RUNNER": str(self._built("cpu_runner"))}
        _run([sys.executable, *PYTEST, *tests, "-k", native], env)

    def python(self, *arguments: str | Path) -> None:
        """Run Python with the extension of this build."""
        compiler = os.environ.get("CXX", "c++")
        libraries = [
            subprocess.check_output(
                [compiler, f"-print-file-name={name}"], text=True
            ).strip()
            # With the C++ library, for the runtime intercepts its exceptions.
            for name in (self.runtime, "libstdc++.so.6")
        ]
        env = {
            "LD_PRELOAD": " ".join(libraries),
            "PYTHONPATH": str(self.site),
            "NIBBLE_NUM_THREADS": "3",
        }
        # The layout of memory that ThreadSanitizer expects.
        fixed = ["setarch", "-R"] if self.runtime == "libtsan.so" else []
        _run([*fixed, sys.executable, "-X", "faulthandler", *arguments], env)

    def _built(self, name: str) -> Path:
        """Return the one file of this name."""
        site = self.folder / "site"  # which has copies
        (path,) = (p for p in self.folder.rglob(name) if site not in p.parents)
        return path

    @cached_property
    def site(self) -> Path:
        """A folder with the package: this build's extension and the Python sources."""
        site = self.folder / "site"
        package = site / "mlx_nibble"
        shutil.rmtree(site, ignore_errors=True)
        shutil.copytree(ROOT / "python" / "mlx_nibble", package)
        extension = site / mlx_wheels.extension(metadata.version("mlx"))
        extension.parent.mkdir(exist_ok=True)
        shutil.copy(self._built("_ext.abi3.so"), extension)
        (site / "sitecustomize.py").write_text(SITE)
        return site


def _program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def _run(command: list[str | Path], env: dict[str, str] | None = None) -> None:
    print("+", *command, flush=True)
    subprocess.run(
        command, check=True, cwd=ROOT, env=os.environ | OPTIONS | (env or {})
    )


def quick() -> None:
    """Run what fits `.ci/run`: the pool of threads, which compiles in seconds."""
    sources = [ROOT / "tests/cpu/pool_test.cpp", ROOT / "csrc/cpu/thread_pool.cpp"]
    for name, sanitizers in (("thread", "thread"), ("address", "address,undefined")):
        out = ROOT / "build" / f"pool_test_{name}"
        flags = ["-std=c++20", "-O1", "-g1", "-pthread", f"-I{ROOT}"]
        flags += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
        _run([os.environ.get("CXX", "c++"), *flags, *sources, "-o", out])
        _run([out, "300"], {"NIBBLE_NUM_THREADS": "4"})


def full() -> None:
    """Run everything."""
    ops = ROOT / "tests" / "unit" / "ops"
    left_out = (
        # It starts Python again for each instruction set.
        "test_fast.py::test_every_instruction_set",
        # The sanitizer's operator new ends the process where memory is limited.
        "test_failing_tasks.py::test_products_are_right_after_running_out_of_memory",
    )
    once = [f"--deselect={ops}/{name}" for name in left_out]
    differential = ["-m", "tests.differential", "--seed", "0", "--cases"]
    # With both sanitizers GCC 12 compiles a file of kernels in 25 s of CPU time with
    # -O0. With -O1 it had not ended after 160 s.
    address = Build("address", "address,undefined", "-O0")
    address.program("pool_test", "1000")
    address.program("task_test")
    address.backend()
    address.python(*PYTEST, ops, *once)
    address.python(*differential, "5000")
    thread = Build("thread", "thread", "-O1")
    thread.program("pool_test", "3000")
    thread.program("task_test")
    thread.backend("products or gathered or columns or threads_leave or agree")
    thread.python(*PYTEST, ops / "test_fast.py", "-k", "streams or compile")
    thread.python(*differential, "1000")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the form of .ci/run")
    try:
        quick() if parser.parse_args().quick else full()
    except subprocess.CalledProcessError as error:
        sys.exit(f"sanitize: {error.cmd[0]} failed with status {error.returncode}")
