"""Have all candidates for some products take turns, on cold weights."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import mlx.core as mx

from mlx_nibble import _native, ops
from mlx_nibble.bench import products
from mlx_nibble.bench.products import Pools
from mlx_nibble.bench.schedule import ChainCandidate, take_quiet_pass, warm_up
from mlx_nibble.bench.statistics import Passes
from mlx_nibble.machine.tuned_table import LEAVE_TO_MLX
from mlx_nibble.progress import Progress
from mlx_nibble.tune.decide import PASSES, contenders, decide
from mlx_nibble.tune.problems import Problem

# Of rounds of one product in a pass; at least one.
SECONDS = 0.03
# What is slower than the fastest by more in all of the first passes is given up.
_HOPELESS = 1.1
_FIRST_PASSES = 2
# MLX's operation is given up after its first products if they take so many times the
# planner's own choice; and if as many rows, or fewer, have taken more than it by...
_HOPELESS_CALL = 3.0
_HOPELESS_FEWER_ROWS = 1.5
# A first call of less may be mostly what is only done once.
_FIRST_CALL = 0.2

Choose = Callable[[Mapping[str, Passes]], str]
"""Names a candidate, by the samples so far."""


@dataclass
class Contest:
    """The candidates for one product.

    Attributes:
        active: Who still takes turns.
        everyone: Who ever did.
        given_up: Why the others do not, by name.
        kept: Who is not given up: the planner's own choice, and what was asked for
            besides the candidates.
        disturbed: Passes that were dropped.
    """

    active: dict[str, ChainCandidate] = field(default_factory=dict)
    everyone: dict[str, ChainCandidate] = field(default_factory=dict)
    given_up: dict[str, str] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()
    disturbed: int = 0

    @property
    def samples(self) -> dict[str, list[list[float]]]:
        """Seconds by candidate, in passes."""
        return {name: c.passes for name, c in self.everyone.items() if c.passes}

    def give_up_the_hopeless(self) -> None:
        """Let those that can hardly win take no more turns."""
        middles = {
            name: [statistics.median(taken) for taken in candidate.passes]
            for name, candidate in self.active.items()
        }
        best = min(middles.values(), key=statistics.median)
        for name in middles.keys() - self.kept:
            if all(m > _HOPELESS * b for m, b in zip(middles[name], best, strict=True)):
                del self.active[name]
                self.given_up[name] = "slower in each of the first passes"

    def settled(self, choose: Choose) -> bool:
        """Let those that cannot win take no more turns; whether that is all of them."""
        chosen = choose(self.samples)
        left = contenders(self.samples, chosen)
        for name in self.active.keys() - self.kept - left - {chosen}:
            del self.active[name]
            self.given_up[name] = "not faster than who was chosen"
        return not left


def steps(problems: Sequence[Problem]) -> int:
    """How many steps :func:`measure` makes, if it can decide everything."""
    return PASSES[0] * len(problems)


def choose_fastest(samples: Mapping[str, Passes]) -> str:
    """Who is taken by these samples, the planner's own choice by its name too."""
    return decide(samples).name or next(iter(samples))


def measure(
    problems: Sequence[Problem],
    progress: Progress,
    others: Callable[[Problem], dict[str, int]] = lambda problem: {},
    choose: Choose = choose_fastest,
) -> dict[Problem, Contest]:
    """Measure the candidates for products of one matrix.

    Args:
        problems: Of one N, K and format, fewer rows first.
        progress: Is called before each step.
        others: What else shall take turns: by name, what the operation takes as its
            ``tuning``.
        choose: Whom the others have to beat. A product is measured until nobody can,
            or there are no more :data:`PASSES`.
    """
    pools = Pools(hot=False)
    contests = {problem: Contest() for problem in problems}
    slow_mlx = 0.0
    measured, total = list(problems), steps(problems)
    for number in range(PASSES[-1]):
        if number in PASSES:
            measured = [p for p in measured if not contests[p].settled(choose)]
            if not measured:
                break
        # In each pass with new memory (docs/bench.md).
        pools.renew()
        for index, problem in enumerate(measured):
            step = min(number, PASSES[0]) * len(problems) + index
            progress(describe(problem), min(step, total), total)
            contest = contests[problem]
            if number == 0:
                slow_mlx = max(
                    slow_mlx, _enter(problem, contest, pools, slow_mlx, others)
                )
            pools.take(problem, "quantized")
            contest.disturbed += take_quiet_pass(contest.active, SECONDS)
            if number + 1 >= _FIRST_PASSES:
                contest.give_up_the_hopeless()
    return contests


def describe(problem: Problem) -> str:
    """A product in a few words."""
    return f"{problem.rows} × {problem.N} × {problem.K}, {problem.bits} bits"


def _enter(
    problem: Problem,
    contest: Contest,
    pools: Pools,
    slow_mlx: float,
    others: Callable[[Problem], dict[str, int]],
) -> float:
    """Warm up all candidates; returns the seconds of MLX's, if it was tried."""
    own, mlx_seconds = 0.0, 0.0
    candidates = dict(_candidates(problem))
    contest.kept = frozenset({next(iter(candidates)), *others(problem)})
    candidates |= others(problem)
    for name, number in candidates.items():
        pool = partial(pools.take, problem, "quantized")
        pool()
        chain = products.chain(problem, _product(problem, number), pool)
        candidate = ChainCandidate(chain)
        if name != LEAVE_TO_MLX:
            seconds = warm_up(candidate, float("inf"))
            own = own or seconds
        elif slow_mlx > _HOPELESS_FEWER_ROWS * own:
            contest.given_up[name] = f"fewer rows take {slow_mlx:.2g} s"
            continue
        else:
            mlx_seconds = _try(candidate, _HOPELESS_CALL * own)
            if mlx_seconds > _HOPELESS_CALL * own:
                contest.given_up[name] = f"one takes {mlx_seconds:.2g} s"
                continue
        contest.active[name] = contest.everyone[name] = candidate
    return mlx_seconds


def _try(candidate: ChainCandidate, limit: float) -> float:
    """Seconds of one product, the second if the first may owe to being the first."""
    seconds = warm_up(candidate, limit)
    if limit < seconds < _FIRST_CALL:
        seconds = warm_up(candidate, limit)
    return seconds


def _candidates(problem: Problem) -> Iterator[tuple[str, int]]:
    """All candidates, by name, as tables that say nothing but to take them."""
    assert _native.ext is not None
    for name in problem.candidates():
        choice = (problem.key.shape, problem.key.int8, name)
        yield name, _native.ext.add_tuning([choice])


def _product(problem: Problem, number: int) -> Callable[..., mx.array]:
    """The operation as a layer calls it."""
    # What the planner is told of the format, a layer knows of its arrays.
    symmetric, activations = problem.symmetric, problem.activations
    form = (True, problem.group_size, problem.bits)

    def product(
        x: mx.array, w: mx.array, scales: mx.array, biases: mx.array
    ) -> mx.array:
        return ops.quantized_matmul(
            *(x, w, scales, biases, *form),
            activations=activations,
            symmetric=symmetric,
            tuning=number,
        )

    return product
