"""Decodes with a llama of 8B shapes on MLX's GPU: python -m bench.cuda_model

The weights are random, of 4 bits in groups of 64. Stock MLX and `accelerate()` decode
with the same weights in pairs of turns. It needs mlx with a GPU, mlx-lm and this
package.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import llama

from bench import cuda_pairs
from mlx_nibble import ops

NODES = 200


def quantized(made: Any) -> Any:
    """Return the model with weights of 4 bits in groups of 64, not yet evaluated."""
    made.set_dtype(mx.bfloat16)
    nn.quantize(made, 64, 4)
    return made


def model() -> Any:
    """Return a quantized model, the same at each call, not yet evaluated."""
    mx.random.seed(1)
    made = llama.Model(
        llama.ModelArgs(
            model_type="llama",
            hidden_size=4096,
            num_hidden_layers=32,
            intermediate_size=14336,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            rms_norm_eps=1e-5,
            vocab_size=128256,
            max_position_embeddings=8192,
            tie_word_embeddings=False,
        )
    )
    return quantized(made)


def of_a_node(step: Callable[[mx.array], mx.array]) -> float:
    """Return the microseconds of a small operation in a chain of them."""
    times = []
    for _ in range(9):
        y = mx.ones((1, 256), mx.bfloat16)
        begin = time.perf_counter()
        for _ in range(NODES):
            y = step(y)
        mx.eval(y)
        times.append((time.perf_counter() - begin) * 1e6 / NODES)
    return sorted(times)[len(times) // 2]


def main() -> None:
    """Print a line for each measurement."""
    args = cuda_pairs.arguments(argparse.ArgumentParser(description=__doc__))
    small = mx.quantize(mx.random.normal((256, 256)).astype(mx.bfloat16), 64, 4)
    print(f"x + 1: {of_a_node(lambda x: x + 1):.1f} us")
    print(f"MLX: {of_a_node(lambda x: mx.quantized_matmul(x, *small)):.1f} us")
    print(f"ours: {of_a_node(lambda x: ops.quantized_matmul(x, *small)):.1f} us")
    pair = cuda_pairs.Pair("llama of 8B", model)
    print(pair.report)
    cuda_pairs.keep(cuda_pairs.compare_all(pair, (32, 2048), args.seconds), args.json)


if __name__ == "__main__":
    main()
