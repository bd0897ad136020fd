"""A configuration's sizes, compared with the tensors of its folder.

mlx-lm builds the whole model before it compares the shapes of the tensors with it. A
size that does not fit costs gigabytes, or a division by zero inside MLX.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

import mlx.nn as mlx_nn

from mlx_nibble.io.config import LAYER_COUNT, MODES
from mlx_nibble.lm.replaced import replaced

_NUMBERED = re.compile(r"(?:.*?\.)??(\d+)(?=\.)")
# A layer of a llama has 13 modules, and 7 more when it is quantized, for its 9 tensors.
_MODULES_OF_A_TENSOR = 16
_MODULES = 4096  # a module needs 20 KB


def check_layers(config: Mapping[str, Any], names: Collection[str], file: str) -> None:
    """Check that a folder has tensors of as many layers as its configuration says.

    Args:
        config: The configuration.
        names: Names of the folder's tensors; if there are none, nothing is checked.
        file: The file that errors name.

    Raises:
        ValueError: If there are more layers. The error names the key.
    """
    if not names:
        return
    found = [m for m in map(_NUMBERED.match, names) if m]
    # There may be two lists of layers, or layers without tensors.
    last = max((int(m[1][:9]) + 1 for m in found), default=0)
    most = max(len({m[0] for m in found}), last)
    parts = {"": config, "text_config.": config.get("text_config")}
    for prefix, part in parts.items():
        for key, value in (part or {}).items():
            if LAYER_COUNT.fullmatch(key) and type(value) is int and value > most:
                raise ValueError(
                    f"[load] at most {most} layers, as the folder has tensors of, are "
                    f"required as {prefix + key!r} in {file!r} but got {value}."
                )


@contextmanager
def checked_building(names: Collection[str], file: str) -> Iterator[None]:
    """Check what mlx-lm builds inside this context, before MLX computes anything.

    Args:
        names: Names of the folder's tensors; if there are none, a model may have any
            number of modules.
        file: The file that errors name.

    Raises:
        ValueError: If a model has far more modules than the folder has tensors, or a
            layer cannot be quantized as it should be.
    """
    most = _MODULES + _MODULES_OF_A_TENSOR * len(names)
    begin, quantize = mlx_nn.Module.__init__, mlx_nn.quantize
    built = 0

    @wraps(begin)
    def counted(self: mlx_nn.Module) -> None:
        nonlocal built
        built += 1
        if names and built > most:
            raise ValueError(
                f"[load] a model of at most {most} modules, for {len(names)} tensors, "
                f"is required in {file!r} but it has more."
            )
        begin(self)

    @wraps(quantize)
    def checked(model: mlx_nn.Module, *args: Any, **kwargs: Any) -> None:
        usual = dict(zip(("group_size", "bits"), args, strict=False)) | kwargs
        given = usual.pop("class_predicate", None)
        kwargs["class_predicate"] = _checked(given, usual, file)
        quantize(model, *args, **kwargs)

    with (
        replaced(mlx_nn.Module, "__init__", counted),
        replaced(mlx_nn, "quantize", checked),
    ):
        yield


def _checked(
    predicate: Callable[[str, Any], Any] | None, usual: Mapping[str, Any], file: str
) -> Callable[[str, Any], Any]:
    """Return a predicate of `mlx.nn.quantize` that also checks each format."""

    def wrapped(path: str, module: Any) -> Any:
        able = hasattr(module, "to_quantized")
        asked = able if predicate is None else predicate(path, module)
        if asked and able:
            _check_format(
                path, module, asked if isinstance(asked, dict) else usual, file
            )
        return asked

    return wrapped


def _check_format(
    path: str, module: Any, settings: Mapping[str, Any], file: str
) -> None:
    """Check that MLX can quantize a layer; a group size of 0 ends the process."""
    mode = settings.get("mode", "affine")
    known = isinstance(mode, str) and mode in MODES
    group_sizes, widths = MODES[mode] if known else ((), ())
    group_size, bits = settings.get("group_size"), settings.get("bits")
    weight = module.get("weight")
    inputs = 0 if weight is None or not weight.ndim else weight.shape[-1]
    if (
        known
        and (group_size is None or group_size in group_sizes)
        and (bits is None or bits in widths)
        and inputs % (group_size or 1) == 0
    ):
        return
    raise ValueError(
        f"[load] a format of MLX that divides its rows is required of {path!r}, whose "
        f"rows have {inputs} inputs by {file!r}, but got {mode} with {bits} bits and "
        f"groups of {group_size}."
    )
