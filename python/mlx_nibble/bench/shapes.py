"""Shapes of the products of well-known models."""

from __future__ import annotations

# (N, K) of w, from the models' config.json on Hugging Face: q and o, k and v, gate
# and up, down. For Mixtral, the projections of one expert.
MODELS: dict[str, tuple[tuple[int, int], ...]] = {
    "smollm2-135m": ((576, 576), (192, 576), (1536, 576), (576, 1536)),
    "smollm2-1.7b": ((2048, 2048), (8192, 2048), (2048, 8192)),
    "qwen2.5-1.5b": ((1536, 1536), (256, 1536), (8960, 1536), (1536, 8960)),
    "llama-3-8b": ((4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)),
    "mixtral-8x7b": ((4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)),
}
DEFAULT_MODEL = "smollm2-135m"
DEFAULT_ROWS = (1, 8, 32, 128)
