"""Types and checks that the operations share."""

from __future__ import annotations

import mlx.core as mx

StreamOrDevice = mx.Stream | mx.ThreadLocalStream | mx.Device | mx.DeviceType | None

QuantizedArrays = tuple[mx.array, mx.array, mx.array | None]
"""``(w, scales, biases)``, as :func:`mx.quantize` returns them."""


ACTIVATION_BITS = {None: 0, "int16": 16, "int8": 8}


def activation_bits(op: str, activations: str | None) -> int:
    """Return what the extension calls ``activations``.

    Raises:
        ValueError: If they are neither None, ``"int16"`` nor ``"int8"``.
    """
    if activations not in ACTIVATION_BITS:
        raise ValueError(
            f"[{op}] activations must be None, 'int16' or 'int8' "
            f"but got {activations!r}."
        )
    return ACTIVATION_BITS[activations]


def stock_swiglu(gate: mx.array, up: mx.array, stream: StreamOrDevice) -> mx.array:
    """Return ``silu(gate) * up``, by MLX's operations."""
    silu = mx.multiply(gate, mx.sigmoid(gate, stream=stream), stream=stream)
    return mx.multiply(silu, up, stream=stream)
