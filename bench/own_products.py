"""Our CPU products and MLX's, as the turns of against_cpu_libraries."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import cycle

import mlx.core as mx

from mlx_nibble import ops
from mlx_nibble.acceleration.repack import pack
from mlx_nibble.bench import peaks
from mlx_nibble.bench.products import Pools, ProductCase
from mlx_nibble.machine.turns import link

# Candidate that reads the bytes of the weights from memory, on all cores.
READ = "read"
# With more rows than this, the place of the weights hardly matters, and a peer's copies
# take long to make: all candidates then use one matrix.
COLD_ROWS = 32
# Most products of a turn, and multiplications that fill a turn on their own.
MAX_CALLS, CALL_PRODUCTS = 16, 2**31


def calls_of(case: ProductCase) -> int:
    """Return the number of products of a turn."""
    products = case.rows * case.N * case.K
    return max(1, min(MAX_CALLS, CALL_PRODUCTS // products))


def one_matrix(case: ProductCase, hot: bool) -> bool:
    """Return whether all products use one matrix, which stays in the cache."""
    return hot or case.rows > COLD_ROWS


def candidates(case: ProductCase, hot: bool) -> dict[str, Callable[[], float]]:
    """Return the turns of all our modes, of MLX and, with cold weights, of the read."""
    pool = Pools(one_matrix(case, hot)).copies(case, "quantized")
    x = mx.random.normal((case.rows, case.K))
    mx.eval(x)

    def scaled(dtype: mx.Dtype) -> list[tuple[mx.array, ...]]:
        own = [(w, s.astype(dtype), b.astype(dtype)) for w, s, b in pool]
        mx.eval(own)
        return own

    form = (True, case.group_size, case.bits)

    def turn(op, own: list[tuple[mx.array, ...]], **options) -> Callable[[], float]:
        step = cycle(own)

        def products(count: int) -> float:
            before = time.perf_counter()
            last = x
            for _ in range(count):
                # The next product may reuse this one's memory. If all results were
                # kept, the system would clear new pages for most of them.
                last = link(last, op(last, *next(step), *form, **options))
            mx.eval(last)
            return (time.perf_counter() - before) / count

        def run() -> float:
            products(1)
            return products(calls_of(case))

        return run

    own = scaled(mx.float16)
    repacked = [pack(*weights, case.bits, case.group_size) for weights in own]
    packed = [found[0] for found in repacked if found] or own
    int8 = {"activations": "int8"}
    turns = {
        "mlx": turn(mx.quantized_matmul, scaled(mx.float32)),
        "nibble": turn(ops.quantized_matmul, own),
        "nibble repacked": turn(ops.quantized_matmul, packed),
        "nibble int8": turn(ops.quantized_matmul, own, **int8),
        "nibble int8 repacked": turn(ops.quantized_matmul, packed, **int8),
    }
    return turns if hot else turns | {READ: reading(case)}


def reading(case: ProductCase) -> Callable[[], float]:
    """Return the read that takes turns: the bandwidth changes within seconds."""
    read = peaks.reader()

    def run() -> float:
        before = time.perf_counter()
        return weight_bytes(case) / read() * (time.perf_counter() - before)

    return run


def weight_bytes(case: ProductCase) -> int:
    """Return the bytes of codes, and of scales and biases in 16 bits."""
    return case.N * (case.K * case.bits // 8 + 4 * case.K // case.group_size)
