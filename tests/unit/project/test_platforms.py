"""`make test` on a Mac, and the workflow, run what can run there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.linux_only import TESTS, linux_only, needs_the_bench

# Collects as on a Mac: without the bench's compiler, and with its own platform.
AS_ON_A_MAC = """
import sys
import hypothesis, mlx_nibble, pytest  # they read what Linux's Python is built with
sys.platform = "darwin"
sys.modules["ziglang"] = None
sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""


# On Linux, mlx-lm's packages cannot be imported as on a Mac.
NEED_MLX_LM = ("unit", "e2e", "distributed", "fuzz")


def test_users_of_the_bench_are_found() -> None:
    found = linux_only()
    assert {"macos", "metal", "simt", "property/test_joint_kernels.py"} <= {*found}
    assert {"property/test_kernels.py", "property/test_planner.py"} <= {*found}
    # It needs the bench's plain numbers only.
    assert "property/test_cpu.py" not in found
    assert all((TESTS / name).exists() for name in found)


@pytest.mark.parametrize(
    ("text", "needs"),
    [
        ("from tests.simt import numbers", False),
        ("from tests.simt import cases, numbers", True),
        ("from tests import simt", True),
        ("import tests.simt.plans as p", True),
        ("def f():\n    from tests.simt.plans import Problem", True),
        ("from tests.support import oracle", False),
        ("from tests.simt.numbers import encode", True),
    ],
)
def test_any_import_of_the_bench_counts(tmp_path, text, needs) -> None:
    file = tmp_path / "test_x.py"
    file.write_text(text)
    assert needs_the_bench(file) is needs


def test_a_mac_does_not_collect_them() -> None:
    others = [f"--ignore=tests/{name}" for name in NEED_MLX_LM]
    done = subprocess.run(
        [sys.executable, "-c", AS_ON_A_MAC, "tests", *others],
        capture_output=True,
        text=True,
        cwd=TESTS.parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    files = {line.split("::")[0] for line in done.stdout.splitlines() if "::" in line}
    names = {Path(file).name for file in files}
    assert "test_cpu.py" in names
    assert not names & {Path(name).name for name in linux_only()}


def test_hosted_runners_have_no_gpu_that_our_kernels_can_use() -> None:
    """Their paravirtual GPU lacks simdgroup operations (Metal's family Apple5)."""
    text = (TESTS.parent / ".github" / "workflows" / "macos.yml").read_text()
    jobs = yaml.safe_load(text)["jobs"]
    on_gpu = 0
    for job in jobs.values():
        commands = "\n".join(step.get("run", "") for step in job["steps"])
        needs_gpu = "doctor" in commands or "make bench" in commands
        for line in commands.splitlines():
            needs_gpu |= "make test" in line and "NIBBLE_TEST_DEVICE=cpu" not in line
        if needs_gpu:
            on_gpu += 1
            assert "self-hosted" in job["runs-on"]
            # Nobody's pull request runs code on somebody's own machine.
            assert "github.event_name != 'pull_request'" in job["if"]
    assert on_gpu == 1
