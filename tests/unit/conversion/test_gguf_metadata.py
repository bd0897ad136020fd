"""Metadata of a GGUF that change the model are used or refused, never ignored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from mlx_lm import load

from mlx_nibble.conversion.gguf_import import import_gguf
from tests.support.gguf_writer import (
    HEADS,
    HIDDEN,
    gguf,
    tiny_metadata,
    tiny_tensors,
    tiny_tokens,
)

META, TENSORS = tiny_metadata(), tiny_tensors()
HEAD = HIDDEN // HEADS


def imported(folder: Path, **metadata) -> Path:
    """Import the tiny model with more metadata; return the new folder."""
    changed = {key: value for key, value in metadata.items() if value is not None}
    (folder / "m.gguf").write_bytes(gguf({**META, **changed}, TENSORS))
    return import_gguf(folder / "m.gguf", folder / "out").path


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


REFUSED = {
    "llama.attention.causal": False,
    "llama.attention.clamp_kqv": 8.0,
    "llama.attention.max_alibi_bias": 8.0,
    "llama.attention.scale": 0.1,
    "llama.attention.sliding_window": 128,
    "llama.attention.value_length": 8,
    "llama.attn_logit_softcapping": 50.0,
    "llama.final_logit_softcapping": 30.0,
    "llama.logit_scale": 0.5,
    "llama.residual_scale": 0.2,
    "llama.embedding_scale": 12.0,
    "llama.expert_count": 8,
    "llama.expert_used_count": 2,
    "llama.pooling_type": 1,
    "llama.use_parallel_residual": True,
    "llama.rope.scaling.attn_factor": 1.2,
    "llama.vocab_size": 7,
    "llama.something.new": 1,
    "tokenizer.ggml.something_new": True,
    "tokenizer.ggml.add_space_prefix": True,
    "tokenizer.ggml.add_sep_token": True,
    "tokenizer.ggml.remove_extra_whitespaces": True,
    "adapter.type": "lora",
    "general.type": "mmproj",
}


@pytest.mark.parametrize(("key", "value"), REFUSED.items())
def test_metadata_that_change_the_model_are_refused_by_name(tmp_path, key, value):
    with pytest.raises(ValueError, match=rf"^\[gguf\] .*{key}"):
        imported(tmp_path, **{key: value})
    assert not (tmp_path / "out").exists()


def test_values_without_effect_change_nothing(tmp_path):
    (tmp_path / "plain").mkdir()
    plain = config_of(imported(tmp_path / "plain"))
    neutral = {
        "llama.attention.causal": True,
        "llama.attention.clamp_kqv": 0.0,
        "llama.attention.scale": float(np.float32(HEAD**-0.5)),
        "llama.attention.sliding_window": 256,
        "llama.attention.value_length": HEAD,
        "llama.attention.layer_norm_epsilon": 1e-6,
        "llama.attn_logit_softcapping": 0.0,
        "llama.logit_scale": 1.0,
        "llama.expert_count": 0,
        "llama.vocab_size": len(tiny_tokens()),
        "llama.rope.scaling.type": "none",
        "llama.rope.scaling.factor": 8.0,
        "llama.rope.scaling.finetuned": False,
        "llama.tensor_data_layout": "Meta AI original pth",
        "general.type": "model",
        "general.name": "any",
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.fim_pre_token_id": 5,
        "tokenizer.chat_template.tool_use": "{{ messages }}",
    }
    assert config_of(imported(tmp_path, **neutral)) == plain


@pytest.mark.parametrize(
    "keys",
    [
        {"scaling.factor": 4.0},
        {"scale_linear": 4.0},
        {"scaling.type": "linear", "scaling.factor": 4.0},
        {"scaling.factor": 4.0, "scale_linear": 2.0},  # the newer key
    ],
)
def test_a_factor_without_a_type_is_linear(tmp_path, keys):
    folder = imported(tmp_path, **{f"llama.rope.{k}": v for k, v in keys.items()})
    scaling = config_of(folder)["rope_scaling"]
    assert scaling == {"type": "linear", "rope_type": "linear", "factor": 4.0}
    model, _ = load(str(folder))
    assert model.layers[0].self_attn.rope.scale == 0.25


@pytest.mark.parametrize("factor", [-4.0, float("nan"), float("inf")])
def test_a_factor_must_be_positive(tmp_path, factor):
    with pytest.raises(ValueError, match="must be positive"):
        imported(tmp_path, **{"llama.rope.scaling.factor": factor})


def test_a_generation_ends_at_the_ends_of_text_turn_and_message(tmp_path):
    ends = {"eos": 1, "eot": 9, "eom": 7}
    keys = {f"tokenizer.ggml.{role}_token_id": i for role, i in ends.items()}
    folder = imported(tmp_path, **keys)
    # Token 0 is "<|endoftext|>", which llama.cpp knows by its text.
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [1, 9, 7, 0]
    _, tokenizer = load(str(folder))
    assert set(tokenizer.eos_token_ids) == {0, 1, 7, 9}
    assert tokenizer.eos_token_id == 1


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("eos", [False, True])
def test_texts_begin_and_end_as_the_file_says(tmp_path, bos, eos):
    folder = imported(
        tmp_path,
        **{"tokenizer.ggml.add_bos_token": bos, "tokenizer.ggml.add_eos_token": eos},
    )
    _, tokenizer = load(str(folder))
    he = tiny_tokens().index("he")
    assert tokenizer.encode("he") == [0] * bos + [he] + [1] * eos


def split(folder: Path, stated: int = 3, **changed) -> list[Path]:
    """Write the tiny model in three parts; return the files."""
    names, files = list(TENSORS), []
    for i in range(3):
        metadata = {**META} if i == 0 else {}
        metadata |= {"split.no": i, "split.count": stated}
        metadata |= {"split.tensors.count": len(names), **changed}
        files.append(folder / f"m-0000{i + 1}-of-00003.gguf")
        part = {name: TENSORS[name] for name in names[i::3]}
        files[-1].write_bytes(gguf(metadata, part))
    return files


@pytest.mark.parametrize("part", range(3))
def test_any_part_stands_for_the_whole_model(tmp_path, part):
    (tmp_path / "whole").mkdir()
    whole = imported(tmp_path / "whole")
    files = split(tmp_path)
    import_gguf(files[part], tmp_path / "out")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes()


def test_a_missing_part_is_named(tmp_path):
    files = split(tmp_path)
    files[1].unlink()
    with pytest.raises(ValueError, match=r"all 3 parts .*m-00002-of-00003\.gguf"):
        import_gguf(files[0], tmp_path / "out")


def test_parts_that_do_not_belong_together_are_refused(tmp_path):
    files = split(tmp_path)
    files[2].write_bytes(files[1].read_bytes())
    with pytest.raises(ValueError, match="part 3 of 3 is required"):
        import_gguf(files[0], tmp_path / "out")
    with pytest.raises(ValueError, match="must have a name that ends with"):
        import_gguf(files[2], tmp_path / "out")
    split(tmp_path, **{"split.tensors.count": 5})
    with pytest.raises(ValueError, match="must have 5 tensors together"):
        import_gguf(files[0], tmp_path / "out")
    split(tmp_path, stated=65535)
    with pytest.raises(ValueError, match="must have a name that ends with"):
        import_gguf(files[0], tmp_path / "out")
