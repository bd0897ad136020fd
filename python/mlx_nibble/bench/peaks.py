"""Measures the peak rates of the machine, in the same run as the candidates."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_nibble import _native
from mlx_nibble.bench import machine
from mlx_nibble.ops import DTYPES

_REPEATS = 7
# A dense product large enough to keep a GPU busy for milliseconds.
_SIZE = 4096
# Operations on registers: some 10 ms, so that the start of a thread does not show.
_ROUNDS = 5_000_000


@dataclass(frozen=True)
class Peaks:
    """Peak rates of the default device.

    Attributes:
        read_bytes_per_second: Reads from memory, all cores together.
        flops_per_second: Operations; a multiplication and an addition are two. On a
            CPU: float32 in registers, all cores. On a GPU: a dense product.
    """

    read_bytes_per_second: float
    flops_per_second: float


def measure(dtype: str) -> Peaks:
    """Return the best of several tries to read and to multiply."""
    if machine.device() == "cpu":
        return Peaks(read_bandwidth(), _cpu_multiply())
    return Peaks(_gpu_read(), _gpu_multiply(dtype))


def read_bandwidth() -> float:
    """Return the bytes per second that all cores of the CPU read from memory."""
    read = reader()
    return read() / _best(read)


def reader() -> Callable[[], int]:
    """Return a function that reads memory on all cores and returns its bytes.

    Each thread takes the dot product of its own part, which is mostly reading.
    """
    count = 4 * machine.last_level_cache_bytes() // 4
    buffer = np.ones(count, np.float32)
    parts = np.array_split(buffer, machine.threads())
    pool = ThreadPoolExecutor(machine.threads())

    def read() -> int:
        list(pool.map(lambda part: float(np.dot(part, part)), parts))
        return buffer.nbytes

    return read


def _cpu_multiply() -> float:
    """Return the operations per second on registers, with our own instructions."""
    ext = _native.ext
    if ext is None:
        a = np.ones((_SIZE, _SIZE), np.float32)
        return 2 * _SIZE**3 / _best(lambda: np.dot(a, a))
    return ext.cpu_multiply(_ROUNDS) / _best(lambda: ext.cpu_multiply(_ROUNDS))


def _gpu_read() -> float:
    buffer = mx.ones(8 * machine.last_level_cache_bytes() // 4, mx.float32)
    mx.eval(buffer)
    return buffer.nbytes / _best(lambda: mx.eval(buffer.sum()))


def _gpu_multiply(dtype: str) -> float:
    a = mx.ones((_SIZE, _SIZE), DTYPES[dtype])
    mx.eval(a)
    return 2 * _SIZE**3 / _best(lambda: mx.eval(a @ a))


def _best(call: Callable[[], object]) -> float:
    taken = []
    for _ in range(_REPEATS):
        before = time.perf_counter()
        call()
        taken.append(time.perf_counter() - before)
    return min(taken)
