"""Fuzz the readers of files from strangers: ``make fuzz SECONDS=60``.

Each input is a function of target, seed and number. The exit status is 1 if a reader
crashed, took more than 5 s of processor time or 1 GB, or raised an error that its
documentation does not list. Such inputs are written to build/fuzz.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections import defaultdict
from pathlib import Path

# One thread of each library: workers are processes.
_ALONE = {
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NIBBLE_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONHASHSEED": "0",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    add = parser.add_argument
    add("target", nargs="*", help="readers; default: all")
    add("--seconds", type=float, default=20, help="for each target; default: 20")
    add("--runs", type=int, help="inputs of each target at most; default: no limit")
    add("--jobs", type=int, default=os.cpu_count(), help="workers; default: cores")
    add("--seed", type=int, default=1, help="other inputs; default: 1")
    add("--number", type=int, help="read this input of the targets only")
    add("--corpus", action="store_true", help="read the corpus only")
    add("--keep", action="store_true", help="add what is found to the corpus")
    add(
        "--output", type=Path, default=Path("build", "fuzz"), help="default: build/fuzz"
    )
    add("--json", action="store_true", help="print the counts for machines")
    return parser


def main() -> int:
    """Parse, run, print; return 1 if anything was found."""
    from tests.fuzz import run
    from tests.fuzz.targets import TARGETS

    parser = _parser()
    args = parser.parse_args()
    if unknown := set(args.target) - TARGETS.keys():
        parser.error(f"targets are {', '.join(TARGETS)} but got {', '.join(unknown)}")
    names = args.target or [*TARGETS]
    inputs = run.prepare(names)
    # More workers than targets share the numbers of a target.
    shares = 1 if args.corpus else max(1, -(-args.jobs // len(names)))
    waiting = [(name, share) for share in range(shares) for name in names]
    running: list[run.Worker] = []
    total: dict[str, run.Outcome] = defaultdict(run.Outcome)
    while waiting or running:
        while waiting and len(running) < args.jobs:
            name, share = waiting.pop(0)
            numbers = itertools.count(share, shares)
            if args.runs is not None:
                numbers = range(share, args.runs, shares)
            if args.number is not None:
                numbers = [args.number] if share == 0 else []
            if args.corpus:
                numbers = inputs[name].corpus
            seconds = 1e6 if args.corpus else args.seconds
            running.append(run.Worker(name, inputs[name], args.seed, numbers, seconds))
        time.sleep(0.02)
        for worker in [worker for worker in running if worker.ended()]:
            running.remove(worker)
            total[worker.target].add(worker.outcome)
    return _report(args, names, total, inputs)


def _report(args, names, total, inputs) -> int:
    from tests.fuzz import run

    counts = {}
    seen: dict[tuple, int] = defaultdict(int)
    for name in names:
        outcome = total[name]
        rate = outcome.inputs / max(outcome.seconds, 1e-9)
        counts[name] = {
            "inputs": outcome.inputs,
            "inputs_per_second_of_a_worker": round(rate, 1),
            "refused": outcome.refused,
            "findings": len(outcome.findings),
        }
        for finding in outcome.once:
            path = run.save(finding, args.output)
            print(
                f"{name} {finding.number}: {finding.kind} once, but not when read "
                f"alone: {path}",
                file=sys.stderr,
            )
        for finding in outcome.findings:
            place = finding.where.rpartition("(")[2] or finding.where
            seen[name, finding.kind, place] += 1
            if seen[name, finding.kind, place] > 1:
                continue
            path = run.save(finding, args.output)
            print(
                f"{name} {finding.number}: {finding.kind}: {finding.where}\n"
                f"  files: {path}; again: python -m tests.fuzz {name} --seed "
                f"{args.seed} --number {finding.number}",
                file=sys.stderr,
            )
            if args.keep:
                case = run.corpus_case(finding, inputs[name])
                kept = run.CORPUS / name / f"{path.name.rpartition('-')[2]}.json"
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(json.dumps(case, indent=1) + "\n", encoding="utf-8")
    if args.json:
        print(json.dumps({"seed": args.seed, "targets": counts}))
    else:
        print(
            f"{'target':<12}{'inputs':>10}{'a second':>10}{'refused':>10}{'found':>7}"
        )
        for name, count in counts.items():
            inputs_, rate, refused, found = count.values()
            print(f"{name:<12}{inputs_:>10}{rate:>10}{refused:>10}{found:>7}")
    return int(any(count["findings"] for count in counts.values()))


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in _ALONE.items()):
        command = [sys.executable, "-m", "tests.fuzz", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **_ALONE})
    sys.exit(main())
