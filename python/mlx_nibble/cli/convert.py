"""``nibble convert``: import a GGUF file, or quantize a model."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mlx_nibble.cli.console import byte_progress, err, out, step_progress
from mlx_nibble.cli.models import hub_errors, require_model
from mlx_nibble.conversion.gguf_import import import_gguf
from mlx_nibble.conversion.packed_import import import_packed, is_packed
from mlx_nibble.formats import BITS, GROUP_SIZES, SCALE_DTYPES
from mlx_nibble.quantize.method import Method
from mlx_nibble.quantize.recipes import RECIPES

METHODS = {
    "rtn": Method("affine", gptq=False, sweeps=0),
    "search": Method("search", gptq=False, sweeps=0),
    "awq": Method(awq=True, gptq=False, sweeps=0),
    "gptq": Method(),
    "awq+gptq": Method(awq=True),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nibble convert",
        description="Import a GGUF file (llama architecture; Q4_0, Q4_1, Q8_0, F16, "
        "BF16, F32 tensors) as a folder that mlx-lm loads: quantized tensors keep "
        "their codes and scales, nothing is lost. Likewise an AutoAWQ, GPTQ or "
        "compressed-tensors folder. With -q, quantize any model that "
        "mlx-lm loads; a run that was killed goes on when it is started again.",
    )
    add = parser.add_argument
    add("source", nargs="?", metavar="SOURCE", help="GGUF, model folder or Hub name")
    add("out", nargs="?", metavar="OUT", help="folder to make (default: mlx_model)")
    add("--hf-path", "--model", metavar="SOURCE", help="mlx-lm's name for SOURCE")
    add("--mlx-path", metavar="OUT", help="mlx-lm's name for OUT")
    add(
        "--dtype",
        choices=SCALE_DTYPES,
        help="round scales, offsets and all that is not quantized to this type "
        "(default: the smallest that holds them exactly, or the model's)",
    )
    add("--json", action="store_true", help="print the result for machines")
    how = parser.add_argument_group("quantizing")
    add = how.add_argument
    add("-q", "--quantize", action="store_true", help="quantize")
    add("--q-bits", type=int, choices=BITS, default=4, help="default: 4")
    add("--q-group-size", type=int, choices=GROUP_SIZES, default=64, help="default: 64")
    add(
        "--method",
        choices=METHODS,
        default="gptq",
        help="rtn: mlx-lm's rounding, bit for bit; search: the best grid of each "
        "group; awq: scaled inputs and clipping, on calibration text; gptq: on "
        "calibration text, with search and coordinate descent (default); awq+gptq: "
        "both",
    )
    add(
        "--recipe",
        "--quant-predicate",
        choices=RECIPES,
        default="uniform",
        help="which matrices get how many bits (default: uniform)",
    )
    add(
        "--target-bpw",
        type=float,
        metavar="B",
        help="bits a weight at most, everything counted, spent where a measurement on "
        "the calibration text says they matter; --q-bits is then not used",
    )
    add(
        "--plot",
        metavar="FILE",
        help="with --target-bpw: draw what each matrix loses in 4 bits (.png, .svg)",
    )
    add("--symmetric", action="store_true", help="scale-only weights")
    add(
        "--calibration",
        default="builtin",
        metavar="TEXT",
        help="a text, .jsonl or .parquet file, hub:OWNER/DATASET/PATH, or builtin: "
        "Python's own documentation (default)",
    )
    add("--samples", type=int, default=64, help="calibration sequences; default: 64")
    add("--sequence-length", type=int, default=256, help="their tokens; default: 256")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Parse, convert, print what was written."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if (args.source is None) == (args.hf_path is None):
        parser.error("name one GGUF file, model folder or Hub repository")
    if args.out is not None and args.mlx_path is not None:
        parser.error("name one output folder")
    source = args.source or args.hf_path
    folder = args.out or args.mlx_path or "mlx_model"
    if args.plot is not None and args.target_bpw is None:
        parser.error("--plot needs --target-bpw, which measures the matrices")
    if args.quantize:
        _quantize(args, source, folder)
    elif source.endswith(".gguf") or Path(source).is_file():
        _import(args, source, folder)
    elif is_packed(Path(source)):
        _import_packed(args, source, folder)
    else:
        require_model("convert", "SOURCE", source)
        parser.error(
            f"{source} is no GGUF file, and no AWQ, GPTQ or compressed-tensors folder: "
            "say -q to quantize it"
        )


def _import(args: argparse.Namespace, source: str, folder: str) -> None:
    with byte_progress("Converting") as progress:
        report = import_gguf(source, folder, args.dtype, progress)
    if args.json:
        _print_json(report.path, report.parameters, report.nbytes, report.bits)
        return
    widths = ", ".join(f"{n} of {bits} bits" for bits, n in report.bits.items())
    out.print(
        f"{report.path}: {report.parameters / 1e6:.1f} M weights, "
        f"{report.nbytes / 1e6:.1f} MB, {report.bits_per_weight:.2f} bits a weight; "
        f"quantized matrices: {widths or 'none'}; the rest in {report.dtype}",
        soft_wrap=True,
    )


def _import_packed(args: argparse.Namespace, source: str, folder: str) -> None:
    with step_progress() as progress:
        report = import_packed(Path(source), Path(folder), progress)
    if args.json:
        _print_json(report.path, report.parameters, report.nbytes, report.bits)
        return
    widths = ", ".join(f"{n} of {bits} bits" for bits, n in report.bits.items())
    out.print(
        f"{report.path}: {report.parameters / 1e6:.1f} M weights, "
        f"{report.nbytes / 1e6:.1f} MB; quantized matrices: {widths}; of act-order: "
        f"{report.permuted} permuted, {report.rounded_again} rounded again to 8 bits",
        soft_wrap=True,
    )


def _quantize(args: argparse.Namespace, source: str, folder: str) -> None:
    from mlx_nibble.conversion.convert import convert
    from mlx_nibble.conversion.options import Calibration, Options
    from mlx_nibble.evaluation import plot

    picture = None if args.plot is None else plot.require_picture(args.plot)
    options = Options(
        bits=args.q_bits,
        group_size=args.q_group_size,
        recipe=args.recipe,
        target_bpw=args.target_bpw,
        method=METHODS[args.method],
        calibration=Calibration(args.calibration, args.samples, args.sequence_length),
        symmetric=args.symmetric,
        dtype=args.dtype,
    )
    with tempfile.TemporaryDirectory() as temporary, step_progress() as progress:
        if source.endswith(".gguf"):
            err.print(f"Importing {source}")
            imported = Path(temporary) / "model"
            import_gguf(source, imported)
            report = convert(str(imported), folder, options, progress, source)
        else:
            require_model("convert", "SOURCE", source)
            with hub_errors("convert"):
                report = convert(source, folder, options, progress)
    if picture is not None:
        plot.sensitivity(report.losses, picture)
    widths = Counter(form.bits for form in report.plan.values())
    if args.json:
        _print_json(report.path, report.parameters, report.nbytes, widths)
        return
    stated = ", ".join(f"{n} of {bits} bits" for bits, n in sorted(widths.items()))
    out.print(
        f"{report.path}: {report.parameters / 1e6:.1f} M weights, "
        f"{report.nbytes / 1e6:.1f} MB, {report.bits_per_weight:.3f} bits a weight; "
        f"quantized matrices: {stated}",
        soft_wrap=True,
    )


def _print_json(path: Path, parameters: int, nbytes: int, bits: dict[int, int]) -> None:
    print(
        json.dumps(
            {
                "path": str(path),
                "parameters": parameters,
                "nbytes": nbytes,
                "bits_per_weight": 8 * nbytes / parameters,
                "matrices_by_bits": bits,
            }
        )
    )
