"""Tokenizers of GGUF files: SentencePiece itself is the oracle of its kind.

The pieces of the named rules were compared with llama.cpp: docs/results/gguf.md.
"""

from __future__ import annotations

import io
import pydoc_data.topics

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from mlx_nibble.conversion.gguf_pre_tokenizers import rule_named
from mlx_nibble.conversion.gguf_tokenizer import build_tokenizer, tokenizer_config
from mlx_nibble.io.gguf.reader import GGUF

TEXT = "\n".join(pydoc_data.topics.topics.values())[:60_000]


def trained(**options) -> sentencepiece.SentencePieceProcessor:
    """Return a SentencePiece model as Llama's and Gemma's were trained."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=700,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
        num_threads=1,
        **options,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def as_gguf(model: sentencepiece.SentencePieceProcessor, **changed) -> GGUF:
    """Return the metadata that llama.cpp's converter writes."""
    count = model.vocab_size()
    kinds = np.ones(count, np.int32)
    for i in range(count):
        if model.is_unknown(i):
            kinds[i] = 2
        elif model.is_control(i):
            kinds[i] = 3
        elif model.is_byte(i):
            kinds[i] = 6
    keys = {
        "model": "llama",
        "tokens": [model.id_to_piece(i) for i in range(count)],
        "scores": np.array([model.get_score(i) for i in range(count)], np.float32),
        "token_type": kinds,
        "bos_token_id": model.bos_id(),
        "eos_token_id": model.eos_id(),
        "unknown_token_id": model.unk_id(),
        **changed,
    }
    metadata = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    return GGUF({"general.architecture": "llama", **metadata}, {})


LLAMA = trained()
GEMMA = trained(add_dummy_prefix=False)
MODELS = {
    "llama": (LLAMA, build_tokenizer(as_gguf(LLAMA, add_bos_token=False))),
    "gemma": (
        GEMMA,
        build_tokenizer(as_gguf(GEMMA, add_bos_token=False, add_space_prefix=False)),
    ),
}


@pytest.mark.parametrize("name", MODELS)
@given(text=st.text(max_size=60) | st.sampled_from(TEXT.splitlines()))
@settings(max_examples=300, deadline=None)
def test_sentencepiece_ids_are_its_own(name, text):
    theirs, ours = MODELS[name]
    # llama.cpp and transformers take U+2581 for a space, as the pieces have it. A text
    # of nothing gets no prefix.
    text = text.replace("\u2581", "").replace("\0", "")
    if any(token in text for token in ("<s>", "</s>", "<unk>")) or not text:
        return
    ids = ours.encode(text).ids
    assert ids == theirs.encode(text)
    assert ours.decode(ids) == theirs.decode(ids)


def test_special_tokens_are_found_in_a_text():
    _, ours = MODELS["llama"]
    assert ours.encode("a</s>b").tokens == ["\u2581a", "</s>", "\u2581b"]


@pytest.mark.parametrize(("stated", "begins"), [(None, True), (False, False)])
def test_sentencepiece_begins_a_text_unless_the_file_says_not(stated, begins):
    changed = {} if stated is None else {"add_bos_token": stated}
    file = as_gguf(LLAMA, **changed)
    assert (build_tokenizer(file).encode("a").ids[0] == LLAMA.bos_id()) is begins
    assert tokenizer_config(file, 64)["add_bos_token"] is begins


def test_special_tokens_of_phi_3_take_the_spaces_behind_them():
    file = as_gguf(LLAMA)
    tokenizer = build_tokenizer(
        GGUF({**file.metadata, "general.architecture": "phi3"}, {})
    )
    ids = {piece: LLAMA.piece_to_id(piece) for piece in ("<s>", "</s>", "\u2581a")}
    taken, kept = (tokenizer.encode(text).ids[1:] for text in ("</s>  a", "<s>  a"))
    assert taken == [ids["</s>"], ids["\u2581a"]]
    assert kept[0] == ids["<s>"] and len(kept) > 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scores": np.zeros(3, np.float32)}, "scores"),
        ({"scores": np.full(700, np.nan, np.float32)}, "scores"),
        ({"token_type": np.ones(3, np.int32)}, "token_type"),
        (
            {"tokens": ["x" * 600, *(f"t{i}" for i in range(699))]}
            | {"token_type": np.ones(700, np.int32)},
            "512 characters",
        ),
    ],
)
def test_wrong_pieces_are_refused(changed, message):
    with pytest.raises(ValueError, match=rf"^\[gguf\] .*{message}"):
        build_tokenizer(as_gguf(LLAMA, **changed))


SAMPLE = "It's 1234 caféHTMLParser\r\n\n  x == y;\tDON'T 日本"
# The rules agree with llama.cpp on 785 other texts: docs/results/gguf.md.
PIECES = {
    "gpt-2": "It|'s| 1234| caféHTMLParser|\r\n\n | x| ==| y|;|\t|DON|'|T| 日本",
    "smollm": "It|'s| |1|2|3|4| caféHTMLParser|\r\n\n | x| ==| y|;|\t|DON|'|T| 日本",
    "llama-bpe": "It|'s| |123|4| caféHTMLParser|\r\n\n| | x| ==| y|;|\tDON|'T| 日本",
    "dbrx": "It|'s| |123|4| caféHTMLParser|\r\n\n| | x| ==| y|;|\tDON|'T| 日本",
    "qwen2": "It|'s| |1|2|3|4| caféHTMLParser|\r\n\n| | x| ==| y|;|\tDON|'T| 日本",
    "gpt-4o": "It's| |123|4| café|HTMLParser|\r\n\n| | x| ==| y|;|\tDON'T| 日本",
    "tekken": "It|'s| |1|2|3|4| café|HTMLParser|\r\n\n| | x| ==| y|;|\tDON|'T| 日本",
    # Its range of signs, ":" to "~", has the letters of ASCII too.
    "deepseek-llm": (
        "It|'|s| |1|2|3|4| caf|é|HTMLParser|\r|\n|\n| | x| ==| y|;|\tDON|'|T| |日本"
    ),
    "deepseek-coder": (
        "It|'|s| |1|2|3|4| caféHTMLParser|\r|\n|\n| | x| ==| y|;|\tDON|'|T| |日本"
    ),
    "deepseek-v3": "It|'s| |123|4| caféHTMLParser|\r\n\n| | x| ==| y|;|\tDON|'T| |日本",
}


@pytest.mark.parametrize("name", PIECES)
def test_a_rule_splits_as_its_models_do(name):
    pieces = rule_named(name).pre_tokenizer().pre_tokenize_str(SAMPLE)
    assert "|".join(SAMPLE[a:b] for _, (a, b) in pieces) == PIECES[name]


def test_a_folder_has_the_same_tokenizer(tmp_path):
    _, ours = MODELS["gemma"]
    ours.save(str(tmp_path / "tokenizer.json"))
    again = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert again.encode(TEXT[:2000]).ids == ours.encode(TEXT[:2000]).ids
