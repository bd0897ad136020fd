"""Put the quantized layers of a model on our kernels, in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.nn as mlx_nn

from mlx_nibble import _native, nn, ops
from mlx_nibble.report import Kept, Report, Swap
from mlx_nibble.route import route

# By exact type: a subclass has a __call__ of its own that ours would hide.
_OURS: dict[type[mlx_nn.Module], type[mlx_nn.Module]] = {
    mlx_nn.QuantizedLinear: nn.QuantizedLinear,
    mlx_nn.QuantizedEmbedding: nn.QuantizedEmbedding,
}


def accelerate(
    model: mlx_nn.Module,
    predicate: Callable[[str, mlx_nn.Module], bool] | None = None,
    *,
    activations: str | None = None,
    batch_invariant: bool = False,
) -> Report:
    """Let every quantized layer of ``model`` compute with our kernels.

    A layer changes its class and nothing else: parameters, their names and the
    arrays themselves stay where they are, so the model is saved, trained and
    sharded as before, and no memory is spent.

    Where the default device is the CPU, the layers between them compute with our
    operations too: normalization, rotary positions, attention, SwiGLU. Arrays on
    another device still go to MLX's.

    Args:
        model: Any MLX module; quantized layers are found at any depth.
        predicate: Called with the path and the module of each quantized layer;
            a false answer leaves that layer to MLX.
        activations: ``"int8"`` for 8-bit activations where that is faster, at a
            small loss; as in :func:`mlx_nibble.ops.quantized_matmul`.
        batch_invariant: Have each row's result not depend on the number of rows,
            so that greedy speculative decoding is exactly plain decoding.

    Returns:
        What was swapped, what was not and why. ``report.undo()`` takes it back.

    Raises:
        ValueError: If ``activations`` is neither None nor ``"int8"``.
    """
    ops.check_activations("accelerate", activations)
    report = Report()
    for path, module in model.named_modules():
        kind = type(module)
        if not _is_quantized(module) or kind in _OURS.values():
            continue
        reason = _reason_to_keep(path, module, predicate)
        if reason is not None:
            report.kept.append(Kept(path, kind.__name__, reason))
            continue
        form = f"{module.bits}-bit group {module.group_size}"
        report.swapped.append(Swap(path, module, kind, form))
        module.__class__ = _OURS[kind]
        module._activations = activations
        module._batch_invariant = batch_invariant
    report.routed = route(model)
    return report


def _is_quantized(module: mlx_nn.Module) -> bool:
    return "scales" in module and "weight" in module and hasattr(module, "bits")


def _reason_to_keep(
    path: str,
    module: Any,
    predicate: Callable[[str, mlx_nn.Module], bool] | None,
) -> str | None:
    if _native.reason is not None:
        return f"mlx-nibble is inactive, {_native.reason}"
    if type(module) not in _OURS:
        return f"no layer of ours replaces {type(module).__name__}"
    if not ops.holds(module.mode, module.bits, module.group_size):
        return (
            f"no kernel for mode {module.mode}, {module.bits} bits, "
            f"group {module.group_size}"
        )
    if predicate is not None and not predicate(path, module):
        return "the predicate said no"
    return None
