"""Run inputs in forked workers, so that a crash, a hang and a flood are found.

A worker gives each input 5 seconds of processor time, and 1 GB beyond its own memory.
An input is a function of target, seed and number: the parent makes it again when the
worker that read it has died. Hangs and floods count if a new worker finds them again.
"""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import itertools
import json
import mmap
import os
import pickle
import random
import resource
import signal
import struct
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.mutate import Files, mutate
from tests.fuzz.targets import TARGETS

SECONDS_OF_PROCESSOR, SECONDS_OF_WALL, BYTES = 5, 60, 1 << 30
CORPUS = Path(__file__).with_name("corpus")
# Shared with the parent: inputs done, those refused, the time of the end.
_SLOT = struct.Struct("QQd")
# Exit status of a worker that is to be started again, for its memory is used up.
_RESTART = 3
# Kinds that a worker's past, or other processes, can cause.
_DOUBTFUL = ("hang", "memory")


@dataclass
class Finding:
    """An input that was read wrong.

    Attributes:
        target: Name of the reader.
        number: Number of the input, or the corpus's name of it.
        kind: The undocumented error, "crash", "hang" or "memory".
        where: The last lines of the traceback, or the signal.
        files: The input.
    """

    target: str
    number: int | str
    kind: str
    where: str
    files: Files


@dataclass
class Outcome:
    """The counts of one target.

    Attributes:
        inputs: Number of inputs that were read.
        refused: Number of those with a documented error.
        seconds: Time of the workers.
        findings: Inputs that were read wrong.
        once: Hangs and floods that did not come again when read alone.
    """

    inputs: int = 0
    refused: int = 0
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    once: list[Finding] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        """Add the counts of another worker."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(frozen=True)
class Inputs:
    """The inputs of a target.

    Attributes:
        seeds: Whole inputs.
        around: Files that stay whole.
        corpus: Name to input: those that were once read wrong.
    """

    seeds: list[Files]
    around: Files
    corpus: dict[str, Files]

    def make(self, target: str, seed: int, number: int | str) -> Files:
        """Return an input; a string names one of the corpus."""
        if isinstance(number, str):
            return self.corpus[number]
        rng = random.Random(f"{seed}:{target}:{number}")
        known = [*self.corpus.values()]
        base = rng.choice(known if known and rng.random() < 0.1 else self.seeds)
        return mutate(base, rng, self.seeds)


def prepare(names: Iterable[str]) -> dict[str, Inputs]:
    """Return the inputs of targets. A child makes them: MLX's threads do not fork."""
    return pickle.loads(_in_child(lambda: pickle.dumps(_prepare(names))))


def _prepare(names: Iterable[str]) -> dict[str, Inputs]:
    made = {}
    for name in names:
        whole = TARGETS[name].seeds()
        corpus = {}
        for file in sorted((CORPUS / name).glob("*.json")):
            case = json.loads(file.read_text(encoding="utf-8"))
            changed = {k: _decoded(v) for k, v in case["files"].items()}
            corpus[file.stem] = {**whole[case["seed"]], **changed}
        made[name] = Inputs(whole, TARGETS[name].around(), corpus)
    return made


def _decoded(content: str | dict[str, str]) -> bytes:
    if isinstance(content, str):
        return content.encode("utf-8", "surrogateescape")
    return bytes.fromhex(content["hex"])


def save(finding: Finding, folder: Path) -> Path:
    """Write the files of a finding to a folder of its own; return the folder."""
    digest = hashlib.sha256(repr(sorted(finding.files.items())).encode())
    path = folder / f"{finding.target}-{digest.hexdigest()[:12]}"
    path.mkdir(parents=True, exist_ok=True)
    for name, data in finding.files.items():
        (path / name).write_bytes(data)
    return path


def corpus_case(finding: Finding, inputs: Inputs) -> dict[str, Any]:
    """Return the entry of the corpus: the files that differ from a whole input."""
    differ = [
        {k: v for k, v in finding.files.items() if whole.get(k) != v}
        for whole in inputs.seeds
    ]
    seed = min(range(len(differ)), key=lambda i: sum(map(len, differ[i].values())))
    files: dict[str, Any] = {}
    for name, data in differ[seed].items():
        try:
            files[name] = data.decode("utf-8")
        except UnicodeDecodeError:
            files[name] = {"hex": data.hex()}
    return {"found": f"{finding.kind}: {finding.where}", "seed": seed, "files": files}


class Worker:
    """A forked process that reads inputs of one target, started again when it dies."""

    def __init__(
        self,
        target: str,
        inputs: Inputs,
        seed: int,
        numbers: Iterable[int | str],
        seconds: float,
        confirm: bool = True,
    ):
        """Start; `numbers` are read in order until `seconds` have passed.

        Args:
            target: Name of the reader.
            inputs: Its inputs.
            seed: Seed of the damage.
            numbers: Numbers of inputs, or names of the corpus.
            seconds: Time after which no other input is read.
            confirm: Whether to read hangs and floods again, alone.
        """
        self.target, self.inputs, self.seed = target, inputs, seed
        self.outcome = Outcome()
        self.numbers = iter(numbers)
        self.seconds = seconds
        self._confirm = confirm
        self._doubtful: list[Finding] = []
        self._alone: Worker | None = None
        self._slot = mmap.mmap(-1, _SLOT.size)
        self._found = tempfile.TemporaryFile()
        self._fork()

    def _fork(self) -> None:
        self._known = [*_SLOT.unpack(self._slot)]
        # Both processes hold a copy of the same iterator.
        self.numbers, mine = itertools.tee(self.numbers)
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            with contextlib.suppress(BaseException):
                status = _work(self, mine)
            os._exit(status)

    def ended(self) -> bool:
        """Return whether the worker is done; start it again if it died."""
        if self._alone is not None:
            return self._confirmed()
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            return False
        code = os.waitstatus_to_exitcode(status)
        done, refused, end = _SLOT.unpack(self._slot)
        read = done - self._known[0]
        deque(itertools.islice(self.numbers, read), 0)
        again = code == _RESTART
        if code not in (0, _RESTART):
            current = next(self.numbers, None)
            if again := current is not None:
                self._blame(current, code)
                _SLOT.pack_into(self._slot, 0, done + 1, refused, end)
        if again and time.monotonic() < end and len(self.outcome.findings) < 200:
            self._fork()
            return False
        self._finish()
        return self._confirmed()

    def _confirmed(self) -> bool:
        """Read doubtful inputs alone, one after another; return whether all are."""
        if self._alone is not None:
            if not self._alone.ended():
                return False
            finding, found = self._doubtful.pop(), self._alone.outcome.findings
            self._alone = None
            if found:
                self.outcome.findings += found
            else:
                self.outcome.once.append(finding)
        if self._doubtful:
            numbers = [self._doubtful[-1].number]
            self._alone = Worker(
                self.target, self.inputs, self.seed, numbers, 1e6, confirm=False
            )
            return False
        return True

    def _blame(self, number: int | str, code: int) -> None:
        name = signal.Signals(-code).name if code < 0 else f"exit {code}"
        hang = -code in (signal.SIGPROF, signal.SIGALRM)
        files = self.inputs.make(self.target, self.seed, number)
        kind = "hang" if hang else "crash"
        self.outcome.findings.append(Finding(self.target, number, kind, name, files))

    def _finish(self) -> None:
        outcome = self.outcome
        outcome.inputs, outcome.refused, end = _SLOT.unpack(self._slot)
        outcome.seconds = time.monotonic() - (end - self.seconds)
        self._found.seek(0)
        for line in self._found:
            number, kind, where = json.loads(line)
            files = self.inputs.make(self.target, self.seed, number)
            outcome.findings.append(Finding(self.target, number, kind, where, files))
        if self._confirm:
            self._doubtful = [f for f in outcome.findings if f.kind in _DOUBTFUL]
            outcome.findings = [f for f in outcome.findings if f.kind not in _DOUBTFUL]


def _work(worker: Worker, numbers: Iterable[int | str]) -> int:
    """Read inputs; return the status of the process, which is a fork of its own."""
    target = TARGETS[worker.target]
    faulthandler.disable()  # the parent reports
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    shared = Path("/dev/shm")
    place = shared if shared.is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as name:
        folder = Path(name)
        for whole in worker.inputs.seeds:  # libraries and threads come with the first
            _read(target, folder, {**worker.inputs.around, **whole}, {})
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        written: Files = {}
        done, refused, end = _SLOT.unpack(worker._slot)
        end = end or time.monotonic() + worker.seconds
        for number in numbers:
            _SLOT.pack_into(worker._slot, 0, done, refused, end)
            if time.monotonic() > end:
                break
            files = worker.inputs.make(worker.target, worker.seed, number)
            files = {**worker.inputs.around, **files}
            signal.setitimer(signal.ITIMER_PROF, SECONDS_OF_PROCESSOR)
            signal.setitimer(signal.ITIMER_REAL, SECONDS_OF_WALL)
            problem = _read(target, folder, files, written)
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            done, refused = done + 1, refused + (problem == "refused")
            if problem and problem != "refused":
                line = json.dumps([number, *problem]).encode() + b"\n"
                os.write(worker._found.fileno(), line)
                if problem[0] == "memory":
                    _SLOT.pack_into(worker._slot, 0, done, refused, end)
                    return _RESTART
        _SLOT.pack_into(worker._slot, 0, done, refused, end)
    return 0


def _read(target: Any, folder: Path, files: Files, written: Files) -> Any:
    """Write an input and read it; return None, "refused", or kind and traceback."""
    for name in written.keys() - files.keys():
        (folder / name).unlink(missing_ok=True)
        del written[name]
    for name, data in files.items():
        if written.get(name) is not data or not (folder / name).exists():
            (folder / name).unlink(missing_ok=True)
            (folder / name).write_bytes(data)
            written[name] = data
    try:
        target.read(folder)
    except target.errors as error:
        text = str(error)
        if "Unable to allocate" in text or "bad_alloc" in text:
            return "memory", _where(error)
        return "refused"
    except MemoryError as error:
        return "memory", _where(error)
    except BaseException as error:
        return type(error).__name__, _where(error)
    return None


def _where(error: BaseException) -> str:
    """Return the message and the last two places of a traceback."""
    places = traceback.extract_tb(error.__traceback__)[-2:]
    found = " < ".join(f"{Path(p.filename).name}:{p.lineno}" for p in reversed(places))
    return f"{str(error)[:160]} ({found})"


def _in_child(make: Any) -> bytes:
    """Return what a function returns in a child process."""
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(receive)
            with open(send, "wb") as out:
                out.write(make())
            status = 0
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    os.close(send)
    with open(receive, "rb") as source:
        data = source.read()
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("the whole inputs could not be made")
    return data
