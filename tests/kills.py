"""Kills conversions at random moments, continues them, and compares the files.

    python -m tests.kills --count 100 --races 20

A killed conversion must give the same bytes as one that was not killed, or say in one
line that it was finished. Two conversions into one folder at once must give the bytes
of one, and one line of the other. Nothing else may be left beside the result.
"""

from __future__ import annotations

import argparse
import hashlib
import os

# Matrices are tiny. Several threads would only wait for each other.
os.environ.update(OPENBLAS_NUM_THREADS="1")
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

# All is imported before the first fork: a conversion then takes tenths of a second.
# Only children compute, since a fork does not copy MLX's threads.
import mlx.core as mx
import numpy as np
import transformers  # noqa: F401

import mlx_nibble.conversion.convert  # noqa: F401
from mlx_nibble.cli import convert as _convert  # noqa: F401
from mlx_nibble.cli import main as nibble
from tests.support import gptq_folders, model_folders, tiny_models
from tests.support.gguf_writer import tiny_llama

_QUICK = "--q-group-size 32 --calibration {home}/text.txt --samples 4".split()
_QUICK += ["--sequence-length", "32"]
CASES = {
    "gguf": ["{home}/tiny.gguf"],
    "packed": ["{home}/gptq"],
    "rtn": ["{home}/model", "-q", "--method", "rtn", "--q-group-size", "32"],
    "search": ["{home}/model", "-q", "--method", "search", "--q-group-size", "32"],
    "gptq": ["{home}/model", "-q", *_QUICK],
    "awq": ["{home}/model", "-q", "--method", "awq", *_QUICK],
    "awq+gptq": ["{home}/model", "-q", "--method", "awq+gptq", *_QUICK],
    "target": ["{home}/model", "-q", "--target-bpw", "12", *_QUICK],
    "gguf, gptq": ["{home}/tiny.gguf", "-q", *_QUICK],
    "packed, gptq": ["{home}/gptq", "-q", *_QUICK],
}
_FINISHED = "the output must not exist yet"
_REFUSED = ("one process at a time may make", _FINISHED)
# Far above the time of a conversion on a loaded machine.
_PATIENCE_S = 120.0


class Failure(Exception):
    """A conversion gave what it must not give."""


class Bench:
    """A folder of sources, and the conversions of them.

    Attributes:
        home: The folder of the sources.
        seconds: Case to the time of its last whole conversion.
    """

    def __init__(self, home: Path, seed: int):
        self.home, self.random = home, random.Random(seed)
        self.seconds: dict[str, float] = {}
        self.expected: dict[str, dict[str, str]] = {}
        self.counts: Counter[str] = Counter()
        self.log = home / "log.txt"
        tempfile.tempdir = str(home / "tmp")
        (home / "tmp").mkdir()
        self._wait(_forked(lambda: _write_sources(home), self.log), "the sources")

    def prepare(self, case: str) -> None:
        """Convert once without a kill, to know the bytes and the time."""
        with self._folder() as out:
            self._finish(case, out)
            self.expected[case] = _digests(out)

    def kill(self, case: str) -> None:
        """Kill a conversion one to three times, then let it end, and check it."""
        with self._folder() as out:
            for _ in range(self.random.choice((1, 1, 2, 3))):
                self._kill_once(case, out)
            if not self._finish(case, out):
                self.counts["were finished when killed"] += 1
            self._check(case, out)

    def race(self, case: str) -> None:
        """Start two conversions into one folder, and check the result."""
        with self._folder() as out:
            logs = [self.home / "one.txt", self.home / "other.txt"]
            one = self._start(case, out, logs[0])
            time.sleep(self.random.uniform(0, self.seconds[case]) ** 2)
            other = self._start(case, out, logs[1])
            codes = [self._wait(pid, case, check=False) for pid in (one, other)]
            if sorted(codes) != [0, 1]:
                raise Failure(f"{case}: two at once exited with {codes}")
            said = logs[codes.index(1)].read_text()
            if not any(words in said for words in _REFUSED):
                raise Failure(f"{case}: the second of two said {said}")
            self._check(case, out)

    def _kill_once(self, case: str, out: Path) -> None:
        in_last_step = self.random.random() < 0.4
        pid = self._start(case, out, self.log)
        if in_last_step:
            while not _partial(out) and not _has_ended(pid):
                time.sleep(2e-4)
            time.sleep(self.random.uniform(0, 0.04))
        else:
            time.sleep(self.random.uniform(0, self.seconds[case]))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            self.counts["kills"] += 1
            self.counts["kills in the last step"] += in_last_step

    def _finish(self, case: str, out: Path) -> bool:
        """Convert to the end; return False if it had been finished before."""
        began = time.monotonic()
        code = self._wait(self._start(case, out, self.log), case, check=False)
        if not code:
            self.seconds[case] = time.monotonic() - began
        elif not out.exists() or _FINISHED not in self.log.read_text():
            raise Failure(f"{case}: exit {code}: {self.log.read_text()}")
        return not code

    def _check(self, case: str, out: Path) -> None:
        if (got := _digests(out)) != self.expected[case]:
            same = self.expected[case].items() & got.items()
            raise Failure(f"{case}: other bytes in {got.keys() - dict(same).keys()}")
        left = [str(p) for p in out.parent.iterdir() if p != out]
        left += [str(p) for p in (self.home / "tmp").iterdir()]
        if left:
            raise Failure(f"{case}: left {left}")

    def _start(self, case: str, out: Path, log: Path) -> int:
        arguments = [a.format(home=self.home) for a in CASES[case]]
        arguments.insert(1, str(out))
        return _forked(lambda: nibble(["convert", *arguments]), log)

    def _wait(self, pid: int, what: str, check: bool = True) -> int:
        end = time.monotonic() + _PATIENCE_S
        while not _has_ended(pid):
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise Failure(f"{what}: no end after {_PATIENCE_S} s")
            time.sleep(0.005)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if check and code:
            raise Failure(f"{what}: exit {code}: {self.log.read_text()}")
        return code

    def _folder(self) -> _Temporary:
        return _Temporary(self.home / "work")


class _Temporary:
    """An empty folder for one output, which is removed afterwards."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> Path:
        self.path.mkdir()
        return self.path / "out"

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path)


def _forked(work: Callable[[], int | None], log: Path) -> int:
    """Do some work in a child; return its process's number."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        code = work() or 0
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _has_ended(pid: int) -> bool:
    """Tell whether a child has ended; it can still be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _write_sources(home: Path) -> None:
    (home / "tiny.gguf").write_bytes(tiny_llama())
    (home / "text.txt").write_text("to be, or not to be: that is the question. " * 60)
    stored = gptq_folders.tensors("llama", np.random.default_rng(0))
    gptq_folders.write(home / "gptq", stored)
    sizes = gptq_folders.SIZES | {"num_hidden_layers": 3}
    config = tiny_models.config("llama", **sizes)
    model = tiny_models.build("llama", **sizes)
    model_folders.write(home / "model", model, config)
    mx.synchronize()


def _partial(out: Path) -> bool:
    return any(p.name.startswith(".out.partial-") for p in out.parent.iterdir())


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def main() -> int:
    """Run the kills and the races; print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="conversions to kill")
    parser.add_argument("--races", type=int, default=20, help="pairs of conversions")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    cases, failures = args.cases, []
    with tempfile.TemporaryDirectory(prefix="nibble-kills-") as home:
        bench = Bench(Path(home), args.seed)
        work = [(bench.kill, cases[i % len(cases)]) for i in range(args.count)]
        work += [(bench.race, cases[i % len(cases)]) for i in range(args.races)]
        for done, (run, case) in enumerate(work):
            if done % 10 == 0:
                print(f"{done} of {len(work)} done, {dict(bench.counts)}", flush=True)
            try:
                if case not in bench.expected:
                    bench.prepare(case)
                run(case)
            except Failure as failure:
                failures.append(f"{run.__name__}: {failure}")
                print(failures[-1], flush=True)
    for what, count in bench.counts.items():
        print(f"{what}: {count}")
    print(f"{len(work)} conversions in {len(cases)} ways, {len(failures)} failures")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
