"""Put the quantized layers of a model on our kernels, in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import mlx.core as mx
import mlx.nn as mlx_nn

from mlx_nibble import _native, ops
from mlx_nibble.acceleration import shared_modules, symmetric
from mlx_nibble.acceleration.rebind import Rebound, original
from mlx_nibble.acceleration.repack import Copies
from mlx_nibble.acceleration.report import Kept, Report, Routed, Swap
from mlx_nibble.acceleration.route import PRODUCTS, other_layers, quantized_layers
from mlx_nibble.machine import tuned_table


def accelerate(
    model: mlx_nn.Module,
    predicate: Callable[[str, mlx_nn.Module], bool] | None = None,
    *,
    activations: str | None = None,
    batch_invariant: bool = False,
    repack: bool = False,
    tuned: bool = True,
) -> Report:
    """Let every quantized layer of ``model`` compute with our kernels.

    A layer changes its class and nothing else: parameters, their names and the
    arrays themselves stay where they are, so the model is saved, trained and
    sharded as before, and no memory is spent. Its new class is a subclass of its
    own, whose code is the same and calls our operations where it called MLX's. Scales
    and biases are evaluated, to recognise formats whose biases need not be read.

    Where the default device is the CPU, the layers between them compute with our
    operations too: normalization, rotary positions, attention, SwiGLU. Arrays on
    another device still go to MLX's. On a GPU, SwiGLU of one row is computed in one
    launch with gate and up. Of an activation that mlx-lm shares among all
    models of a process, this model is given a copy.

    Args:
        model: Any MLX module; quantized layers are found at any depth.
        predicate: Called with the path and the module of each quantized layer;
            a false answer leaves that layer to MLX.
        activations: ``"int8"`` for 8-bit activations where that is faster, at a
            small loss; as in :func:`mlx_nibble.ops.quantized_matmul`.
        batch_invariant: Have each row's result not depend on the number of rows,
            so that greedy speculative decoding is exactly plain decoding.
        repack: On a CPU, have each layer keep a second copy of its weights, in the
            order that the processor reads fastest, from its first product on: few
            rows are then up to twice as fast, results have the same bits, and the
            weights take twice the memory (``report.repacked`` counts it).
        tuned: Follow what ``nibble tune`` has measured on this machine, if it has
            (docs/tune.md).

    Returns:
        What was swapped, what was not and why. ``report.undo()`` takes it back.

    Raises:
        TypeError: If ``model`` is no module.
        ValueError: If ``activations`` is neither None nor ``"int8"``.
    """
    if not isinstance(model, mlx_nn.Module):
        raise TypeError(
            f"[accelerate] an mlx.nn.Module is required but got {model!r:.60}."
        )
    ops.check_activations("accelerate", activations)
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    number, table = tuned_table.in_use() if tuned else (0, {})
    quantized = quantized_layers(activations, batch_invariant, on_cpu, number)
    others = other_layers(batch_invariant, on_cpu)
    report = Report()
    if _native.ext is not None:
        report.replaced = shared_modules.replace(
            model, lambda kind: bool(others.subclass(kind))
        )
    for path, module in model.named_modules():
        now, kind = type(module), original(type(module))
        if is_quantized(module):
            rebound = quantized.subclass(kind)
            if rebound is None or now is not rebound.kind:
                reason = _reason_to_keep(path, module, rebound, predicate)
                if reason is not None:
                    report.kept.append(Kept(path, kind.__name__, reason))
                    continue
                form = f"{module.bits}-bit group {module.group_size}"
                report.swapped.append(Swap(path, module, now, form))
            else:
                report.unchanged += 1
        elif _native.ext is not None:
            rebound = others.subclass(kind)
            if rebound is not None and now is not rebound.kind:
                device = "CPU" if on_cpu else "GPU"
                report.routed.append(
                    Routed(path, module, now, rebound.operations, device)
                )
        else:
            continue
        if rebound is not None:
            module.__class__ = rebound.kind
    recognise_symmetric(swap.module for swap in report.swapped)
    report.tuned = _tuned_layers(report, table, activations)
    if repack and on_cpu:
        report.repacked = repacked(model)
    return report


def repacked(model: mlx_nn.Module) -> Copies:
    """Have all of a model's layers on our kernels compute from copies.

    See :mod:`mlx_nibble.acceleration.repack`.
    """
    layers: list[Any] = [
        module
        for module in model.modules()
        if is_quantized(module) and original(type(module)) is not type(module)
    ]
    return Copies(
        (m["weight"], m["scales"], m["biases"], m.bits, m.group_size)
        for m in layers
        if "biases" in m
    )


def recognise_symmetric(modules: Iterable[mlx_nn.Module]) -> None:
    """Have our kernels not read the biases of those layers that are symmetric.

    See :mod:`mlx_nibble.acceleration.symmetric`. Evaluates the layers' scales and
    biases.
    """
    matrices: list[Any] = [m for m in modules if is_quantized(m) and "biases" in m]
    symmetric.recognise((m["scales"], m["biases"], m.bits) for m in matrices)


def is_quantized(module: mlx_nn.Module) -> bool:
    """Tell whether a module holds a weight of codes and scales, whatever its class."""
    return "scales" in module and "weight" in module and hasattr(module, "bits")


def keeps_scales(module: mlx_nn.Module) -> bool:
    """Tell whether a layer's results do not depend on the type of its scales.

    Our products have the type of the activations; what looks rows up, that of the
    scales.
    """
    if not is_quantized(module) or original(type(module)) is type(module):
        return False
    rebound = quantized_layers(None, False, False).subclass(original(type(module)))
    return rebound is not None and "dequantize" not in rebound.operations


def _tuned_layers(
    report: Report, table: tuned_table.Table, activations: str | None
) -> int:
    """How many layers' products, of some number of rows, a table has a choice for."""
    chosen = {
        (key.N, key.K, key.bits, key.group_size)
        for key, choice in table.items()
        if choice.name is not None and key.activations == activations
    }
    modules: list[Any] = [swap.module for swap in report.swapped]
    shapes = [
        (
            m["weight"].shape[0],
            m["scales"].shape[-1] * m.group_size,
            m.bits,
            m.group_size,
        )
        for m in modules
        if m["weight"].ndim == 2
    ]
    return sum(shape in chosen for shape in shapes)


def _reason_to_keep(
    path: str,
    module: Any,
    rebound: Rebound | None,
    predicate: Callable[[str, mlx_nn.Module], bool] | None,
) -> str | None:
    if _native.reason is not None:
        return f"mlx-nibble is inactive, {_native.reason}"
    mode = getattr(module, "mode", "affine")
    if not ops.supports(mode, module.bits, module.group_size):
        return (
            f"no kernel for mode {mode}, {module.bits} bits, group {module.group_size}"
        )
    if rebound is None or not rebound.operations & PRODUCTS:
        return "its code calls none of our operations"
    if predicate is not None and not predicate(path, module):
        return "the predicate said no"
    return None
