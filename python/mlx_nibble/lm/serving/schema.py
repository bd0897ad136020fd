"""The fields of a request: types and ranges, checked before the engine sees any."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, NoReturn

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from mlx_nibble.io.stranger import MOST_LISTS, count_lists
from mlx_nibble.lm.serving.refusal import Refusal

# mlx-lm slices the last tokens by these numbers, which are 32 bits in MLX.
_MOST_CONTEXT = 2**31 - 1
# 1 / temperature must be finite in float32.
_COLDEST = 1e-5
# Arguments of the tokenizer's apply_chat_template that are the server's, and a
# template, which is a program.
_TEMPLATE_ARGUMENTS = {
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "max_length",
    "messages",
    "padding",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "self",
    "tokenize",
    "tokenizer_kwargs",
    "tools",
    "truncation",
}

# Fields of OpenAI's API that change the answer, and the values that are supported.
_SUPPORTED: dict[str, list[Any]] = {
    "audio": [],
    "best_of": [1],
    "echo": [False],
    "function_call": ["none"],
    "functions": [[]],
    "modalities": [["text"]],
    "n": [1],
    "prediction": [],
    "suffix": [""],
    "tool_choice": ["auto", "none"],
    "web_search_options": [],
}

Share = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-1e6, le=1e6)]
Context = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    # Strict: true is no number, and "5" is none. Fields that we do not know pass.
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class _ImageUrl(_Strict):
    url: str


class _Part(_Strict):
    type: str
    text: str = ""
    image_url: str | _ImageUrl | None = None
    image: str | _ImageUrl | None = None


class _Function(_Strict):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class _ToolCall(_Strict):
    function: _Function | None = None


class _Message(_Strict):
    role: str
    content: str | list[_Part] | None = None
    tool_calls: list[_ToolCall] | None = None


class _JsonSchema(_Strict):
    schema_: dict[str, Any] = Field(alias="schema")


class _ResponseFormat(_Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _JsonSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> _ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("must have a json_schema")
        return self


class _StreamOptions(_Strict):
    include_usage: bool = False


def _clamp(value: int) -> int:
    return min(value, _MOST_CONTEXT)


def _texts(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _without_empty(texts: list[str]) -> list[str]:
    return [text for text in texts if text]


def _token_ids(value: Any) -> Any:
    # JSON's keys are strings.
    if isinstance(value, dict) and all(k.isascii() and k.isdecimal() for k in value):
        return {int(key): bias for key, bias in value.items()}
    return value


def _no_server_arguments(value: dict[str, Any]) -> dict[str, Any]:
    if taken := sorted(_TEMPLATE_ARGUMENTS & value.keys()):
        raise ValueError(f"must not set {', '.join(taken)}")
    return value


class Request(_Strict):
    """The fields that all routes share; the names are mlx-lm's."""

    stream: bool = False
    stream_options: _StreamOptions | None = None
    response_format: _ResponseFormat | None = None
    model: str = Field("default_model", max_length=4096)
    draft_model: str = Field("default_model", max_length=4096)
    adapters: str | None = Field(None, max_length=4096)
    num_draft_tokens: int = Field(ge=1, le=1024)
    max_tokens: int = Field(ge=1)
    temperature: float = Field(ge=0)
    top_p: Share
    top_k: int = Field(ge=0)
    min_p: Share
    repetition_penalty: float = Field(0.0, ge=0, le=1e6)
    repetition_context_size: Annotated[Context, AfterValidator(_clamp)] = 20
    presence_penalty: Penalty = 0.0
    presence_context_size: Annotated[Context, AfterValidator(_clamp)] = 20
    frequency_penalty: Penalty = 0.0
    frequency_context_size: Annotated[Context, AfterValidator(_clamp)] = 20
    xtc_probability: Share = 0.0
    xtc_threshold: float = Field(0.1, ge=0, le=0.5)
    logit_bias: (
        Annotated[
            dict[Annotated[int, Field(lt=2**31)], Penalty], BeforeValidator(_token_ids)
        ]
        | None
    ) = Field(None, max_length=10_000)
    logprobs: bool = False
    top_logprobs: int = Field(-1, ge=-1, le=11)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    chat_template_kwargs: (
        Annotated[dict[str, Any], AfterValidator(_no_server_arguments)] | None
    ) = None
    stop: Annotated[
        list[Annotated[str, Field(max_length=1024)]],
        BeforeValidator(_texts),
        AfterValidator(_without_empty),
    ] = Field([], max_length=64)

    def model_post_init(self, context: Any) -> None:
        """Bring each number to the range in which the engine computes with it."""
        if self.temperature < _COLDEST:
            self.temperature = 0.0  # the limit: greedy
        if self.seed is not None:
            self.seed %= 2**64
        self.max_tokens = _clamp(self.max_tokens)

    @property
    def json_schema(self) -> dict[str, Any] | None:
        """The schema of an answer that must be JSON."""
        asked = self.response_format
        if asked is None or asked.type == "text":
            return None
        if asked.json_schema is None:
            return {"type": "object"}
        return asked.json_schema.schema_


class Completion(Request):
    """A request for a text."""

    prompt: str


class Chat(Request):
    """A request for a message."""

    messages: list[_Message] = Field(min_length=1, max_length=100_000)
    tools: list[dict[str, Any]] | None = None
    role_mapping: dict[str, str] | None = None

    @property
    def image_urls(self) -> list[str]:
        """URLs of all images."""
        parts = [
            part
            for message in self.messages
            if isinstance(message.content, list)
            for part in message.content
        ]
        urls = [url for part in parts if (url := part.image_url or part.image)]
        return [url if isinstance(url, str) else url.url for url in urls]


def read_json(raw: bytes) -> dict[str, Any]:
    """Return the object of a request's body.

    Raises:
        Refusal: If it is not an object in JSON, or has too many lists and objects.
    """
    if count_lists(raw) > MOST_LISTS:
        raise Refusal(400, f"the body may have at most {MOST_LISTS} lists and objects")
    try:
        body = json.loads(raw.decode(), parse_constant=_no_number)
    except UnicodeDecodeError:
        raise Refusal(400, "the body must be text in UTF-8") from None
    except RecursionError:
        raise Refusal(400, "the body's values are nested too deep") from None
    except ValueError as error:  # a JSONDecodeError, or a number of 5000 digits
        raise Refusal(400, f"the body must be valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise Refusal(400, "the body must be a JSON object")
    # OpenAI's clients send null for a field that is not set.
    return {name: value for name, value in body.items() if value is not None}


def check(kind: type[Request], body: dict[str, Any], defaults: dict[str, Any]) -> Any:
    """Return a body's fields as an object of ``kind``.

    Raises:
        Refusal: If a field is missing, has a wrong type or range, or asks for what is
            not supported.
    """
    for name, values in _SUPPORTED.items():
        # As JSON, for true is 1 to Python.
        if name in body and json.dumps(body[name]) not in map(json.dumps, values):
            most = " or ".join(map(json.dumps, values)) or "no value"
            raise Refusal(400, f"{name}: only {most} is supported", name)
    if body.get("tool_choice") == "none":
        body.pop("tools", None)  # mlx-lm would offer them
    fields = {**defaults, **body}
    fields["max_tokens"] = body.get("max_completion_tokens", fields["max_tokens"])
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "body"
        reason = first["msg"].split(" or instance of")[0].removeprefix("Value error, ")
        raise Refusal(400, f"{where}: {reason}", where.split(".")[0]) from None
    except (RecursionError, OverflowError) as error:
        raise Refusal(400, f"the body cannot be read: {error}") from None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
