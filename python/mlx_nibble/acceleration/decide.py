"""Decide for each module of a model whether it computes with our kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.nn as mlx_nn

from mlx_nibble import _native, nn, ops
from mlx_nibble.acceleration.rebind import Rebinding, Rebound, original
from mlx_nibble.acceleration.report import Kept, Routed, Swap
from mlx_nibble.acceleration.route import PRODUCTS, quantized_layers
from mlx_nibble.machine import gpu


@dataclass(frozen=True)
class Rules:
    """The decisions that the caller and the device make.

    Attributes:
        quantized: Subclasses of quantized layers.
        others: Subclasses of other layers.
        device: "CPU" or "GPU".
        predicate: Function of a quantized layer's path and module; a false result
            leaves the layer to MLX.
    """

    quantized: Rebinding
    others: Rebinding
    device: str
    predicate: Callable[[str, mlx_nn.Module], bool] | None = None


def decide(path: str, module: Any, rules: Rules) -> Swap | Routed | Kept | None:
    """Return the change of a module, or why a quantized layer keeps its class.

    None if there is nothing to change. The function itself changes nothing.
    """
    now, kind = type(module), original(type(module))
    if is_quantized(module):
        rebound = rules.quantized.subclass(kind)
        if rebound is not None and now is rebound.kind:
            return None
        reason = _reason_to_keep(path, module, rebound, rules)
        if reason is not None:
            return Kept(path, kind.__name__, reason)
        assert rebound is not None  # else there is a reason to keep
        mode = getattr(module, "mode", "affine")
        form = f"{module.bits}-bit group {module.group_size}"
        form = form if mode == "affine" else f"{mode} {form}"
        return Swap(path, module, now, rebound.kind, form)
    rebound = rules.others.subclass(kind) if _native.ext is not None else None
    if rebound is None or now is rebound.kind:
        return None
    return Routed(path, module, now, rebound.kind, rebound.operations, rules.device)


def is_quantized(module: mlx_nn.Module) -> bool:
    """Return whether a module of any class has codes and scales."""
    return "scales" in module and "weight" in module and hasattr(module, "bits")


def keeps_scales(module: mlx_nn.Module) -> bool:
    """Return whether a layer's results have a type other than that of its scales.

    Our products have the type of the activations. Looked-up rows have the type of the
    scales.
    """
    if not is_quantized(module) or original(type(module)) is type(module):
        return False
    layers = quantized_layers(nn.Options(), on_cpu=False)
    rebound = layers.subclass(original(type(module)))
    return rebound is not None and "dequantize" not in rebound.operations


def reads_weights_by_products(module: mlx_nn.Module) -> bool:
    """Return whether a layer on our kernels reads its weights by our operations only.

    A layer that looks rows up by code of its own does not.
    """
    ours = isinstance(module, nn.QuantizedEmbedding)
    return is_quantized(module) and (ours or keeps_scales(module))


def _reason_to_keep(
    path: str, module: Any, rebound: Rebound | None, rules: Rules
) -> str | None:
    if _native.reason is not None:
        return "mlx-nibble is inactive"
    on_gpu = rules.device == "GPU"
    if on_gpu and not gpu.has_our_kernels():
        return "no kernel of ours runs on this GPU"
    mode = getattr(module, "mode", "affine")
    if not ops.supports(mode, module.bits, module.group_size, gpu=on_gpu):
        return (
            f"no {rules.device} kernel for mode {mode}, {module.bits} bits, "
            f"group {module.group_size}"
        )
    if original(type(module)) in rules.quantized.refused:
        return "its class allows no subclass"
    if isinstance(module, mlx_nn.QQLinear):
        return "MLX's qqmm computes it, for it rounds its inputs"
    if rebound is None or not rebound.operations & PRODUCTS:
        return "its code calls none of our operations"
    if rules.predicate is not None and not rules.predicate(path, module):
        return "the predicate said no"
    return None
