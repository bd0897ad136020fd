"""Trains a small llama whose weights never lay on a grid.

    python -m bench.small_llama TEXTS OUT [--steps 3000]

TEXTS is a folder of bench.texts. The model has 3.9 million weights and a byte-level BPE
of 2048 tokens. It is trained in float32 with PyTorch and transformers, on a GPU where
there is one: on two cores, 300 steps of 8 sequences take half an hour. OUT is a folder
of Hugging Face's form in float16, of 8 MB. State of the Union after 1929 is not seen.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

SEEN = ("long.txt", "sotu-early.txt")
LENGTH, WARM_UP = 256, 100


def tokenizer_of(text: str) -> Any:
    """Train a byte-level BPE on a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def main() -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    parser = argparse.ArgumentParser()
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    args = parser.parse_args()
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    text = "\n\n".join((args.texts / n).read_text("utf-8") for n in SEEN)
    tokenizer = tokenizer_of(text)
    ids = torch.tensor(tokenizer(text)["input_ids"])
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = LlamaForCausalLM(config).to(device)
    adam = torch.optim.AdamW(model.parameters(), args.learning_rate, weight_decay=0.1)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        adam,
        args.learning_rate,
        total_steps=args.steps,
        pct_start=min(0.3, WARM_UP / args.steps),
    )
    begin = time.monotonic()
    for step in range(args.steps):
        starts = random.integers(0, len(ids) - LENGTH, args.batch_size)
        rows = torch.stack([ids[s : s + LENGTH] for s in starts]).to(device)
        loss = model(input_ids=rows, labels=rows).loss
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        rate.step()
        if step % 100 == 0 or step + 1 == args.steps:
            print(f"{step} {loss.item():.3f} {time.monotonic() - begin:.0f} s")
    model.half().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    size = sum(f.stat().st_size for f in args.out.iterdir())
    weights = sum(p.numel() for p in model.parameters())
    print(json.dumps({"loss": loss.item(), "weights": weights, "bytes": size}))


if __name__ == "__main__":
    main()
