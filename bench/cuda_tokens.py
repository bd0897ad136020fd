"""Compares greedy decoding on MLX's CUDA backend: python -m bench.cuda_tokens FOLDER

It prints how many tokens of a model on the GPU are those of the CPU, whose products are
exact, and whether speculative decoding gives the bits of plain decoding. FOLDER has a
model of mlx-lm's with its tokenizer.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map_with_path
from mlx_lm.generate import generate_step, speculative_generate_step
from mlx_lm.models import cache
from mlx_lm.utils import load_model, load_tokenizer

import mlx_nibble

PROMPTS = (
    "The capital of France is",
    "Write a short story about a lighthouse keeper.",
    "def fibonacci(n):",
    "Water boils at a temperature of",
)
TOKENS = 64
# Noise in a draft model's scales, relative to each: drafts are often wrong.
NOISE = 0.05


def greedy(model: Any, prompt: list[int], given: list[int]) -> list[tuple[int, float]]:
    """Return each greedy token and its lead over the second, after the tokens given.

    Args:
        model: Model to decode with.
        prompt: Tokens to begin with.
        given: Tokens to go on with; its own if there are no more.
    """
    keys = cache.make_prompt_cache(model)
    tokens, found = mx.array([prompt]), []
    for i in range(TOKENS):
        logits = model(tokens, cache=keys)[0, -1].astype(mx.float32)
        best = mx.argmax(logits).item()
        two = mx.sort(logits)[-2:].tolist()
        found.append((best, two[1] - two[0]))
        tokens = mx.array([[given[i] if i < len(given) else best]])
    return found


def agreement(folder: Path, prompts: list[list[int]]) -> None:
    """Print the tokens of the GPU that are the CPU's, after the same tokens."""
    found: dict[str, list[list[tuple[int, float]]]] = {}
    for device in ("cpu", "gpu"):
        mx.set_default_device(getattr(mx, device))
        model, _ = load_model(folder)
        mlx_nibble.accelerate(model, tuned=False)
        given = [[t for t, _ in one] for one in found.get("cpu", [[]] * len(prompts))]
        found[device] = [
            greedy(model, *both) for both in zip(prompts, given, strict=True)
        ]
    pairs = [
        (mine, theirs)
        for ours, cpus in zip(found["gpu"], found["cpu"], strict=True)
        for mine, theirs in zip(ours, cpus, strict=True)
    ]
    leads = [lead for (mine, _), (theirs, lead) in pairs if mine != theirs]
    print(f"{len(pairs) - len(leads)} of {len(pairs)} tokens are the CPU's", end="")
    print("".join(f"; another where the best led by {lead:.4f}" for lead in leads))


def speculation(folder: Path, prompts: list[list[int]]) -> None:
    """Print whether speculative decoding has the bits of plain decoding."""
    model, _ = load_model(folder)
    draft, _ = load_model(folder)
    draft.update(
        tree_map_with_path(
            lambda path, a: (
                (a * (1 + NOISE * mx.random.normal(a.shape))).astype(a.dtype)
                if path.endswith("scales")
                else a
            ),
            draft.parameters(),
        )
    )
    for made in (model, draft):
        mlx_nibble.accelerate(made, batch_invariant=True, tuned=False)
    equal = count = drafted = 0
    rates = {}
    for prompt in map(mx.array, prompts):
        begin = time.perf_counter()
        plain = list(generate_step(prompt, model, max_tokens=TOKENS))
        middle = time.perf_counter()
        other = list(
            speculative_generate_step(
                prompt, model, draft, max_tokens=TOKENS, num_draft_tokens=3
            )
        )
        rates = {
            "plain": TOKENS / (middle - begin),
            "speculative": TOKENS / (time.perf_counter() - middle),
        }
        for one, two in zip(plain, other, strict=True):
            same = one[0] == two[0] and mx.array_equal(one[1], two[1])
            equal += bool(same)
            drafted += two[2]
            count += 1
    print(f"speculative: {equal} of {count} tokens and log-probabilities have the bits")
    print(f"{drafted} were drafted; tokens/s of the last prompt: {rates}")


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    tokenizer = load_tokenizer(folder)
    prompts = [tokenizer.encode(text) for text in PROMPTS]
    agreement(folder, prompts)
    mx.set_default_device(mx.gpu)
    speculation(folder, prompts)


if __name__ == "__main__":
    main()
