"""The corpus is read as documented, and the fuzzer finds faults that are planted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fuzz import run
from tests.fuzz.run import Inputs, Worker
from tests.fuzz.targets import TARGETS, Target
from tests.support.paths import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzz", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_every_input_that_was_once_found_is_read_as_documented():
    result = fuzz("--corpus", "--jobs", "2", "--json")
    assert result.returncode == 0, result.stderr
    counts = json.loads(result.stdout)["targets"]
    for name in TARGETS:
        files = list((run.CORPUS / name).glob("*.json"))
        assert counts[name]["inputs"] == len(files)


def _crash(folder: Path) -> None:
    if b"1" in (folder / "f.json").read_bytes():
        os.kill(os.getpid(), signal.SIGSEGV)


def _hang(folder: Path) -> None:
    while b"1" in (folder / "f.json").read_bytes():
        pass


def _flood(folder: Path) -> None:
    if b"1" in (folder / "f.json").read_bytes():
        bytearray(2 * run.BYTES)


def _undocumented(folder: Path) -> None:
    if b"1" in (folder / "f.json").read_bytes():
        {}["absent"]


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (_crash, "crash"),
        (_hang, "hang"),
        (_flood, "memory"),
        (_undocumented, "KeyError"),
    ],
)
def test_a_planted_fault_is_found_and_the_rest_is_read(read, kind, monkeypatch):
    monkeypatch.setitem(TARGETS, "planted", Target(lambda: [], read))
    if kind == "hang":
        monkeypatch.setattr(run, "SECONDS_OF_PROCESSOR", 0.2)
    inputs = Inputs([], {}, {str(i): {"f.json": b"%d" % i} for i in range(4)})
    outcome = outcome_of(inputs)
    (finding,) = outcome.findings
    assert (finding.kind, finding.number) == (kind, "1")
    assert finding.files == {"f.json": b"1"}
    assert not outcome.once


def outcome_of(inputs: Inputs) -> run.Outcome:
    worker = Worker("planted", inputs, 1, [*inputs.corpus], 600)
    while not worker.ended():
        time.sleep(0.01)
    assert worker.outcome.inputs == len(inputs.corpus)
    return worker.outcome


_READ: list[bytes] = []
_KEPT: list[bytearray] = []


def _slower_each_time(folder: Path) -> None:
    _READ.append((folder / "f.json").read_bytes())
    while len(_READ) == 2:
        pass


def _kept(folder: Path) -> None:
    if b"1" in (folder / "f.json").read_bytes():
        _KEPT.append(bytearray(run.BYTES * 3 // 4))
    bytearray(run.BYTES // 2)


def test_a_hang_that_does_not_come_again_alone_is_no_finding(monkeypatch):
    monkeypatch.setitem(TARGETS, "planted", Target(lambda: [], _slower_each_time))
    monkeypatch.setattr(run, "SECONDS_OF_PROCESSOR", 0.2)
    outcome = outcome_of(Inputs([], {}, {name: {"f.json": b""} for name in "ab"}))
    assert not outcome.findings
    assert [(f.kind, f.number) for f in outcome.once] == [("hang", "b")]


def test_what_follows_a_flood_is_read_with_all_memory(monkeypatch):
    monkeypatch.setitem(TARGETS, "planted", Target(lambda: [], _kept))
    monkeypatch.setattr(run, "BYTES", 1 << 28)
    inputs = Inputs([], {}, {str(i): {"f.json": b"%d" % i} for i in range(4)})
    assert [(f.kind, f.number) for f in outcome_of(inputs).findings] == [
        ("memory", "1")
    ]


def test_inputs_are_the_same_each_time():
    seeds = [{"f.json": b'{"a": [1, 2, {"b": "c"}]}'}]
    inputs = Inputs(seeds, {}, {})
    made = [inputs.make("config", 1, number) for number in range(200)]
    assert made == [inputs.make("config", 1, number) for number in range(200)]
    assert len({m["f.json"] for m in made}) > 100
    assert made != [inputs.make("config", 2, number) for number in range(200)]
