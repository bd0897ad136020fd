"""The fuzzed readers of files, each as a function of a folder that holds an input.

A reader may raise its documented errors only. The command line shows these as one line.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mlx_nibble.bench import capsule, kernels, rates
from mlx_nibble.bench.compare import compare
from mlx_nibble.cli import inspect
from mlx_nibble.cli.bench_compare import _as_json, label
from mlx_nibble.conversion.gguf_import import import_gguf
from mlx_nibble.conversion.packed_import import import_packed, is_packed
from mlx_nibble.conversion.workspace import Workspace
from mlx_nibble.evaluation.inventory import read_inventory
from mlx_nibble.evaluation.memory import by_layer, what_if
from mlx_nibble.io.checkpoint import read_tensors
from mlx_nibble.lm.checked import load_model, load_tokenizer
from mlx_nibble.machine import tuned_table
from mlx_nibble.machine.verdicts import Machine, Verdicts, _verdicts
from tests.fuzz import seeds
from tests.fuzz.mutate import Files

# Imported before the workers are forked, each of which would need seconds for it.
assert AutoTokenizer and PreTrainedTokenizerFast
# A comparison resamples each case, for about 20 ms.
_MOST_CASES = 20
DOCUMENTED = (ValueError, OSError, RuntimeError)


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        seeds: Function that makes whole inputs.
        read: Function of the folder that holds an input.
        errors: Errors that are documented.
        around: Function that makes the files that stay whole.
    """

    seeds: Callable[[], list[Files]]
    read: Callable[[Path], None]
    errors: tuple[type[BaseException], ...] = DOCUMENTED
    around: Callable[[], Files] = dict


def _gguf(folder: Path) -> None:

    try:
        import_gguf(folder / "m.gguf", folder / "out")
    finally:
        shutil.rmtree(folder / "out", ignore_errors=True)


def _safetensors(folder: Path) -> None:

    mx.eval(read_tensors([folder / "model.safetensors"], "load"))


def _inspect(folder: Path) -> None:

    inventory = read_inventory(folder)
    by_layer(inventory)
    json.dumps(inspect._summary(inventory, 4096))
    what_if(inventory, inspect._plan(inventory, "mixed_3_6", gguf=False))


def _model(folder: Path) -> None:

    model, _ = load_model(folder, lazy=True)
    mx.eval(model(mx.array([[1, 2, 3]])))


def _tokenizer(folder: Path) -> None:

    tokenizer = load_tokenizer(folder)
    tokenizer.decode(tokenizer.encode("the hen\n é <|im_end|>"))


def _packed(folder: Path) -> None:

    try:
        if is_packed(folder):
            import_packed(folder, folder / "out")
    finally:
        shutil.rmtree(folder / "out", ignore_errors=True)


def _workspace(folder: Path) -> None:

    state = folder / ".out.nibble"
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir()
    for file in folder.iterdir():
        if file.is_file():
            os.link(file, state / file.name)
    found = Workspace(folder / "out", {"origin": "m"})
    found.load_record("plan")
    for layer in range(2):
        if found.has_part(name := f"layer-{layer:05}"):
            mx.eval(found.load_part(name))


def _cache(folder: Path) -> None:
    """Read the tuned table, then the verdicts on kernels."""
    os.environ["NIBBLE_CACHE_DIR"] = str(folder)
    verdicts = Verdicts(Machine("gpu", "system", "mlx", "nibble"), None)
    places = {"table.json": tuned_table.path(), "verdicts.json": verdicts.path}
    for name, path in places.items():
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        os.link(folder / name, path)
    with warnings.catch_warnings(record=True):
        tuned_table._warned.clear()
        tuned_table.register(tuned_table.load())
    for verdict in _verdicts(verdicts._read()).values():
        f"{verdict.kernel}: {verdict.failure}".encode("utf-8", "backslashreplace")


def _capsule(folder: Path) -> None:

    run = capsule.read(folder / "run.json")
    if len(run["results"]) <= _MOST_CASES:
        json.dumps(_as_json(compare(run, run)))
    for result in run["results"]:
        label(result["case"])
    if run["kind"] != "tune":
        list((rates if run["kind"] == "model" else kernels).rows(run))


def _tokenizer_files() -> list[Files]:
    names = ("tokenizer.json", "tokenizer_config.json")
    return [seeds.only(seeds.imported(), *names)]


def _configs() -> list[Files]:
    """Return the tiny model's configuration, and those of other architectures."""
    return [seeds.only(seeds.imported(), "config.json"), *seeds.families()]


def _weights() -> Files:
    names = ("model.safetensors", "model.safetensors.index.json")
    return seeds.only(seeds.imported(), *names)


TARGETS = {
    "gguf": Target(seeds.gguf, _gguf),
    "safetensors": Target(
        lambda: [seeds.only(seeds.imported(), "model.safetensors")], _safetensors
    ),
    "config": Target(_configs, _inspect, around=_weights),
    "model": Target(_configs, _model, around=_weights),
    "index": Target(seeds.index, _inspect),
    "tokenizer": Target(
        _tokenizer_files,
        _tokenizer,
        around=lambda: seeds.only(seeds.imported(), "config.json"),
    ),
    "packed": Target(seeds.packed, _packed),
    "workspace": Target(seeds.workspace, _workspace),
    "cache": Target(seeds.cache, _cache, errors=()),
    "capsule": Target(seeds.capsules, _capsule),
}
