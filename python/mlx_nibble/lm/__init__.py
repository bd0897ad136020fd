"""mlx-lm with our kernels. Only this folder imports ``mlx_lm``.

from mlx_nibble.lm import load
from mlx_lm import generate

model, tokenizer = load("mlx-community/SmolLM2-135M-Instruct-4bit")
generate(model, tokenizer, prompt="Hello")
"""

from mlx_lm.models.cache import make_prompt_cache

from mlx_nibble.lm.caches import with_quantized_cache
from mlx_nibble.lm.command import run_command
from mlx_nibble.lm.dtypes import on_cpu, prepare, set_activation_dtype, use_stock
from mlx_nibble.lm.folders import (
    load_for_evaluation,
    load_full_precision,
    load_tokenizer,
    model_folder,
    quantize_in_mode,
    require_family,
    require_loadable,
    require_upload,
    save_companions,
    upload,
)
from mlx_nibble.lm.load import consent, load, load_as_it_is, load_stock, sharded_load
from mlx_nibble.lm.patches import (
    accelerated_generation,
    accelerated_loading,
    generate_step,
    loops,
    stream_generate,
)

__all__ = [
    "accelerated_generation",
    "accelerated_loading",
    "generate_step",
    "consent",
    "load",
    "load_as_it_is",
    "load_for_evaluation",
    "load_full_precision",
    "load_stock",
    "load_tokenizer",
    "loops",
    "make_prompt_cache",
    "model_folder",
    "on_cpu",
    "prepare",
    "quantize_in_mode",
    "require_family",
    "require_loadable",
    "require_upload",
    "run_command",
    "save_companions",
    "set_activation_dtype",
    "sharded_load",
    "stream_generate",
    "upload",
    "use_stock",
    "with_quantized_cache",
]
