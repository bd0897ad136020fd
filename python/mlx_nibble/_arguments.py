"""Types and checks that the operations share."""

from __future__ import annotations

import mlx.core as mx

StreamOrDevice = mx.Stream | mx.ThreadLocalStream | mx.Device | mx.DeviceType | None

QuantizedArrays = tuple[mx.array, mx.array, mx.array | None]
"""``(w, scales, biases)``, as :func:`mx.quantize` returns them."""


def check_activations(op: str, activations: str | None) -> None:
    """Raise ValueError unless ``activations`` is None or ``"int8"``."""
    if activations not in (None, "int8"):
        raise ValueError(
            f"[{op}] activations must be None or 'int8' but got {activations!r}."
        )


def stock_swiglu(gate: mx.array, up: mx.array, stream: StreamOrDevice) -> mx.array:
    """Return ``silu(gate) * up``, by MLX's operations."""
    silu = mx.multiply(gate, mx.sigmoid(gate, stream=stream), stream=stream)
    return mx.multiply(silu, up, stream=stream)
