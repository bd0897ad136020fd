"""The types that a model's activations have, and the models prepared with them.

On the CPU, MLX emulates the half types. If linear layers cost nothing, a model decodes
at 30 tokens/s in float32 and at 25 in bfloat16. MLX multiplies 4-bit weights 10 times
slower in bfloat16 than in float32, and 40 times slower in float16. Most checkpoints
have float16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import mlx.core as mx
import mlx.nn as mlx_nn
from mlx.utils import tree_flatten

from mlx_nibble import nn
from mlx_nibble.acceleration.accelerate import (
    accelerate,
    recognise_symmetric,
    repack_layers,
)
from mlx_nibble.acceleration.decide import keeps_scales
from mlx_nibble.acceleration.report import Report
from mlx_nibble.acceleration.settings import DEFAULTS, Settings
from mlx_nibble.io.checkpoint import dtype_name
from mlx_nibble.lm.caches import of_checkpoint


@dataclass(frozen=True)
class _Stored:
    """The types that a model's parameters had before they were cast, by path.

    They are names: MLX's types can be neither copied nor pickled.
    """

    dtypes: Mapping[str, str]


def prepare(model: mlx_nn.Module, settings: Settings = DEFAULTS) -> Report:
    """Accelerate a model, and let it compute in float32 on the CPU.

    Returns:
        The report of :func:`mlx_nibble.accelerate`. ``undo()`` does not restore the
        types.
    """
    report = accelerate(model, **vars(replace(settings, repack=False)))
    if on_cpu():
        # An attribute that is no array and no dictionary: no parameter of the model.
        stored = {path: value.dtype for path, value in _floating(model).items()}
        model._stored_dtypes = _Stored({p: dtype_name(t) for p, t in stored.items()})
        report.checkpoint_dtype = of_checkpoint([*stored.values()])
        set_activation_dtype(model, mx.float32)
        if settings.repack:  # after the cast, which replaces scales
            repack_layers(model, report, settings.activations)
    return report


def in_stored_types(model: mlx_nn.Module) -> dict[str, mx.array]:
    """Return the parameters that :func:`prepare` has cast, in their first types.

    A matrix that has been dequantized since has the type that its scales had, and
    scales of a matrix that has been quantized since that of the matrix. A parameter
    that has been cast to another type since keeps that.
    """
    stored = getattr(model, "_stored_dtypes", _Stored({})).dtypes

    def cast(path: str, value: mx.array) -> mx.array:
        owner = path.rpartition(".")[0]
        for name in (path, f"{owner}.scales", f"{owner}.weight"):
            if name in stored:
                return value.astype(getattr(mx, stored[name]))
        return value

    return {
        path: now
        for path, value in _floating(model).items()
        if value.dtype == mx.float32 and (now := cast(path, value)).dtype != value.dtype
    }


def _floating(model: mlx_nn.Module) -> dict[str, mx.array]:
    """Return the floating-point parameters of a model, by path."""
    return {
        path: value
        for path, value in tree_flatten(model.parameters())
        if isinstance(value, mx.array) and mx.issubdtype(value.dtype, mx.floating)
    }


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
            module._row_dtype = dtype_name(dtype)
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
