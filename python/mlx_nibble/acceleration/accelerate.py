"""Put the quantized layers of a model on our kernels, in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as mlx_nn
from mlx.utils import tree_flatten

from mlx_nibble import _native
from mlx_nibble.acceleration import (
    blocks,
    left,
    measured,
    shared_modules,
    symmetric,
)
from mlx_nibble.acceleration.decide import (
    Rules,
    decide,
    is_quantized,
    reads_weights_by_products,
)
from mlx_nibble.acceleration.repack import Repacked, is_packed
from mlx_nibble.acceleration.report import Kept, Report, Routed, Swap
from mlx_nibble.acceleration.route import other_layers, quantized_layers
from mlx_nibble.acceleration.settings import Settings
from mlx_nibble.machine import tuned_table
from mlx_nibble.nn import Options
from mlx_nibble.progress import Progress, silent


def accelerate(
    model: mlx_nn.Module,
    predicate: Callable[[str, mlx_nn.Module], bool] | None = None,
    *,
    activations: str | None = None,
    batch_invariant: bool = False,
    repack: bool = True,
    tuned: bool = True,
    duel: bool = True,
    progress: Progress = silent,
) -> Report:
    """Let every quantized layer of ``model`` compute with our kernels.

    The class of a layer changes. The new class is a subclass of the old one: its code
    is the same, but calls our operations instead of MLX's. Parameters, their names and
    their values stay, so the model is saved, trained and sharded as before, and no
    memory is used. Scales and biases are evaluated, to recognise symmetric matrices,
    whose biases our kernels need not read.

    If the default device is the CPU, weights are put in the order that the processor
    reads fastest, in place of the checkpoint's (``repack``).

    If the default device is the CPU, the layers between them call our operations too:
    normalization, rotary positions, attention, SwiGLU. Arrays on another device still
    use MLX's. On a GPU, SwiGLU of one row becomes one launch with gate and up. mlx-lm
    shares some activations among all models of a process: this model gets its own copy.

    Args:
        model: Any MLX module; quantized layers are found at any depth.
        predicate: Function of the path and the module of each quantized layer; a false
            result leaves that layer to MLX.
        activations, batch_invariant, repack, tuned, duel: The fields of
            :class:`mlx_nibble.Settings`, which documents them.
        progress: Function that is told how many layers are repacked.

    Returns:
        The changed layers, and the unchanged ones with the reason. ``report.undo()``
        restores the model.

    Raises:
        TypeError: If ``model`` is not a module.
        ValueError: If ``activations`` is neither None, ``"int16"`` nor ``"int8"``.

    After an exception of any kind the model is as it was before.
    """
    settings = Settings(activations, batch_invariant, repack, tuned, duel)
    if not isinstance(model, mlx_nn.Module):
        raise TypeError(
            f"[accelerate] an mlx.nn.Module is required but got {model!r:.60}."
        )
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    tuning, table = tuned_table.in_use() if settings.tuned else (0, {})
    gpu = measured.of_gpu(settings, model)
    if gpu is not None:
        tuning = gpu.number(settings.tuned)
    options = Options(settings.activations, settings.batch_invariant, tuning)
    others = other_layers(settings.batch_invariant, on_cpu)
    rules = Rules(
        quantized_layers(options, on_cpu), others, "CPU" if on_cpu else "GPU", predicate
    )
    report = Report()
    try:
        _change(model, rules, report)
        recognise_symmetric(swap.module for swap in report.swapped)
        if gpu is not None:
            quantized, follow = rules.quantized, settings.tuned
            report.measured = measured.settle(gpu, model, quantized, follow)
        elif not on_cpu:
            measured.prepare(model, rules.quantized)
        report.tuned = _tuned_layers(report, table, settings.activations)
        if settings.repack and on_cpu:
            repack_layers(model, report, settings.activations, progress)
    except BaseException:
        report.undo()
        raise
    return report


def _change(model: mlx_nn.Module, rules: Rules, report: Report) -> None:
    """Change the classes of layers; report each change before it is made."""
    if _native.ext is not None:
        shared_modules.replace(
            model, lambda kind: bool(rules.others.subclass(kind)), report.replaced
        )
    for path, module in model.named_modules():
        match decide(path, module, rules):
            case Kept() as kept:
                report.kept.append(kept)
            case Swap() as swap:
                report.swapped.append(swap)
                module.__class__ = swap.rebound
            case Routed() as routed:
                report.routed.append(routed)
                module.__class__ = routed.rebound
            case None:
                report.unchanged += is_quantized(module)
    if rules.device == "CPU" and _native.ext is not None:
        report.left = list(left.found(model, rules.others))
        for routed in blocks.found(model, rules.others):
            report.routed.append(routed)
            routed.module.__class__ = routed.rebound


def repack_layers(
    model: mlx_nn.Module,
    report: Report,
    activations: str | None,
    progress: Progress = silent,
) -> None:
    """Put the weights of a model's layers on our kernels in the processor's order.

    Exact products read E4M3 as it lies: beside affine weights of 8 bits, one row of
    4096 x 4096 has 0.96 of the speed so, and 0.38 packed (a Xeon with AMX).

    See :mod:`mlx_nibble.acceleration.repack`.
    """
    exact = activations is None and not _has_16_bits(model)
    layers: Iterator[Any] = filter(reads_weights_by_products, model.modules())
    report.repacked = Repacked()
    report.repacked.add(
        (m for m in layers if not exact or getattr(m, "mode", None) != "mxfp8"),
        progress,
    )


def _has_16_bits(model: mlx_nn.Module) -> bool:
    """Return whether activations have 16 bits, by the parameters beside the codes."""
    arrays: Any = tree_flatten(model.parameters())
    kinds = {array.dtype for _, array in arrays}
    return not kinds.isdisjoint((mx.float16, mx.bfloat16))


def recognise_symmetric(modules: Iterable[mlx_nn.Module]) -> None:
    """Let our kernels skip the biases of symmetric layers.

    Evaluates the layers' scales and biases; see
    :mod:`mlx_nibble.acceleration.symmetric`.
    """
    matrices: list[Any] = [
        m
        for m in modules
        if is_quantized(m)
        and m.get("biases") is not None
        and not is_packed(m["scales"])
    ]
    symmetric.recognise((m["scales"], m["biases"], m.bits) for m in matrices)


def _tuned_layers(
    report: Report, table: tuned_table.Table, activations: str | None
) -> int:
    """Return the number of swapped layers that a choice in the table concerns."""
    chosen = {
        (key.N, key.K, key.bits, key.group_size, key.mode)
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
            getattr(m, "mode", "affine"),
        )
        for m in modules
        if m["weight"].ndim == 2
    ]
    return sum(shape in chosen for shape in shapes)
