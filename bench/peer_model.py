"""Runs a language model in a process of its own environment, for against_llama_cpp.

    python peer_model.py mlx|nibble|"nibble int8"|... THREADS FOLDER
    python peer_model.py llama.cpp THREADS FILE.gguf
    python peer_model.py openvino-genai THREADS FILE.gguf
    python peer_model.py onnxruntime-genai THREADS FOLDER

With "kv8" in the name the KV cache has 8 bits: llama.cpp's q8_0 with flash attention.
With "fa" llama.cpp's cache is plain, and attention is flash attention.

Answers lines of JSON. {"prompt": tokens, "decode": tokens} runs once. With "again", the
tokens follow the prompt of the last run, which is not read again. With "cpu", seconds
are the process's CPU time, of ours only in sum. The answer holds the seconds of both,
the peak memory of the process so far, and that of MLX's arrays. Memory counts from the
state with all modules loaded; no tokenizer is loaded. Imports only the library that it
runs.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# A word in the name of a candidate with a KV cache of 8 bits.
KV8 = "kv8"
# A word in the name of llama.cpp with flash attention.
FLASH = "fa"
# Tokens that a run of llama.cpp may have, in the prompt and after it.
CONTEXT = 9216


class Turn(NamedTuple):
    """One run of a model: a line that was read."""

    prompt: int
    decode: int
    again: bool = False
    cpu: bool = False

    def require_plain(self, name: str) -> None:
        """Raise ValueError if the turn asks for what this library cannot do."""
        if self.again or self.cpu:
            raise ValueError(f"{name} times whole answers by the clock")


# Runs a turn and returns the seconds of its prompt and of its answer.
Run = Callable[[Turn], tuple[float, float]]


def prompt_tokens(count: int) -> list[int]:
    """Return arbitrary tokens: speed does not depend on them."""
    return [(7 * i) % 40_000 for i in range(count)]


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def mlx(name: str, threads: int, model_path: str) -> Callable[[], Run]:
    os.environ["NIBBLE_NUM_THREADS"] = str(threads)
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    from mlx_nibble import Settings, lm
    from mlx_nibble.bench import side_by_side

    mx.set_default_device(mx.cpu)

    def load() -> Run:
        model, _ = load_model(Path(model_path))
        if name == "mlx":
            model.set_dtype(mx.float32)  # the fastest type of MLX alone here
        else:
            words = name.split()
            activations = next((w for w in words if w.startswith("int")), None)
            lm.prepare(model, Settings(activations, repack="unpacked" not in words))

        bits = 8 if KV8 in name.split() else None
        kept: list = []

        def run(turn: Turn) -> tuple[float, float]:
            tokens = [5] if turn.again else prompt_tokens(turn.prompt)
            if not turn.again:
                kept[:] = make_prompt_cache(model)
            for cache in kept:
                cache.trim(max(cache.offset - turn.prompt, 0))
            start = time.process_time()
            count = turn.decode + 1
            result = side_by_side.generate(model, tokens, count, bits, kept)
            if turn.cpu:
                used = time.process_time() - start
                return used, used * turn.decode / count
            return len(tokens) / result.prompt_rate, turn.decode / result.decode_rate

        return run

    return load


def llama(name: str, threads: int, model_path: str) -> Callable[[], Run]:
    from llama_cpp import GGML_TYPE_Q8_0, Llama

    words = name.split()
    kv8 = KV8 in words
    cache = {"type_k": GGML_TYPE_Q8_0, "type_v": GGML_TYPE_Q8_0} if kv8 else {}

    def load() -> Run:
        model = Llama(
            model_path,
            n_threads=threads,
            n_threads_batch=threads,
            n_ctx=CONTEXT,
            n_batch=512,
            flash_attn=kv8 or FLASH in words,
            verbose=False,
            **cache,
        )

        def run(turn: Turn) -> tuple[float, float]:
            clock = time.process_time if turn.cpu else time.perf_counter
            model.n_tokens = turn.prompt if turn.again else 0
            start = clock()
            if not turn.again:
                model.eval(prompt_tokens(turn.prompt))
            read = clock()
            for i in range(turn.decode):
                model.eval([5 + i])
            return read - start, clock() - read

        return run

    return load


def openvino(name: str, threads: int, model_path: str) -> Callable[[], Run]:
    import numpy as np
    from openvino import Tensor
    from openvino_genai import (
        GenerationConfig,
        LLMPipeline,
        SchedulerConfig,
        TokenizedInputs,
    )

    def load() -> Run:
        # By default a prompt's part that was read before is not read again.
        scheduler = SchedulerConfig()
        scheduler.enable_prefix_caching = False
        pipeline = LLMPipeline(
            model_path,
            "CPU",
            scheduler_config=scheduler,
            INFERENCE_NUM_THREADS=threads,
        )

        def run(turn: Turn) -> tuple[float, float]:
            turn.require_plain("OpenVINO GenAI")
            tokens = np.array([prompt_tokens(turn.prompt)])
            inputs = TokenizedInputs(Tensor(tokens), Tensor(np.ones_like(tokens)))
            config = GenerationConfig(
                max_new_tokens=turn.decode + 1, ignore_eos=True, do_sample=False
            )
            metrics = pipeline.generate(inputs, config).perf_metrics
            token = metrics.get_tpot().mean
            return metrics.get_ttft().mean / 1e3, token * turn.decode / 1e3

        return run

    return load


def onnxruntime(name: str, threads: int, model_path: str) -> Callable[[], Run]:
    import onnxruntime_genai as genai

    def load() -> Run:
        config = genai.Config(model_path)
        session = {"session_options": {"intra_op_num_threads": threads}}
        config.overlay(json.dumps({"model": {"decoder": session}}))
        model = genai.Model(config)

        def run(turn: Turn) -> tuple[float, float]:
            turn.require_plain("ONNX Runtime GenAI")
            params = genai.GeneratorParams(model)
            length = turn.prompt + turn.decode + 1
            params.set_search_options(
                max_length=length, min_length=length, do_sample=False
            )
            start = time.perf_counter()
            generator = genai.Generator(model, params)
            generator.append_tokens(prompt_tokens(turn.prompt))
            generator.generate_next_token()
            read = time.perf_counter()
            for _ in range(turn.decode):
                generator.generate_next_token()
            return read - start, time.perf_counter() - read

        return run

    return load


def main() -> None:
    name, threads, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    peers = {
        "llama.cpp": llama,
        "openvino-genai": openvino,
        "onnxruntime-genai": onnxruntime,
    }
    load = peers.get(name.split()[0], mlx)(name, threads, path)
    before = resident_bytes()
    run = load()
    run(Turn(16, 2))
    for line in sys.stdin:
        prompt, decode = run(Turn(**json.loads(line)))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        mlx_core = sys.modules.get("mlx.core")
        arrays = mlx_core.get_peak_memory() if mlx_core else None
        print(json.dumps([prompt, decode, peak - before, arrays]), flush=True)


if __name__ == "__main__":
    main()
