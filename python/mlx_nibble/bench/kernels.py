"""Measures products in turns, with cold weights: ours, MLX's and the dense one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import mlx.core as mx

from mlx_nibble.bench import peaks, products
from mlx_nibble.bench.capsule import Capsule
from mlx_nibble.bench.products import Pools, ProductCase
from mlx_nibble.bench.schedule import take_quiet_pass
from mlx_nibble.bench.statistics import Estimate, median, ratio
from mlx_nibble.machine.turns import ChainCandidate, warm_up
from mlx_nibble.ops import DTYPES
from mlx_nibble.progress import Progress

PEERS = ("mlx", "dense")
# A candidate whose call takes more than this many times the seconds of a product is
# left out: the slowest candidate decides how long all take.
_LONGEST_CALL = 2.0


@dataclass(frozen=True)
class KernelOptions:
    """Options of a run.

    Attributes:
        hot: Leave the weights in the cache.
        seconds: Time for each product, all candidates and passes together.
        passes: Number of passes over all products.
        peers: Candidates beside ours, from :data:`PEERS`.
        null: Measure ours against itself: the noise.
    """

    hot: bool = False
    seconds: float = 1.0
    passes: int = 20
    peers: tuple[str, ...] = PEERS
    null: bool = False


def run(
    cases: Sequence[ProductCase],
    settings: KernelOptions,
    capsule: Capsule,
    progress: Progress,
) -> None:
    """Measure all cases into a capsule.

    After an interruption the capsule holds the finished samples.

    Args:
        cases: Products; group those of one shape for speed.
        settings: Options of the run.
        capsule: Receives peaks and results.
        progress: Called before each step.
    """
    for case in cases:
        case.check()
    steps = len(cases) * settings.passes
    progress("bandwidth and multiplications", 0, steps)
    capsule["peaks"] = asdict(peaks.measure(cases[0].dtype))
    pools = Pools(settings.hot)
    candidates: dict[ProductCase, dict[str, ChainCandidate]] = {}
    results: dict[ProductCase, dict[str, Any]] = {}
    slow: dict[tuple, float] = {}
    start = time.perf_counter()
    for number in range(settings.passes):
        pools.renew()
        for index, case in enumerate(cases):
            progress(describe(case), number * len(cases) + index, steps)
            if case not in candidates:
                candidates[case] = {}
                result = {"case": asdict(case), "candidates": {}, "disturbed": 0}
                for name, candidate in _enter(case, settings, pools, slow):
                    if isinstance(candidate, str):
                        result["candidates"][name] = {"skipped": candidate}
                        continue
                    candidates[case][name] = candidate
                    result["candidates"][name] = {
                        "chain": candidate.length,
                        "passes": candidate.passes,
                    }
                capsule["results"].append(result)
                results[case] = result
            if not candidates[case]:
                continue
            for name in candidates[case]:
                pools.take(case, _kind(name))
            results[case]["disturbed"] += take_quiet_pass(
                candidates[case], settings.seconds / settings.passes
            )
            capsule["seconds"] = time.perf_counter() - start
    if settings.passes > 1:
        # The machine may have been busy at the beginning.
        again = asdict(peaks.measure(cases[0].dtype))
        capsule["peaks"] = {k: max(v, again[k]) for k, v in capsule["peaks"].items()}
    progress("done", steps, steps)
    capsule["complete"] = True


def describe(case: ProductCase) -> str:
    """Return a short description of a case."""
    form = f"{case.bits} bits" if case.mode == "affine" else case.mode
    return f"{case.rows} × {case.N} × {case.K}, {form}, {case.dtype}"


def _enter(
    case: ProductCase, settings: KernelOptions, pools: Pools, slow: dict[tuple, float]
) -> Iterator[tuple[str, ChainCandidate | str]]:
    """Yield each candidate's name with the candidate, warmed up, or why it is left out.

    Args:
        case: The product.
        settings: Options of the run.
        pools: Weights.
        slow: Seconds of candidates that were too slow with fewer rows.
    """
    limit = _LONGEST_CALL * settings.seconds
    for name, product in _products(case, settings).items():
        form = (case.mode, case.bits, case.group_size, case.dtype)
        key = (name, case.N, case.K, *form)
        if key in slow:
            yield name, f"one takes more than {slow[key]:.1f} s"
            continue
        pool = partial(pools.take, case, _kind(name))
        candidate = ChainCandidate(products.chain(case, product, pool))
        pool()
        seconds = warm_up(candidate, limit)
        if seconds > limit:
            slow[key] = seconds
            yield name, f"one takes {seconds:.1f} s"
        else:
            yield name, candidate


def _products(
    case: ProductCase, settings: KernelOptions
) -> dict[str, Callable[..., mx.array]]:
    found = {"nibble": products.nibble(case)}
    if settings.null:
        found["nibble again"] = products.nibble(case)
    if "mlx" in settings.peers:
        found["mlx"] = products.mlx(case)
    if "dense" in settings.peers:
        found["dense"] = products.dense
    return found


def _kind(name: str) -> str:
    return "dense" if name == "dense" else "quantized"


@dataclass(frozen=True)
class ProductRow:
    """Summary of one candidate of one case.

    Attributes:
        case: The case.
        name: Name of the candidate.
        seconds: Seconds of one product.
        faster: Speedup of ours over the candidate, from neighbours in time.
        bytes_per_second: Bytes of weights, x and y, divided by the median.
        flops_per_second: Operations, divided by the median.
    """

    case: ProductCase
    name: str
    seconds: Estimate
    faster: Estimate
    bytes_per_second: float
    flops_per_second: float


def rows(capsule: Capsule, comparisons: int = 1) -> Iterator[ProductRow]:
    """Yield a summary of each measured candidate.

    Args:
        capsule: Capsule of the kind "kernels".
        comparisons: Number of ratios whose intervals hold together.
    """
    for result in capsule["results"]:
        case = ProductCase(**result["case"])
        ours = result["candidates"].get("nibble", {})
        for name, candidate in result["candidates"].items():
            faster = ratio(
                candidate.get("passes", ()), ours.get("passes", ()), comparisons
            )
            if faster is None:
                continue
            seconds = median([s for taken in candidate["passes"] for s in taken])
            yield ProductRow(
                case,
                name,
                seconds,
                faster,
                _bytes(case, name, result) / seconds.value,
                case.operations / seconds.value,
            )


def _bytes(case: ProductCase, name: str, result: dict[str, Any]) -> int:
    weights = result.get("weight_bytes", case.weight_bytes)
    if name == "dense":
        weights = DTYPES[case.dtype].size * case.N * case.K
    return case.bytes_moved - case.weight_bytes + weights
