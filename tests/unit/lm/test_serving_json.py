"""Answers of `nibble serve` that must be JSON."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import mlx.core as mx
import pytest

from mlx_nibble.lm.serving.grammar import Grammars, grammar_of
from mlx_nibble.lm.serving.refusal import Refusal
from mlx_nibble.lm.serving.schema import read_json
from tests.soak.clients import Load, text_of
from tests.support.served import serving

pytest.importorskip("llguidance")

TEXT = "/v1/completions"
CHAT = "/v1/chat/completions"
# Short enough for a random model to end.
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["hen", "den"]},
        "legs": {"type": "integer", "minimum": 2, "maximum": 4},
    },
    "required": ["kind", "legs"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA}}


pytestmark = pytest.mark.usefixtures("patched")


def answer(load: Load, path: str, **body: Any) -> Any:
    text = text_of(*load.post(path, json.dumps(body).encode()))
    assert text.endswith(" (stop)")
    return json.loads(text.removesuffix(" (stop)"))


@pytest.mark.parametrize("more", [{}, {"seed": 3}, {"stream": True}, {"seed": 1}])
@pytest.mark.parametrize("temperature", [0, 1.5])
def test_an_answer_follows_its_schema(load, more, temperature):
    asked: dict[str, Any] = {"max_tokens": 100, "response_format": FORMAT, **more}
    asked |= {"temperature": temperature, "logit_bias": {"2": -50, "260": 90}}
    messages = [{"role": "user", "content": "the hen"}]
    for path, prompt in ((TEXT, {"prompt": "hen"}), (CHAT, {"messages": messages})):
        jsonschema.validate(answer(load, path, **prompt, **asked), SCHEMA)


def test_a_batch_holds_answers_of_several_kinds(load):
    plain: dict[str, Any] = {"prompt": "the hen", "max_tokens": 40}
    right = text_of(*load.post(TEXT, json.dumps(plain).encode()))

    def ask(number: int) -> bool:
        if number % 2:
            return text_of(*load.post(TEXT, json.dumps(plain).encode())) == right
        found = answer(load, TEXT, prompt="a", response_format=FORMAT, max_tokens=100)
        return set(found) == {"kind", "legs"}

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(8)))


def test_a_draft_model_changes_nothing(folder):
    with serving(folder, "--draft-model", str(folder)) as load:
        found = answer(load, TEXT, prompt="a", response_format=FORMAT, max_tokens=100)
    jsonschema.validate(found, SCHEMA)


def test_an_object_without_a_schema(load):
    body = {"prompt": "a", "max_tokens": 5, "response_format": {"type": "json_object"}}
    text = text_of(*load.post(TEXT, json.dumps(body).encode()))
    assert text.lstrip().startswith("{")
    body["response_format"] = {"type": "text"}
    assert load.post(TEXT, json.dumps(body).encode())[0] == 200


def nested(depth: int) -> dict[str, Any]:
    return {"not": nested(depth - 1)} if depth else {"type": "null"}


@pytest.mark.parametrize(
    "wrong",
    [
        "json_object",
        {"type": "xml"},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"name": "x"}},
        {"type": "json_schema", "json_schema": {"schema": {"type": "hen"}}},
        {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://a/b"}}},
        {"type": "json_schema", "json_schema": {"schema": {"pattern": "("}}},
        {"type": "json_schema", "json_schema": {"schema": nested(300)}},
        {"type": "json_schema", "json_schema": {"schema": {"const": "x" * 200_000}}},
    ],
    ids=lambda wrong: str(wrong)[:60],
)
def test_what_is_no_schema_is_refused(load, wrong):
    if "pattern" in str(wrong):
        wrong["json_schema"]["schema"]["type"] = "string"
    body = json.dumps({"prompt": "a", "max_tokens": 2, "response_format": wrong})
    status, said = load.post(TEXT, body.encode())
    assert status == 400, said
    assert json.loads(said)["error"]["param"] == "response_format"
    assert load.engine.is_healthy


def test_a_text_that_leaves_the_grammar_ends(load):
    tokenizer = load.engine.model_provider.tokenizer
    made = Grammars(tokenizer, 320).processor(grammar_of(SCHEMA), 2)
    logits = mx.zeros((1, 320))

    def allowed(*tokens: int) -> set[int]:
        masked = made(mx.array(tokens, mx.int32), logits)[0].tolist()
        return {i for i, value in enumerate(masked) if value == 0}

    first = allowed(5, 5)
    assert first and not first & set(tokenizer.eos_token_ids)
    assert allowed(5, 5, 5) == set(tokenizer.eos_token_ids)
    assert allowed(5, 5) == first  # the draft's token was refused


def test_without_the_package_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(Refusal, match="requires the package llguidance"):
        grammar_of({})


def test_a_body_of_a_million_lists_is_not_parsed():
    """CPython 3.12 parses them, and all clients wait meanwhile."""
    deep = b"[" * 400 + b"]" * 400
    body = b'{"prompt": [' + b",".join([deep] * 2501) + b"]}"
    with pytest.raises(Refusal, match="at most 1000000 lists and objects"):
        read_json(body)
