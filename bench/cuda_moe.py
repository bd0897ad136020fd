"""Decodes with mixtures of experts on MLX's GPU: python -m bench.cuda_moe

The layers have the shapes of Qwen3-30B-A3B and Mixtral 8x7B; there are fewer. The
weights are random, of 4 bits in groups of 64. Stock MLX and `accelerate()` take turns.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx_lm.models import mixtral, qwen3_moe

import mlx_nibble
from bench.cuda_model import decode, quantized, read

LAYERS = 8
COMMON = {
    "num_hidden_layers": LAYERS,
    "rms_norm_eps": 1e-6,
    "vocab_size": 32000,
    "max_position_embeddings": 8192,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
}


def qwen() -> Any:
    """Return a model of Qwen3-30B-A3B's layers."""
    return qwen3_moe.Model(
        qwen3_moe.ModelArgs(
            model_type="qwen3_moe",
            hidden_size=2048,
            intermediate_size=6144,
            num_attention_heads=32,
            num_key_value_heads=4,
            head_dim=128,
            num_experts=128,
            num_experts_per_tok=8,
            decoder_sparse_step=1,
            mlp_only_layers=[],
            moe_intermediate_size=768,
            norm_topk_prob=True,
            **COMMON,
        )
    )


def mixture() -> Any:
    """Return a model of Mixtral 8x7B's layers."""
    return mixtral.Model(
        mixtral.ModelArgs(
            model_type="mixtral",
            hidden_size=4096,
            intermediate_size=14336,
            num_attention_heads=32,
            num_key_value_heads=8,
            num_experts_per_tok=2,
            num_local_experts=8,
            **{k: v for k, v in COMMON.items() if k != "max_position_embeddings"},
        )
    )


def main() -> None:
    """Print a line for each measurement."""
    for name, make in {"Qwen3-30B-A3B": qwen, "Mixtral 8x7B": mixture}.items():
        mx.random.seed(1)
        made = quantized(make())
        for batch in (1, 8, 32):
            for turn in ("stock", "ours") * 2:
                report = mlx_nibble.accelerate(made) if turn == "ours" else None
                rates = " ".join(f"{decode(made, batch):.1f}" for _ in range(3))
                if report is not None:
                    report.undo()
                print(f"{name}, {turn}, batch {batch}: {rates} tokens/s", flush=True)
        for turn in ("stock", "ours"):
            report = mlx_nibble.accelerate(made) if turn == "ours" else None
            rates = " ".join(f"{read(made, 2048):.0f}" for _ in range(3))
            if report is not None:
                print(report)
                report.undo()
            print(f"{name}, {turn}, prompt of 2048: {rates} tokens/s", flush=True)


if __name__ == "__main__":
    main()
