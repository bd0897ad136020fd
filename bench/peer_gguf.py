"""Runs a GGUF file in llama.cpp's own environment, for gguf_texts.

    python peer_gguf.py dequantize SOURCE OUT
    python peer_gguf.py run FILE THREADS

`run` answers lines of JSON. {"prompt": ids, "count": n} gives the ids of the likeliest
continuation, {"text": ids} the negative log-likelihood of each token but the first, and
{"last": ids} the logits after the last token. Imports only llama.cpp and NumPy.
"""

from __future__ import annotations

import json
import sys

import llama_cpp
import numpy as np

LENGTH = 512


def dequantize(source: str, out: str) -> None:
    """Write a file with all tensors in float32, by llama.cpp's own code."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_ALL_F32
    parameters.allow_requantize = True
    parameters.pure = True
    code = llama_cpp.llama_model_quantize(source.encode(), out.encode(), parameters)
    if code:
        raise SystemExit(f"llama.cpp could not dequantize {source}: {code}")


def greedy(model: llama_cpp.Llama, prompt: list[int], count: int) -> list[int]:
    """Return the likeliest tokens that follow a prompt."""
    model.reset()
    model.eval(prompt)
    found = []
    for _ in range(count):
        found.append(int(np.argmax(model.scores[model.n_tokens - 1])))
        model.eval(found[-1:])
    return found


def logits(model: llama_cpp.Llama, ids: list[int]) -> np.ndarray:
    """Return the logits of each position."""
    model.reset()
    model.eval(ids)
    return model.scores[: len(ids)]


def losses(model: llama_cpp.Llama, ids: list[int]) -> list[float]:
    """Return the negative log-likelihood of each token from those before it."""
    found = []
    for row, target in zip(logits(model, ids), ids[1:], strict=False):
        x = row.astype(np.float64)
        top = x.max()
        found.append(float(top + np.log(np.exp(x - top).sum()) - x[target]))
    return found


def run(file: str, threads: int) -> None:
    model = llama_cpp.Llama(
        file,
        n_threads=threads,
        n_threads_batch=threads,
        n_ctx=LENGTH,
        n_batch=LENGTH,
        logits_all=True,
        verbose=False,
    )
    for line in sys.stdin:
        request = json.loads(line)
        if "prompt" in request:
            answer = greedy(model, **request)
        elif "text" in request:
            answer = losses(model, request["text"])
        else:
            answer = logits(model, request["last"])[-1].tolist()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "dequantize":
        dequantize(*sys.argv[2:])
    else:
        run(sys.argv[2], int(sys.argv[3]))
