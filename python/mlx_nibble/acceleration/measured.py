"""Times a model's products on a GPU, before our kernels compute them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as mlx_nn
from mlx.utils import tree_flatten

from mlx_nibble import _native
from mlx_nibble.acceleration import symmetric
from mlx_nibble.acceleration.decide import is_quantized
from mlx_nibble.acceleration.rebind import Rebinding, original
from mlx_nibble.acceleration.report import Standing
from mlx_nibble.acceleration.settings import Settings
from mlx_nibble.machine import first_use, tuned_table, verdicts
from mlx_nibble.machine.first_use import FirstUse
from mlx_nibble.machine.tuned_table import Key
from mlx_nibble.ops import DTYPES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def of_gpu(settings: Settings, model: mlx_nn.Module) -> FirstUse | None:
    """Return the verdicts of the default GPU; None if being right is enough.

    Rows of batch-invariant products have to be computed alike, by whoever computes one.
    Processes that share a model have to compute the same bits, and their duels might
    end differently. Duels are for Apple's GPUs: their matrices fit into the caches of
    others.
    """
    groups = (getattr(module, "group", None) for module in model.modules())
    if any(isinstance(group, mx.distributed.Group) for group in groups):
        return None
    if not settings.duel or settings.batch_invariant or _native.ext is None:
        return None
    if mx.default_device().type == mx.DeviceType.cpu or mx.cuda.is_available():
        return None
    judge = verdicts.of_gpu()
    return None if judge is None else first_use.here(_native.ext, judge)


def prepare(model: mlx_nn.Module, quantized: Rebinding) -> None:
    """Compile and try the kernels of a model's products for CUDA, several at a time.

    Metal's are compiled by duels, or one by one where there are none.
    """
    if _native.ext is not None and verdicts.of_gpu() and mx.cuda.is_available():
        first_use.try_kernels(_native.ext, _forms(model, quantized))


def settle(
    found: FirstUse, model: mlx_nn.Module, quantized: Rebinding, tuned: bool
) -> Standing:
    """Time what nobody has timed of a model's layers on our kernels.

    Args:
        found: Verdicts of the GPU.
        model: Accelerated model, whose symmetric matrices are known.
        quantized: Subclasses of its quantized layers.
        tuned: Whether to follow ``nibble tune``.
    """
    forms = _forms(model, quantized)
    standing: Standing = {}
    for key, why in found.settle(forms, tuned).items():
        name = _rows(key)
        layers = forms[replace(key, rows=1, sorted=False)]
        standing.setdefault(name, Counter())[why] += layers
    return standing


def _forms(model: mlx_nn.Module, quantized: Rebinding) -> Counter[Key]:
    """Count the layers of each product.

    Activations have the type of the scales; those of a mode of floats, whose scales are
    bytes, the type of most parameters. MLX computes products with a global scale.
    """
    layers: list[Any] = [
        module
        for module in model.modules()
        if is_quantized(module) and original(type(module)) is not type(module)
    ]
    arrays = (layer.get("biases", layer["scales"]) for layer in layers)
    has_floats = any(layer["scales"].dtype == mx.uint8 for layer in layers)
    usual = _usual_dtype(model) if has_floats else None
    forms: Counter[Key] = Counter()
    for layer, is_symmetric in zip(layers, symmetric.are_known(arrays), strict=True):
        w, scales = layer["weight"], layer["scales"]
        rebound = quantized.subclass(original(type(layer)))
        gathers = rebound is not None and "gather_qmm" in rebound.operations
        floats = scales.dtype == mx.uint8
        dtype = usual if floats else _NAMES.get(scales.dtype)
        if dtype is None or w.ndim != (3 if gathers else 2) or "global_scale" in layer:
            continue
        scale_dtype = "uint8" if floats else dtype
        form = (layer.bits, layer.group_size, dtype, scale_dtype, is_symmetric)
        K = scales.shape[-1] * layer.group_size
        experts = w.shape[0] if gathers else 0
        key = Key(1, w.shape[-2], K, *form, experts=experts, mode=layer.mode)
        forms[key] += 1
    return forms


def _usual_dtype(model: mlx_nn.Module) -> str | None:
    """Return the type of most parameters that are no bytes; None if there are none."""
    flat: list[Any] = [*tree_flatten(model.parameters())]
    named = Counter(_NAMES[a.dtype] for _, a in flat if a.dtype in _NAMES)
    return named.most_common(1)[0][0] if named else None


def _rows(key: Key) -> str:
    classes = tuned_table.row_classes()
    first = classes[classes.index(key.rows) - 1] + 1 if key.rows > 1 else 1
    if key.rows == classes[-1]:
        text = f"{first} rows or more"
    else:
        text = "1 row" if key.rows == 1 else f"{first} to {key.rows} rows"
    if key.experts:
        text += " that choose experts" + (", sorted" if key.sorted else "")
    return text
