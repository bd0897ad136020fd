"""A tokenizer.json whose parts make a text endless is refused before it is used."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from mlx_nibble.io.tokenizer import check_tokenizer

BYTES = {"type": "ByteLevel", "add_prefix_space": False}
SPLIT = {"type": "Digits", "individual_digits": True}


def replace(content: str, **pattern: str) -> dict:
    return {"type": "Replace", "pattern": pattern, "content": content}


def chain(key: str, parts: list) -> dict:
    return {"type": "Sequence", key: parts}


def deep(part: dict, levels: int) -> dict:
    for _ in range(levels):
        part = chain("pretokenizers", [part])
    return part


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pre_tokenizer", chain("pretokenizers", [SPLIT] * 500)),
        ("pre_tokenizer", chain("pretokenizers", [BYTES] * 17)),
        ("pre_tokenizer", deep(SPLIT, 200)),
        ("normalizer", chain("normalizers", [replace("aa", String="a")] * 17)),
        ("normalizer", chain("normalizers", [replace("a", Regex="b*")] * 17)),
        ("normalizer", chain("normalizers", [{"type": "NFKC"}, {"type": "NFD"}] * 3)),
        ("normalizer", replace("a" * 10**6, String="a")),
        ("normalizer", {"type": "Prepend", "prepend": "a" * 10**6}),
        ("decoder", chain("decoders", [replace("aaa", String="a")] * 11)),
        (
            "post_processor",
            chain(
                "processors",
                [{"type": "TemplateProcessing", "single": [{}] * 2, "pair": []}] * 17,
            ),
        ),
    ],
)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.4.0.0.json"])
def test_a_chain_that_makes_a_text_endless(key, value, name, tmp_path):
    (tmp_path / name).write_text(json.dumps({"model": {}, key: value}))
    with pytest.raises(ValueError, match=rf"^\[load\] .*{key!r}.*{name}"):
        check_tokenizer(tmp_path, "load")


def test_chains_of_real_tokenizers(tmp_path):
    """Longer ones than any that transformers makes; T5's, Albert's and GPT-2's."""
    made = Tokenizer(BPE())
    albert = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    albert += [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    albert += [normalizers.NFKC(), normalizers.Prepend("▁")]
    albert += [normalizers.Replace(" ", "▁") for _ in range(20)]
    made.normalizer = normalizers.Sequence(albert)  # type: ignore[assignment]
    splits = [pre_tokenizers.Split(" ", "isolated") for _ in range(20)]
    gpt = [*splits, pre_tokenizers.Digits(), pre_tokenizers.ByteLevel()]
    made.pre_tokenizer = pre_tokenizers.Sequence(gpt)  # type: ignore[assignment]
    template = processors.TemplateProcessing("$A [S]", "$A [S] $B [S]", [("[S]", 0)])
    chain = [processors.ByteLevel(), template]
    made.post_processor = processors.Sequence(chain)  # type: ignore[assignment]
    ends = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence(ends)  # type: ignore[assignment]
    made.save(str(tmp_path / "tokenizer.json"))
    check_tokenizer(tmp_path, "load")


@pytest.mark.parametrize("text", ["", "[]", "[" * 10**5, '{"decoder": null,'])
def test_what_is_no_json_object(text, tmp_path):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        check_tokenizer(tmp_path, "load")


def test_parts_of_the_wrong_kind_are_left_to_the_tokenizers_package(tmp_path):
    parts = [replace(5, String="a"), {"type": ["ByteLevel"]}, {"type": "Prepend"}]  # type: ignore[arg-type]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"normalizer": parts}))
    check_tokenizer(tmp_path, "load")
    check_tokenizer(tmp_path / "absent", "load")
