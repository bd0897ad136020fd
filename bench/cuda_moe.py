"""Decodes with mixtures of experts on MLX's GPU: python -m bench.cuda_moe

The layers have the shapes of Qwen3-30B-A3B, Mixtral 8x7B and gpt-oss-20b; there are
fewer. The weights are random, of 4 bits in groups of 64. Those of gpt-oss are experts
in mxfp4 and other layers of 8 bits. Stock MLX and `accelerate()` take turns in pairs,
with the same weights.
"""

from __future__ import annotations

import argparse
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import gpt_oss, mixtral, qwen3_moe
from mlx_lm.models.switch_layers import SwitchLinear

from bench import cuda_pairs
from bench.cuda_model import quantized

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


def oss() -> Any:
    """Return a model of gpt-oss-20b's layers."""
    made = gpt_oss.Model(
        gpt_oss.ModelArgs(
            num_hidden_layers=LAYERS,
            num_local_experts=32,
            num_experts_per_tok=4,
            vocab_size=32000,
            hidden_size=2880,
            intermediate_size=2880,
            head_dim=64,
            num_attention_heads=64,
            num_key_value_heads=8,
            layer_types=["sliding_attention", "full_attention"] * (LAYERS // 2),
        )
    )
    made.set_dtype(mx.bfloat16)
    experts = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    nn.quantize(
        made,
        64,
        8,
        class_predicate=lambda path, module: (
            experts
            if isinstance(module, SwitchLinear)
            else hasattr(module, "to_quantized") and "router" not in path
        ),
    )
    return made


MODELS = {
    "Qwen3-30B-A3B": lambda: quantized(qwen()),
    "Mixtral 8x7B": lambda: quantized(mixture()),
    "gpt-oss-20b": oss,
}


def main() -> None:
    """Print a line for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    args = cuda_pairs.arguments(parser)
    rows: list[dict] = []
    for name in args.model:
        mx.random.seed(1)
        pair = cuda_pairs.Pair(name, MODELS[name])
        rows += cuda_pairs.compare_all(pair, (2048,), args.seconds)
        print(pair.report)
        cuda_pairs.keep(rows, args.json)


if __name__ == "__main__":
    main()
