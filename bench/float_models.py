"""Tokens per second of random models in the modes of floats, beside stock mlx-lm.

Both decode the same number of tokens in turns, in float32. The weights are random, so
only the speed means something.

    python -m bench.float_models           # all
    python -m bench.float_models gpt-oss   # parts of names
"""

from __future__ import annotations

import argparse
import statistics
import time

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import gpt_oss, llama
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.switch_layers import SwitchLinear

import mlx_nibble

TURNS, TOKENS, PROMPT = 3, 8, 32
# Sequences at once, and their steps.
BATCH, STEPS = 8, 2
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


def rates(model: nn.Module) -> tuple[float, float, float]:
    """Return the tokens in a second of a prompt, of one sequence, and of a batch."""
    cache = make_prompt_cache(model)
    prompt = PROMPT / seconds(model, mx.arange(PROMPT)[None], cache, 1)
    one = TOKENS / seconds(model, mx.array([[5]]), cache, TOKENS)
    cache, first = make_prompt_cache(model), mx.arange(BATCH)[:, None]
    mx.eval(model(first, cache=cache))
    return prompt, one, BATCH * STEPS / seconds(model, first, cache, STEPS)


def seconds(model: nn.Module, ids: mx.array, cache: list, times: int) -> float:
    """Return the time of calls, one after the other."""
    start = time.perf_counter()
    for _ in range(times):
        mx.eval(model(ids, cache=cache))
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of models' names")
    names = parser.parse_args().names
    mx.set_default_device(mx.cpu)
    titles = ("prompt", "tokens", f"batch of {BATCH}")
    print("| model | layers swapped | " + " | ".join(titles) + " |")
    print("| --- | ---: |" + " ---: |" * len(titles))
    for name, model in models().items():
        if names and not any(part in name for part in names):
            continue
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
        found = [
            f"{statistics.median(r):.1f} ({min(r):.1f} to {max(r):.1f})"
            for r in zip(*ratios, strict=True)
        ]
        print(f"| {name} | {swapped} | {' | '.join(found)} |", flush=True)


if __name__ == "__main__":
    main()
