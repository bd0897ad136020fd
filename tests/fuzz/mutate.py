"""Damage files as a stranger would: in the fields of their formats, not only bits."""

from __future__ import annotations

import copy
import json
import random
import struct
import sys
from typing import Any

Files = dict[str, bytes]
"""Name of each file to its contents: one input."""

_INTEGERS = [0, 1, -1, 2, 3, 7, 16, 31, 32, 63, 64, 65, 127, 128, 255, 256, 4096, 65535]
_INTEGERS += [2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1]
_INTEGERS += [10**30, -(2**31), -(2**63)]
_FLOATS = [0.0, -0.0, 0.5, 1e-45, 1e308, -1e308, float("nan"), float("inf"), 1.5]
_TEXTS = [
    "",
    " ",
    "a",
    "\x1b[2J",
    "\0",
    "\ud800",
    "é中",
    "../../x",
    "/dev/zero",
    "[/b]",
]
_TEXTS += ["affine", "none", "x" * 70_000, "{{ 1 }}", "0x10", "1e400", "9" * 5000]
_MOST_NODES = 3000


def mutate(files: Files, rng: random.Random, others: list[Files]) -> Files:
    """Return a damaged copy; `others` are whole inputs to take parts from."""
    made = dict(files)
    for _ in range(1 + min(int(rng.expovariate(0.9)), 6)):
        name = rng.choice(sorted(made))
        whole = [other[name] for other in others if name in other]
        made[name] = _damaged(name, made[name], rng, whole)
    return made


def _damaged(name: str, data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    if rng.random() < 0.03:
        return rng.choice([b"", data + data, rng.choice(others or [b"\0"])])
    if name.endswith(".gguf"):
        return _gguf(data, rng) if rng.random() < 0.75 else _bytes(data, rng)
    if name.endswith(".safetensors"):
        return _safetensors(data, rng) if rng.random() < 0.8 else _bytes(data, rng)
    if rng.random() < 0.85:
        return _json(data, rng)
    return _text(data, rng)


def _bytes(data: bytes, rng: random.Random) -> bytes:
    raw = bytearray(data)
    at = rng.randrange(len(raw) + 1)
    match rng.randrange(5):
        case 0:
            return bytes(raw[:at])
        case 1:
            return bytes(raw[:at]) + rng.randbytes(rng.randrange(1, 40)) + raw[at:]
        case 2:
            del raw[at : at + rng.randrange(1, 64)]
        case 3:
            size = rng.choice([1, 2, 4, 8])
            value = rng.choice(_INTEGERS) % 256**size
            raw[at : at + size] = value.to_bytes(size, "little")
        case _:
            for _ in range(rng.randrange(1, 8)):
                if raw:
                    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return bytes(raw)


def _text(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    match rng.randrange(6):
        case 0:
            return b"\xef\xbb\xbf" + data
        case 1:
            return data[:at]
        case 2:
            deep = rng.choice([500, 5000, 200_000])
            return rng.choice([b"[", b'{"a":']) * deep
        case 3:
            return (
                data[:at] + rng.choice([b"\xff", b"NaN", b"\0", b"1e999"]) + data[at:]
            )
        case 4:  # a key twice
            start = data.find(b"{")
            return data[: start + 1] + b'"hidden_size": 1, ' + data[start + 1 :]
        case _:
            return _bytes(data, rng)


def _json(data: bytes, rng: random.Random) -> bytes:
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return _bytes(data, rng)
    tree = damaged_tree(tree, rng)
    try:
        text = json.dumps(tree, ensure_ascii=rng.random() < 0.5)
        return text.encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return b"[]"


def damaged_tree(tree: Any, rng: random.Random) -> Any:
    """Return a JSON tree in which one node is damaged."""
    holder = [tree]
    places: list[tuple[Any, Any]] = []
    stack: list[tuple[Any, Any]] = [(holder, 0)]
    while stack and len(places) < _MOST_NODES:
        owner, key = stack.pop()
        places.append((owner, key))
        value = owner[key]
        if isinstance(value, dict):
            stack += [(value, k) for k in value]
        elif isinstance(value, list):
            stack += [(value, i) for i in range(len(value))]
    owner, key = rng.choice(places)
    other_owner, other_key = rng.choice(places)
    match rng.randrange(8):
        case 0 | 1:
            owner[key] = _value(rng)
        case 2:
            owner[key] = _near(owner[key], rng)
        case 3 if owner is not holder:
            del owner[key]
        case 4:  # copied, so that no cycle appears
            owner[key] = _copied(other_owner[other_key])
        case 5 if isinstance(owner, dict):
            owner[rng.choice([*_TEXTS[:9], str(other_key), f"{key}_"])] = owner.pop(key)
        case 6 if isinstance(owner[key], list):
            owner[key] = owner[key] * rng.choice([2, 3, 500])
        case 6 if isinstance(owner[key], dict):
            owner[key][rng.choice(_TEXTS)] = _value(rng)
        case _:
            owner[key] = _near(owner[key], rng)
    return holder[0]


def _value(rng: random.Random) -> Any:
    kind = rng.randrange(7)
    if kind < 2:
        return rng.choice(_INTEGERS)
    deep: Any = []
    for _ in range(rng.choice([1, 3, 300])):
        deep = [deep]
    some = [rng.choice(_FLOATS), rng.choice(_TEXTS), rng.choice([None, True, False])]
    return [*some, rng.choice([[], {}, [1], {"a": 1}]), deep][kind - 2]


def _near(value: Any, rng: random.Random) -> Any:
    match value:
        case bool():
            return not value
        case int():
            by = [value + 1, value - 1, -value, value * 2, value << 32]
            small = abs(value) < 2**900
            return rng.choice([*by, *((value / 2, float(value)) if small else (0,))])
        case float():
            return rng.choice([-value, value * 2, value / 2, str(value)])
        case str():
            at = rng.randrange(len(value) + 1)
            return value[:at] + rng.choice(_TEXTS[:10]) + value[at + 1 :]
        case list():
            some = list(value)
            rng.shuffle(some)
            return some[: rng.randrange(len(some) + 1)]
    return _value(rng)


def _safetensors(data: bytes, rng: random.Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + length], data[8 + length :]
    match rng.randrange(12):
        case 0:
            return (
                rng.choice(_INTEGERS).to_bytes(17, "little", signed=True)[:8] + data[8:]
            )
        case 1:
            body = body[: rng.randrange(len(body) + 1)]
        case 2:
            body = _bytes(body, rng)
        case 3:
            header = _text(header, rng)
        case _:
            header = _json(header, rng)
    return struct.pack("<Q", len(header)) + header + body


def _gguf(data: bytes, rng: random.Random) -> bytes:
    fields = _gguf_fields(data)
    if not fields:
        return _bytes(data, rng)
    at, size = rng.choice(fields)
    raw = bytearray(data)
    old = int.from_bytes(raw[at : at + size], "little")
    value = rng.choice([*_INTEGERS, old + 1, old - 1, 2 * old, rng.randrange(40)])
    if size > 8:  # a name or a text
        raw[at : at + size] = (
            rng.choice(_TEXTS[:12]).encode("utf-8", "replace") * size
        )[:size]
    else:
        raw[at : at + size] = (value % 256**size).to_bytes(size, "little")
    return bytes(raw)


_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def _gguf_fields(data: bytes) -> list[tuple[int, int]]:
    """Return offset and size of the fields of a GGUF file, as far as it is whole."""
    fields = [(0, 4), (4, 4), (8, 8), (16, 8)]
    at = 24

    def number(size: int) -> int:
        nonlocal at
        fields.append((at, size))
        value = struct.unpack_from("<Q" if size == 8 else "<I", data, at)[0]
        at += size
        return value

    def text() -> None:
        nonlocal at
        size = number(8)
        fields.append((at, min(size, 64)))
        at += size

    try:
        tensors, entries = struct.unpack_from("<QQ", data, 8)
        for _ in range(entries):
            text()
            kind = number(4)
            count = 1
            if kind == 9:
                kind, count = number(4), number(8)
            if kind == 8:
                for _ in range(count):
                    text()
            else:
                fields.append((at, _SCALAR_BYTES[kind]))
                at += count * _SCALAR_BYTES[kind]
        for _ in range(tensors):
            text()
            for _ in range(number(4)):
                number(8)
            number(4)
            number(8)
    except (struct.error, KeyError, OverflowError):
        pass
    return [field for field in fields if sum(field) <= len(data) and field[1]]


def _copied(value: Any) -> Any:
    """Return a copy of a JSON value, which may be nested thousands of levels deep."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        return copy.deepcopy(value)
    finally:
        sys.setrecursionlimit(limit)
