"""Attention whose bits do not depend on how many queries a step has, on CUDA.

MLX has other kernels for one query than for several. Speculative decoding checks a few
tokens at once, and plain decoding computes the same tokens one by one.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

# More queries are those of a prompt, which both ways of decoding read alike.
MOST_QUERIES = 16


def attention(
    q: mx.array, k: mx.array, v: mx.array, *, mask: Any = None, **given: Any
) -> mx.array:
    """Compute ``mx.fast.scaled_dot_product_attention``, few queries one by one."""
    compute = mx.fast.scaled_dot_product_attention
    queries, keys = q.shape[2], k.shape[2]
    causal = isinstance(mask, str) and mask == "causal" and keys >= queries
    if not 1 < queries <= MOST_QUERIES or not (mask is None or causal):
        return compute(q, k, v, mask=mask, **given)

    def alone(i: int) -> mx.array:
        seen = keys - queries + i + 1 if causal else keys
        return compute(q[:, :, i : i + 1], k[:, :, :seen], v[:, :, :seen], **given)

    return mx.concatenate([alone(i) for i in range(queries)], axis=2)
