"""Measures what imports of GGUF types lose of a real model's perplexity.

    python -m bench.gguf_losses MODEL.gguf WORK [TYPE...] [--only attn_output]

Every matrix whose rows consist of blocks of 256 weights gets one type, by llama.cpp's
quantizer; with --only, those with this part in their names. All other tensors stay as
they are, so their types should be exact ones. Each file is imported as options say, and
compared with the file's own values (`--keep values`) on 4 texts of 512 tokens of
Python's documentation. Results are kept in bench/capsules/gguf_losses.json; a type with
a result is not measured again.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np

from bench.ggml import quantizer
from mlx_nibble.conversion.gguf_import import import_gguf
from mlx_nibble.evaluation.calibration_text import BUILT_IN, batches, encode, read_text
from mlx_nibble.evaluation.evaluate import evaluate
from mlx_nibble.io.atomic import write_text
from mlx_nibble.layerwise.cpu_math import fast_dense
from mlx_nibble.lm import load_for_evaluation
from tests.support.gguf_models import Blocks

ROOT = Path(__file__).parents[1]
CAPSULE = ROOT / "bench" / "capsules" / "gguf_losses.json"
PAGE = ROOT / "docs" / "results" / "gguf.md"
BEGIN, END = "<!-- measured: python -m bench.gguf_losses -->", "<!-- /measured -->"
# A type and the types of scales and values in the folder; None is the usual one, in
# which the exact types have no loss.
ROWS = {
    **dict.fromkeys(("Q6_K", "Q3_K", "Q2_K"), (None,)),
    **dict.fromkeys(("Q4_K", "Q5_K", "IQ4_XS"), ("float16", "bfloat16")),
}
SAMPLES, LENGTH = 4, 512
BLOCK = 256


def write(
    reader: gguf.GGUFReader, path: Path, kind: str, blocks: Blocks, only: str
) -> dict[str, int]:
    """Write the model with one type, and return the kinds of matrices that got it."""
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(path, architecture)
    for name, stored in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        sub_type = stored.types[1] if len(stored.types) > 1 else None
        writer.add_key_value(name, stored.contents(), stored.types[0], sub_type)
    changed: dict[str, int] = {}
    for tensor in reader.tensors:
        value, number = tensor.data, tensor.tensor_type
        divides = len(tensor.shape) > 1 and tensor.shape[0] % BLOCK == 0
        if divides and only in tensor.name:
            value = gguf.quants.dequantize(value, number)
            number = gguf.GGMLQuantizationType[kind]
            value = blocks(value, number)
            place = tensor.name.split(".")[-2]
            changed[place] = changed.get(place, 0) + 1
        writer.add_tensor(tensor.name, value, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return changed


def measure(
    source: Path, work: Path, kind: str, blocks: Blocks, only: str
) -> dict[str, Any]:
    """Return the losses of one type, by the type of the folder."""
    file, values = work / f"{kind}.gguf", work / f"{kind}-values"
    for old in work.glob(f"{kind}-*"):
        shutil.rmtree(old)
    changed = write(gguf.GGUFReader(source), file, kind, blocks, only)
    import_gguf(file, values, keep="values")
    model, tokenizer = load_for_evaluation(str(values))
    tokens = batches(encode(tokenizer, read_text(BUILT_IN)), LENGTH, SAMPLES)
    with fast_dense():
        logits = {id(batch): mx.array(np.array(model(batch))) for batch in tokens}
    del model
    found: dict[str, Any] = {}
    for dtype in ROWS[kind]:
        out = work / f"{kind}-{dtype}"
        report = import_gguf(file, out, dtype)
        model, _ = load_for_evaluation(str(out))
        result = asdict(evaluate(model, tokens, lambda batch: logits[id(batch)]))
        result |= {"error": report.kinds[kind].error, "matrices": changed}
        found[str(dtype)] = result
        shutil.rmtree(out)
    shutil.rmtree(values)
    file.unlink()
    return found


def table(results: dict[str, Any]) -> str:
    """Return the table of all results, by model."""
    lines = [
        "| model | matrices | type | `--dtype` | values | perplexity of the file "
        "| change | KL |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, kinds in results.items():
        for kind in (kind for kind in ROWS if kind in kinds):
            for dtype, result in kinds[kind].items():
                comparison = result["comparison"]
                change, kl = comparison["increase"], comparison["kl"]["mean"]
                places = result["matrices"].items()
                cells = [
                    name,
                    ", ".join(f"{count} {place}" for place, count in places),
                    kind,
                    "" if dtype == "None" else dtype,
                    f"{100 * result['error']:.2f} %" if result["error"] else "=",
                    f"{result['reference_perplexity']['mean']:.2f}",
                    f"{100 * change['mean']:+.3f} % ± {100 * change['error']:.3f}",
                    f"{kl:.1e}",
                ]
                lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    return "\n".join(lines)


def stored() -> dict[str, Any]:
    """Return the results so far: model, type, type of the folder."""
    return json.loads(CAPSULE.read_text()) if CAPSULE.exists() else {}


def main() -> None:
    """Parse, measure what is missing, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="a model as a GGUF file")
    parser.add_argument("work", type=Path, help="folder for files of some GB")
    parser.add_argument("types", nargs="*", choices=[[], *ROWS])
    parser.add_argument("--only", default="", help="part of the matrices' names")
    args = parser.parse_args()
    mx.set_default_device(mx.cpu)
    args.work.mkdir(parents=True, exist_ok=True)
    name = f"{args.source.stem} {args.only}".strip()
    blocks = quantizer()
    for kind in args.types or ROWS:
        results = stored()
        if kind not in results.get(name, {}):
            found = {kind: measure(args.source, args.work, kind, blocks, args.only)}
            results[name] = results.get(name, {}) | found
            write_text(CAPSULE, json.dumps(results, indent=1) + "\n")
            print(table({name: found}), flush=True)
    body = re.compile(f"{BEGIN}.*?{END}", re.DOTALL)
    text = f"{BEGIN}\n\n{table(stored())}\n\n{END}"
    write_text(PAGE, body.sub(lambda _: text, PAGE.read_text()))


if __name__ == "__main__":
    main()
