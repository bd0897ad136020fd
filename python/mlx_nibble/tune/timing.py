"""Times all candidates for some products in turns, on cold weights."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import mlx.core as mx

from mlx_nibble import _native, ops
from mlx_nibble.bench import products
from mlx_nibble.bench.machine import device
from mlx_nibble.bench.products import Pools
from mlx_nibble.bench.schedule import take_quiet_pass
from mlx_nibble.bench.statistics import Passes
from mlx_nibble.machine import tuned_table
from mlx_nibble.machine.tuned_table import LEAVE_TO_MLX
from mlx_nibble.machine.turns import ChainCandidate, warm_up
from mlx_nibble.progress import Progress
from mlx_nibble.tune.decide import PASSES, contenders, decide
from mlx_nibble.tune.problems import Problem

# Time for the rounds of one product in a pass; at least one round.
SECONDS = 0.03
# A candidate that is slower than the fastest by more than this in all of the first
# passes is dropped.
_HOPELESS = 1.1
_FIRST_PASSES = 2
# MLX's operation is dropped after its first products if they take this many times the
# planner's own choice. It is also dropped if the same or fewer rows have taken more
# than the second factor.
_HOPELESS_CALL = 3.0
_HOPELESS_FEWER_ROWS = 1.5
# A shorter first call may be mostly work that is done only once.
_FIRST_CALL = 0.2

Choose = Callable[[Mapping[str, Passes]], str]
"""Function that chooses a candidate by the samples so far."""


@dataclass
class Contest:
    """The candidates for one product.

    Attributes:
        active: Candidates that still take turns.
        everyone: Candidates that have ever taken turns.
        given_up: Reason why each of the others was dropped.
        kept: Names that are never dropped: the planner's own choice, and additions to
            the candidates.
        disturbed: Number of dropped passes.
    """

    active: dict[str, ChainCandidate] = field(default_factory=dict)
    everyone: dict[str, ChainCandidate] = field(default_factory=dict)
    given_up: dict[str, str] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()
    disturbed: int = 0

    @property
    def samples(self) -> dict[str, list[list[float]]]:
        """Seconds by candidate, in a list for each pass."""
        return {name: c.passes for name, c in self.everyone.items() if c.passes}

    def give_up_the_hopeless(self) -> None:
        """Drop the candidates that can hardly win."""
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
        """Drop the candidates that cannot win; return whether none is left."""
        chosen = choose(self.samples)
        left = contenders(self.samples, chosen)
        for name in self.active.keys() - self.kept - left - {chosen}:
            del self.active[name]
            self.given_up[name] = "not faster than the chosen candidate"
        return not left


def steps(problems: Sequence[Problem]) -> int:
    """Return the number of steps of :func:`measure`, if it can decide everything."""
    return PASSES[0] * len(problems)


def choice(samples: Mapping[str, Passes]) -> tuned_table.Choice:
    """Return the decision for this device: on a GPU, a tie is MLX's."""
    return decide(samples, None if device() == "cpu" else LEAVE_TO_MLX)


def choose_fastest(samples: Mapping[str, Passes]) -> str:
    """Return the name of the chosen candidate, also for the planner's own choice."""
    return choice(samples).name or next(iter(samples))


def measure(
    problems: Sequence[Problem],
    progress: Progress,
    others: Callable[[Problem], dict[str, int]] = lambda problem: {},
    choose: Choose = choose_fastest,
) -> dict[Problem, Contest]:
    """Measure the candidates for products of one matrix.

    Args:
        problems: Products of one N, K and format, fewer rows first.
        progress: Called before each step.
        others: Function that returns additional candidates: the operation's ``tuning``
            by name.
        choose: Function that names the candidate to beat. A product is measured until
            no candidate can beat it, or :data:`PASSES` end.

    Returns:
        The contest of each product.
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
        # Each pass gets new memory (docs/results/method.md).
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
    """Return a short description of a product."""
    return f"{problem.rows} × {problem.N} × {problem.K}, {problem.bits} bits"


def _enter(
    problem: Problem,
    contest: Contest,
    pools: Pools,
    slow_mlx: float,
    others: Callable[[Problem], dict[str, int]],
) -> float:
    """Warm up all candidates; return the seconds of MLX's, or 0 if it was not tried."""
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
    """Return the seconds of one product; of the second, if the first was too slow."""
    seconds = warm_up(candidate, limit)
    if limit < seconds < _FIRST_CALL:
        seconds = warm_up(candidate, limit)
    return seconds


def _candidates(problem: Problem) -> Iterator[tuple[str, int]]:
    """Yield each candidate's name, with a table that selects it."""
    assert _native.ext is not None
    for name in problem.candidates():
        choice = (problem.key.shape, problem.key.int8, name)
        yield name, _native.ext.add_tuning([choice])


def _product(problem: Problem, number: int) -> Callable[..., mx.array]:
    """Return the operation as a layer calls it."""
    # A layer derives these from its arrays, and tells the planner.
    symmetric, activations = problem.symmetric, problem.activations
    form = (True, problem.group_size, problem.bits, problem.mode)

    def product(
        x: mx.array, w: mx.array, scales: mx.array, biases: mx.array | None = None
    ) -> mx.array:
        return ops.quantized_matmul(
            *(x, w, scales, biases, *form),
            activations=activations,
            symmetric=symmetric,
            tuning=number,
        )

    return product
