"""Time products with exact, 16-bit and 8-bit activations in turns, on a CPU.

Weights are cold. A candidate's time is the one that a tenth of its samples undercut:
on a busy machine longer samples are interrupted more often. "exact / it" divides the
exact time of the same layout by it, and "as it lay / it" that of the checkpoint's
order. "of the read" divides the time of a plain read of the weights by it.

    python -m bench.activation_widths --rows 1 8
    python -m bench.activation_widths --bits 3 5 6 --rows 1 8 128
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle

import mlx.core as mx
import numpy as np

from bench.timing import Samples, interleave
from mlx_nibble import ops
from mlx_nibble.acceleration.repack import pack
from mlx_nibble.bench import machine
from mlx_nibble.formats import MODES

COLD_BYTES = 256 * 2**20
WIDTHS = {"exact": None, "int16": "int16", "int8": "int8"}
READ, REPACKED = "a plain read", " repacked"
READ_COLUMNS, READS = 4096, 4


def candidates(
    N: int, K: int, rows: int, mode: str, bits: int, group_size: int
) -> dict[str, Callable[[], object]]:
    """Return functions that compute one product each, of another copy every time."""
    w = mx.random.normal((N, K)).astype(mx.bfloat16)
    codes, *params = mx.quantize(w, group_size, bits, mode=mode)
    copies = max(1, COLD_BYTES // codes.nbytes)
    matrices = [(codes + mx.array(0, mx.uint32), *params) for _ in range(copies)]
    if len(params) == 1:
        matrices = [(*matrix, None) for matrix in matrices]
    mx.eval(matrices)
    packed = [pack(*matrix, bits, group_size, mode) for matrix in matrices]
    x = mx.random.normal((rows, K))
    mx.eval(x)
    found: dict[str, Callable[[], object]] = {}
    layouts = {"": matrices, REPACKED: [p[0] for p in packed if p]}
    for layout, pool in layouts.items():
        for name, activations in WIDTHS.items() if pool else ():

            def product(step=cycle(pool), activations=activations) -> None:  # noqa: B008
                form = (True, group_size, bits, mode)
                mx.eval(
                    ops.quantized_matmul(x, *next(step), *form, activations=activations)
                )

            found[name + layout] = product
    found[READ] = reading(sum(a.nbytes for a in matrices[0] if a is not None))
    return found


def reading(nbytes: int) -> Callable[[], float]:
    """Return a read of other bytes every time.

    Each thread multiplies its rows of a matrix by a vector, for which NumPy reads
    several rows at once. One stream for each thread is slower on a virtual machine. A
    sample reads some more bytes, so that waking the threads does not count.
    """
    vector = np.ones(READ_COLUMNS, np.float32)
    matrix = np.ones((COLD_BYTES // vector.nbytes, READ_COLUMNS), np.float32)
    rows = min(READS * nbytes // vector.nbytes, len(matrix) // 2)
    first = cycle(range(0, len(matrix) - rows, rows))
    pool = ThreadPoolExecutor(machine.threads())

    def read() -> float:
        begin = next(first)
        parts = np.array_split(matrix[begin : begin + rows], machine.threads())
        before = time.perf_counter()
        list(pool.map(lambda part: part @ vector, parts))
        elapsed = time.perf_counter() - before
        return elapsed * nbytes / (rows * vector.nbytes)

    return read


def tenth(samples: list[float]) -> float:
    """Return the value that a tenth of the samples undercut."""
    return statistics.quantiles(samples, n=10)[0]


def rows_of_table(taken: Samples) -> list[str]:
    """Return a row for each candidate, without its first columns."""
    ms = {name: 1e3 * tenth(samples) for name, samples in taken.items()}
    found = []
    for name, own in ms.items():
        plain = name.removesuffix(REPACKED)
        layout = name[len(plain) :]
        exact = "" if name == READ else f"{ms['exact' + layout] / own:.2f}"
        lay = f"{ms[plain] / own:.2f}" if layout else ""
        read = f"{100 * ms[READ] / own:.0f} %"
        found.append(f"{name} | {own:.3f} | {exact} | {lay} | {read} |")
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="4096,4096", help="N,K")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--mode", choices=[m.mlx_name for m in MODES.values()])
    parser.add_argument("--bits", nargs="+", type=int)
    parser.add_argument("--group-size", type=int)
    parser.add_argument("--seconds", type=float, default=5, help="of each row")
    args = parser.parse_args()
    N, K = (int(n) for n in args.shape.split(","))
    mode = args.mode or "affine"
    form = MODES[mode]
    group_size = args.group_size or form.default_group_size
    ratios = "exact / it | as it lay / it | of the read"
    print(f"| bits | rows | candidate | ms | {ratios} |")
    print("| ---: | ---: | --- | ---: | ---: | ---: | ---: |")
    for bits in args.bits or [form.default_bits]:
        for rows in args.rows:
            calls = candidates(N, K, rows, mode, bits, group_size)
            taken = interleave(calls, args.seconds, most=100_000)
            for row in rows_of_table(taken):
                print(f"| {bits} | {rows} | {row}", flush=True)


if __name__ == "__main__":
    main()
