"""Keys and values of latent attention, joined as mlx-lm's DeepSeek 2 has them.

A GGUF file has one matrix (attn_kv_b) or two (attn_k_b, whose heads are transposed, and
attn_v_b). mlx-lm's DeepSeek 2 takes one, and its DeepSeek 3 divides one when it loads
it. Groups of codes cannot be transposed. So a matrix of the other layout is stored in
full precision.
"""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

_KEYS, _VALUES = ".embed_q.weight", ".unembed_out.weight"


def join_latent(arrays: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Return tensors with the keys and values of each layer as one matrix.

    Args:
        arrays: Path of each parameter to its array; keys are `[heads, rank, keys]`,
            and values `[heads, values, rank]`.
    """
    joined = {}
    for path, array in arrays.items():
        if path.endswith(_VALUES):
            continue
        if path.endswith(_KEYS):
            layer = path.removesuffix(_KEYS)
            both = [array.swapaxes(-1, -2), arrays[f"{layer}{_VALUES}"]]
            path = f"{layer}.kv_b_proj.weight"
            array = mx.concatenate(both, 1).reshape(-1, array.shape[1])
        joined[path] = array
    return joined
