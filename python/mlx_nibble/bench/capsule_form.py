"""The form of a capsule: each value that comparisons and pictures use is checked."""

from __future__ import annotations

from typing import Any

from mlx_nibble.formats import BITS, GROUP_SIZES, MODES, SCALE_DTYPES
from mlx_nibble.io.values import shown

SCHEMA = "mlx-nibble/bench/1"
KINDS = ("kernels", "model", "tune")

_SIZE = (1, 2**31 - 1)
# From below a clock's tick to decades: no ratio of two overflows.
_SECONDS = (1e-15, 1e9)
_PEAK = (1.0, 1e24)
# 50 times what any run takes. Comparisons draw 2000 times as many.
_MOST_PASSES = 10_000
_DTYPES = frozenset(SCALE_DTYPES)
_PRODUCT = {"rows": _SIZE, "N": _SIZE, "K": _SIZE, "bits": frozenset(BITS)}
_PRODUCT |= {"group_size": frozenset((16, *GROUP_SIZES)), "dtype": _DTYPES}
_PRODUCT |= {"mode": frozenset(m.mlx_name for m in MODES.values())}
# The keys of a case, by the kind of run: a type, the limits of a number, or a choice.
_CASES: dict[str, dict[str, Any]] = {
    "kernels": _PRODUCT,
    "tune": _PRODUCT
    | {
        "scale_dtype": _DTYPES | {"uint8"},
        "symmetric": bool,
        "activations": {None, "int8"},
    },
    "model": {
        "measure": {"prompt", "decode"},
        "mode": {"plain", "batched", "speculative"},
        "batch": _SIZE,
        "context": _SIZE,
    },
}
_BYTES = (0, 2**63)
# Keys that only a page shows: the holder, the key and its form.
_OPTIONAL: tuple[tuple[str, str, Any], ...] = (
    ("machine", "system", str),
    ("machine", "device", str),
    ("versions", "mlx", str | None),
    ("", "started", str | None),
    ("", "complete", bool),
    ("", "peaks", dict | None),
)
# Optional keys of a candidate.
_CANDIDATE: dict[str, Any] = {
    "skipped": str,
    "limited": str,
    "chain": _SIZE,
    "peak_bytes": _BYTES,
    "process_bytes": _BYTES,
    "weight_bytes": _BYTES,
    "working_bytes": _BYTES,
    "accepted": (0, 1),
}


def check(capsule: Any) -> None:
    """Check every value that is used.

    Raises:
        ValueError: If a value is missing or wrong.
    """
    schema, kind = _part(capsule, "schema", str), _part(capsule, "kind", str)
    if schema != SCHEMA:
        raise ValueError(f"[bench] schema {SCHEMA!r} was required but got {schema!r}.")
    if kind not in KINDS:
        kinds = ", ".join(KINDS)
        raise ValueError(f"[bench] a kind of {kinds} was required but got {kind!r}.")
    for key in ("machine", "versions", "settings"):
        _part(capsule, key, dict)
    for holder, key, form in _OPTIONAL:
        owner = capsule[holder] if holder else capsule
        if key in owner:
            _part(owner, key, form)
    for part in _part(capsule, "command", list):
        _require(part, str, "a part of the command")
    peaks = capsule.get("peaks")
    for key in ("read_bytes_per_second", "flops_per_second") if peaks else ():
        _part(peaks, key, _PEAK)
    for result in _part(capsule, "results", list):
        case = _part(result, "case", dict)
        if kind != "model":
            case.setdefault("mode", "affine")  # earlier versions knew no other
        for key, form in _CASES[kind].items():
            _part(case, key, form)
        if unknown := case.keys() - _CASES[kind].keys():
            raise ValueError(f"[bench] a case has no {', '.join(sorted(unknown))!r}.")
        if "weight_bytes" in result:
            _part(result, "weight_bytes", (1, 2**63))
        for candidate in _part(result, "candidates", dict).values():
            _check_candidate(candidate)


def _check_candidate(candidate: Any) -> None:
    for key in _require(candidate, dict, "a candidate"):
        if key in _CANDIDATE:
            _part(candidate, key, _CANDIDATE[key])
    if "skipped" in candidate and "passes" not in candidate:
        return
    passes = _part(candidate, "passes", list)
    if len(passes) > _MOST_PASSES:
        raise ValueError(
            f"[bench] at most {_MOST_PASSES} passes are possible but got {len(passes)}."
        )
    for values in passes:
        for value in _require(values, list, "a pass"):
            _require(value, _SECONDS, "a positive sample")


def _part(holder: Any, key: str, form: Any) -> Any:
    """Return a value of a mapping, of this form."""
    if key not in _require(holder, dict, f"the holder of {key!r}"):
        got = ", ".join(holder)
        raise ValueError(f"[bench] {key!r} was required but got {got!r:.200}.")
    return _require(holder[key], form, repr(key))


def _require(value: Any, form: Any, what: str) -> Any:
    """Return a value of this form: of a type, of a set, or a number within limits."""
    if isinstance(form, set | frozenset):
        scalar = isinstance(value, str | int | None) and not isinstance(value, bool)
        if not scalar or value not in form:
            raise ValueError(
                f"[bench] {what} of {sorted(map(str, form))} was required but got "
                f"{shown(value)}."
            )
        return value
    if isinstance(form, tuple):
        low, high = form
        if type(value) not in (int, float) or not low <= value <= high:
            raise ValueError(
                f"[bench] {what} from {low} to {high} was required but got "
                f"{shown(value)}."
            )
    elif not isinstance(value, form):
        name = getattr(form, "__name__", str(form))
        raise ValueError(
            f"[bench] {what} of type {name} was required but got "
            f"{type(value).__name__}."
        )
    return value
