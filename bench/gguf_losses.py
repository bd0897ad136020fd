"""Measures what imports of GGUF types lose of a real model's perplexity.

    python -m bench.gguf_losses SmolLM2-135M-Instruct.Q4_1.gguf WORK [TYPE...]

Rows of SmolLM2's matrices have 576 weights, which blocks of 256 do not divide. So the
model is padded with zeros to a width of 768 and 12 heads, and its norms are scaled: it
computes the same function. Every matrix then gets one type, by llama.cpp's quantizer.
Each file is imported as options say, and compared with the file's own values
(`--keep values`) on 4 texts of 512 tokens of Python's documentation. Results are kept
in bench/capsules/gguf_losses.json; a type with a result is not measured again.
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
    **dict.fromkeys(("Q4_K", "Q5_K", "IQ4_XS"), (None, "float16", "bfloat16")),
}
SAMPLES, LENGTH = 4, 512
# SmolLM2's sizes, and multiples of 256 that hold them.
SIZES = {576: 768, 192: 256}
HEADS = {"head_count": 12, "head_count_kv": 4, "embedding_length": 768}
KEPT = 576 / 768


def padded(value: np.ndarray) -> np.ndarray:
    """Return a tensor with zeros up to the larger sizes; a norm is scaled, too."""
    if value.ndim == 1:
        value = value * np.float32(np.sqrt(KEPT))
    more = [(0, SIZES.get(size, size) - size) for size in value.shape]
    return np.pad(value, more)


def write(source: Path, path: Path, kind: str, blocks: Blocks) -> None:
    """Write the padded model with all matrices in one type."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, "llama")
    for name, stored in reader.fields.items():
        value, last = stored.contents(), name.rpartition(".")[2]
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        if last == "layer_norm_rms_epsilon":
            value *= KEPT
        sub_type = stored.types[1] if len(stored.types) > 1 else None
        value = HEADS.get(last, value)
        writer.add_key_value(name, value, stored.types[0], sub_type)
    for tensor in reader.tensors:
        value = padded(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        number = gguf.GGMLQuantizationType[kind if value.ndim > 1 else "F32"]
        writer.add_tensor(tensor.name, blocks(value, number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def measure(source: Path, work: Path, kind: str, blocks: Blocks) -> dict[str, Any]:
    """Return the losses of one type, by the type of the folder."""
    file, values = work / f"{kind}.gguf", work / f"{kind}-values"
    for old in work.glob(f"{kind}-*"):
        shutil.rmtree(old)
    write(source, file, kind, blocks)
    import_gguf(file, values, keep="values")
    model, tokenizer = load_for_evaluation(str(values))
    tokens = batches(encode(tokenizer, read_text(BUILT_IN)), LENGTH, SAMPLES)
    with fast_dense():
        logits = {id(batch): mx.array(np.array(model(batch))) for batch in tokens}
    found: dict[str, Any] = {}
    for dtype in ROWS[kind]:
        out = work / f"{kind}-{dtype}"
        report = import_gguf(file, out, dtype)
        model, _ = load_for_evaluation(str(out))
        result = asdict(evaluate(model, tokens, lambda batch: logits[id(batch)]))
        bits = report.bits_per_weight
        result |= {"error": report.kinds[kind].error, "bits_per_weight": bits}
        found[str(dtype)] = result
        shutil.rmtree(out)
    shutil.rmtree(values)
    file.unlink()
    return found


def table(results: dict[str, Any]) -> str:
    """Return the table of all results."""
    lines = [
        "| type | `--dtype` | values | perplexity of the file | change | KL |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for kind in (kind for kind in ROWS if kind in results):
        for dtype, result in results[kind].items():
            comparison = result["comparison"]
            change, kl = comparison["increase"], comparison["kl"]["mean"]
            cells = [
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
    """Return the results so far."""
    return json.loads(CAPSULE.read_text()) if CAPSULE.exists() else {}


def main() -> None:
    """Parse, measure what is missing, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="SmolLM2 as a GGUF file")
    parser.add_argument("work", type=Path, help="folder for files of 1 GB")
    parser.add_argument("types", nargs="*", choices=[[], *ROWS])
    args = parser.parse_args()
    mx.set_default_device(mx.cpu)
    args.work.mkdir(parents=True, exist_ok=True)
    blocks = quantizer()
    for kind in args.types or ROWS:
        if kind not in stored():
            found = {kind: measure(args.source, args.work, kind, blocks)}
            write_text(CAPSULE, json.dumps(stored() | found, indent=1) + "\n")
            print(table(found), flush=True)
    body = re.compile(f"{BEGIN}.*?{END}", re.DOTALL)
    text = f"{BEGIN}\n\n{table(stored())}\n\n{END}"
    write_text(PAGE, body.sub(lambda _: text, PAGE.read_text()))


if __name__ == "__main__":
    main()
