"""Measures what distillation gains, beside mlx_lm.dwq on the same tokens.

    python -m bench.distillation MODEL TEXTS WORK [ROW...] [--bits 4] [--steps 400]

MODEL is a model in full precision, TEXTS a folder of bench.texts. Rows are made in
WORK and evaluated on texts that no step has seen. A row that WORK/results.json has is
not made again, and a killed run continues. It prints a line of JSON for each row. It
runs on a GPU, where there is one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
import numpy as np
from mlx_lm.quant.dwq import dwq_quantize
from mlx_lm.quant.dynamic_quant import estimate_sensitivities, estimate_threshold
from mlx_lm.utils import compute_bits_per_weight, dequantize_model, quantize_model

from mlx_nibble import lm
from mlx_nibble.conversion.calibration import calibration_batches
from mlx_nibble.conversion.convert import convert
from mlx_nibble.conversion.options import OWN_TEXT, Calibration, Options
from mlx_nibble.conversion.source import weights_of
from mlx_nibble.distill.distill import distill
from mlx_nibble.distill.options import Training
from mlx_nibble.evaluation.calibration_text import batches, encode, read_text
from mlx_nibble.evaluation.evaluate import evaluate
from mlx_nibble.evaluation.inventory import read_inventory
from mlx_nibble.io.atomic import write_text
from mlx_nibble.quantize.method import Method

UNSEEN = {"State of the Union": "sotu.txt", "Python docs": "builtin"}
UNSEEN |= {"State of the Union, 1930 to 1969": "sotu-middle.txt"}
SAMPLES, LENGTH = 8, 512
RTN = Method("affine", gptq=False, sweeps=0)
CODES_OF = {"grid": "none", "blocks": "blocks", "codes": "together"}
ROWS = ("rtn", "dwq", "dynamic", "gptq", *CODES_OF, "dwq-gptq")


class Study:
    """The rows of one model."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.work: Path = args.work
        self.work.mkdir(parents=True, exist_ok=True)
        samples = args.samples or args.steps * args.batch_size
        own = args.calibration == OWN_TEXT
        self.text = OWN_TEXT if own else str(args.texts / args.calibration)
        self.calibration = Calibration(self.text, samples, args.length)
        self.references: dict[str, Any] = {}

    def path(self, row: str) -> Path:
        bits = self.args.target_bpw or self.args.bits
        return self.work / f"{row}-{bits}-{Path(self.args.calibration).stem}"

    def options(self, method: Method) -> Options:
        """Return the options of a conversion: GPTQ sees 64 K tokens at most."""
        few = Calibration(self.text, self.args.gptq_samples, self.args.length)
        target = self.args.target_bpw
        return Options(
            bits=self.args.bits, method=method, calibration=few, target_bpw=target
        )

    def start(self, row: str) -> Path:
        """Return the folder of a quantized model, made if it is not there."""
        path = self.path(row)
        if not path.exists():
            method = RTN if row == "rtn" else Method()
            convert(str(self.args.model), path, self.options(method), said)
        return path

    def distilled(self, row: str) -> tuple[nn.Module, dict[str, Any]]:
        training = Training(
            self.args.steps,
            self.args.batch_size,
            CODES_OF[row],
            self.args.learning_rate,
        )
        name = f"{row}-{self.args.steps}-{self.args.learning_rate}"
        path = self.path(name)
        facts: dict[str, Any] = {}
        if not path.exists():
            start, model = str(self.start("gptq")), str(self.args.model)
            made = distill(start, model, path, training, self.calibration, said, tell)
            facts = {"losses": made.losses, "steps": made.steps}
        return loaded(path), facts

    def by_dwq(self, start: str) -> tuple[nn.Module, dict[str, Any]]:
        """Train by mlx-lm's own function, on the same sequences."""
        original, config = lm.load_full_precision(self.args.model)
        digest = weights_of(self.args.model).digest
        found = calibration_batches(
            self.calibration, self.args.model, digest, config, said, False
        )
        rows = [(np.array(b)[0].tolist(), 0) for b in found]
        size = self.args.batch_size
        held = max(size, len(rows) // 16 // size * size)
        train = rows[held:] * -(-self.args.steps * size // (len(rows) - held))
        train = train[: self.args.steps * size]
        if start == "rtn":
            student, _ = lm.load_full_precision(self.args.model)
            student, _ = quantize_model(student, config, 64, self.args.bits)
        else:
            student, _ = lm.load_full_precision(self.start(start), dequantize=False)
        dtype = mx.float32 if lm.on_cpu() else mx.bfloat16  # mlx-lm's own
        for model in (original, student):
            model.set_dtype(dtype)
        if lm.on_cpu():
            lm.prepare(student)

        dwq_quantize(
            student,
            lambda batch, _, split: original(batch),
            optimizers.Adam(learning_rate=self.args.dwq_rate, bias_correction=True),
            train,
            rows[:held],
            batch_size=size,
            max_seq_length=self.args.length + 1,
            seed=123,
            dtype=dtype,
        )
        student.eval()
        return student, {"tokens": len(train) * self.args.length}

    def by_dynamic_quant(self) -> tuple[nn.Module, dict[str, Any]]:
        """Spend bits by mlx-lm's own functions: 4 or 5 bits, as its defaults are."""
        model, config = lm.load_full_precision(self.args.model)
        few = replace(self.calibration, samples=self.args.gptq_samples)
        digest = weights_of(self.args.model).digest
        found = calibration_batches(few, self.args.model, digest, config, said, False)
        model.set_dtype(mx.float32)
        formats = (self.args.bits, 64, self.args.bits + 1, 64)
        data = mx.concatenate(found)
        sensitivities = dict(estimate_sensitivities(model, data, *formats))
        target = self.args.target_bpw or self.args.bits + 1
        threshold = estimate_threshold(model, sensitivities, target, *formats)

        def predicate(path: str, module: nn.Module) -> bool | dict[str, int]:
            if not hasattr(module, "to_quantized"):
                return False
            if sensitivities[path] > threshold:
                return {"bits": formats[2], "group_size": formats[3]}
            return True

        model.set_dtype(mx.float16)
        model, _ = quantize_model(
            model, config, 64, self.args.bits, quant_predicate=predicate
        )
        bits = compute_bits_per_weight(model)
        return dequantized(model), {"bits_per_weight": bits}

    def make(self, row: str) -> tuple[nn.Module, dict[str, Any]]:
        if row == "dynamic":
            return self.by_dynamic_quant()
        if row.startswith("dwq"):
            return self.by_dwq(row.partition("-")[2] or "rtn")
        if row in CODES_OF:
            return self.distilled(row)
        return loaded(self.start(row)), {}

    def bits(self, row: str) -> float:
        """Return the bits a weight of a row: training changes no size."""
        start = "rtn" if row in ("rtn", "dwq") else "gptq"
        return read_inventory(self.start(start)).bits_per_weight

    def evaluation(self, model: nn.Module) -> dict[str, Any]:
        result = {}
        for label, name in UNSEEN.items():
            if label not in self.references:
                self.references[label] = self._reference(name)
            tokens, logits = self.references[label]
            found = evaluate(model, tokens, lambda b, known=logits: known[id(b)])
            result[label] = asdict(found)
        return result

    def _reference(self, name: str) -> tuple[list[mx.array], dict[int, mx.array]]:
        model = loaded(self.args.model)
        _, config = lm.load_full_precision(self.args.model)
        tokenizer = lm.load_tokenizer(self.args.model, config)
        source = name if name == "builtin" else str(self.args.texts / name)
        tokens = batches(encode(tokenizer, read_text(source)), LENGTH, SAMPLES)
        logits = {id(b): model(b) for b in tokens}
        mx.eval(logits)
        return tokens, logits


def loaded(path: Path) -> nn.Module:
    """Return a model that computes in float32, dequantized."""
    model, _ = lm.load_full_precision(path)
    model.set_dtype(mx.float32)
    return model


def dequantized(model: nn.Module) -> nn.Module:
    """Return a quantized model in float32."""
    model = dequantize_model(model)
    model.set_dtype(mx.float32)
    return model


def said(what: str, done: float, total: float) -> None:
    """Print a line at each tenth of a step."""
    if total >= 1 and done % max(1, total // 10) == 0:
        print(f"{time.strftime('%X')} {what} {done:.0f}/{total:.0f}", flush=True)


def tell(fact: str) -> None:
    print(f"{time.strftime('%X')} {fact}", flush=True)


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.perf_counter()
    return run(), time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser()
    add = parser.add_argument
    add("model", type=Path)
    add("texts", type=Path)
    add("work", type=Path)
    add("rows", nargs="*", choices=[[], *ROWS])
    add("--bits", type=int, default=4)
    add("--target-bpw", type=float)
    add("--calibration", default=OWN_TEXT, help="a file of TEXTS, or self (default)")
    add("--steps", type=int, default=400)
    add("--batch-size", type=int, default=8)
    add("--samples", type=int, help="sequences; default: those of all steps")
    add("--length", type=int, default=512)
    add("--learning-rate", type=float, help="default: that of nibble distill")
    add("--dwq-rate", type=float, default=1e-6, help="default: mlx-lm's")
    add("--gptq-samples", type=int, default=64)
    args = parser.parse_args()
    study = Study(args)
    kept = args.work / "results.json"
    results = json.loads(kept.read_text()) if kept.exists() else {}
    options = {k: v for k, v in vars(args).items() if isinstance(v, int | float)}
    options["calibration"] = args.calibration
    for row in args.rows or ROWS:
        key = f"{row} {json.dumps(options, sort_keys=True)}"
        if key not in results:
            (model, facts), seconds = timed(lambda row=row: study.make(row))
            peak = mx.get_peak_memory()
            results[key] = {
                "row": row,
                "options": options,
                "device": str(mx.default_device()),
                "seconds": seconds,
                "peak_bytes": peak,
                "bits_per_weight": facts.pop("bits_per_weight", None)
                or study.bits(row),
                **facts,
                "texts": study.evaluation(model),
            }
            write_text(kept, json.dumps(results, indent=1))
        summary = {
            label: [
                round(100 * found["comparison"]["increase"][k], 2)
                for k in ("mean", "error")
            ]
            for label, found in results[key]["texts"].items()
        }
        print(json.dumps({"row": row, **options, "increase": summary}), flush=True)


if __name__ == "__main__":
    main()
