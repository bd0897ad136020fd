"""README.md's example runs as it is written, and prints what the README shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.simt.toolchain import BENCH, ROOT

TEXT = (BENCH / "README.md").read_text()
BARRIER = "  threadgroup_barrier(mem_flags::mem_threadgroup);\n"


def block(language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", TEXT, re.S)[1]  # pyright: ignore


def run(folder: Path, kernel: str) -> subprocess.CompletedProcess[str]:
    """Run the example on `kernel` in a folder outside the project."""
    (folder / "reverse.metal").write_text(kernel)
    (folder / "reverse.py").write_text(block("python"))
    return subprocess.run(
        [sys.executable, "reverse.py"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_the_example_finds_the_race_and_passes_with_a_barrier(tmp_path: Path) -> None:
    kernel = block("cpp")
    shown = " ".join(re.search(r"```\nreverse\n(.*?) \[", TEXT, re.S)[1].split())  # pyright: ignore
    failed = run(tmp_path, kernel)
    assert failed.returncode == 1
    assert shown in " ".join(failed.stderr.split())
    store = "  out[thread_index] ="
    passed = run(tmp_path, kernel.replace(store, BARRIER + store))
    assert passed.returncode == 0, passed.stderr
    assert passed.stdout.startswith("[127. 126.")


def test_the_readme_names_the_compiler_of_the_project() -> None:
    wanted = re.search(r"ziglang==[\d.]+", (ROOT / "pyproject.toml").read_text())
    assert wanted and wanted[0] in TEXT
