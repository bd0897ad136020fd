"""Find the products, convolutions and softmaxes of a model that stay with MLX."""

from __future__ import annotations

import dis
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import CodeType
from typing import Any

import mlx.nn as nn

from mlx_nibble.acceleration.rebind import Rebinding, original

# Operations of MLX whose work grows with the widths of layers, and the reason why
# they are not ours.
_REASONS = {
    "@": "an operator has no name that could mean another function",
    "softmax": "no kernel of ours computes it outside of attention",
    **dict.fromkeys(
        ("matmul", "addmm", "einsum", "tensordot", "inner", "block_masked_mm"),
        "no kernel of ours computes products of two activations",
    ),
    **dict.fromkeys(
        (
            *("conv1d", "conv2d", "conv3d", "conv_general"),
            *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        ),
        "of the convolutions, only depthwise ones of one dimension have a kernel",
    ),
}
_OURS = "mlx_nibble."


@dataclass(frozen=True)
class Left:
    """A layer of which MLX computes a part.

    Attributes:
        path: Path of the layer in the model.
        kind: Name of its class.
        operation: Name of MLX's function, or ``"@"``.
        reason: Why no kernel of ours computes it.
    """

    path: str
    kind: str
    operation: str
    reason: str


def found(model: nn.Module, others: Rebinding) -> Iterator[Left]:
    """Yield what the code of a model's layers leaves to MLX on a CPU.

    Code is read, not run: an operation counts if the code of ``__call__`` can reach it
    by names. Quantized layers, whose products are ours, are not looked at.

    Args:
        model: Model whose layers are on our operations.
        others: Subclasses of layers that are not quantized.
    """
    for path, module in model.named_modules():
        kind = original(type(module))
        if "scales" in module or _is_depthwise(module):
            continue
        rebound = others.subclass(kind)
        for operation in _left_by(rebound.kind if rebound else kind):
            yield Left(path, kind.__name__, operation, _REASONS[operation])


def _is_depthwise(module: Any) -> bool:
    """Return whether our kernel computes a convolution."""
    return (
        isinstance(module, nn.Conv1d)
        and module.weight.shape[-1] == 1
        and module.groups == module.weight.shape[0]
        and (module.stride, module.padding, module.dilation) == (1, 0, 1)
    )


@cache
def _left_by(kind: type) -> tuple[str, ...]:
    """Return the operations of MLX that a class's ``__call__`` reaches by names."""
    reached: set[str] = set()
    seen: set[Any] = set()
    ahead: list[Any] = _methods(kind, "__call__")
    while ahead:
        function = ahead.pop()
        home = function.__globals__
        if function in seen or f"{home.get('__name__', '')}.".startswith(_OURS):
            continue  # a stand-in computes it
        seen.add(function)
        for code in _codes(function.__code__):
            reached |= _REASONS.keys() & set(_operations(code))
            for name in code.co_names:
                ahead += _methods(kind, name)
                called = home.get(name)
                if hasattr(called, "__code__"):
                    ahead.append(called)
    # Depthwise convolutions of one dimension are ours, and code does not tell which
    # are. So conv1d counts for layers of convolution only.
    if not issubclass(kind, nn.Conv1d):
        reached.discard("conv1d")
    return tuple(sorted(reached))


def _methods(kind: type, name: str) -> list[Any]:
    """Return the function of Python that a class has under a name, if it has one."""
    if not issubclass(kind, nn.Module):
        return []
    method = next((vars(k)[name] for k in kind.__mro__ if name in vars(k)), None)
    method = getattr(method, "__func__", getattr(method, "fget", method))
    # Those of dict and of Module itself compute nothing.
    is_layers = hasattr(method, "__code__") and not hasattr(nn.Module, name)
    return [method] if is_layers or name == "__call__" and method else []


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _operations(code: CodeType) -> Iterator[str]:
    """Yield the names in code, and ``"@"`` for its operator."""
    yield from code.co_names
    for instruction in dis.get_instructions(code):
        if instruction.opname == "BINARY_OP" and instruction.argrepr.startswith("@"):
            yield "@"
