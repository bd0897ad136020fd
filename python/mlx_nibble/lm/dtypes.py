"""The types that a model's activations have, and the models prepared with them.

On the CPU, MLX emulates the half types. If linear layers cost nothing, a model decodes
at 30 tokens/s in float32 and at 25 in bfloat16. MLX multiplies 4-bit weights 10 times
slower in bfloat16 than in float32, and 40 times slower in float16. Most checkpoints
have float16.
"""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import mlx.nn as mlx_nn

from mlx_nibble import nn
from mlx_nibble.acceleration.accelerate import (
    accelerate,
    recognise_symmetric,
    repack_layers,
)
from mlx_nibble.acceleration.decide import keeps_scales
from mlx_nibble.acceleration.report import Report
from mlx_nibble.acceleration.settings import DEFAULTS, Settings


def prepare(model: mlx_nn.Module, settings: Settings = DEFAULTS) -> Report:
    """Accelerate a model, and let it compute in float32 on the CPU.

    Returns:
        The report of :func:`mlx_nibble.accelerate`. ``undo()`` does not restore the
        types.
    """
    report = accelerate(model, **vars(replace(settings, repack=False)))
    if on_cpu():
        set_activation_dtype(model, mx.float32)
        if settings.repack:  # after the cast, which replaces scales
            repack_layers(model, report)
    return report


def use_stock(model: mlx_nn.Module) -> None:
    """Cast a model to the types in which MLX alone is fastest: float32 on the CPU."""
    if on_cpu():
        model.set_dtype(mx.float32)


def set_activation_dtype(model: mlx_nn.Module, dtype: mx.Dtype) -> None:
    """Cast a model so that its activations and its KV cache have type ``dtype``.

    Casts every floating-point parameter except the scales and biases of quantized
    layers on our products. Our products read these in their own type, and twice the
    bytes would gain nothing.
    """
    for _, module in model.named_modules():
        keep: tuple[str, ...] = ()
        if isinstance(module, nn.QuantizedEmbedding):
            module._row_dtype = dtype
            keep = ("scales", "biases")
        elif keeps_scales(module):
            keep = ("scales", "biases")
        for name, value in module.items():
            if name in keep or not isinstance(value, mx.array):
                continue
            if mx.issubdtype(value.dtype, mx.floating):
                module[name] = value.astype(dtype)
    # The new arrays have not been compared yet.
    recognise_symmetric(module for _, module in model.named_modules())


def on_cpu() -> bool:
    """Return whether MLX's default device is the CPU."""
    return mx.default_device().type == mx.DeviceType.cpu
