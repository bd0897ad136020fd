"""The parts of mlx-lm's server that ours extends, as it expects them."""

from __future__ import annotations

from types import ModuleType

from mlx_nibble.lm.upstream import difference, explained

_MODULE = {
    "run": "host port model_provider",
    "_make_logits_processors": "args",
    "_make_sampler": "args tokenizer",
    "get_system_fingerprint": "",
    "GenerationContext": "prompt",
    "LRUPromptCache": "max_size max_bytes",
    "ModelProvider": "cli_args",
    "Response": "token",
}
_ENGINE = {
    "__init__": "model_provider prompt_cache",
    "_generate": "self",
    "_make_state_machine": "model_key tokenizer stop_words",
    "_next_request": "timeout",
    "_run_generate": "self",
    "_serve_single": "request stream",
    "_tokenize": "tokenizer request args",
    "generate": "request generation_args progress_callback",
    "generation_available": "self",
    "is_healthy": "",
    "stop_and_join": "self",
}
_HANDLER = {
    "__init__": "response_generator system_fingerprint",
    "_set_completion_headers": "status_code",
    "_set_cors_headers": "self",
    "handle_chat_completions": "self",
    "handle_completion": "request stop_words",
    "handle_text_completions": "self",
}


def require(server: ModuleType) -> None:
    """Check ``mlx_lm.server`` before anything of it is extended.

    Raises:
        RuntimeError: If it is another than expected. Without our checks, one request
            could end the server for all clients.
    """
    parts = {None: _MODULE, "ResponseGenerator": _ENGINE, "APIHandler": _HANDLER}
    for name, expected in parts.items():
        owner = server if name is None else getattr(server, name, None)
        if owner is None:
            found = f"{server.__name__}.{name} does not exist"
        else:
            found = difference(owner, expected)
        if found is not None:
            raise RuntimeError(f"[serve] cannot serve: {explained(found)}.")
