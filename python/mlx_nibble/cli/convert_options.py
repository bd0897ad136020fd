"""Which options each path of `nibble convert` uses; any other is an error."""

from __future__ import annotations

import argparse
from typing import NoReturn

from mlx_nibble.io.config import MODES
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

# The group sizes of all modes.
GROUP_CHOICES = sorted({size for groups, _ in MODES.values() for size in groups})

GGUF = "the import of a GGUF file"
PACKED = "the import of a packed folder"
ROUNDING = "quantizing by rtn or search"
CALIBRATED = "quantizing by a calibrated method"
TARGET = "quantizing with --target-bpw"
MODE = "quantizing with --q-mode"
REWRITE = "a conversion without -q"
PATHS = (GGUF, PACKED, ROUNDING, CALIBRATED, TARGET, MODE, REWRITE)
_QUANTIZING = (ROUNDING, CALIBRATED, TARGET)

# One command line compares methods: the text of those that need none is no mistake, but
# it must be right.
_OF_THE_TEXT = ("calibration", "samples", "sequence_length")

USED_BY = {
    "dtype": PATHS,
    "upload_repo": PATHS,
    "keep": (GGUF, PACKED),
    "trust_remote_code": (PACKED, *_QUANTIZING, MODE, REWRITE),
    "q_mode": (*_QUANTIZING, MODE),
    "q_bits": (ROUNDING, CALIBRATED, MODE),
    "q_group_size": (*_QUANTIZING, MODE),
    "method": _QUANTIZING,
    "recipe": (ROUNDING, CALIBRATED),
    "target_bpw": (TARGET,),
    "plot": (TARGET,),
    "symmetric": _QUANTIZING,
    "distill": _QUANTIZING,
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
            imports = path in (GGUF, PACKED)
            _refuse(option, f"{path}, which needs no -q" if imports else path)
    own_widths = args.recipe not in (None, "uniform")
    if args.q_bits is not None and own_widths:
        _refuse("q_bits", f"--recipe {args.recipe}, which has its own widths")
    if path == MODE:
        groups, widths = MODES[args.q_mode]
        for option, allowed in (("q_group_size", groups), ("q_bits", widths)):
            value = getattr(args, option)
            if value is not None and value not in allowed:
                raise ValueError(
                    f"[convert] {flag(option)} must be {allowed[0]} in the mode "
                    f"{args.q_mode} but got {value}: leave it out."
                )


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
    if args.q_mode not in (None, "affine"):
        return MODE
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
