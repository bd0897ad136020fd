"""The error of each layer's output, before and after training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_nibble.layerwise.cpu_math import fast_dense, to_numpy
from mlx_nibble.layerwise.intercept import Hook, intercepted
from mlx_nibble.layerwise.stream import arrays
from mlx_nibble.layerwise.trace import layers

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
