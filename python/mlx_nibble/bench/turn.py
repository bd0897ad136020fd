"""A process of one build, which :mod:`mlx_nibble.bench.in_turns` asks for samples.

Reads requests from standard input, one JSON object per line, and answers each:

    {"cases": [...], "hot": false}  -> {"ready": true}
    {"enter": 0}                    -> {"chain": 24}     makes and warms up a product
    {"sample": 24}                  -> {"seconds": 2e-5} of one, in a chain of 24
"""

from __future__ import annotations

import json
import signal
import sys
from functools import partial
from typing import Any

from mlx_nibble.bench import products
from mlx_nibble.bench.products import Pools, ProductCase
from mlx_nibble.machine.turns import ChainCandidate, warm_up


class Worker:
    """Measures our products, one at a time."""

    def __init__(self, cases: list[dict[str, Any]], hot: bool) -> None:
        """Start without operands."""
        self._cases = [ProductCase(**case) for case in cases]
        self._pools = Pools(hot)
        self._candidate: ChainCandidate | None = None

    def enter(self, index: int) -> int:
        """Make a product's operands; return the length of its chain."""
        case = self._cases[index]
        case.check()
        pool = partial(self._pools.take, case, "quantized")
        pool()
        self._candidate = ChainCandidate(
            products.chain(case, products.nibble(case), pool)
        )
        warm_up(self._candidate, float("inf"))
        return self._candidate.length

    def sample(self, length: int) -> float:
        """Return the seconds of one product."""
        assert self._candidate is not None
        self._candidate.length = length
        return self._candidate.sample()


def main() -> None:
    """Answer requests until the input ends."""
    # The parent ends this process: it closes the input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = None
    for line in sys.stdin:
        request = json.loads(line)
        if "cases" in request:
            worker = Worker(**request)
            answer: dict[str, Any] = {"ready": True}
        elif "enter" in request and worker:
            answer = {"chain": worker.enter(request["enter"])}
        elif worker:
            answer = {"seconds": worker.sample(request["sample"])}
        else:
            raise ValueError(f"[turn] cases are required first but got {request}.")
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
