"""One duel: our kernels against MLX's operation, for one class of products on a GPU.

Both compute chains of products with weights of the real N and K, capped in size, in
turns. Ours must win with each of its kernels for the class, and at the most rows. A
tie goes to MLX. :mod:`first_use` decides which duels are held, and when.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import cycle
from typing import Any

import mlx.core as mx

from mlx_nibble import ops
from mlx_nibble.machine import tuned_table
from mlx_nibble.machine.tuned_table import DUEL, LEAVE_TO_MLX, OURS, Choice, Key
from mlx_nibble.machine.turns import (
    LEAST_GAIN,
    Chain,
    ChainCandidate,
    link,
    take_pass,
    warm_up,
)

ROUNDS = 5
# The wait at the end of a sample is reported as 0.2 ms (mlx #4265); a sample is ten
# times that.
_SAMPLE_SECONDS = 2e-3
# A candidate whose middle sample is so much above its best was disturbed: by other
# work on the GPU, or by a changing clock.
_STEADY = 1.25
# Most duels of a product before a disturbed one is given up.
_ATTEMPTS = 3

# Weights stay below this size, and all copies together reach the second: Apple's
# largest cache is 96 MB, but memory of that size takes too long to fill.
_LARGEST_WEIGHTS, _ALL_WEIGHTS = 32 << 20, 64 << 20
# Operations of one product: 5 ms on an M1.
_MOST_OPERATIONS = 8e9
# Weights of less than 4 MB may stay in a cache, for MLX's operation as for ours.
_MOST_COPIES = 16
_TILE = 64

# Most experts that a token chooses.
CHOSEN = 8
# mlx-lm sorts the choices of 64 rows and more, and a prompt has thousands of them.
SORTED_FROM, _PROMPT_CHOICES = 64, 4096
# Rows of longer prompts, whose kernels are tried but not timed: their work differs
# from the last class's in amount only.
_PROMPTS = (1024, 2048, 4096)
# Up to here, each number of rows may have a kernel of its own.
_EACH = 9


@dataclass(frozen=True)
class Case:
    """A product to time.

    Attributes:
        key: The product, with the real N, but perhaps fewer experts.
        rows: Rows of x; of one number, within the class.
        N: Rows of w, capped.
        kernel: First of the kernels that compute the real product.
    """

    key: Key
    rows: int
    N: int
    kernel: str

    @property
    def shape(self) -> tuple:
        """The extension's argument ``shape``."""
        return replace(self.key, rows=self.rows, N=self.N).shape


def _span(key: Key) -> tuple[int, int]:
    """Return the fewest and the most rows of a key's class."""
    classes = tuned_table.row_classes()
    index = classes.index(key.rows)
    first, last = classes[index - 1] + 1 if index else 1, key.rows
    if key.experts and key.sorted:
        first = max(first, SORTED_FROM)
        last = _PROMPT_CHOICES if last == classes[-1] else last
    elif key.experts and last >= SORTED_FROM:
        last = SORTED_FROM - 1
    return first, last


@cache
def _kernels_by_rows(key: Key, ext: Any) -> dict[tuple[str, ...], int]:
    """Return the fewest rows of a class for each kernel that computes some of it."""
    first, last = _span(key)
    # Beyond the first, kernels change where a tile of 8 rows or more begins.
    rows = [m for m in range(first, last) if m <= _EACH or m % 8 == 1] + [last]
    if key.rows == tuned_table.row_classes()[-1]:
        # Prompts: all tiles are full, or the last row of tiles is not.
        rows += [m for many in _PROMPTS for m in (many, many + 1)]
    found: dict[tuple[str, ...], int] = {}
    for m in rows:
        # MLX's dense product may compute the largest numbers of rows: no kernels.
        if kernels := tuple(ext.kernels_of(replace(key, rows=m).shape)):
            found.setdefault(kernels, m)
    return found


def kernels_of(key: Key, ext: Any) -> list[str]:
    """Return the kernels that compute a class of products."""
    found = (kernel for kernels in _kernels_by_rows(key, ext) for kernel in kernels)
    return list(dict.fromkeys(found))


def joining_kernels_of(key: Key, ext: Any) -> list[str]:
    """Return the kernels that compute a class of products together with others."""
    rows = _kernels_by_rows(key, ext).values()
    found = (k for m in rows for k in ext.joining_kernels(replace(key, rows=m).shape))
    return list(dict.fromkeys(found))


def rows_of(key: Key, ext: Any) -> list[int]:
    """Return the rows to time: the fewest of each kernel, and the most of the class."""
    first, last = _span(key)
    fewest = {m for m in _kernels_by_rows(key, ext).values() if m <= last}
    ours = {m for m in (first, last) if ext.kernels_of(replace(key, rows=m).shape)}
    return sorted(ours | fewest)


def case_of(key: Key, rows: int, ext: Any) -> Case:
    """Return the product to time for a key, reduced to a size that is not too large.

    Some of many experts are timed, each with as many rows as it would have, and some
    rows of a large matrix. The kernel is that of the real product.
    """
    real = replace(key, rows=rows)
    kernels = ext.kernels_of(real.shape)
    bytes_of_row = key.K * (key.bits + 32 / key.group_size) / 8
    most = _LARGEST_WEIGHTS / (bytes_of_row * key.N)
    if most < key.experts:
        experts = min(key.experts, max(int(most), CHOSEN))
        some = max(rows * experts // key.experts, SORTED_FROM) if key.sorted else rows
        part = replace(real, experts=experts, rows=some)
        if ext.kernels_of(part.shape, kernels[0]) == kernels:
            return Case(part, some, key.N, kernels[0])
    bytes_of_row *= max(key.experts, 1)
    most = min(_LARGEST_WEIGHTS / bytes_of_row, _MOST_OPERATIONS / (2 * rows * key.K))
    capped = max(int(most) // _TILE, 1) * _TILE
    N = min(key.N, capped)
    # A smaller product may lack the kernel of the real one.
    same = ext.kernels_of(replace(real, N=N).shape, kernels[0]) == kernels
    return Case(key, rows, N if same else key.N, kernels[0])


def hold(
    key: Key, ext: Any, chains: Callable[[Case, Any], Mapping[str, Chain]] | None = None
) -> Choice | None:
    """Return the winner of a duel; None if it was disturbed each time.

    Args:
        key: Class of products.
        ext: The extension.
        chains: Function that returns the chains of :data:`OURS` and
            :data:`LEAVE_TO_MLX`; default: :func:`chains_of`.
    """
    slowest = float("inf")
    try:
        for rows in rows_of(key, ext):
            case = case_of(key, rows, ext)
            gain = _gain((chains or chains_of)(case, ext))
            if gain is None:
                return None
            slowest = min(slowest, gain)
            if slowest < 1 + LEAST_GAIN:
                return Choice(LEAVE_TO_MLX, 1 / slowest, DUEL)
        return Choice(None, slowest, DUEL)
    finally:
        _copies.cache_clear()


def _gain(chains: Mapping[str, Chain]) -> float | None:
    """Return the speed of ours relative to MLX's, as far as it is sure."""
    candidates = {name: ChainCandidate(chain) for name, chain in chains.items()}
    for candidate in candidates.values():
        warm_up(candidate, float("inf"), _SAMPLE_SECONDS)
    for _ in range(_ATTEMPTS):
        for candidate in candidates.values():
            candidate.passes.clear()
        for _ in range(ROUNDS):
            take_pass(candidates, 0)
        samples = {n: [s for (s,) in c.passes] for n, c in candidates.items()}
        if all(map(_is_steady, samples.values())):
            return decide(samples[OURS], samples[LEAVE_TO_MLX])
    return None


def _is_steady(seconds: Sequence[float]) -> bool:
    return statistics.median(seconds) <= _STEADY * min(seconds)


def decide(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the speed of ours relative to MLX's, from rounds in turns.

    The median of the rounds; but no more than 1 if more than one round says that ours
    is not faster: that is a tie.
    """
    ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    middle = statistics.median(ratios)
    return middle if ratios[1] > 1 else min(middle, 1.0)


def chains_of(case: Case, ext: Any) -> dict[str, Chain]:
    """Return chains of our product and of MLX's, with the same arrays.

    Ours is called as layers call it: the extension's function, not :mod:`ops`.
    """
    key = case.key
    choice = (case.shape, False, case.kernel)
    form: dict[str, Any] = {"group_size": key.group_size, "bits": key.bits}
    form |= {"mode": key.mode}
    ours = form | {"symmetric": key.symmetric, "tuning": ext.add_tuning([choice])}
    x = _normal((case.rows, key.K), key.dtype, mx.random.key(0))
    if not key.experts:
        products = ext.quantized_matmul, mx.quantized_matmul
    else:
        products = ext.gather_qmm, mx.gather_qmm
        # A token's experts differ.
        order = mx.random.permutation(key.experts, key=mx.random.key(1))
        chosen = order[mx.arange(case.rows) % key.experts].astype(mx.uint32)
        chosen = mx.sort(chosen) if key.sorted else chosen
        x = x.reshape(case.rows, 1, key.K)
        form |= {"rhs_indices": chosen, "sorted_indices": key.sorted}
        ours |= form
    pool = cycle(_copies(replace(key, rows=1), case.N))
    mx.eval(x, form.get("rhs_indices"))
    return {
        OURS: _chain(products[0], ours, x, pool),
        LEAVE_TO_MLX: _chain(products[1], form, x, pool),
    }


def _normal(shape: tuple[int, ...], dtype: str, key: mx.array) -> mx.array:
    return mx.random.normal(shape, key=key).astype(ops.DTYPES[dtype])


@lru_cache(maxsize=1)
def _copies(key: Key, N: int) -> list[list[mx.array | None]]:
    """Return copies of weights, scales and biases, too many for a cache."""
    floats = key.scale_dtype == "uint8"
    keys = iter(mx.random.split(mx.random.key(2), 2 * _MOST_COPIES))
    matrices = (key.experts, N) if key.experts else (N,)
    copies: list[list[mx.array | None]] = []
    while sum(a.nbytes for copy in copies for a in copy if a is not None) < (
        _ALL_WEIGHTS
    ):
        words = (*matrices, key.K * key.bits // 32)
        w = mx.random.randint(-(2**31), 2**31 - 1, words, key=next(keys))
        groups = (*matrices, key.K // key.group_size)
        copy: list[mx.array | None]
        if floats:
            # A code of bytes with the lowest bit clear is a number.
            w = w.view(mx.uint32) & (0xFEFEFEFE if key.bits == 8 else 0xFFFFFFFF)
            copy = [w, mx.full(groups, _scale_of(key), mx.uint8), None]
        else:
            scales = _normal(groups, key.scale_dtype, next(keys)) * 2.0**-key.bits
            copy = [w.view(mx.uint32), scales, scales * -(2.0 ** (key.bits - 1))]
        copies.append(copy)
        mx.eval(copy)
        if len(copies) == _MOST_COPIES:
            break
    return copies


def _scale_of(key: Key) -> int:
    """Return the byte of a scale near 2**-bits."""
    from mlx_nibble.floats import SCALES  # imports NumPy, which takes long

    return int(abs(SCALES[key.mode][:127] - 2.0**-key.bits).argmin())


def _chain(
    product: Callable[..., mx.array],
    form: dict[str, Any],
    x: mx.array,
    pool: Iterator[list[mx.array | None]],
) -> Chain:
    def run(times: int) -> None:
        h = x
        for _ in range(times):
            w, scales, biases = next(pool)
            h = link(h, product(h, w, scales=scales, biases=biases, **form))
        mx.eval(h)

    return run
