"""Times recurrences, activations, norms and dense products on a CPU beside MLX.

    python -m bench.other_layers operations  # One layer's operation.
    python -m bench.other_layers models      # Whole models with random weights.

Both take turns in one process. Prints for each case the speed relative to MLX, from
neighbouring turns: the median, the lowest and the highest.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.activations import swiglu_oai
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.gated_delta import gated_delta_ops
from mlx_lm.models.ssm import ssm_attn

import mlx_nibble
from bench import timing
from mlx_nibble import fast
from mlx_nibble.acceleration import stand_ins
from tests.support import family_configs

Pair = tuple[Callable[[], object], Callable[[], object]]


def row(name: str, pair: Pair, seconds: float, least: int = 5) -> None:
    """Time a pair of calls, MLX's and ours, and print their line."""
    calls = dict(zip(("MLX", "ours"), pair, strict=True))
    taken = timing.interleave(calls, seconds, least=least)
    ratios = [a / b for a, b in zip(taken["MLX"], taken["ours"], strict=True)]
    print(
        f"| {name} | {1e3 * median(taken['MLX']):.3g} | "
        f"{1e3 * median(taken['ours']):.3g} | **{median(ratios):.1f}x** "
        f"({min(ratios):.1f} to {max(ratios):.1f}) |",
        flush=True,
    )


def normal(*shape: int, dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.random.normal(shape).astype(dtype)


def recurrences() -> Iterator[tuple[str, Pair]]:
    """Yield the recurrences of Qwen3-Next, Mamba 2 (2.7B) and their convolution."""
    delta = stand_ins.gated_delta("mlx_lm.models.gated_delta.gated_delta_ops")
    silu = stand_ins.activation("mlx.nn.silu")
    space = stand_ins.state_space("mlx_lm.models.ssm.ssm_attn")
    for T in (1, 64):
        q, k = (normal(1, T, 16, 128) / 12 for _ in range(2))
        v, state = normal(1, T, 32, 128), normal(1, 32, 128, 128)
        g, beta = mx.random.uniform(shape=(2, 1, T, 32))
        args = (q, k, v, g, beta, state)
        mx.eval(args)
        yield (
            f"gated delta, {T} positions",
            (
                lambda args=args: mx.eval(gated_delta_ops(*args)),
                lambda args=args: mx.eval(delta(*args)),
            ),
        )
        x, b, c = normal(1, T, 80, 64), normal(1, T, 1, 128), normal(1, T, 1, 128)
        rates, skip, bias = normal(3, 80)
        args = (x, rates, b, c, skip, normal(1, T, 80), bias, normal(1, 80, 64, 128))
        mx.eval(args)
        yield (
            f"state space, {T} positions",
            (
                lambda args=args: mx.eval(ssm_attn(*args)),
                lambda args=args: mx.eval(space(*args)),
            ),
        )
        x, w = normal(1, T + 3, 8192), normal(8192, 4, 1)
        mx.eval(x, w)
        yield (
            f"convolution and SiLU, {T} positions",
            (
                lambda x=x, w=w: mx.eval(nn.silu(mx.conv1d(x, w, groups=8192))),
                lambda x=x, w=w, silu=silu: mx.eval(
                    silu(fast.conv1d(x, w, groups=8192))
                ),
            ),
        )


def elementwise() -> Iterator[tuple[str, Pair]]:
    """Yield activations and norms of a width of 4096."""
    ours = {
        "gelu": stand_ins.activation("mlx.nn.gelu"),
        "gelu_approx": stand_ins.activation("mlx.nn.gelu_approx"),
        "silu": stand_ins.activation("mlx.nn.silu"),
    }
    for dtype in (mx.float32, mx.bfloat16):
        for rows in (1, 128):
            x, y = (normal(rows, 4096, dtype=dtype) for _ in range(2))
            w, b = (normal(4096, dtype=dtype) for _ in range(2))
            mx.eval(x, y, w, b)
            about = f"{rows} rows, {str(dtype)[9:]}"
            for name, own in ours.items():
                stock = getattr(nn, name)
                yield (
                    f"{name}, {about}",
                    (
                        lambda f=stock, x=x: mx.eval(f(x)),
                        lambda f=own, x=x: mx.eval(f(x)),
                    ),
                )
            yield (
                f"swiglu_oai, {about}",
                (
                    lambda x=x, y=y: mx.eval(swiglu_oai(x, y)),
                    lambda x=x, y=y: mx.eval(stand_ins.swiglu_oai(x, y)),
                ),
            )
            yield (
                f"layer_norm, {about}",
                (
                    lambda a=(x, w, b): mx.eval(mx.fast.layer_norm(*a, 1e-5)),
                    lambda a=(x, w, b): mx.eval(fast.layer_norm(*a, 1e-5)),
                ),
            )


def dense() -> Iterator[tuple[str, Pair]]:
    """Yield products of a layer that is not quantized, 2048 x 2048."""
    for dtype in (mx.float32, mx.bfloat16, mx.float16):
        layer = nn.Linear(2048, 2048, bias=False)
        layer.set_dtype(dtype)
        mx.eval(layer.parameters())
        for rows in (1, 8, 64):
            x = normal(rows, 2048)
            mx.eval(x)
            yield (
                f"dense product, {rows} rows, weights in {str(dtype)[9:]}",
                (
                    lambda f=layer, x=x: mx.eval(f(x)),
                    lambda f=layer, x=x: mx.eval(stand_ins.linear(f, x)),
                ),
            )


def experts() -> Iterator[tuple[str, Pair]]:
    """Yield products of experts that are not quantized: 4 of 16, 512 x 1024."""
    w = normal(16, 512, 1024)
    mx.eval(w)
    for rows in (1, 64):
        x = normal(rows, 1, 1, 1024)
        chosen = mx.random.randint(0, 16, (rows, 4))
        mx.eval(x, chosen)
        calls = (
            lambda f=f, x=x, chosen=chosen: mx.eval(
                f(x, w.swapaxes(-1, -2), rhs_indices=chosen)
            )
            for f in (mx.gather_mm, fast.gather_mm)
        )
        first, second = calls
        yield f"dense experts, {rows} rows", (first, second)


def capped() -> Iterator[tuple[str, Pair]]:
    """Yield Gemma 2's attention over 1024 keys, without its products, and logits."""
    for rows in (1, 128):
        q, k, v = (normal(1, n, m, 256) for n, m in ((8, rows), (4, 1024), (4, 1024)))
        mask = mx.tri(rows, 1024, 1024 - rows, dtype=mx.bool_)
        mx.eval(q, k, v, mask)

        def theirs(q=q, k=k, v=v, mask=mask) -> None:
            grouped = (q / 16).reshape(1, 4, 2, -1, 256)
            scores = mx.tanh(grouped @ k[:, :, None].swapaxes(-1, -2) / 50) * 50
            scores = mx.where(mask, scores, mx.finfo(scores.dtype).min)
            mx.eval(mx.softmax(scores, precise=True, axis=-1) @ v[:, :, None])

        def ours(q=q, k=k, v=v, mask=mask) -> None:
            mx.eval(
                fast.scaled_dot_product_attention(
                    q, k, v, scale=1 / 16, mask=mask, cap=50.0
                )
            )

        yield f"attention with a cap, {rows} queries", (theirs, ours)
    logits, tanh = normal(1, 256_000), stand_ins.activation("mlx.core.tanh")
    mx.eval(logits)
    yield (
        "cap of 256,000 logits",
        (
            lambda: mx.eval(mx.tanh(logits / 30) * 30),
            lambda: mx.eval(tanh(logits / 30) * 30),
        ),
    )


# Families with layers of their own, in the widths of small published models.
LINEAR = {
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
}
MODELS: dict[str, dict[str, Any]] = {
    "qwen3_next": {**LINEAR, "hidden_size": 1024, "intermediate_size": 3072},
    "kimi_linear": {"hidden_size": 1024, "intermediate_size": 3072},
    "mamba": {
        "hidden_size": 768,
        "intermediate_size": 1536,
        "time_step_rank": 48,
        "state_size": 16,
    },
    "mamba2": {
        "hidden_size": 768,
        "num_heads": 24,
        "head_dim": 64,
        "state_size": 128,
        "ssm_state_size": 128,
        "n_groups": 1,
    },
    "rwkv7": {"hidden_size": 768, "intermediate_size": 3072, "head_dim": 64},
    "gpt2": {"n_embd": 768, "n_head": 12, "n_inner": 3072},
    "gemma": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 8,
        "head_dim": 128,
    },
    "gemma2": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 128,
    },
    "qwen3_moe": {
        "hidden_size": 1024,
        "moe_intermediate_size": 768,
        "num_attention_heads": 8,
        "head_dim": 128,
    },
    "gpt_oss": {"hidden_size": 1024, "intermediate_size": 1024, "head_dim": 64},
}


def model_of(family: str, bits: int | None, dtype: mx.Dtype) -> nn.Module:
    mx.random.seed(0)
    module = importlib.import_module(f"mlx_lm.models.{family}")
    config = family_configs.config(family) | MODELS[family]
    model = module.Model(module.ModelArgs.from_dict(config))
    model.set_dtype(dtype)
    if bits:
        nn.quantize(
            model,
            group_size=64,
            bits=bits,
            class_predicate=lambda _, m: (
                hasattr(m, "to_quantized") and m.weight.shape[-1] % 64 == 0
            ),
        )
    mx.eval(model.parameters())
    return model


def decode(model: nn.Module) -> Callable[[], object]:
    cache = make_prompt_cache(model)
    step = mx.array([[5]])
    mx.eval(model(mx.array([[1, 2, 3, 4] * 4]), cache=cache))

    def write() -> None:
        for _ in range(4):
            mx.eval(model(step, cache=cache))

    return write


def prompt(model: nn.Module) -> Callable[[], object]:
    tokens = mx.array([[7 * i % 300 for i in range(64)]])

    def read() -> None:
        mx.eval(model(tokens, cache=make_prompt_cache(model)))

    return read


def models(seconds: float, names: list[str]) -> None:
    for family in names or MODELS:
        for bits in (4, None):
            both = [model_of(family, bits, mx.float32) for _ in range(2)]
            mlx_nibble.accelerate(both[1])
            about = "4 bits" if bits else "float32, not quantized"
            for what, work in (("4 tokens", decode), ("prompt of 64", prompt)):
                pair = (work(both[0]), work(both[1]))
                row(f"{family}, {about}, {what}", pair, seconds, least=3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["operations", "models"])
    parser.add_argument("names", nargs="*", help="families, or parts of names")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each case")
    args = parser.parse_args()
    print("| | MLX, ms | ours, ms | times as fast |\n| --- | ---: | ---: | --- |")
    if args.what == "models":
        return models(args.seconds, args.names)
    for cases in (recurrences(), elementwise(), dense(), experts(), capped()):
        for name, pair in cases:
            if not args.names or any(part in name for part in args.names):
                row(name, pair, args.seconds)
    return None


if __name__ == "__main__":
    main()
