"""Times one step of mlx_lm.dwq: on our gradient kernel, and on MLX's dense product.

    python -m bench.training_step [--model FOLDER] [--tokens 512] [--rounds 3]

The step is mlx-lm's: scales and biases of all matrices, a divergence from given
logits, Adam. Both sides run the accelerated model, in turns. The dense side takes the
gradient of scales and biases from MLX's quantized_matmul, whose product is dense. Its
other parts are ours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
from mlx_lm.tuner.losses import kl_div_loss

from mlx_nibble import nn as layers
from mlx_nibble import ops
from mlx_nibble.conversion.demo_model import smollm2
from mlx_nibble.lm import load


def dense_gradients() -> Callable[..., mx.array]:
    """Return a layer's product with the gradient of scales and biases by MLX."""

    def replacement(layer: Any, x: mx.array, bias: None = None) -> mx.array:
        form = {"group_size": layer.group_size, "bits": layer.bits}
        w = layer["weight"]

        def ours(x: mx.array, scales: mx.array, biases: mx.array) -> mx.array:
            return ops.quantized_matmul(x, w, scales, biases, **form)

        function = mx.custom_function(ours)

        @function.vjp
        def gradient(primals: Any, dy: mx.array, _: mx.array) -> tuple:
            x, scales, biases = primals
            (dx,) = mx.vjp(lambda x: ours(x, scales, biases), [x], [dy])[1]

            def by_mlx(scales: mx.array, biases: mx.array) -> mx.array:
                return mx.quantized_matmul(x, w, scales, biases, **form)

            return dx, *mx.vjp(by_mlx, [scales, biases], [dy])[1]

        return function(x, layer["scales"], layer["biases"])

    return replacement


def step_of(model: nn.Module, tokens: mx.array, target: mx.array) -> float:
    """Return the processor seconds of one step, on all threads."""
    adam = optimizers.Adam(1e-6)

    def loss(model: nn.Module) -> mx.array:
        return kl_div_loss(model(tokens), target).mean()

    begin = time.process_time()
    _, gradient = nn.value_and_grad(model, loss)(model)
    adam.update(model, gradient)
    mx.eval(model.trainable_parameters(), adam.state)
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    model, _ = load(str(args.model or smollm2()), repack=False)
    tokens = mx.random.randint(0, 10000, (1, args.tokens), key=mx.random.key(0))
    begin = time.perf_counter()
    target = model(tokens)
    mx.eval(target)
    forward = time.perf_counter() - begin
    model.freeze()
    model.apply_to_modules(
        lambda _, m: (
            m.unfreeze(keys=["scales", "biases"], recurse=False)
            if "scales" in m
            else None
        )
    )
    model.train()
    seconds: dict[str, list[float]] = {"kernel": [], "dense": []}
    ours = layers._product
    for _ in range(args.rounds):
        seconds["kernel"].append(step_of(model, tokens, target))
        layers._product = dense_gradients()
        try:
            seconds["dense"].append(step_of(model, tokens, target))
        finally:
            layers._product = ours
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(
        json.dumps(
            {
                "tokens": args.tokens,
                "forward_seconds": forward,
                "processor_seconds": seconds,
                "ratio": medians["dense"] / medians["kernel"],
            }
        )
    )


if __name__ == "__main__":
    main()
