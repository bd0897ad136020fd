"""Tensors of packed checkpoints that change the result, and that MLX has no place for.

They are refused by name. A model without them would be another model.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import mlx.core as mx

from mlx_nibble.conversion.packed_settings import refuse

# The last part of a tensor's name to the description of such tensors.
_STRANGERS = {
    r"[qkv]_scale|kv_scale|[kv]_(cache_)?(scale|zero_point)|[kv]_zero_point|prob_scale"
    r"|prob_output_scale|[kv]_proj_output_scale": "a scale of the KV cache",
    r"(input|output|act|activation|pre_quant)_(global_)?(scales?|zero_point)"
    r"|smooth(ing)?_(scales?|factors?)|input_amax|act_scales?"
    r"|channel_scales?": "a scale of activations",
    r"had_?K?|hadamard\w*|rotation\w*|rotate\w*|R\d|\w+_transform|theta|pairs"
    r"|s[uv]h?|\w*_had": "a rotation",
    r"perm|input_perm|q_perm|q_invperm|invperm": "an order of inputs",
    r"weight_scale(_inv|_2)?|weight_global_scale|scale_inv|weight_zero_point"
    r"|weight_packed|weight_g_idx|bitmask|row_offsets|compressed|qweight|qzeros|g_idx"
    r"|absmax|quant_map|quant_state\S*|SCB|trellis": "a part of a weight in another "
    "format",
    r"lora_[AB]|lora_\w+": "an adapter",
}
_NAMES = [(re.compile(pattern), what) for pattern, what in _STRANGERS.items()]
_BYTES = (mx.int8, mx.uint8)


def require_plain(tensors: Mapping[str, mx.array], paths: Collection[str]) -> None:
    """Refuse tensors beside the packed matrices that are no plain weights.

    Args:
        tensors: The tensors that no packed matrix has.
        paths: Paths of the packed matrices.

    Raises:
        ValueError: If one changes the result.
    """
    packed = set(paths)
    for name, value in tensors.items():
        owner, _, last = name.rpartition(".")
        for pattern, what in _NAMES:
            if pattern.fullmatch(last):
                refuse(f"{name} is {what}, which MLX has no place for")
        if owner in packed and last != "bias":
            refuse(f"{name} belongs to a packed matrix but is not known")
        if value.dtype in _BYTES and value.ndim == 3:
            refuse(f"{name} is a stack of experts in 8 bits, which is not supported")
        if value.dtype in _BYTES:
            refuse(f"{name} is in a format of 8 bits that is not known")
