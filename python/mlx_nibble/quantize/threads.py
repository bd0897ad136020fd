"""How many threads NumPy's matrix products take while a matrix is quantized.

Between two products of a quantizer lies work of one thread, and the others of OpenBLAS
spin until the next product. NumPy on macOS has Accelerate, which is left alone.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager

from threadpoolctl import ThreadpoolController

# Multiplications and additions that are worth a thread: 3 ms of a core that does 10^11
# in a second, about what the work between two products takes.
_WORTH_A_THREAD = 2**28


@functools.cache
def _pools() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


def threads_for(operations: int) -> AbstractContextManager[object]:
    """Return a context with few enough threads for products of this size.

    Args:
        operations: Multiplications and additions of each product.
    """
    pools = _pools()
    now = min((pool.num_threads for pool in pools.lib_controllers), default=1)
    return pools.limit(limits=max(1, min(now, operations // _WORTH_A_THREAD)))
