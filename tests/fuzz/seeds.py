"""Whole inputs, from which the damaged ones are made. Their makers may use MLX."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from safetensors.numpy import save

from mlx_nibble.conversion.workspace import Workspace
from mlx_nibble.machine import tuned_table
from mlx_nibble.machine.tuned_table import Choice, Key
from tests.fuzz.mutate import Files
from tests.support import model_folders, packed_folders, tiny_models
from tests.support.gguf_families import FAMILIES, Family
from tests.support.gguf_models import random_model, write_family
from tests.support.gguf_writer import tiny_llama

_ROWS, _INPUTS, _GROUP = 32, 64, 32


def gguf() -> list[Files]:
    """Return models of several types, and one of each architecture."""
    made = [{"m.gguf": tiny_llama(kind)} for kind in ("Q4_0", "Q4_1", "Q8_0", "F16")]
    with tempfile.TemporaryDirectory() as name:
        file = Path(name, "m.gguf")
        for family in FAMILIES.values():
            write_family(file, family, random_model(family), _kind)
            made.append({"m.gguf": file.read_bytes()})
        for kind in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"):
            wide = {"hidden_size": 256, "intermediate_size": 256}
            family = Family("qwen2", "qwen2", {**wide, "num_hidden_layers": 1})
            write_family(file, family, random_model(family), lambda *_, k=kind: k)
            made.append({"m.gguf": file.read_bytes()})
    return made


def _kind(name: str, shape: tuple[int, ...]) -> str:
    return "MXFP4" if "exps" in name else "IQ4_NL" if "ffn" in name else "Q5_0"


def imported() -> Files:
    """Return the folder of a whole tiny model, with its tokenizer."""
    with tempfile.TemporaryDirectory() as name:
        folder = model_folders.imported(Path(name, "m"))
        return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def only(files: Files, *names: str) -> Files:
    return {name: files[name] for name in names}


def families() -> list[Files]:
    """Return configurations of several architectures."""
    made = []
    for family in (*tiny_models.FAMILIES, "deepseek_v3"):
        config: dict[str, Any] = tiny_models.config(family)
        made.append({"config.json": json.dumps(config).encode()})
        settings = {"group_size": 32, "bits": 4, "model.layers.0.mlp.up_proj": False}
        settings["model.layers.1.mlp.up_proj"] = {"group_size": 64, "bits": 8}
        config = {**config, "quantization": settings, "quantization_config": settings}
        made.append({"config.json": json.dumps(config).encode()})
    return made


def packed() -> list[Files]:
    """Return a folder of each tool that packs weights."""
    rng = np.random.default_rng(0)

    def words(*shape: int) -> np.ndarray:
        return rng.integers(-(2**31), 2**31, shape).astype(np.int32)

    groups = _INPUTS // _GROUP
    scales = rng.uniform(0.01, 0.02, (groups, _ROWS)).astype(np.float16)
    order = np.arange(_INPUTS, dtype=np.int32) // _GROUP
    gptq = {
        "qweight": words(_INPUTS // 8, _ROWS),
        "qzeros": words(groups, _ROWS // 8),
        "scales": scales,
        "g_idx": order,
    }
    awq = {
        "qweight": words(_INPUTS, _ROWS // 8),
        "qzeros": words(groups, _ROWS // 8),
        "scales": scales,
    }
    tensors = {
        "weight_packed": words(_ROWS, _INPUTS // 8),
        "weight_scale": np.ascontiguousarray(scales.T),
        "weight_shape": np.array([_ROWS, _INPUTS], np.int64),
    }
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"}
    weights |= {"group_size": _GROUP}
    usual = {"bits": 4, "group_size": _GROUP}
    return [
        _packed(
            gptq, {"quant_method": "gptq", "sym": True, "desc_act": False, **usual}
        ),
        _packed(awq, {"quant_method": "awq", "version": "gemm", **usual}),
        _packed(
            tensors,
            {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "config_groups": {
                    "group_0": {"targets": ["Linear"], "weights": weights}
                },
            },
        ),
        *(
            _packed(pack((_ROWS, _INPUTS), rng)[0], settings)
            for pack, settings in packed_folders.KINDS.values()
        ),
    ]


def _packed(parts: dict[str, np.ndarray], settings: dict[str, Any]) -> Files:
    tensors = {"model.norm.weight": np.ones(_INPUTS, np.float16)}
    for name in ("up_proj", "gate_proj"):
        prefix = f"model.layers.0.mlp.{name}"
        tensors |= {f"{prefix}.{k}": np.asarray(v) for k, v in parts.items()}
    config = {**tiny_models.config("llama"), "quantization_config": settings}
    return {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": save(tensors, {"format": "pt"}),
    }


def index() -> list[Files]:
    """Return a folder of two shards and their index."""
    shards = {
        f"model-0000{i}-of-00002.safetensors": {
            f"model.layers.{i}.mlp.up_proj.{part}": np.ones((32, size), dtype)
            for part, size, dtype in (
                ("weight", 8, np.uint32),
                ("scales", 2, np.float16),
                ("biases", 2, np.float16),
            )
        }
        for i in (1, 2)
    }
    files = {name: save(tensors) for name, tensors in shards.items()}
    weight_map = {key: name for name, tensors in shards.items() for key in tensors}
    whole = {"metadata": {"total_size": 4096}, "weight_map": weight_map}
    files["model.safetensors.index.json"] = json.dumps(whole).encode()
    settings = {"group_size": 32, "bits": 4, "mode": "affine"}
    config = {**tiny_models.config("llama"), "quantization": settings}
    return [{**files, "config.json": json.dumps(config).encode()}]


def workspace() -> list[Files]:
    """Return the state of a conversion of which two layers are finished."""

    with tempfile.TemporaryDirectory() as name:
        state = Workspace(Path(name, "out"), {"origin": "m"})
        state.keep_plan({"model.layers.0.mlp.up_proj": {"bits": 4, "group_size": 64}})
        for layer in (0, 1):
            state.save_part(f"layer-{layer:05}", {"w": mx.ones((2, 2))})
            state.finish_layer(layer + 1)
        folder = state.folder
        return [{file.name: file.read_bytes() for file in sorted(folder.iterdir())}]


def cache() -> list[Files]:
    """Return a tuned table of this machine, and verdicts on kernels."""
    table = {
        Key(1, 64, 64, 4, 64, "float32", "float16"): Choice("mlx", 1.5),
        Key(8, 64, 64, 4, 64, "float32", "float16", True, "int8"): Choice(None),
    }
    rows = [asdict(key) | asdict(choice) for key, choice in table.items()]
    whole = {"schema": tuned_table.SCHEMA, "machine": tuned_table.machine()}
    failures = {"qmv_a": None, "qmv_b": "wrong by 2"}
    verdicts = {"failures": failures, "trying": {"qmv_c": 1}}
    return [
        {
            "table.json": json.dumps({**whole, "choices": rows}).encode(),
            "verdicts.json": json.dumps(verdicts).encode(),
        }
    ]


def capsules() -> list[Files]:
    """Return a run of each kind."""
    product = {"rows": 1, "N": 64, "K": 64, "bits": 4, "group_size": 64}
    product |= {"dtype": "float32"}
    tuned_case = {"scale_dtype": "float16", "symmetric": False, "activations": None}
    token = {"measure": "decode", "mode": "plain", "batch": 1, "context": 8}
    passes = [[1e-3 * (1 + 0.01 * (i % 3))] * 3 for i in range(8)]
    made = []
    for kind, case in (
        ("kernels", product),
        ("tune", product | tuned_case),
        ("model", token),
    ):
        candidates = {
            "nibble": {"passes": passes, "chain": 4, "peak_bytes": 10**6},
            "mlx": {"passes": passes, "accepted": 0.5},
            "other": {"skipped": "too slow"},
        }
        run = {
            "schema": "mlx-nibble/bench/1",
            "kind": kind,
            "command": ["nibble", "bench"],
            "started": "2026-01-01T00:00:00Z",
            "complete": True,
            "machine": {"cpu": "A", "cores": 2, "threads": 2, "system": "L"}
            | {"device": "cpu", "gpu": None, "cpu_isa": "avx2"},
            "versions": {"python": "3.11", "mlx": "1", "mlx-nibble": "0"},
            "settings": {"hot": False, "model": "tiny"},
            "peaks": {"read_bytes_per_second": 1e10, "flops_per_second": 1e11},
            "results": [{"case": case, "candidates": candidates, "disturbed": 0}],
        }
        made.append({"run.json": json.dumps(run).encode()})
    return made
