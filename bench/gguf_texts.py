"""Compares the texts of an imported GGUF file with llama.cpp's, token by token.

    python -m bench.gguf_texts gemma-3-270m-q4_k_m.gguf WORK

llama.cpp rounds activations to 8 bits where weights are quantized. So the reference is
llama.cpp on the file that it dequantized to float32 itself. Each candidate continues
the same prompts greedily. Where a text parts from the reference, the table has the
margin between the reference's two best logits there, and by how much the candidate
changes it. The perplexity is of 4 x 512 tokens of Python's documentation.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from bench.peers import Peer, peer_python, script
from mlx_nibble import lm
from mlx_nibble.conversion.gguf_import import import_gguf
from mlx_nibble.evaluation.calibration_text import BUILT_IN, batches, encode, read_text

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
    "The three laws of thermodynamics are",
)
COUNT, LENGTH = 32, 512


class Theirs:
    """llama.cpp on a file."""

    def __init__(self, file: Path, threads: int):
        command = [peer_python("llama.cpp"), script("peer_gguf"), "run"]
        self._peer = Peer(command, file, threads)

    def greedy(self, prompt: list[int]) -> list[int]:
        return self._ask({"prompt": prompt, "count": COUNT})

    def last(self, ids: list[int]) -> np.ndarray:
        return np.array(self._ask({"last": ids}))

    def losses(self, ids: list[int]) -> np.ndarray:
        return np.array(self._ask({"text": ids}))

    def _ask(self, request: dict[str, Any]) -> Any:
        return self._peer.ask(request)

    def close(self) -> None:
        self._peer.close()


class Ours:
    """An imported folder, accelerated."""

    def __init__(self, folder: Path):
        self._model, self.tokenizer, *_ = lm.load(str(folder))

    def greedy(self, prompt: list[int]) -> list[int]:
        cache, found, ids = make_prompt_cache(self._model), [], prompt
        for _ in range(COUNT):
            logits = self._model(mx.array([ids]), cache=cache)
            ids = [int(mx.argmax(logits[0, -1]).item())]
            found += ids
        return found

    def last(self, ids: list[int]) -> np.ndarray:
        return np.array(self._model(mx.array([ids]))[0, -1].astype(mx.float32))

    def losses(self, ids: list[int]) -> np.ndarray:
        logits = self._model(mx.array([ids]))[0, :-1].astype(mx.float32)
        own = mx.take_along_axis(logits, mx.array(ids[1:])[:, None], -1)[:, 0]
        return np.array(mx.logsumexp(logits, -1) - own)

    def close(self) -> None:
        del self._model


def compared(
    candidate: Theirs | Ours, reference: dict[str, Any], prompts: list[list[int]]
) -> list[str]:
    """Return a cell for each prompt."""
    cells = []
    for prompt, wanted in zip(prompts, reference["texts"], strict=True):
        found = candidate.greedy(prompt)
        same = next((i for i in range(COUNT) if found[i] != wanted[i]), COUNT)
        if same == COUNT:
            cells.append(str(COUNT))
            continue
        prefix = prompt + wanted[:same]
        theirs, own = reference["model"].last(prefix), candidate.last(prefix)
        pair = [wanted[same], found[same]]
        margin = theirs[pair[0]] - theirs[pair[1]]
        moved = own[pair[0]] - own[pair[1]] - margin
        cells.append(f"{same}: {margin:.3f} {moved:+.3f}")
    return cells


def main() -> None:
    """Import, compare, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("work", type=Path, help="folder for models in float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--samples", type=int, default=4, help="texts of 512 tokens")
    args = parser.parse_args()
    mx.set_default_device(mx.cpu)
    args.work.mkdir(parents=True, exist_ok=True)
    plain = args.work / "float32.gguf"
    if not plain.exists():
        command = [peer_python("llama.cpp"), script("peer_gguf"), "dequantize"]
        subprocess.run([*command, args.file, plain], check=True)
    folders = {keep: args.work / keep for keep in ("quality", "values")}
    for keep, folder in folders.items():
        if not folder.exists():
            import_gguf(args.file, folder, keep=keep)
    make: dict[str, Callable[[], Theirs | Ours]] = {
        "llama.cpp, float32": lambda: Theirs(plain, args.threads),
        "llama.cpp": lambda: Theirs(args.file, args.threads),
        "ours": lambda: Ours(folders["quality"]),
        "ours, `--keep values`": lambda: Ours(folders["values"]),
    }
    tokenizer = Ours(folders["quality"]).tokenizer
    prompts = [tokenizer.encode(text) for text in PROMPTS]
    texts = []
    if args.samples:
        words = encode(tokenizer, read_text(BUILT_IN))
        texts = [b[0].tolist() for b in batches(words, LENGTH, args.samples)]
    first = make["llama.cpp, float32"]()
    reference = {"model": first, "texts": [first.greedy(p) for p in prompts]}
    titles = [f"text {i + 1}" for i in range(len(PROMPTS))]
    titles += ["perplexity"] if texts else []
    print(f"| | {' | '.join(titles)} |\n| --- |{' --- |' * len(titles)}", flush=True)
    for name, maker in make.items():
        candidate = first if name == "llama.cpp, float32" else maker()
        cells = compared(candidate, reference, prompts)
        losses = [candidate.losses(ids) for ids in texts]
        if losses:
            cells.append(f"{np.exp(np.concatenate(losses).mean()):.3f}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
        if candidate is not first:
            candidate.close()
    first.close()


if __name__ == "__main__":
    main()
