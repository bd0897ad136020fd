"""Which options each path of `nibble convert` uses; any other is an error."""

from __future__ import annotations

import argparse
from typing import NoReturn

from mlx_nibble.quantize.method import Method

METHODS = {
    "rtn": Method("affine", gptq=False, sweeps=0),
    "search": Method("search", gptq=False, sweeps=0),
    "awq": Method(awq=True, gptq=False, sweeps=0),
    "gptq": Method(),
    "awq+gptq": Method(awq=True),
}
_SYMMETRIC_RTN = Method("symmetric", gptq=False, sweeps=0)

# Values of options that are not given. The parser's own are None, which tells them from
# options that state the default.
_DEFAULTS = {
    "q_bits": 4,
    "q_group_size": 64,
    "method": "gptq",
    "recipe": "uniform",
    "calibration": "builtin",
    "samples": 64,
    "sequence_length": 256,
}

GGUF = "the import of a GGUF file"
PACKED = "the import of a packed folder"
ROUNDING = "quantizing by rtn or search"
CALIBRATED = "quantizing by a calibrated method"
TARGET = "quantizing with --target-bpw"
PATHS = (GGUF, PACKED, ROUNDING, CALIBRATED, TARGET)
_QUANTIZING = (ROUNDING, CALIBRATED, TARGET)

# One command line compares methods: the text of those that need none is no mistake, but
# it must be right.
_OF_THE_TEXT = ("calibration", "samples", "sequence_length")

USED_BY = {
    "dtype": PATHS,
    "keep": (GGUF,),
    "trust_remote_code": (PACKED, *_QUANTIZING),
    "q_bits": (ROUNDING, CALIBRATED),
    "q_group_size": _QUANTIZING,
    "method": _QUANTIZING,
    "recipe": (ROUNDING, CALIBRATED),
    "target_bpw": (TARGET,),
    "plot": (TARGET,),
    "symmetric": _QUANTIZING,
    **dict.fromkeys(_OF_THE_TEXT, _QUANTIZING),
}
"""Each option that is for some paths, and these paths."""


def require_used(args: argparse.Namespace, path: str) -> None:
    """Check that the path of a command uses all options that are given.

    Raises:
        ValueError: If one is not used.
    """
    for option, paths in USED_BY.items():
        if getattr(args, option) is not None and path not in paths:
            where = path if args.quantize else f"{path}, which needs no -q"
            _refuse(option, where)
    own_widths = args.recipe not in (None, "uniform")
    if args.q_bits is not None and own_widths:
        _refuse("q_bits", f"--recipe {args.recipe}, which has its own widths")


def _refuse(option: str, where: str) -> NoReturn:
    raise ValueError(
        f"[convert] options must be of use but {flag(option)} is not used in {where}."
    )


def unused_text(args: argparse.Namespace, path: str) -> str | None:
    """Return the first option of the text if the path needs no text."""
    given = [o for o in _OF_THE_TEXT if getattr(args, o) is not None]
    return flag(given[0]) if given and path == ROUNDING else None


def fill_defaults(args: argparse.Namespace) -> None:
    """Set the options that are not given."""
    for option, value in _DEFAULTS.items():
        if getattr(args, option) is None:
            setattr(args, option, value)


def quantizing_path(args: argparse.Namespace) -> str:
    """Return the path of a command that quantizes."""
    if args.target_bpw is not None:
        return TARGET
    return CALIBRATED if method(args).calibrated else ROUNDING


def method(args: argparse.Namespace) -> Method:
    """Return the steps of the method that is asked for."""
    name = args.method or _DEFAULTS["method"]
    return _SYMMETRIC_RTN if name == "rtn" and args.symmetric else METHODS[name]


def flag(option: str) -> str:
    """Return an option as it is written on the command line."""
    return "--" + option.replace("_", "-")
