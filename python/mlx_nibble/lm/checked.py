"""Model folders of strangers: checked before mlx-lm loads them, and run no code.

All of mlx-lm's entry points load through functions of ``mlx_lm.utils``. Inside
:func:`checked_loading`, these functions check a folder first, and find a folder of any
name.
"""

from __future__ import annotations

import dataclasses
import glob
import math
import os
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from mlx_lm import utils as mlx_lm_utils
from mlx_lm.models.base import BaseModelArgs

from mlx_nibble.io.checkpoint import check_folder
from mlx_nibble.io.config import check_config
from mlx_nibble.io.shards import known_tensors
from mlx_nibble.io.stranger import local_path
from mlx_nibble.io.tokenizer import check_tokenizer
from mlx_nibble.lm.replaced import replaced
from mlx_nibble.lm.sizes import check_layers, checked_building
from mlx_nibble.lm.upstream import fits

_INTERNALS = {
    "load_model": "model_path",
    "_load_tokenizer": "model_path",
    "_download": "path_or_hf_repo",
    "_get_classes": "config",
    "glob": "",
}
_originals: dict[str, Any] = {
    name: getattr(mlx_lm_utils, name, None) for name in _INTERNALS
}


@contextmanager
def checked_loading() -> Iterator[None]:
    """Check every model that mlx-lm loads inside this context.

    Raises:
        ValueError: If a file of the folder is damaged. The error names it.
    """
    if not fits("its checks of model folders", mlx_lm_utils, _INTERNALS):
        yield
        return
    with ExitStack() as stack:
        for name, value in (
            ("load_model", load_model),
            ("_load_tokenizer", load_tokenizer),
            ("_download", _found),
            ("glob", types.SimpleNamespace(glob=_glob)),
        ):
            stack.enter_context(replaced(mlx_lm_utils, name, value))
        yield


def load_model(model_path: Path, *args: Any, **kwargs: Any) -> Any:
    """Check a folder, then build its model: mlx-lm's ``load_model``.

    Raises:
        ValueError: If the folder holds no model that mlx-lm can build.
    """
    folder = Path(model_path)
    file = str(folder / "config.json")
    check_folder(folder, "load")
    names = known_tensors(folder, "load")

    def classes(config: dict[str, Any]) -> Any:
        if "model_type" not in config:
            raise ValueError(f"[load] 'model_type' is required in {file!r} but absent.")
        # mlx-lm has changed what it read: tagged numbers, arguments of the caller.
        check_config(config, file, "load")
        check_layers(config, names, file)
        kind = config["model_type"]
        with one_line(
            f"a model_type of mlx-lm is required, unlike {kind!r} in {file!r}"
        ):
            found = _originals["_get_classes"](config)
        _check_arguments(found[1], config, file)
        return found

    if len(args) < 4:
        kwargs.setdefault("get_model_classes", classes)
    with (
        one_line(f"a model that mlx-lm can build is required in {file!r}"),
        checked_building(names, file),
    ):
        return _originals["load_model"](model_path, *args, **kwargs)


def load_tokenizer(
    model_path: Path, extra: Mapping[str, Any] | None = None, *args: Any, **kwargs: Any
) -> Any:
    """Load a tokenizer, and its Python code only if the caller says so.

    Raises:
        ValueError: If transformers cannot read it.
    """
    check_tokenizer(Path(model_path), "load")
    # Without an answer, transformers would ask on a terminal.
    extra = {**(extra or {})}
    extra["trust_remote_code"] = bool(extra.get("trust_remote_code"))
    with one_line(
        f"a tokenizer that transformers can load is required in {str(model_path)!r}"
    ):
        loaded = _originals["_load_tokenizer"](model_path, extra, *args, **kwargs)
        # Some wrong settings are found when they are used.
        loaded.decode(loaded.encode("a"))
        return loaded


@contextmanager
def one_line(required: str) -> Iterator[None]:
    """Turn what a package raises about a stranger's file into a ValueError.

    Args:
        required: The first half of the message.
    """
    try:
        yield
    except (OSError, RuntimeError, KeyboardInterrupt):
        raise
    except BaseException as error:
        # No Exception: a panic of the tokenizers package, and the exit of a module of
        # mlx-lm that misses a package.
        ended = type(error).__name__ in ("PanicException", "SystemExit")
        if not ended and not isinstance(error, Exception):
            raise
        if str(error).startswith("[load] "):
            raise
        kind = "" if isinstance(error, ValueError) else f" {type(error).__name__}"
        reason = " ".join(str(error).split())
        if "trust_remote_code" in reason:
            reason += " On the command line, say --trust-remote-code."
        raise ValueError(f"[load] {required} but got{kind}: {reason}") from error


def _check_arguments(kind: type, config: Mapping[str, Any], file: str) -> None:
    """Compare a configuration with the arguments of mlx-lm's class.

    Raises:
        ValueError: If one is missing, or of another type. The error names the key.
    """
    if not dataclasses.is_dataclass(kind):
        return
    hints = typing.get_type_hints(kind)
    # A class that reads the dictionary itself may find an argument elsewhere.
    reads = getattr(kind, "from_dict", None)
    own = getattr(reads, "__func__", None) is not BaseModelArgs.from_dict.__func__
    missing = []
    for field in dataclasses.fields(kind):
        absent = dataclasses.MISSING
        needed = field.default is absent and field.default_factory is absent
        if field.name not in config:
            if needed and field.init and not own:
                missing.append(field.name)
            continue
        value = config[field.name]
        # mlx-lm's types say less than its defaults, and null is often "unused".
        alike = type(value) is type(field.default) and type(value) is not float
        origin = typing.get_origin(hints[field.name]) or hints[field.name]
        unused = not needed or origin in (dict, list, tuple)
        if alike or (value is None and unused):
            continue
        if not _fits(value, hints[field.name]):
            name = getattr(hints[field.name], "__name__", str(hints[field.name]))
            raise ValueError(
                f"[load] a value of type {name} is required as {field.name!r} in "
                f"{file!r} but got {value!r:.80}."
            )
    if missing:
        raise ValueError(
            f"[load] {', '.join(map(repr, missing))} must be in {file!r} but is not."
        )


def _fits(value: Any, hint: Any) -> bool:
    """Tell whether a JSON value can be of a type; unknown types fit."""
    origin = typing.get_origin(hint) or hint
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if origin is types.NoneType:
        return value is None
    if origin is bool:
        return value is None or isinstance(value, bool | int)
    if origin in (int, float):
        # mlx-lm's int may be a float, and the reverse.
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and not math.isnan(value) and abs(value) < 2**63 or _is_inf(value)
    for kind, same in ((str, str), (dict, dict), (list, list), (tuple, list)):
        if origin is kind:
            return isinstance(value, same)
    return True


def _is_inf(value: Any) -> bool:
    return isinstance(value, float) and math.isinf(value)


def _found(path_or_hf_repo: Any, *args: Any, **kwargs: Any) -> Path:
    folder = local_path(os.fspath(path_or_hf_repo))
    return _originals["_download"](folder, *args, **kwargs)


def _glob(pattern: str) -> list[str]:
    """Find files of a folder whose name may hold brackets."""
    folder, name = os.path.split(pattern)
    return glob.glob(os.path.join(glob.escape(folder), name))
