"""Times the building of graphs: a decoder layer on our kernels, beside MLX's.

    python -m bench.graph_building [--rows 1 64] [--layers 16] [--seconds 20]

Nothing is computed. The time is what a call of a llama's layer, without embedding and
cache, takes on a processor, in Python and C++ together. Stock and ours take turns, each
with its own copy of the model. `cpu` is the package as it is on this machine. `gpu` has
its products on the stand-in for MLX's Metal device, which only editable installations
have. There, norm, rope and attention are one node of MLX's each, which a build without
Metal refuses to make. Another node of one input takes their place in both models. MLX's
own cost more, so a Mac's ratio is nearer to 1. Prints JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import mlx.core as mx
import mlx.nn as nn

import mlx_nibble
from bench import timing
from bench.model_costs import model_of
from mlx_nibble import _native
from mlx_nibble.bench.statistics import median

# Calls that are timed together.
_CALLS = 300
# Another takes its place.
_EXT = _native.ext

_SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}


class _StandIn:
    """The extension, with the operations of a GPU's layers on the stand-in."""

    def __init__(self) -> None:
        # Editable installations alone have it.
        from mlx_nibble import _recorder  # pyright: ignore

        for name in ("linear", "quantized_matmul", "gated_products"):
            operation = getattr(_recorder, name)
            setattr(self, name, partial(operation, stream=_recorder.stream))

    def has_gpu(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(_EXT, name)


def _one_node(a: mx.array, *_: Any, **__: Any) -> mx.array:
    return mx.abs(a)


@contextlib.contextmanager
def _device(name: str) -> Iterator[None]:
    """Have accelerate() and our layers see this device."""
    if name == "cpu":
        yield
        return
    gpu = mx.Device(mx.gpu)  # pyright: ignore
    operations = ("rms_norm", "rope", "scaled_dot_product_attention")
    with (
        mock.patch.multiple(mx.fast, **dict.fromkeys(operations, _one_node)),
        mock.patch.object(mx, "default_device", lambda: gpu),
        mock.patch.object(_native, "ext", _StandIn()),
    ):
        yield


def _model(layers: int) -> nn.Module:
    mx.random.seed(0)
    model = model_of(layers, **_SIZES)
    model.set_dtype(mx.float16)
    mx.eval(model.parameters())
    return model


def _building(model: nn.Module, x: mx.array) -> Callable[[], float]:
    """Return a function that builds the graph of all layers, and drops it."""

    def build() -> float:
        before = time.thread_time()
        h = x
        for layer in model.layers:
            h = layer(h, mask="causal")
        return time.thread_time() - before

    return build


def compare(device: str, rows: int, layers: int, seconds: float) -> dict[str, Any]:
    """Time a layer of both models, built in turns."""
    stock, ours = _model(layers), _model(layers)
    x = mx.zeros((1, rows, _SIZES["hidden_size"]), mx.float16)
    mx.eval(x)
    with _device(device):
        assert mlx_nibble.accelerate(ours, tuned=False, duel=False).swapped
        gc.collect()
        gc.disable()
        taken = timing.interleave(
            {"stock": _building(stock, x), "ours": _building(ours, x)},
            seconds,
            most=10**6,
        )
        gc.enable()
    ratio = timing.faster(taken["ours"], taken["stock"])
    return {
        "device": device,
        "rows": rows,
        "stock_us": 1e6 * median(taken["stock"]).value / layers,
        "ours_us": 1e6 * median(taken["ours"]).value / layers,
        "ratio": ratio.value,
        "low": ratio.low,
        "high": ratio.high,
        "rounds": len(taken["ours"]),
    }


def compare_call(device: str, bias: bool, seconds: float) -> dict[str, Any]:
    """Time one call of a QuantizedLinear of both, in turns."""
    width = _SIZES["hidden_size"]
    stock, ours = (
        nn.QuantizedLinear(width, width, bias=bias, group_size=64) for _ in range(2)
    )
    x = mx.zeros((1, 1, width), mx.float16)
    for layer in (stock, ours):
        layer.set_dtype(mx.float16)
        mx.eval(layer.parameters(), x)

    def calling(layer: nn.Module) -> Callable[[], float]:
        def call() -> float:
            before = time.thread_time()
            for _ in range(_CALLS):
                layer(x)
            return time.thread_time() - before

        return call

    with _device(device):
        assert mlx_nibble.accelerate(ours, tuned=False, duel=False).swapped
        gc.collect()
        gc.disable()
        taken = timing.interleave(
            {"stock": calling(stock), "ours": calling(ours)}, seconds, most=10**6
        )
        gc.enable()
    ratio = timing.faster(taken["ours"], taken["stock"])
    return {
        "device": device,
        "call": "QuantizedLinear" + " with a bias" * bias,
        "stock_us": 1e6 * median(taken["stock"]).value / _CALLS,
        "ours_us": 1e6 * median(taken["ours"]).value / _CALLS,
        "ratio": ratio.value,
        "low": ratio.low,
        "high": ratio.high,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args()
    for device in ("cpu", "gpu"):
        for rows in args.rows:
            print(json.dumps(compare(device, rows, args.layers, args.seconds)))
        for bias in (False, True):
            print(json.dumps(compare_call(device, bias, args.seconds)))


if __name__ == "__main__":
    main()
