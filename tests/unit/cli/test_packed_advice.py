"""The advice of commands about folders of other tools leads to one that works."""

from __future__ import annotations

import json
import re
import shlex

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_nibble.cli import main
from tests.support import packers, tiny_models
from tests.support.gguf_writer import tiny_llama

GROUP = {
    "targets": ["Linear"],
    "weights": {"num_bits": 4, "strategy": "group", "group_size": 32},
}
KINDS = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 32},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"},
    "compressed-tensors": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": GROUP},
    },
}
COMMANDS = {
    "eval": ["eval", "MODEL"],
    "generate": ["generate", "--model", "MODEL", "--prompt", "a"],
    "bench": ["bench", "model", "MODEL", "--json"],
}


def packed(folder, kind: str, rng, settings=None):
    """Write a tiny llama as a tool packs it."""
    stored = {}
    for path, value in tree_flatten(tiny_models.build("llama").parameters()):
        prefix = path.removesuffix(".weight")
        if not path.endswith("_proj.weight"):
            stored[path] = value.astype(mx.float16)
            continue
        rows, inputs = value.shape
        codes = rng.integers(0, 16, (rows, inputs))
        scales = rng.uniform(0.01, 0.02, (rows, inputs // 32)).astype("f2")
        zeros = scales.astype(int) + 8
        if kind == "compressed-tensors":
            parts = packers.compressed(codes, scales, None, 4)
        elif kind == "awq":
            parts = packers.awq(codes, scales, zeros)
        else:
            parts = packers.gptq(codes, scales, zeros, 4)
        stored |= {f"{prefix}.{name}": mx.array(part) for name, part in parts.items()}
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), stored)
    config = tiny_models.config("llama")
    config |= {"quantization_config": settings or KINDS[kind]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def said(capsys, arguments, folder) -> str:
    """Return the one line that a command fails with."""
    arguments = [str(folder) if a == "MODEL" else a for a in arguments]
    assert main(arguments) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize("kind", KINDS)
def test_the_advice_leads_to_a_folder_that_works(kind, rng, tmp_path, capsys):
    folder = packed(tmp_path / "a [b]", kind, rng)
    advised = set()
    for command, arguments in COMMANDS.items():
        if kind == "awq":
            continue  # mlx-lm reads AutoAWQ's GEMM layout itself
        line = said(capsys, arguments, folder)
        assert line.startswith(f"nibble: [{command}] ")
        (found,) = re.findall(r"run nibble (convert .*) OUT, and use OUT\.", line)
        advised.add(found)
    assert main(["inspect", str(folder)]) == 0
    (found,) = re.findall(r"nibble (convert .*) OUT writes", capsys.readouterr().out)
    (command,) = advised | {found}
    assert main([*shlex.split(command), str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "out"), "--json"]) == 0


@pytest.mark.parametrize("kind", ["gptq", "compressed-tensors"])
def test_packed_folders_are_quantized_again(kind, rng, tmp_path, capsys):
    folder = packed(tmp_path / "packed", kind, rng)
    options = ["-q", "--method", "rtn", "--q-group-size", "32", "--q-bits", "8"]
    assert main(["convert", str(folder), str(tmp_path / "out"), *options]) == 0
    assert "rounding adds to that of -q" in capsys.readouterr().err
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization"]["bits"] == 8


@pytest.mark.parametrize("method", ["aqlm", "intel/auto-round", "quanto", "x" * 999])
@pytest.mark.parametrize("quantize", [[], ["-q"]])
def test_other_packings_are_named(method, quantize, rng, tmp_path, capsys):
    folder = packed(tmp_path / "packed", "gptq", rng, {"quant_method": method})
    arguments = ["convert", "MODEL", str(tmp_path / "out"), *quantize]
    line = said(capsys, arguments, folder)
    assert method[:40] in line and "unpacked model" in line and "-q" not in line


@pytest.mark.parametrize("name", ["model.gguf", "MODEL.GGUF", "blob"])
def test_a_gguf_file_is_to_be_converted(name, tmp_path, capsys):
    file = tmp_path / name
    file.write_bytes(tiny_llama())
    line = said(capsys, COMMANDS["eval"], file)
    (found,) = re.findall(r"run nibble (convert .*) OUT, and use OUT\.", line)
    assert main([*shlex.split(found), str(tmp_path / "out")]) == 0
    quantized = [*shlex.split(found), str(tmp_path / "q"), "-q", "--method", "rtn"]
    assert main([*quantized, "--q-group-size", "32"]) == 0


def test_a_folder_of_a_gguf_file_names_it(tmp_path, capsys):
    (tmp_path / "model.gguf").write_bytes(tiny_llama())
    line = said(capsys, COMMANDS["eval"], tmp_path)
    assert f"convert {tmp_path / 'model.gguf'} OUT" in line
