"""Tokens per second of random models in the modes of floats, beside stock mlx-lm.

Both decode the same number of tokens in turns, in float32. The weights are random, so
only the speed means something.

    python -m bench.float_models
"""

from __future__ import annotations

import statistics
import time

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import gpt_oss, llama
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.switch_layers import SwitchLinear

import mlx_nibble

TURNS, TOKENS, PROMPT = 3, 8, 32
LLAMA = {
    "model_type": "llama",
    "hidden_size": 1024,
    "num_hidden_layers": 4,
    "intermediate_size": 2816,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "vocab_size": 8192,
}
GPT_OSS = {
    "num_hidden_layers": 4,
    "num_local_experts": 8,
    "num_experts_per_tok": 4,
    "vocab_size": 8192,
    "hidden_size": 1024,
    "intermediate_size": 1024,
    "head_dim": 64,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "rope_theta": 10000,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}


def models() -> dict[str, nn.Module]:
    """Return a llama in each mode, and a gpt-oss with experts in mxfp4."""
    made: dict[str, nn.Module] = {}
    for mode in ("mxfp4", "nvfp4", "mxfp8"):
        model = llama.Model(llama.ModelArgs.from_dict(LLAMA))
        nn.quantize(model, mode=mode)
        made[f"llama, {mode}"] = model
    model = gpt_oss.Model(gpt_oss.ModelArgs(**GPT_OSS))
    experts = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    nn.quantize(
        model,
        64,
        8,
        class_predicate=lambda path, module: (
            experts
            if isinstance(module, SwitchLinear)
            else hasattr(module, "to_quantized") and "router" not in path
        ),
    )
    made["gpt-oss, experts in mxfp4"] = model
    return made


def rates(model: nn.Module) -> tuple[float, float]:
    """Return the prompt's and the following tokens' number in a second."""
    cache = make_prompt_cache(model)
    ids = mx.arange(PROMPT)[None]
    start = time.perf_counter()
    mx.eval(model(ids, cache=cache))
    prompt = PROMPT / (time.perf_counter() - start)
    start = time.perf_counter()
    for token in range(TOKENS):
        mx.eval(model(mx.array([[token]]), cache=cache))
    return prompt, TOKENS / (time.perf_counter() - start)


def main() -> None:
    """Print the table."""
    print("| model | layers swapped | prompt, times stock | tokens, times stock |")
    print("| --- | ---: | ---: | ---: |")
    for name, model in models().items():
        mx.eval(model.parameters())
        ratios = []
        swapped = ""
        for _ in range(TURNS):
            stock = rates(model)
            report = mlx_nibble.accelerate(model)
            swapped = f"{len(report.swapped)} of {len(report.swapped + report.kept)}"
            rates(model)
            ours = rates(model)
            report.undo()
            ratios.append([a / b for a, b in zip(ours, stock, strict=True)])
        prompt, tokens = (statistics.median(r) for r in zip(*ratios, strict=True))
        print(f"| {name} | {swapped} | {prompt:.1f} | {tokens:.1f} |", flush=True)


if __name__ == "__main__":
    main()
