"""Decodes with a llama of 8B shapes on MLX's GPU: python -m bench.cuda_model

The weights are random, of 4 bits in groups of 64. Stock MLX and `accelerate()` decode
with the same weights in turns. It needs mlx with a GPU, mlx-lm and this package.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import cache, llama

import mlx_nibble
from mlx_nibble import ops

STEPS = 48
NODES = 200
WARM_UP, TOKENS = 20, 100


def quantized(made: Any) -> Any:
    """Return the model with weights of 4 bits in groups of 64."""
    made.set_dtype(mx.bfloat16)
    nn.quantize(made, 64, 4)
    mx.eval(made.parameters())
    return made


def model() -> Any:
    """Return a quantized model, the same at each call."""
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


def prompts(rows: int, length: int) -> mx.array:
    """Return different tokens in each row."""
    numbers = mx.arange(rows)[:, None] * 37 + mx.arange(length) * 11
    return numbers % 1000


def decode(made: Any, batch: int) -> float:
    """Return tokens per second of greedy decoding, after a few steps."""
    keys = cache.make_prompt_cache(made)

    def step(tokens: mx.array) -> mx.array:
        return mx.argmax(made(tokens, cache=keys)[:, -1:], -1)

    tokens = step(prompts(batch, 16))
    for _ in range(4):
        tokens = step(tokens)
        mx.eval(tokens)
    begin = time.perf_counter()
    steps = max(STEPS // batch, 12)
    for _ in range(steps):
        following = step(tokens)
        mx.async_eval(following)
        tokens.tolist()
        tokens = following
    mx.eval(tokens)
    return batch * steps / (time.perf_counter() - begin)


def parts(made: Any) -> str:
    """Return the parts of a token's time at batch 1: medians, milliseconds."""
    keys = cache.make_prompt_cache(made)

    def step(tokens: mx.array) -> mx.array:
        return mx.argmax(made(tokens, cache=keys)[:, -1:], -1)

    tokens = step(prompts(1, 16))
    times = []
    for _ in range(WARM_UP + TOKENS):
        begin = time.perf_counter()
        following = step(tokens)
        built = time.perf_counter()
        mx.async_eval(following)
        encoded = time.perf_counter()
        tokens.tolist()
        tokens = following
        times.append((built - begin, encoded - built, time.perf_counter() - begin))
    columns = zip(*times[WARM_UP:], strict=True)
    building, encoding, whole = (1000 * statistics.median(c) for c in columns)
    return f"building {building:.2f}, encoding {encoding:.2f}, a token {whole:.2f} ms"


def read(made: Any, length: int) -> float:
    """Return tokens per second of a prompt."""
    begin = time.perf_counter()
    mx.eval(made(prompts(1, length), cache=cache.make_prompt_cache(made))[:, -1:])
    return length / (time.perf_counter() - begin)


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
    small = mx.quantize(mx.random.normal((256, 256)).astype(mx.bfloat16), 64, 4)
    print(f"x + 1: {of_a_node(lambda x: x + 1):.1f} us")
    print(f"MLX: {of_a_node(lambda x: mx.quantized_matmul(x, *small)):.1f} us")
    print(f"ours: {of_a_node(lambda x: ops.quantized_matmul(x, *small)):.1f} us")
    models = {"stock": model(), "ours": model()}
    print(mlx_nibble.accelerate(models["ours"]))
    for batch in (1, 8, 32):
        for name in ("stock", "ours") * 2:
            rates = " ".join(f"{decode(models[name], batch):.1f}" for _ in range(3))
            print(f"{name}, batch {batch}: {rates} tokens/s", flush=True)
    for length in (32, 2048):
        for name, made in models.items():
            rates = " ".join(f"{read(made, length):.0f}" for _ in range(3))
            print(f"{name}, prompt of {length}: {rates} tokens/s", flush=True)


if __name__ == "__main__":
    main()
