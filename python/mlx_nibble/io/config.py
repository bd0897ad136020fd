"""config.json of a model folder: read, checked, and its entry of quantization.

Everything that reads a model folder checks its configuration here first. Keys of one
architecture are checked where mlx-lm's class is known: :mod:`mlx_nibble.lm.checked`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from mlx_nibble.formats import MODES as OUR_MODES
from mlx_nibble.formats import Format
from mlx_nibble.io.stranger import read_json
from mlx_nibble.io.values import fail, mapping, texts, whole

# A hundred times the largest that we know. A stranger's file may have any size.
_LARGEST_FILE = 16 << 20
# MLX's name of the mode, and its values of settings that a config.json leaves out.
_DEFAULTS = {"group_size": 64, "bits": 4, "mode": "affine"}
MODES = {
    mode.mlx_name: (mode.group_sizes, mode.bits)
    for mode in OUR_MODES.values()
    if not mode.symmetric
}
"""MLX's modes, with the group sizes and widths of each."""
LAYER_COUNT = re.compile(r"(num_)?(hidden|transformer)_layers|num_layers|n_layers?")
"""Names of a model's number of layers."""
_LARGEST_SIZE = 2**31 - 1  # MLX's sizes are int32
_MOST_LAYERS, _MOST_EXPERTS = 4096, 1 << 16  # 16 times the most that we know
# Keys of sizes; a list has one for each layer.
_SIZES = re.compile(
    r"vocab_size|hidden_size|head_dim|num_attention_heads|num_key_value_heads|"
    + LAYER_COUNT.pattern
)
_LAYERS = re.compile(r"(n|num)_(\w+_)?layers?")
_EXPERTS = re.compile(r"(n|num)_(\w+_)?experts")
_MODEL_TYPE = re.compile(r"[\w.-]+")


def read_config(folder: Path, op: str) -> dict[str, Any]:
    """Return the checked contents of a model folder's `config.json`.

    Args:
        folder: The model folder.
        op: Name of the operation in errors: ``[op] …``.

    Raises:
        ValueError: If it is no JSON object, or a value cannot be right.
        OSError: If it cannot be read.
    """
    file = folder / "config.json"
    config = read_json(file, op, _LARGEST_FILE)
    check_config(config, str(file), op)
    return config


def check_config(
    config: Mapping[str, Any], file: str, op: str, prefix: str = ""
) -> None:
    """Check every value that mlx-nibble uses, and the sizes that mlx-lm uses.

    Args:
        config: The contents of a `config.json`, or a part of them.
        file: The file that errors name.
        op: Name of the operation in errors.
        prefix: Start of the keys in errors.

    Raises:
        ValueError: If a value cannot be right. The error names file and key.
    """
    check = _Check(file, op, prefix)
    check.model(config)
    own = config.get("quantization") is not None
    if own:
        check.quantization(check.section(config, "quantization"))
    if config.get("quantization_config"):
        settings = check.section(config, "quantization_config")
        if not own:
            check.foreign(settings)
    if "text_config" in config:
        text = check.section(config, "text_config")
        check_config(text, file, op, f"{prefix}text_config.")


def with_quantization(
    config: Mapping[str, Any], usual: Format, plan: Mapping[str, Format]
) -> dict[str, Any]:
    """Return a configuration with the formats of its matrices, as mlx-lm reads it.

    Args:
        config: The configuration; its own quantization is replaced.
        usual: The format to state once.
        plan: Path of each quantized matrix to its format; one that is not `usual`
            gets an entry.
    """
    own = {path: form.config for path, form in plan.items()}
    return _with_entries(config, usual.config, own)


def with_entries(
    config: Mapping[str, Any], entries: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return a configuration whose usual format is that of the most matrices.

    Args:
        config: The configuration; its own quantization is replaced.
        entries: Path of each quantized matrix to its settings; at least one.
    """
    counts = Counter(tuple(own.items()) for own in entries.values())
    usual = dict(counts.most_common(1)[0][0])
    return _with_entries(config, usual, entries)


def _with_entries(
    config: Mapping[str, Any],
    usual: Mapping[str, Any],
    entries: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    entry = dict(usual)
    entry |= {path: own for path, own in entries.items() if own != usual}
    # mlx-lm writes it twice: Hugging Face's tools read the second.
    return {**config, "quantization": entry, "quantization_config": entry}


def stored_settings(config: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return `group_size`, `bits` and `mode` of a quantized matrix.

    Args:
        config: A model's configuration.
        path: The matrix's path in the model.
    """
    usual = config.get("quantization") or {}
    own = usual.get(path)
    stated = own if isinstance(own, dict) else usual
    return {key: stated.get(key, value) for key, value in _DEFAULTS.items()}


class _Check:
    """The checks of one file."""

    def __init__(self, file: str, op: str, prefix: str):
        self._file, self._op, self._prefix = file, op, prefix

    def model(self, config: Mapping[str, Any]) -> None:
        """Check the keys that describe a model."""
        kind = config.get("model_type", "")
        if not isinstance(kind, str) or (kind and not _MODEL_TYPE.fullmatch(kind)):
            self._fail("model_type", "a name", kind)
        names = config.get("architectures") or []
        if not isinstance(names, str):
            texts(self._op, self._name("architectures"), names)
        for key in ("bos_token_id", "eos_token_id"):
            for value in _listed(config.get(key)):
                self._whole(key, value, -1, _LARGEST_SIZE)
        for key, value in config.items():
            limits = _limits(key)
            if limits is not None:
                for size in _listed(value):
                    self._whole(key, size, *limits)

    def quantization(self, settings: Mapping[str, Any]) -> None:
        """Check MLX's own settings: those of all matrices, and entries of paths."""
        for key in ("group_size", "bits"):
            if key not in settings:
                self._fail(f"quantization.{key}", "a number", None)
        self._format("quantization", settings)
        for path, own in settings.items():
            if isinstance(own, dict):
                self._format(f"quantization.{path}", own)
            elif "." in path and not isinstance(own, bool):
                self._fail(f"quantization.{path}", "settings, true or false", own)

    def foreign(self, settings: Mapping[str, Any]) -> None:
        """Check another tool's settings, as far as mlx-lm and all imports use them."""
        name = "quantization_config"
        method = settings.get("quant_method")
        if settings.keys() == {"bits", "group_size"}:
            return  # MLX's own, in an old place
        if not isinstance(method, str):
            self._fail(f"{name}.quant_method", "a name", method)
        if method in ("awq", "gptq"):
            for key, least, most in (("bits", 1, 16), ("group_size", -1, 1 << 20)):
                if key in settings or (key, method) == ("bits", "gptq"):
                    self._whole(f"{name}.{key}", settings.get(key), least, most)
        groups = f"{name}.config_groups"
        for group in self.section(settings, "config_groups", {}).values():
            own = mapping(self._op, self._name(groups), group).get("weights")
            place = self._name(f"{groups}.weights")
            weights = mapping(self._op, place, {} if own is None else own)
            self._whole(f"{groups}.weights.num_bits", weights.get("num_bits", 4), 1, 16)

    def section(
        self, config: Mapping[str, Any], key: str, default: Any = None
    ) -> Mapping[str, Any]:
        """Return a value that must be a JSON object."""
        return mapping(self._op, self._name(key), config.get(key, default))

    def _format(self, key: str, settings: Mapping[str, Any]) -> None:
        mode = settings.get("mode", "affine")
        if not isinstance(mode, str) or mode not in MODES:
            self._fail(f"{key}.mode", f"one of {', '.join(MODES)}", mode)
        for name, allowed in zip(("group_size", "bits"), MODES[mode], strict=True):
            value = settings.get(name)
            if name in settings and (type(value) is not int or value not in allowed):
                choices = ", ".join(map(str, allowed))
                self._fail(f"{key}.{name}", f"one of {choices} ({mode})", value)

    def _whole(self, key: str, value: Any, least: int, most: int) -> None:
        whole(self._op, self._name(key), value, least, most)

    def _fail(self, key: str, required: str, got: Any) -> NoReturn:
        fail(self._op, self._name(key), required, got)

    def _name(self, key: str) -> str:
        return f"{self._prefix + key!r} in {self._file!r}"


def _limits(key: str) -> tuple[int, int] | None:
    """Return the least and the largest value of a size; None if it is none."""
    if _LAYERS.fullmatch(key):
        return int(_SIZES.fullmatch(key) is not None), _MOST_LAYERS
    if _EXPERTS.fullmatch(key):
        return 0, _MOST_EXPERTS
    if key == "intermediate_size":  # a model of experts alone has none
        return 0, _LARGEST_SIZE
    return (1, _LARGEST_SIZE) if _SIZES.fullmatch(key) else None


def _listed(value: Any) -> Iterator[Any]:
    """Return the values of a key that may be absent, null, or a list."""
    if isinstance(value, list):
        yield from value
    elif value is not None:
        yield value
