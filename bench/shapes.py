"""Shapes (N, K) of the quantized products of well-known models."""

from __future__ import annotations

# From the models' config.json on Hugging Face: q, k/v, o, gate/up, down.
MODELS: dict[str, list[tuple[int, int]]] = {
    "smollm2-135m": [(576, 576), (192, 576), (1536, 576), (576, 1536)],
    "qwen2.5-1.5b": [(1536, 1536), (256, 1536), (8960, 1536), (1536, 8960)],
    "llama-3-8b": [(4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)],
}
