"""The product that is measured, and its cold operands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle

import mlx.core as mx
import numpy as np

from mlx_nibble import ops
from mlx_nibble.bench.machine import last_level_cache_bytes
from mlx_nibble.formats import MODES, SCALE_BYTES
from mlx_nibble.machine.turns import Chain, link
from mlx_nibble.ops import DTYPES

# Size of the weights in the pool, in caches: weights that return are no longer cached.
_POOL_CACHES = 4
# Places of x in its buffer: whole cache lines of the smallest type, over two pages.
_PLACES, _ALIGNED = 4096, 64
# Most copies of a matrix: one of less than 64 KiB therefore stays in the cache.
_MOST_COPIES = 4096

Weights = tuple[mx.array, ...]
"""w, scales, biases; or a dense matrix alone."""


@dataclass(frozen=True)
class ProductCase:
    """One product: x [rows, K] by the transpose of a quantized w [N, K].

    Attributes:
        rows: Rows of x.
        N: Rows of w.
        K: Columns of w.
        bits: Width of a code.
        group_size: Codes that share a scale.
        dtype: Type of x, and of scales and biases in the affine mode.
        mode: MLX's name of the mode.
    """

    rows: int
    N: int
    K: int
    bits: int
    group_size: int
    dtype: str
    mode: str = field(default="affine", kw_only=True)

    @property
    def scales_dtype(self) -> str:
        """Type of scales and biases."""
        return self.dtype if MODES[self.mode].stores_biases else "uint8"

    @property
    def weight_bytes(self) -> int:
        """Bytes of codes, scales and biases."""
        each = len(MODES[self.mode].arrays) * SCALE_BYTES[self.scales_dtype]
        return self.N * (self.K * self.bits // 8 + each * self.K // self.group_size)

    @property
    def operations(self) -> int:
        """Number of operations: two for each weight and row."""
        return 2 * self.rows * self.N * self.K

    @property
    def bytes_moved(self) -> int:
        """Bytes of weights, x and y: the least that memory has to move."""
        ends = self.rows * (self.N + self.K) * DTYPES[self.dtype].size
        return self.weight_bytes + ends

    def check(self) -> None:
        """Check that MLX has a format for the product.

        Raises:
            ValueError: If a size is not positive, or K is not made of whole groups.
        """
        if min(self.rows, self.N, self.K) < 1:
            raise ValueError(
                f"[bench] M, N and K must be positive but got {self.rows}, {self.N} "
                f"and {self.K}."
            )
        if self.K % self.group_size:
            raise ValueError(
                f"[bench] K must be a multiple of the group size, {self.group_size}, "
                f"but got {self.K}."
            )


class Pools:
    """Weights of one shape at a time, in enough copies to exceed the cache.

    The place of pages in memory changes times by up to 30 %. So each pass gets new
    pages, and a run has as many draws as passes.
    """

    def __init__(self, hot: bool) -> None:
        """Start without weights. If `hot`, one copy stays in the cache."""
        self._hot = hot
        self._originals: dict[tuple, Weights] = {}
        self._key: tuple | None = None
        self._pools: dict[str, Iterator[Weights]] = {}

    def renew(self) -> None:
        """Make the next weights anew."""
        self._key, self._pools = None, {}

    def take(self, case: ProductCase, kind: str) -> Iterator[Weights]:
        """Return an endless iterator over the copies of the weights.

        Args:
            case: Product; its rows do not matter.
            kind: "quantized" or "dense".
        """
        key = _weights_of(case)
        if key != self._key:
            self._key, self._pools = key, {}
        if kind not in self._pools:
            self._pools[kind] = cycle(self.copies(case, kind))
        return self._pools[kind]

    def copies(self, case: ProductCase, kind: str) -> list[Weights]:
        """Return new copies of the weights, which :meth:`take` gives in turns."""
        key = (kind, *_weights_of(case))
        if key not in self._originals:
            make = _quantized if kind == "quantized" else _dense
            self._originals[key] = make(case, np.random.default_rng(0))
        weights = self._originals[key]
        if self._hot:
            return [weights]
        size = sum(a.nbytes for a in weights)
        count = -(-_POOL_CACHES * last_level_cache_bytes() // size)
        count = min(max(count, 2), _MOST_COPIES)
        # The addition makes each copy a new array.
        copies = [
            tuple(a + mx.array(0, a.dtype) for a in weights) for _ in range(count)
        ]
        mx.eval(copies)
        return copies


def _weights_of(case: ProductCase) -> tuple:
    form = (case.mode, case.bits, case.group_size, case.dtype, case.scales_dtype)
    return (case.N, case.K, *form)


def _quantized(case: ProductCase, rng: np.random.Generator) -> Weights:
    groups = (case.N, case.K // case.group_size)
    words = rng.integers(0, 2**32, (case.N, case.K * case.bits // 32), dtype=np.uint32)
    if not MODES[case.mode].stores_biases:
        dense = mx.array(rng.standard_normal((case.N, case.K), np.float32))
        weights = tuple(mx.quantize(dense, mode=case.mode))
        mx.eval(weights)
        return weights
    scales = mx.array(rng.standard_normal(groups, np.float32) / 2**case.bits)
    scales = scales.astype(DTYPES[case.scales_dtype])
    weights = (mx.array(words), scales, scales * -(2 ** (case.bits - 1)))
    mx.eval(weights)
    return weights


def _dense(case: ProductCase, rng: np.random.Generator) -> Weights:
    w = mx.array(rng.standard_normal((case.N, case.K), np.float32))
    w = w.astype(DTYPES[case.dtype])
    mx.eval(w)
    return (w,)


def chain(
    case: ProductCase,
    product: Callable[..., mx.array],
    pool: Callable[[], Iterator[Weights]],
) -> Chain:
    """Return a chain of products, each with the next weights of a pool.

    Args:
        case: The product.
        product: Function of x and weights that returns y.
        pool: Function that returns the weights, in turns.
    """
    count = case.rows * case.K
    room = mx.array(np.random.default_rng(1).standard_normal(count + _PLACES))
    room = room.astype(DTYPES[case.dtype])
    mx.eval(room)
    places = np.random.default_rng(2)
    x, last = room[:count].reshape(case.rows, case.K), None

    def run(times: int) -> None:
        nonlocal x, last
        weights = pool()
        if weights is not last:
            # The place of x in memory matters, too: draw it anew with the weights.
            first = int(places.integers(_PLACES // _ALIGNED)) * _ALIGNED
            x = room[first : first + count].reshape(case.rows, case.K)
            mx.eval(x)
            last = weights
        h = x
        for _ in range(times):
            y = product(h, *next(weights))
            h = link(h, y)
        mx.eval(h)

    return run


def nibble(case: ProductCase) -> Callable[..., mx.array]:
    """Return our product."""

    def product(
        x: mx.array, w: mx.array, scales: mx.array, biases: mx.array | None = None
    ) -> mx.array:
        return ops.quantized_matmul(
            x, w, scales, biases, True, case.group_size, case.bits, case.mode
        )

    return product


def mlx(case: ProductCase) -> Callable[..., mx.array]:
    """Return MLX's operation."""

    def product(
        x: mx.array, w: mx.array, scales: mx.array, biases: mx.array | None = None
    ) -> mx.array:
        return mx.quantized_matmul(
            x, w, scales, biases, True, case.group_size, case.bits, case.mode
        )

    return product


def dense(x: mx.array, w: mx.array) -> mx.array:
    """Return the product with a matrix that is not quantized."""
    return x @ w.T
