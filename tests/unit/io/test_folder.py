"""An output folder is made by one process at a time, whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_nibble.io.folder import filling, new_folder, reserved, work_folder

HOLD = """
import sys, time
from mlx_nibble.io.folder import filling, reserved
with reserved(sys.argv[1], "test") as place, filling(place) as folder:
    (folder / "half").write_text("half")
    print("held", flush=True)
    time.sleep(60)
"""


def entries(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def make(path: Path) -> None:
    with new_folder(path, "test") as folder:
        (folder / "a").write_text("whole")


def test_a_folder_is_made(tmp_path):
    make(tmp_path / "deep" / "out")
    assert (tmp_path / "deep/out/a").read_text() == "whole"
    assert entries(tmp_path / "deep") == {"out"}


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), new_folder(tmp_path / "deep/er/out", "test") as new:
        (new / "a").write_text("half")
        raise KeyError
    assert not entries(tmp_path)


@pytest.mark.parametrize("spelling", ["out", "./sub/../out", "link/out", "out/"])
def test_the_second_of_two_is_refused(tmp_path, monkeypatch, spelling):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    with reserved(tmp_path / "out", "test"):
        said = f"process {os.getpid()} is making it"
        with pytest.raises(ValueError, match=said), reserved(spelling, "test"):
            pass
        with reserved("other", "test"):  # another output is free
            pass
    make(Path("out"))


def test_a_killed_process_blocks_nobody(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-c", HOLD, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match=f"process {process.pid} "):
            make(out)
        process.kill()
    assert len(entries(tmp_path)) == 2  # the lock and half a folder
    make(out)
    assert entries(tmp_path) == {"out"}


def test_only_ones_own_leftovers_are_removed(tmp_path):
    # Outputs named `o` and `out.partial-x` have folders with names like ours.
    others = {
        ".o.partial-abcd1234",
        ".out.partial-x.nibble",
        ".out.partial-x.partial-y",
    }
    for name in (*others, ".out.partial-abcd1234"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("half")
    (tmp_path / ".out.partial-file").write_text("a file is none of ours")
    make(tmp_path / "out")
    assert entries(tmp_path) == others | {"out", ".out.partial-file"}


def test_unfinished_work_outlives_errors_only(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyError), reserved(out, "test") as place:
        place.work.mkdir()
        raise KeyError
    assert entries(tmp_path) == {".out.nibble"}
    make(out)
    assert entries(tmp_path) == {"out"}


def test_a_kill_after_the_renaming(tmp_path):
    """The next run says that the work is done, and removes what is left of it."""
    out = tmp_path / "out"
    with pytest.raises(KeyError), reserved(out, "test") as place:
        place.work.mkdir()
        with filling(place):
            pass
        raise KeyError
    assert entries(tmp_path) == {"out", ".out.nibble"}
    with pytest.raises(ValueError, match="an earlier run has finished"):
        make(out)
    assert entries(tmp_path) == {"out"}


def test_work_beside_another_folder_is_kept(tmp_path):
    out = tmp_path / "out"
    work_folder(out).mkdir()
    out.mkdir()
    for _ in range(2):
        with pytest.raises(ValueError, match="must not exist yet"):
            make(out)
    assert entries(tmp_path) == {"out", ".out.nibble"}


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_what_exists_is_not_touched(tmp_path, kind):
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "folder":
        out.mkdir()
        (out / "mine").write_text("mine")
    else:
        out.symlink_to("absent")
    before = entries(tmp_path)
    with pytest.raises(ValueError, match="must not exist yet"):
        make(out)
    assert entries(tmp_path) == before


def test_what_comes_into_being_meanwhile_is_not_touched(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="must not exist"), new_folder(out, "test"):
        out.write_text("mine")
    assert out.read_text() == "mine"
    assert entries(tmp_path) == {"out"}


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for parent in (tmp_path / "file", Path("/proc")):
        with pytest.raises(OSError, match=r"out|file"):
            make(parent / "out")


def test_a_full_disk_is_named(tmp_path):
    """A limit of file sizes fails in the middle of a file as a full disk does."""
    program = (
        "import resource, sys; from pathlib import Path; import mlx.core as mx\n"
        "from mlx_nibble.io.checkpoint import save_weights\n"
        "from mlx_nibble.io.folder import new_folder\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "with new_folder(sys.argv[1], 'test') as folder:\n"
        "    save_weights(folder, {'w': mx.ones(10_000)})\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "could not be written: File too large." in done.stderr
    assert not entries(tmp_path)
