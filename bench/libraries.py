"""Times models of mlx-whisper, mlx-embeddings and mlx-vlm on a CPU beside MLX.

    pip install --no-deps mlx-whisper mlx-embeddings mlx-vlm
    python -m bench.libraries

Models have random weights in float32 and the widths of small published ones. MLX and
ours take turns in one process. A library's models are imported without its package,
which needs libraries for audio and downloads that no model uses.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn

import mlx_nibble
from bench.other_layers import row

Call = Callable[[nn.Module], object]


def of(name: str) -> Any:
    """Import a module, but no code of its package."""
    package = name.partition(".")[0]
    if package not in sys.modules:
        spec = importlib.util.find_spec(package)
        if spec is None:
            raise SystemExit(f"{package} is required: see the head of this file")
        sys.modules[package] = ModuleType(package)
        sys.modules[package].__path__ = list(spec.submodule_search_locations or [])
    return importlib.import_module(name)


def whisper() -> Iterator[tuple[str, Callable[[], nn.Module], Call]]:
    """Yield the encoder and the decoder of whisper-tiny, for 6 seconds of sound."""
    for module in ("decoding", "transcribe"):  # need a tokenizer, and numba
        sys.modules[f"mlx_whisper.{module}"] = made = ModuleType(module)
        made.__dict__.update(decode=None, detect_language=None)
    of("mlx_whisper.whisper")
    w = sys.modules["mlx_whisper.whisper"]
    sound, tokens = mx.random.normal((1, 600, 80)), mx.array([[1, 2, 3, 4]])
    heard = mx.random.normal((1, 300, 384))

    def decode(model: Any) -> None:
        cache = None
        for _ in range(4):
            logits, cache, _ = model(tokens[:, :1], heard, kv_cache=cache)
            mx.eval(logits)

    yield (
        "mlx-whisper, encoder",
        lambda: w.AudioEncoder(80, 300, 384, 6, 4, mx.float32),
        lambda model: mx.eval(model(sound)),
    )
    yield (
        "mlx-whisper, 4 tokens",
        lambda: w.TextDecoder(5000, 448, 384, 6, 4, mx.float32),
        decode,
    )


def embeddings() -> Iterator[tuple[str, Callable[[], nn.Module], Call]]:
    """Yield a BERT of MiniLM's widths, over 64 tokens."""
    bert = of("mlx_embeddings.models.bert")
    config = bert.ModelArgs(
        model_type="bert",
        num_hidden_layers=6,
        num_attention_heads=12,
        hidden_size=384,
        intermediate_size=1536,
        max_position_embeddings=512,
        vocab_size=5000,
    )
    tokens = mx.array([[7 * i % 5000 for i in range(64)]])
    yield (
        "mlx-embeddings, BERT",
        lambda: bert.Model(config),
        lambda model: mx.eval(model(tokens).last_hidden_state),
    )


def vision() -> Iterator[tuple[str, Callable[[], nn.Module], Call]]:
    """Yield the vision tower of LLaVA's kind, over 64 patches."""
    tower = of("mlx_vlm.models.llava.vision")
    config = of("mlx_vlm.models.llava.config").VisionConfig(
        model_type="clip_vision_model",
        num_hidden_layers=4,
        hidden_size=384,
        intermediate_size=1536,
        num_attention_heads=6,
        image_size=112,
        patch_size=14,
    )
    pixels = mx.random.normal((1, 112, 112, 3))
    yield (
        "mlx-vlm, vision tower",
        lambda: tower.VisionModel(config),
        lambda model: mx.eval(model(pixels)[0]),
    )


def language() -> Iterator[tuple[str, Callable[[], nn.Module], Call]]:
    """Yield a language model of LLaVA's kind: tokens after a prompt, and a prompt."""
    module = of("mlx_vlm.models.llava.language")
    caches = of("mlx_vlm.models.cache")
    config = of("mlx_vlm.models.llava.config").TextConfig(
        model_type="llama",
        hidden_size=576,
        num_hidden_layers=4,
        intermediate_size=1536,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=5000,
    )
    tokens = mx.array([[7 * i % 5000 for i in range(64)]])

    def fresh(model: Any) -> list:
        return [caches.KVCache() for _ in model.layers]

    def decode(model: Any) -> None:
        cache = fresh(model)
        mx.eval(model(tokens[:, :16], cache=cache).logits)
        for i in range(4):
            mx.eval(model(tokens[:, i : i + 1], cache=cache).logits)

    yield "mlx-vlm, 16 and 4 tokens", lambda: module.LanguageModel(config), decode
    yield (
        "mlx-vlm, prompt of 64",
        lambda: module.LanguageModel(config),
        lambda model: mx.eval(model(tokens, cache=fresh(model)).logits),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="for each case")
    args = parser.parse_args()
    print("| | MLX, ms | ours, ms | times as fast |\n| --- | ---: | ---: | --- |")
    for library in (whisper, embeddings, vision, language):
        for name, build, call in library():
            for bits in (None, 4):
                models = []
                for _ in range(2):
                    mx.random.seed(0)
                    model = build()
                    model.eval()
                    if bits:
                        nn.quantize(model, 64, bits)
                    mx.eval(model.parameters())
                    models.append(model)
                left = mlx_nibble.accelerate(models[1]).left
                about = f"{bits} bits" if bits else "float32"
                pair = (partial(call, models[0]), partial(call, models[1]))
                kept = sorted({f"{part.kind}: {part.operation}" for part in left})
                about += f" (with MLX: {', '.join(kept)})" if kept else ""
                row(f"{name}, {about}", pair, args.seconds, least=3)


if __name__ == "__main__":
    main()
