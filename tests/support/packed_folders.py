"""Tiny models whose projections are packed as floats and tables, with their values.

Values are computed in float64 from the definition of each format.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_nibble.floats import E2M1, E4M3, E8M0
from tests.support import tiny_models

Packed = tuple[dict[str, np.ndarray], np.ndarray]
Pack = Callable[[tuple[int, int], Any], Packed]

LEVELS = np.linspace(-1, 1, 16).astype(np.float32) ** 3
_NUMBERS = np.flatnonzero(np.isfinite(E4M3)).astype(np.uint8)


def _e2m1(shape, rng, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of codes, and the values of codes times scales."""
    codes = rng.integers(0, 16, shape).astype(np.uint8)
    wide = np.repeat(scales, shape[1] // scales.shape[1], 1)
    return codes[:, ::2] | codes[:, 1::2] << 4, E2M1[codes].astype(np.float64) * wide


def nvfp4(shape, rng, power: bool = False) -> Packed:
    """compressed-tensors: scales of E4M3, divided by a global scale."""
    scales = rng.integers(90, 120, (shape[0], shape[1] // 16)).astype(np.uint8)
    whole = np.float32(2.0**3 if power else rng.uniform(5e3, 9e3))
    octets, values = _e2m1(shape, rng, E4M3[scales] / np.float64(whole))
    parts = {"weight_packed": octets, "weight_scale": scales}
    parts["weight_global_scale"] = np.array([whole])
    parts["input_global_scale"] = np.ones(1, np.float32)
    return parts, values


def modelopt(shape, rng) -> Packed:
    """ModelOpt: scales of E4M3, times a second scale."""
    parts, values = nvfp4(shape, rng, power=True)
    second = (1 / parts["weight_global_scale"][0]).astype(np.float32)
    stored = {"weight": parts["weight_packed"], "weight_scale": parts["weight_scale"]}
    stored["input_scale"] = stored["k_scale"] = np.ones((), np.float32)
    return {**stored, "weight_scale_2": second}, values


def mxfp4(shape, rng) -> Packed:
    """compressed-tensors: scales of E8M0."""
    scales = rng.integers(118, 124, (shape[0], shape[1] // 32)).astype(np.uint8)
    octets, values = _e2m1(shape, rng, E8M0[scales])
    return {"weight_packed": octets, "weight_scale": scales}, values


def fp8(shape, rng, power: bool = False) -> Packed:
    """DeepSeek: E4M3 codes, and a scale for each block of 32 x 32."""
    codes = rng.choice(_NUMBERS, shape)
    blocks = (-(-shape[0] // 32), -(-shape[1] // 32))
    scales = rng.uniform(1e-4, 1e-3, blocks).astype(np.float32)
    if power:
        scales = (2.0 ** rng.integers(-12, -9, blocks)).astype(np.float32)
    wide = np.repeat(np.repeat(scales, 32, 0), 32, 1)[: shape[0], : shape[1]]
    parts = {"weight": codes, "weight_scale_inv": scales}
    return parts, E4M3[codes].astype(np.float64) * wide


def nf4(shape, rng) -> Packed:
    """bitsandbytes: levels times the largest magnitude of each block of 64."""
    codes = rng.integers(0, 16, shape).astype(np.uint8).reshape(-1)
    tops = rng.uniform(0.02, 0.2, len(codes) // 64).astype(np.float32)
    state = {"quant_type": "nf4", "blocksize": 64, "shape": list(shape)}
    octets = json.dumps(state | {"dtype": "float16"}).encode()
    values = LEVELS[codes].astype(np.float64) * np.repeat(tops, 64)
    parts = {
        "weight": (codes[::2] << 4 | codes[1::2])[:, None],
        "weight.absmax": tops,
        "weight.quant_map": LEVELS,
        "weight.quant_state.bitsandbytes__nf4": np.frombuffer(octets, np.uint8),
    }
    return parts, values.reshape(shape)


def int8(shape, rng) -> Packed:
    """bitsandbytes: signed bytes, and the largest magnitude of each row."""
    codes = rng.integers(-127, 128, shape).astype(np.int8)
    tops = (rng.integers(20, 200, shape[0]) * 127 / 4096).astype(np.float32)
    return {"weight": codes, "SCB": tops}, codes * (tops[:, None].astype("f8") / 127)


def hqq(shape, rng) -> Packed:
    """HQQ of 4 bits along the inputs, with zeros that are floats."""
    rows, inputs = shape
    codes = rng.integers(0, 16, (rows * inputs // 32, 32)).astype(np.uint8)
    scales = rng.uniform(0.01, 0.02, (len(codes), 1)).astype(np.float16)
    zeros = rng.uniform(4, 12, scales.shape).astype(np.float16)
    half = len(codes) // 2
    settings = {"nbits": 4, "group_size": 32, "axis": 1, "view_as_float": 0}
    parts = {
        "W_q": codes[:half] << 4 | codes[half:],
        "scale": scales,
        "zero": zeros,
        "shape": np.array(shape),
        "packing": np.frombuffer(b"4bit_u8", np.uint8),
        **{name: np.array(value, np.int32) for name, value in settings.items()},
    }
    return parts, (scales.astype("f8") * (codes - zeros.astype("f8"))).reshape(shape)


def _floats(form: str, bits: int, size: int) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "float", "group_size": size}
    group = {"targets": ["Linear"], "weights": weights}
    settings = {"quant_method": "compressed-tensors", "format": form}
    return {**settings, "config_groups": {"g": group}}


_FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [32, 32]}
KINDS: dict[str, tuple[Pack, dict[str, Any]]] = {
    "nvfp4": (nvfp4, _floats("nvfp4-pack-quantized", 4, 16)),
    "nvfp4, a power": (
        lambda shape, rng: nvfp4(shape, rng, power=True),
        _floats("nvfp4-pack-quantized", 4, 16),
    ),
    "mxfp4": (mxfp4, _floats("mxfp4-pack-quantized", 4, 32)),
    "modelopt": (modelopt, {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
    "fp8": (fp8, _FP8),
    "fp8, powers": (lambda shape, rng: fp8(shape, rng, power=True), _FP8),
    "nf4": (nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "int8": (int8, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "hqq": (hqq, {"quant_method": "hqq"}),
}
"""Name to the packing of a matrix, and the `quantization_config`."""


def write(folder: Path, kind: str, family: str, rng) -> dict[str, np.ndarray]:
    """Write a tiny model; return the values of all parameters, in mlx-lm's names."""
    pack, settings = KINDS[kind]
    stored, exact = {}, {}

    def store(prefix: str, shape: tuple[int, int]) -> np.ndarray:
        parts, values = pack(shape, rng)
        stored.update({f"{prefix}.{k}": mx.array(v) for k, v in parts.items()})
        return values

    for path, value in tree_flatten(tiny_models.build(family).parameters()):
        prefix = path.removesuffix(".weight")
        if not path.endswith("_proj.weight"):
            stored[path] = value.astype(mx.bfloat16)
            exact[path] = np.array(stored[path].astype(mx.float32))
        elif value.ndim == 3:
            names = [prefix.replace("switch_mlp", f"experts.{i}") for i in range(4)]
            exact[path] = np.stack([store(n, value.shape[1:]) for n in names])
        else:
            exact[path] = store(prefix, value.shape)
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), stored)
    config = tiny_models.config(family) | {"quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))
    return exact
