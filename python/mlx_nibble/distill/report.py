"""The report of a distillation, with the error of each layer's output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_nibble.layerwise.cpu_math import fast_dense, to_numpy
from mlx_nibble.layerwise.intercept import Hook, intercepted
from mlx_nibble.layerwise.stream import arrays
from mlx_nibble.layerwise.trace import layers


@dataclass(frozen=True)
class Distilled:
    """Facts of the folder that `distill` wrote.

    Attributes:
        path: The folder.
        parameters: Number of weights of the unquantized model.
        nbytes: Bytes of all tensors.
        losses: Divergence from the original on held-out text, in nats a token: of the
            start, of the model with trained blocks if there are any, then of each
            measurement.
        steps: Steps until the last measurement.
        changes: How far each matrix moved, see `Variables.changes`.
        layers: Relative error of each layer's output on a held-out batch, of the
            `start` and of the `trained` model.
    """

    path: Path
    parameters: int
    nbytes: int
    losses: Sequence[float]
    steps: int
    changes: Sequence[Mapping[str, Any]]
    layers: Sequence[Mapping[str, Any]]


Outputs = dict[str, np.ndarray]


def layer_outputs(model: nn.Module, tokens: mx.array) -> Outputs:
    """Return the output of each layer that the model calls, float32, by path."""
    found: Outputs = {}

    def hook(path: str) -> Hook:
        def see(original: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            if values := arrays(result):
                found[path] = np.array(to_numpy(values[0]))
            return result

        return see

    called = [(m, hook(path)) for path, m in layers(model).items() if callable(m)]
    with intercepted(called), fast_dense():
        mx.eval(model(tokens))
    return found


def layer_errors(
    original: Outputs, trained: Mapping[str, Callable[[], Outputs]]
) -> list[dict[str, Any]]:
    """Return the relative error of each layer's output, root mean square.

    Args:
        original: The original model's outputs.
        trained: Functions that return those of its quantized forms, by name.
    """
    rows: list[dict[str, Any]] = [{"path": path} for path in original]
    for name, outputs in trained.items():
        found = outputs()
        for row in rows:
            exact = original[row["path"]].astype(np.float64)
            off = np.square(found[row["path"]] - exact).sum()
            row[name] = float(np.sqrt(off / max(np.square(exact).sum(), 1e-300)))
    return rows
