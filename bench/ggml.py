"""Blocks of each ggml type: by the package `gguf`, or by llama.cpp's library."""

from __future__ import annotations

import ctypes

import gguf
import numpy as np

from bench import peers
from tests.support.gguf_models import Blocks


def quantizer() -> Blocks:
    """Return a function from values and a type to blocks."""
    home = peers.peer_python("llama.cpp").parents[1]
    path = next(home.glob("lib/python*/*/llama_cpp/lib/libggml-base.so"))
    chunk = ctypes.CDLL(str(path)).ggml_quantize_chunk
    chunk.restype = ctypes.c_size_t
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    chunk.argtypes = [ctypes.c_int, pointer, pointer, *[count] * 3, pointer]

    def blocks(value: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
        values = np.ascontiguousarray(value, np.float32)
        try:
            return gguf.quants.quantize(values, kind)
        except NotImplementedError:
            columns = values.shape[-1]
            per_block, nbytes = gguf.GGML_QUANT_SIZES[kind]
            shape = (*values.shape[:-1], columns // per_block * nbytes)
            made = np.empty(shape, np.uint8)
            places = values.ctypes.data, made.ctypes.data
            rows = values.size // columns
            written = chunk(kind.value, *places, 0, rows, columns, None)
            assert written == made.nbytes
            return made

    return blocks
