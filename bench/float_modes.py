"""Time products in the modes of floats beside our affine ones and MLX's, in turns.

Each round computes one product of every candidate, so all see the same load. The table
has our median with repacked weights, and the medians of the ratios within a round: more
than 1 if the mode of floats is the faster one.

    python -m bench.float_modes --rows 1 8 128
    python -m bench.float_modes --activations int16
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import mlx.core as mx

from mlx_nibble import ops
from mlx_nibble.acceleration.repack import pack
from mlx_nibble.formats import FLOAT_MODES, MODES

SIZE = 4096
ROUNDS = {1: 200, 2: 160, 4: 100, 8: 60, 128: 15}
# MLX needs seconds for many rows: it takes part in the first rounds only.
ROUNDS_OF_MLX = {1: 20, 2: 10, 4: 8, 8: 6, 128: 3}
AFFINE_GROUPS = (64, 32)

Matrix = tuple[mx.array, mx.array, mx.array | None]


def quantized(w: mx.array, mode: str, bits: int, group_size: int) -> Matrix:
    """Return codes, scales, and biases if the mode has them."""
    # The scales of affine checkpoints are bfloat16.
    made = mx.quantize(w.astype(mx.bfloat16), group_size, bits, mode=mode)
    mx.eval(made)
    return (made[0], made[1], made[2] if len(made) == 3 else None)


def repacked(matrix: Matrix, mode: str, bits: int, group_size: int) -> Matrix:
    """Return the matrix in the processor's own order, as accelerate() stores it."""
    packed = pack(*matrix, bits, group_size, mode)
    return matrix if packed is None else packed[0]


def candidates(
    mode: str, x: mx.array, w: mx.array, activations: str | None
) -> dict[str, Callable[[], mx.array]]:
    """Return functions that compute one product each."""
    bits, group_size = MODES[mode].default_bits, MODES[mode].default_group_size
    forms = {mode: (mode, bits, group_size)}
    forms |= {f"affine g{g}": ("affine", bits, g) for g in AFFINE_GROUPS}
    found: dict[str, Callable[[], mx.array]] = {}
    for name, (own, width, group) in forms.items():
        matrix = quantized(w, own, width, group)
        call = (True, group, width, own)
        for how, arrays in (
            (name, matrix),
            (f"{name} repacked", repacked(matrix, own, width, group)),
        ):
            found[how] = partial(
                ops.quantized_matmul, x, *arrays, *call, activations=activations
            )
        if own == mode:
            found["MLX"] = partial(mx.quantized_matmul, x, *matrix, *call)
    return found


def measure(mode: str, rows: int, w: mx.array, activations: str | None) -> str:
    """Return a line of the table."""
    x = mx.random.normal((rows, SIZE))
    mx.eval(x)
    rounds: list[dict[str, float]] = []
    competing = candidates(mode, x, w, activations)
    for number in range(ROUNDS[rows]):
        taken = {}
        for name, product in competing.items():
            if name != "MLX" or number < ROUNDS_OF_MLX[rows]:
                start = time.perf_counter()
                mx.eval(product())
                taken[name] = time.perf_counter() - start
        rounds.append(taken)

    def ratio(name: str, own: str) -> float:
        both = [taken for taken in rounds if name in taken]
        return statistics.median(taken[name] / taken[own] for taken in both)

    affine = [f"affine g{group}" for group in AFFINE_GROUPS]
    ours, packed = mode, f"{mode} repacked"
    own = statistics.median(taken[packed] for taken in rounds)
    cells = [f"`{mode}`", str(rows), f"{1e3 * own:.2f}", f"{ratio('MLX', ours):.1f}"]
    cells += [f"{ratio(name, ours):.2f}" for name in affine]
    cells += [f"{ratio(f'{name} repacked', packed):.2f}" for name in affine]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 128])
    parser.add_argument("--mode", nargs="+", choices=FLOAT_MODES, default=FLOAT_MODES)
    parser.add_argument("--activations", choices=["int16", "int8"])
    args = parser.parse_args()
    mx.random.seed(0)
    w = mx.random.normal((SIZE, SIZE))
    over = [f"over affine g{group}" for group in AFFINE_GROUPS]
    titles = ["repacked, ms", "over MLX", *over, *(f"repacked, {o}" for o in over)]
    print(f"| mode | rows | {' | '.join(titles)} |")
    print(f"| --- |{' ---: |' * (1 + len(titles))}")
    for mode in args.mode:
        for rows in args.rows:
            print(measure(mode, rows, w, args.activations), flush=True)


if __name__ == "__main__":
    main()
